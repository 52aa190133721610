import io
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any, NamedTuple
from unicodedata import is_normalized, normalize

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2
from tokenizers import Tokenizer

from heedful.export import sentencepiece
from heedful.export.sentencepiece import Kind
from heedful.runtime.errors import CheckpointError

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, isn't it?",
    "  Two   spaces, a\ttab and a line\nfeed  ",
    "“Não”, disse ela: «É às 15h30 — por 1,5 € cada um…»",
    "Coração, pão, avô, avó, lingüiça, Ænima, Straße, œuvre, naïve",
    "Ｆｕｌｌ　ｗｉｄｔｈ ﬁne ½ m² ™ № ①",  # noqa: RUF001
    "日本語のテキスト、Привет мир, Γειά σου Κόσμε, שלום עולם, مرحبا",  # noqa: RUF001
    "emoji 😀 👩🏽‍💻 🇵🇹 ❤️ and https://example.org/a_b?c=<d>&e=[f]",
    "x = {'a': 1}  # comment -- !!! ... 3.14159 1_000_000",
    "▁literal ▁ marks▁",
]
# Characters that rules make one of, and what the tokenizers library alone would lose or leave apart.
DECOMPOSED = {
    "Portuguese": normalize("NFD", "ação às avós"),
    "Vietnamese": normalize("NFD", "tiếng Việt, Nguyễn"),
    "Korean": normalize("NFD", "한국어 각"),
    "Japanese": normalize("NFD", "がぎぐ パピプ"),
    "half-width": "ｶﾞｷﾞﾊﾟ",
    "full-width": "\uff21\u0301",
    "Arabic": "شدَّة",
    "Hebrew": "שָׁלוֹם",
    "Thai": "น้ำ \u00a0\u0e33",
    "compatibility": "½\u0301 x\u00a0\u0301",
    "lines": "a\r\nb\r\n\r\nc",
    "joiners": "½\u200dx é\u200d a\u200c",
    "first": "\u0301a",
}
MODELS: dict[str, dict[str, Any]] = {
    "unigram": {},
    "unigram identity": {"normalization_rule_name": "identity"},
    "unigram bytes": {"byte_fallback": True, "vocab_size": 700},
    "unigram bytes identity": {"byte_fallback": True, "vocab_size": 700, "normalization_rule_name": "identity"},
    "unigram across spaces": {"split_by_whitespace": False},
    "unigram of a student": {"eos_id": 0, "unk_id": 1, "bos_id": -1},
    "unigram with symbols": {"user_defined_symbols": ["__start__", "#A"], "control_symbols": ["<2pt>"], "pad_id": 3},
    "bpe": {"model_type": "bpe", "normalization_rule_name": "nfkc_cf"},
    "bpe identity": {"model_type": "bpe", "normalization_rule_name": "identity"},
    "bpe bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 700},
    "bpe across spaces": {"model_type": "bpe", "split_by_whitespace": False},
    "no prefix": {"add_dummy_prefix": False},
    "extra spaces": {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
    "extra spaces, no prefix": {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "model_type": "bpe"},
    "suffix": {"treat_whitespace_as_suffix": True},
}
FOREIGN = {
    "empty": b"",
    "JSON": json.dumps({"model": "bpe"}).encode(),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a pickle": b"\x80\x02}q\x00.",
    "pieces alone": b"\x0a\x05\x0a\x03abc",
}
ANY_TEXT = st.lists(
    st.one_of(
        st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1\ufdd2\ufdd3"),
        st.characters(max_codepoint=0x24F),
        st.sampled_from(
            [*" \t\n\r▁.-,", "  ", "\u00a0", "\u200b", "\ufeff", "😀", "the", "ção", "__start__", "#A", "#"]
        ),
    ),
    max_size=20,
).map("".join)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


class Pair(NamedTuple):
    """The tokenizer under test and the package's, of one model."""

    path: Path
    tokenizer: Tokenizer
    package: SentencePieceProcessor

    def __repr__(self) -> str:
        return self.path.stem

    def encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)

    def check(self, text: str) -> None:
        """Both cut `text` into the same ids, or into others that are equally good, and join ids alike."""
        ids, expected = self.encode(text), self.package.encode(text)
        if ids != expected:
            scores = [sum(map(self.package.get_score, way)) for way in (ids, expected)]
            assert scores[0] == pytest.approx(scores[1], rel=1e-6)
            assert self.package.decode(ids) == self.package.decode(expected)
        known = [i for i in expected if i != self.package.unk_id()]
        assert self.tokenizer.decode(known) == self.package.decode(known)


def train(path: Path, **options: Any) -> Path:
    """A small model, of English from Python's documentation and the sentences above."""
    lines = [line.strip() for text in topics.topics.values() for line in text.splitlines() if line.strip()]
    written = io.BytesIO()
    chosen: dict[str, Any] = {
        "sentence_iterator": iter([*lines[:500], *SENTENCES * 3]),
        "model_writer": written,
        "vocab_size": 450,
        "hard_vocab_limit": options.get("model_type") == "bpe",
        "minloglevel": 2,
    }
    SentencePieceTrainer.train(**(chosen | options))
    path.write_bytes(written.getvalue())
    return path


def pair_of(path: Path) -> Pair:
    return Pair(path, sentencepiece.build(sentencepiece.read(path)), SentencePieceProcessor(model_file=str(path)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Gives the pair of a name, trained once."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    return cache(lambda name: pair_of(train(folder / f"{name}.model", **MODELS[name])))


@pytest.fixture(params=MODELS)
def pair(pairs: Callable[[str], Pair], request: pytest.FixtureRequest) -> Pair:
    return pairs(request.param)


@pytest.fixture
def unigram(pairs: Callable[[str], Pair]) -> Pair:
    return pairs("unigram")


@pytest.fixture
def spelling(pairs: Callable[[str], Pair]) -> Pair:
    """Falls back to bytes, so that ids tell everything of a text."""
    return pairs("unigram bytes")


@pytest.fixture(scope="module")
def student(student_en_pt: Path) -> Pair:
    (path,) = student_en_pt.glob("*vocab*.spm")
    return pair_of(path)


def test_reads_what_protobuf_reads(pair: Pair) -> None:
    expected: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    expected.ParseFromString(pair.path.read_bytes())
    trainer, normalizer = expected.trainer_spec, expected.normalizer_spec
    assert sentencepiece.read(pair.path) == sentencepiece.SentencePiece(
        path=pair.path,
        pieces=tuple(sentencepiece.Piece(piece.piece, piece.score, Kind(piece.type)) for piece in expected.pieces),
        algorithm="unigram" if trainer.model_type == 1 else "bpe",
        unk_id=trainer.unk_id,
        byte_fallback=trainer.byte_fallback,
        precompiled_charsmap=normalizer.precompiled_charsmap,
        add_dummy_prefix=normalizer.add_dummy_prefix,
        remove_extra_whitespaces=normalizer.remove_extra_whitespaces,
        escape_whitespaces=normalizer.escape_whitespaces,
        treat_whitespace_as_suffix=trainer.treat_whitespace_as_suffix,
    )


def test_ids_are_those_of_the_package(pair: Pair) -> None:
    count = pair.package.get_piece_size()
    assert pair.tokenizer.get_vocab_size() == count
    assert [pair.tokenizer.id_to_token(i) for i in range(count)] == [pair.package.id_to_piece(i) for i in range(count)]


def test_cuts_sentences_alike(pair: Pair) -> None:
    for text in ("", " ", "a", *SENTENCES):
        encoded = pair.tokenizer.encode(text, add_special_tokens=False)
        assert encoded.ids == pair.package.encode(text)
        assert encoded.tokens == pair.package.encode(text, out_type=str)
        known = [i for i in encoded.ids if i != pair.package.unk_id()]
        assert pair.tokenizer.decode(known) == pair.package.decode(known)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY_TEXT)
@example(text="-" * 41)
@example(text="\ufdd4 \uffff\U0010ffff")
def test_cuts_any_text_alike(pair: Pair, text: str) -> None:
    """But for text that the rules for characters remove altogether and, where they compose, text in which the package
    leaves what could be composed.
    """
    prepared, composes = pair.package.normalize(text), "ã" in pair.package.normalize("a\u0303")
    assume(prepared != "▁" and (not composes or is_normalized("NFC", prepared)))
    pair.check(text)


@pytest.mark.parametrize("text", DECOMPOSED.values(), ids=DECOMPOSED)
def test_composes_what_the_package_composes(spelling: Pair, text: str) -> None:
    assert spelling.encode(text) == spelling.package.encode(text)


@pytest.mark.parametrize(("text", "composed"), [("vi\u00ea\u0323t", "việt"), ("ﬁ\u0301", "fí")])
def test_composes_what_the_package_leaves(spelling: Pair, text: str, composed: str) -> None:
    """As Windows writes Vietnamese: a letter that has a sign, then another sign."""
    assert spelling.encode(text) == spelling.package.encode(composed)
    assert spelling.encode(text) != spelling.package.encode(text)


def test_a_student_cuts_sentences_alike(student: Pair) -> None:
    assert student.package.get_piece_size() == 32_000
    for text in SENTENCES:
        encoded = student.tokenizer.encode(text, add_special_tokens=False)
        assert encoded.ids == student.package.encode(text)
        assert encoded.tokens == student.package.encode(text, out_type=str)


@given(text=ANY_TEXT)
def test_a_student_cuts_any_text_alike(student: Pair, text: str) -> None:
    assume(is_normalized("NFC", student.package.normalize(text)))
    student.check(text)


def test_special_tokens_in_a_text_are_text(pair: Pair) -> None:
    kinds = [piece.kind for piece in sentencepiece.read(pair.path).pieces]
    special = [pair.package.id_to_piece(i) for i, kind in enumerate(kinds) if kind in {Kind.CONTROL, Kind.UNKNOWN}]
    for text in (*special, *(f"a {token} b{token}" for token in special), "a <0x41> b"):
        ids = pair.encode(text)
        assert {kinds[i] for i in ids} == {Kind.NORMAL}
        assert pair.tokenizer.decode(ids).rstrip() == text
    assert Kind.CONTROL not in {kinds[i] for i in pair.encode("\uff1c/s\uff1e")}


def test_special_tokens_are_left_out_of_decoded_text(pair: Pair) -> None:
    model = sentencepiece.read(pair.path)
    special = [i for i, piece in enumerate(model.pieces) if piece.kind in {Kind.CONTROL, Kind.UNKNOWN}]
    assert sorted(pair.tokenizer.get_added_tokens_decoder()) == special
    assert pair.tokenizer.decode([*special, *pair.encode("the cat"), *special]).rstrip() == "the cat"


def test_a_saved_tokenizer_is_the_same(pair: Pair, tmp_path: Path) -> None:
    """Only `encode_special_tokens` is not kept."""
    pair.tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert pair.tokenizer.encode_special_tokens
    assert not loaded.encode_special_tokens
    loaded.encode_special_tokens = True
    for text in (*SENTENCES, *DECOMPOSED.values(), "a </s> b", "<unk>"):
        ids = pair.encode(text)
        assert loaded.encode(text, add_special_tokens=False).ids == ids
        assert loaded.decode(ids) == pair.tokenizer.decode(ids)


def test_noncharacters_are_unknown(spelling: Pair) -> None:
    """Those that the tokenizer uses for itself become another."""
    for character in "\ufdd0\ufdd1\ufdd2\ufdd3":
        assert spelling.encode(f"a{character}b") == spelling.package.encode("a\ufdd3b")


class TestVocabulary:
    @pytest.fixture(params=["unigram", "bpe identity"])
    def pair(self, pairs: Callable[[str], Pair], request: pytest.FixtureRequest) -> Pair:
        return pairs(request.param)

    def test_says_the_ids(self, pair: Pair) -> None:
        model = sentencepiece.read(pair.path)
        names = [*reversed(model.texts()), "__en__", ">>fra<<"]
        tokenizer = sentencepiece.build(model, names, ["__en__", ">>fra<<"])
        for text in SENTENCES:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert ids == [len(model.pieces) - 1 - i for i in pair.package.encode(text)]
        assert [tokenizer.token_to_id(name) for name in names] == list(range(len(names)))
        assert tokenizer.decode([len(names) - 2, *encode(tokenizer, "the cat"), len(names) - 1]) == "the cat"
        assert not {len(names) - 2, len(names) - 1} & {*encode(tokenizer, "a __en__ >>fra<< b")}

    def test_pieces_it_lacks_are_not_used(self, pair: Pair) -> None:
        model = sentencepiece.read(pair.path)
        names = [name for name in model.texts() if name not in {"▁the", "the", "▁th"}]
        tokenizer = sentencepiece.build(model, names)
        ids = encode(tokenizer, "the other day")
        assert tokenizer.decode(ids) == "the other day"
        assert max(ids) < len(names)

    def test_entries_that_are_no_pieces_only_decode(self, pair: Pair) -> None:
        model = sentencepiece.read(pair.path)
        names = [*model.texts(), "the cat", "▁the▁cat", "cat", "aψ", "▁ψ"]
        tokenizer = sentencepiece.build(model, names)
        for text in ("the cat", "cat", "▁the▁cat", "aψ", "xψψψ", "the ψ cat"):
            assert encode(tokenizer, text) == pair.package.encode(text)
        count = len(model.pieces)
        assert tokenizer.decode([count + 1, count + 2, count + 4, count + 3]) == "the catcat ψaψ"

    @given(text=st.text("aψжд b.", max_size=8))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_entries_without_a_piece_come_out_whole(self, unigram: Pair, text: str) -> None:
        """As of a lookup of the pieces that the package gives, which has what has no piece as it stands."""
        model = sentencepiece.read(unigram.path)
        names = [*model.texts(), "ψ", "жж", "дψ", "ждψ"]
        tokenizer = sentencepiece.build(model, names)
        looked_up = [
            names.index(piece) if piece in names else model.unk_id
            for piece in unigram.package.encode(text, out_type=str)
        ]
        assert encode(tokenizer, text) == looked_up
        assert tokenizer.decode([len(names) - 4, len(names) - 1]) == "ψждψ"

    def test_must_have_each_entry_once_and_the_special_ones(self, pair: Pair) -> None:
        model = sentencepiece.read(pair.path)
        names = model.texts()
        for vocabulary, special, problem in (
            ([*names, "▁the"], [], "has these tokens twice: '▁the'"),
            ([name for name in names if name != "<unk>"], [], "lacks these tokens: '<unk>'"),
            (names, ["__pt__"], "lacks these tokens: '__pt__'"),
        ):
            with pytest.raises(CheckpointError, match=re.escape(f"{pair.path} {problem}")):
                sentencepiece.build(model, vocabulary, special)


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.spm").write_bytes(data)
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'a.spm'} is no complete SentencePiece model")):
        sentencepiece.read(tmp_path / "a.spm")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60))
def test_any_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.spm").write_bytes(data)
    with pytest.raises(CheckpointError, match=re.escape("a.spm")):
        sentencepiece.read(tmp_path / "a.spm")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.9999999)
def test_a_file_cut_off_is_refused(unigram: Pair, tmp_path: Path, share: float) -> None:
    data = unigram.path.read_bytes()
    (tmp_path / "a.spm").write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=re.escape("a.spm is no complete SentencePiece model")):
        sentencepiece.read(tmp_path / "a.spm")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read(unigram: Pair, tmp_path: Path, place: float, byte: int) -> None:
    """It ends in a model or in CheckpointError, in no other error."""
    data = bytearray(unigram.path.read_bytes())
    data[int(place * len(data))] = byte
    (tmp_path / "a.spm").write_bytes(data)
    with suppress(CheckpointError):
        assert len(sentencepiece.read(tmp_path / "a.spm").pieces) <= len(unigram.package)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'a.spm'} is not there")):
        sentencepiece.read(tmp_path / "a.spm")


@pytest.mark.parametrize("kind", ["word", "char"])
def test_models_of_words_and_characters_are_refused(kind: str, tmp_path: Path) -> None:
    path = train(tmp_path / "a.model", model_type=kind, vocab_size=80)
    with pytest.raises(CheckpointError, match="only unigram and bpe models are supported"):
        sentencepiece.read(path)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe", "user_defined_symbols": ["<sep>"]},
        {"user_defined_symbols": ["<sep>", "\uff58"]},
        {"user_defined_symbols": ["a b"]},
    ],
)
def test_symbols_that_cannot_be_kept_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    model = sentencepiece.read(train(tmp_path / "a.model", **options))
    with pytest.raises(CheckpointError, match="has pieces of a kind that is not supported"):
        sentencepiece.build(model)


def test_broken_rules_for_characters_are_refused(unigram: Pair) -> None:
    model = replace(sentencepiece.read(unigram.path), precompiled_charsmap=b"\xff\xff")
    with pytest.raises(CheckpointError, match="has broken rules for characters"):
        sentencepiece.build(model)
