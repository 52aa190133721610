"""Tokenizers of models that write only, found by their files, beside transformers with the same files."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from heedful.export.tokenizers import find_tokenizer
from heedful.models.filterbank import mel_filterbank
from heedful.runtime.errors import CheckpointError

hf: Any = transformers

LINES = [
    "A dog sits on the red mat in the big blue room, and it's asleep.",
    "Two small cats are playing with a ball; a man looks at them.",
    "O coração da cidade bate às três horas da manhã.",
    "São vinte e cinco euros, por favor, senhor Gonçalves!",
]
WORDS = sorted({word.strip(",.;!").lower() for line in LINES for word in line.split()})
LETTERS = sorted({*"".join(LINES), *"0123456789@#[]()<>|-_/'\"?:"} - {" "})


def bert(folder: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = [*special, *LETTERS, *WORDS, *(f"##{letter}" for letter in LETTERS), "##ing", "猫"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(names)) + "\n", encoding="utf-8")


def cased_bert(folder: Path) -> None:
    bert(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))


def accented_bert(folder: Path) -> None:
    bert(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "strip_accents": False}))


def blip(folder: Path) -> None:
    """All in one file, which says that texts be cut off and filled up, and a token of its own."""
    bert(folder)
    tokenizer = hf.BertTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.save_pretrained(folder)
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole.enable_truncation(3)
    whole.enable_padding(length=9)
    whole.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("not read")


def byte_level(*special: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(LINES, vocab_size=350, special_tokens=list(special), show_progress=False)
        tokenizer.save_model(str(folder))

    return write


def xlm_roberta(folder: Path) -> None:
    written = io.BytesIO()
    options: dict[str, Any] = {"vocab_size": 90, "hard_vocab_limit": False, "minloglevel": 2}
    options |= {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(LINES * 20), model_writer=written, **options)
    (folder / "sentencepiece.bpe.model").write_bytes(written.getvalue())


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# what writes the files, the class in transformers, and its special tokens
KINDS: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "bert": (bert, "BertTokenizer", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")),
    "bert, cased": (cased_bert, "BertTokenizer", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")),
    "bert, accented": (accented_bert, "BertTokenizer", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")),
    "blip": (blip, "BertTokenizer", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")),
    "gpt2": (byte_level("<|endoftext|>"), "GPT2Tokenizer", ("<|endoftext|>",)),
    "roberta": (byte_level(*ROBERTA), "RobertaTokenizer", ROBERTA),
    "xlm-roberta": (xlm_roberta, "XLMRobertaTokenizer", ROBERTA),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    mel_filterbank(201, 80, 16_000)  # transformers imports torchaudio, which loads beside a CPU build only after this
    made = tmp_path_factory.mktemp("checkpoint")
    KINDS[kind][0](made)
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return find_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(kind: str, folder: Path) -> Any:
    return getattr(hf, KINDS[kind][1]).from_pretrained(folder)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def special_names(tokenizer: Tokenizer) -> set[str]:
    return {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}


ODD = ["\n", "\u00a0", "É", "猫", "ö", "playing", "A dog", "🙂", "n't", "' s"]
parts = st.sampled_from([*WORDS, *LETTERS, *"  .,!", *ODD])
texts = st.one_of(st.sampled_from(LINES), st.lists(parts, max_size=12).map("".join), st.lists(parts).map(" ".join))


@given(text=texts)
def test_ids_and_text_are_those_of_transformers(ours: Tokenizer, theirs: Any, text: str) -> None:
    ids = theirs(text, add_special_tokens=False).input_ids
    assert encode(ours, text) == ids
    assert ours.decode(ids).strip() == theirs.decode(ids, skip_special_tokens=True).strip()


@given(data=st.data())
def test_so_is_the_text_of_any_ids(ours: Tokenizer, theirs: Any, data: st.DataObject) -> None:
    """A model writes what no text is cut into."""
    ids = data.draw(st.lists(st.integers(0, len(theirs) - 1), max_size=12))
    assert ours.decode(ids).strip() == theirs.decode(ids, skip_special_tokens=True).strip()


def test_there_are_as_many_tokens(ours: Tokenizer, theirs: Any) -> None:
    assert ours.get_vocab() == theirs.get_vocab()


def test_special_tokens_are_no_text(kind: str, ours: Tokenizer, theirs: Any) -> None:
    """They are left out of a decoded text, and come of no text."""
    names = KINDS[kind][2]
    ids = theirs.convert_tokens_to_ids(list(names))
    assert special_names(ours) == set(names)
    assert ours.decode([*ids, *encode(ours, "a dog"), *ids]).strip() == "a dog"
    unknown = {theirs.unk_token_id}
    for name in names:
        assert not (set(ids) - unknown) & {*encode(ours, name), *encode(ours, f"a {name} b{name}")}


@given(text=texts)
def test_a_saved_tokenizer_is_the_same(ours: Tokenizer, text: str) -> None:
    loaded = Tokenizer.from_str(ours.to_str())
    loaded.encode_special_tokens = True
    ids = encode(ours, text)
    assert encode(loaded, text) == ids
    assert loaded.decode(ids) == ours.decode(ids)


def test_no_tokenizer_is_an_error(tmp_path: Path) -> None:
    files = "tokenizer.json or vocab.json or vocab.txt or sentencepiece.bpe.model"
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path} has no tokenizer: it needs {files}")):
        find_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("vocab.json", b"{"),
        ("vocab.txt", b"\xff\n"),
        ("vocab.txt", b"a\nb\n"),  # no [UNK]
        ("sentencepiece.bpe.model", b"{"),
    ],
)
def test_a_damaged_file_is_named(file: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    (tmp_path / "merges.txt").touch()
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / file))):
        find_tokenizer(tmp_path)


def test_a_vocabulary_needs_its_merges(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "merges.txt"))):
        find_tokenizer(tmp_path)
