import io
import json
import re
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from heedful.export.bart import FAMILIES
from heedful.export.checkpoint import Checkpoint
from heedful.export.tokenizers import build_tokenizers
from heedful.models.seq2seq import Seq2Seq
from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.device import choose_device
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.errors import CheckpointError, InputError
from heedful.runtime.text.model import TextModel

ENGLISH = [line.strip() for text in topics.topics.values() for line in text.splitlines() if line.strip()][:500]
PORTUGUESE = [
    "O coração da cidade bate às três horas da manhã.",
    "Não há ninguém à espera do autocarro, disse a avó.",
    "Amanhã de manhã vou à praça comprar pão e maçãs.",
    "A lição de português começa depois do almoço.",
    "São vinte e cinco euros, por favor, senhor Gonçalves.",
    "Água mole em pedra dura, tanto bate até que fura.",
]
SENTENCES = [*ENGLISH[20:60], *PORTUGUESE, "naïve “quotes” — and € 1,50", "x <= y & z[0]"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

FAIRSEQ = {"unk_id": 0, "bos_id": 1, "eos_id": 2}
GOOGLE = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
# The file of SentencePiece and how it is trained.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mbart": ("sentencepiece.bpe.model", FAIRSEQ),
    "mbart50": ("sentencepiece.bpe.model", FAIRSEQ),
    "nllb": ("sentencepiece.bpe.model", FAIRSEQ | {"model_type": "bpe"}),
    "t5": ("spiece.model", GOOGLE),
    "pegasus": ("spiece.model", GOOGLE),
    "m2m_100": ("sentencepiece.bpe.model", FAIRSEQ | {"model_type": "bpe"}),
}
ORIGINALS: dict[str, Any] = {
    "mbart": transformers.MBartTokenizer,
    "mbart50": transformers.MBart50Tokenizer,
    "nllb": transformers.NllbTokenizer,
    "t5": transformers.T5Tokenizer,
    "pegasus": transformers.PegasusTokenizer,
    "m2m_100": transformers.M2M100Tokenizer,
    "marian": transformers.MarianTokenizer,
    "bart": transformers.BartTokenizer,
}
# How many tokens the published tokenizers have, and the ids of special ones.
PUBLISHED: dict[str, tuple[int, dict[str, int]]] = {
    "mbart": (250_027, {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "en_XX": 250_004, "<mask>": 250_026}),
    "mbart50": (250_054, {"</s>": 2, "en_XX": 250_004, "ro_RO": 250_020, "<mask>": 250_053}),
    "nllb": (256_204, {"</s>": 2, "ace_Arab": 256_001, "eng_Latn": 256_047, "fra_Latn": 256_057, "<mask>": 256_203}),
    "t5": (32_100, {"<pad>": 0, "</s>": 1, "<unk>": 2, "<extra_id_99>": 32_000, "<extra_id_0>": 32_099}),
    "pegasus": (96_103, {"<pad>": 0, "</s>": 1, "<mask_1>": 2, "<mask_2>": 3, "<unk_2>": 4, "<unk>": 105}),
    "m2m_100": (128_104, {"</s>": 2, "__af__": 128_004, "__en__": 128_022, "__fr__": 128_028, "__zu__": 128_103}),
}

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")


def train(path: Path, lines: Iterable[str] = (*ENGLISH, *PORTUGUESE * 40), **options: Any) -> list[str]:
    """The pieces of the model written to `path`."""
    written = io.BytesIO()
    chosen: dict[str, Any] = {
        "sentence_iterator": iter(lines),
        "model_writer": written,
        "vocab_size": 400,
        "hard_vocab_limit": options.get("model_type") == "bpe",
        "minloglevel": 2,
    }
    SentencePieceTrainer.train(**(chosen | options))
    path.write_bytes(written.getvalue())
    package = SentencePieceProcessor(model_file=str(path))
    return [package.id_to_piece(i) for i in range(package.get_piece_size())]


def write_vocabulary(path: Path, names: Iterable[str]) -> None:
    path.write_text(json.dumps({name: i for i, name in enumerate(names)}))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def special_names(tokenizer: Tokenizer) -> set[str]:
    return {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}


def check_special(tokenizer: Tokenizer) -> None:
    """Special tokens are left out of a decoded text, and come of no text."""
    names = special_names(tokenizer)
    ids = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert {"</s>", "<unk>", "<pad>"} <= names
    assert tokenizer.decode([*ids, *encode(tokenizer, "a word"), *ids]) == "a word"
    unknown = {tokenizer.token_to_id("<unk>")}
    for name in names:
        assert not (ids - unknown) & {*encode(tokenizer, name), *encode(tokenizer, f"a {name} b{name}")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of each family, in a folder of its name."""
    root = tmp_path_factory.mktemp("checkpoints")
    for family in ORIGINALS:
        (root / family).mkdir()
    pieces = {family: train(root / family / file, **options) for family, (file, options) in MODELS.items()}
    write_vocabulary(root / "m2m_100" / "vocab.json", [*SPECIAL[:4], *pieces["m2m_100"][3:]])
    source = train(root / "marian" / "source.spm", ENGLISH)
    target = train(root / "marian" / "target.spm", PORTUGUESE * 40, vocab_size=150)
    both = sorted({*source[3:], *target[3:]})
    write_vocabulary(root / "marian" / "vocab.json", ["</s>", "<unk>", *both, ">>fra<<", ">>por<<", "<pad>"])
    byte_level = ByteLevelBPETokenizer()
    byte_level.train_from_iterator(ENGLISH, vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    byte_level.save_model(str(root / "bart"))
    return root


@pytest.fixture(scope="module")
def original(folders: Path) -> Callable[[str], Any]:
    """Gives the tokenizer that transformers makes of the files of a family."""
    return cache(lambda family: ORIGINALS[family].from_pretrained(folders / family))


@pytest.fixture(scope="module")
def marian(folders: Path) -> tuple[Tokenizer, Tokenizer]:
    return build_tokenizers(folders / "marian", "marian")


@pytest.mark.parametrize("family", ORIGINALS)
def test_ids_and_text_are_those_of_transformers(family: str, folders: Path, original: Callable[[str], Any]) -> None:
    source, target = build_tokenizers(folders / family, family)
    expected = original(family)
    for text in SENTENCES:
        ids = expected(text, add_special_tokens=False).input_ids
        assert encode(source, text) == ids
        assert target.decode(ids) == expected.decode(ids, skip_special_tokens=True).strip()
    assert (source is target) == (family != "marian")


@pytest.mark.parametrize("family", ORIGINALS)
def test_special_tokens_are_no_text(family: str, folders: Path) -> None:
    for tokenizer in build_tokenizers(folders / family, family):
        check_special(tokenizer)


@pytest.mark.parametrize("family", PUBLISHED)
def test_special_tokens_have_the_ids_of_the_published_models(family: str, folders: Path) -> None:
    """Those after the pieces come as much sooner as there are fewer pieces."""
    source, _ = build_tokenizers(folders / family, family)
    count, ids = PUBLISHED[family]
    fewer = count - source.get_vocab_size()
    assert {name: source.token_to_id(name) for name in ids} == {
        name: i if i < 200 else i - fewer for name, i in ids.items()
    }
    assert ids.keys() <= special_names(source)


@pytest.mark.parametrize("family", ["mbart", "mbart50", "nllb", "t5", "pegasus", "bart"])
def test_a_tokenizer_json_is_used(family: str, original: Callable[[str], Any], tmp_path: Path) -> None:
    """And no text is cut off or filled up, whatever the file says."""
    expected = original(family)
    expected.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(path))
    source, target = build_tokenizers(tmp_path, family)
    assert source is target
    for text in SENTENCES:
        ids = expected(text, add_special_tokens=False).input_ids
        assert encode(source, text) == ids
        assert source.decode(ids) == expected.decode(ids, skip_special_tokens=True)
    check_special(source)


def opened(folder: Path, kind: str) -> TextModel:
    """What the runtime knows of a bundle of the checkpoint in `folder`, without its graphs."""
    config = {"model_type": kind, "eos_token_id": 0, "decoder_start_token_id": 1, "d_model": 8, "vocab_size": 99}
    config |= {"max_position_embeddings": 64, "activation_function": "relu"}
    config |= {
        f"{side}_{size}": 2 for side in ("encoder", "decoder") for size in ("layers", "attention_heads", "ffn_dim")
    }
    checkpoint = Checkpoint(folder, "made up", "huggingface", config, {}, {}, {}, folder / "tokenizer.json", None)
    family = next(each for each in FAMILIES if each.name == kind)
    tokenizers = family.tokenizers(checkpoint)
    for name, tokenizer in tokenizers.items():
        tokenizer.save(str(folder / name))
    text = family.describe(checkpoint, Seq2Seq(family.configure(config, True)), tokenizers)
    shape = {"layers": 2, "heads": 2, "head_dim": 4, "frames": 0, "positions": 64, "vocabulary": 99, "dtype": "float32"}
    manifest = {
        "family": family.name,
        "precision": "fp32",
        "decoder": shape | {"cache": {}},
        "files": dict.fromkeys(tokenizers),
        "text": text,
    }
    return TextModel(Sessions(Bundle(folder, manifest), choose_device("cpu")))


def test_a_target_language_that_a_model_cannot_be_told(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "pegasus", tmp_path, dirs_exist_ok=True)
    model = opened(tmp_path, "pegasus")
    assert model.framing(*model.languages_for("en", None)).before == []
    with pytest.raises(InputError, match="cannot be told to write 'de': leave target out"):
        model.languages_for("en", "de")


@pytest.mark.parametrize("family", ORIGINALS)
def test_a_saved_tokenizer_is_the_same(family: str, folders: Path, tmp_path: Path) -> None:
    for tokenizer in build_tokenizers(folders / family, family):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        loaded.encode_special_tokens = True
        for text in (*SENTENCES, *special_names(tokenizer)):
            ids = encode(tokenizer, text)
            assert encode(loaded, text) == ids
            assert loaded.decode(ids) == tokenizer.decode(ids)


class TestMarian:
    def test_the_target_is_cut_by_its_own_model(
        self, marian: tuple[Tokenizer, Tokenizer], original: Callable[[str], Any]
    ) -> None:
        _, target = marian
        for text in SENTENCES:
            *ids, end = original("marian")(text_target=text).input_ids
            assert encode(target, text) == ids
            assert end == target.token_to_id("</s>")
        assert encode(target, PORTUGUESE[0]) != encode(marian[0], PORTUGUESE[0])

    @given(text=st.lists(st.sampled_from([*"aeãçõ .,€ψ", "oT", "ção", "São", "não"]), max_size=12).map("".join))
    def test_any_text_is_cut_as_by_transformers(
        self, marian: tuple[Tokenizer, Tokenizer], original: Callable[[str], Any], text: str
    ) -> None:
        """Much of it of letters that one of the languages has no piece for, and the other has."""
        source, target = marian
        assert [*encode(source, text), 0] == original("marian")(text).input_ids
        assert [*encode(target, text), 0] == original("marian")(text_target=text).input_ids

    @pytest.mark.parametrize("settings", [{}, {"source_lang": "eng", "target_lang": "mul"}])
    def test_the_target_language_is_named_before_the_text(
        self, folders: Path, original: Callable[[str], Any], tmp_path: Path, settings: dict[str, str]
    ) -> None:
        shutil.copytree(folders / "marian", tmp_path, dirs_exist_ok=True)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        model = opened(tmp_path, "marian")
        for target in ("fra", "por"):
            framing = model.framing(*model.languages_for("en", target))
            for text in SENTENCES:
                assert framing.source(model.tokens.encode(text)) == original("marian")(f">>{target}<< {text}").input_ids
        for other, problem in (
            (None, "needs to know the target language: give one of"),
            ("de", "'de': this model knows"),
        ):
            with pytest.raises(InputError, match=f"{problem} fra, por"):
                model.framing(*model.languages_for(None, other))

    def test_every_id_decodes(self, marian: tuple[Tokenizer, Tokenizer], folders: Path) -> None:
        names = list(json.loads((folders / "marian" / "vocab.json").read_text()))
        for tokenizer in marian:
            special = special_names(tokenizer)
            assert special == {"</s>", "<unk>", "<pad>", ">>fra<<", ">>por<<"}
            for i, name in enumerate(names):
                assert tokenizer.decode([i]) == ("" if name in special else name.replace("▁", " ").lstrip())

    def test_each_side_can_have_its_own_ids(self, folders: Path, tmp_path: Path) -> None:
        shutil.copytree(folders / "marian", tmp_path, dirs_exist_ok=True)
        names = list(json.loads((tmp_path / "vocab.json").read_text()))
        write_vocabulary(tmp_path / "target_vocab.json", reversed(names))
        source, target = build_tokenizers(tmp_path, "marian")
        before, after = build_tokenizers(folders / "marian", "marian")
        for text in PORTUGUESE:
            assert encode(source, text) == encode(before, text)
            assert encode(target, text) == [len(names) - 1 - i for i in encode(after, text)]


def test_m2m_100_can_have_the_languages_of_wmt_21(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "m2m_100", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"language_codes": "wmt21"}))
    expected = transformers.M2M100Tokenizer.from_pretrained(tmp_path)
    source, _ = build_tokenizers(tmp_path, "m2m_100")
    languages = {f"__{code}__": expected.get_lang_id(code) for code in ("en", "ha", "is", "ja", "cs", "ru", "zh", "de")}
    assert {name: source.token_to_id(name) for name in languages} == languages
    assert source.token_to_id("__pt__") is None


class TestStudent:
    def test_has_one_vocabulary(self, student_en_pt: Path) -> None:
        (path,) = student_en_pt.glob("*vocab*.spm")
        source, target = build_tokenizers(student_en_pt, "student")
        package = SentencePieceProcessor(model_file=str(path))
        assert source is target
        assert (
            (source.token_to_id("</s>"), source.token_to_id("<unk>")) == (package.eos_id(), package.unk_id()) == (0, 1)
        )
        for text in (*ENGLISH[:100], *PORTUGUESE):
            ids = package.encode(text)
            assert encode(source, text) == ids
            assert source.decode(ids) == package.decode([i for i in ids if i != package.unk_id()])

    def test_or_one_for_each_language(self, tmp_path: Path) -> None:
        train(tmp_path / "srcvocab.enpt.spm", ENGLISH)
        train(tmp_path / "trgvocab.enpt.spm", PORTUGUESE * 40, vocab_size=150)
        tokenizers = build_tokenizers(tmp_path, "student")
        for tokenizer, name in zip(tokenizers, ("srcvocab", "trgvocab"), strict=True):
            package = SentencePieceProcessor(model_file=str(tmp_path / f"{name}.enpt.spm"))
            for text in SENTENCES:
                assert encode(tokenizer, text) == package.encode(text)

    @pytest.mark.parametrize(
        "names", [(), ("vocab.de.spm", "vocab.en.spm"), ("vocab.1.spm", "vocab.2.spm", "vocab.3.spm")]
    )
    def test_but_no_others(self, names: tuple[str, ...], tmp_path: Path) -> None:
        for name in names:
            (tmp_path / name).touch()
        found = ", ".join(names) or "none"
        with pytest.raises(CheckpointError, match=f"one srcvocab.*; it has {re.escape(found)}$"):
            build_tokenizers(tmp_path, "student")


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'whisper': use one of student, marian, m2m_100"):
        build_tokenizers(tmp_path, "whisper")


@pytest.mark.parametrize(
    ("family", "file"),
    [
        *((family, file) for family, (file, _) in MODELS.items()),
        ("m2m_100", "vocab.json"),
        *(("marian", file) for file in ("source.spm", "target.spm", "vocab.json")),
        *(("bart", file) for file in ("vocab.json", "merges.txt")),
    ],
)
@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_a_missing_or_broken_file_is_named(
    family: str, file: str, content: bytes | None, folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / family, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / file))):
        build_tokenizers(tmp_path, family)


@pytest.mark.parametrize("ids", [{"a": 0, "b": 2}, {"a": 1, "b": 2}, {"a": 0, "b": 0}, {"a": 0, "b": "1"}])
def test_ids_must_have_no_gaps(ids: dict[str, Any], folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "marian", tmp_path, dirs_exist_ok=True)
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(CheckpointError, match=re.escape("vocab.json does not number its tokens 0, 1, 2")):
        build_tokenizers(tmp_path, "marian")


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_broken_tokenizer_json_is_refused(family: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'tokenizer.json'} is not a tokenizer")):
        build_tokenizers(tmp_path, family)


def test_a_tokenizer_of_another_family_is_refused(folders: Path, tmp_path: Path) -> None:
    shutil.copy(folders / "mbart" / "sentencepiece.bpe.model", tmp_path / "spiece.model")
    with pytest.raises(CheckpointError, match=re.escape("spiece.model")):
        build_tokenizers(tmp_path, "pegasus")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "vocab.spm", eos_id=-1)
    with pytest.raises(CheckpointError, match=re.escape("has no </s>, with which student models end a text")):
        build_tokenizers(tmp_path, "student")
