"""Read a SentencePiece model and build the `tokenizers.Tokenizer` that cuts text into the same pieces.

Neither the sentencepiece package nor protobuf is needed: the file is read by hand and checked while it is read.
"""

import math
import re
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar
from unicodedata import decomposition, normalize

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from heedful.runtime.errors import CheckpointError

Algorithm = Literal["unigram", "bpe"]
_ALGORITHMS: dict[int, Algorithm] = {1: "unigram", 2: "bpe"}
_META = "▁"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

# Noncharacters are a program's own to use. Text has none; should it have the first three, they become the last.
_JOINT, _LONE, _UNREACHABLE, _FOREIGN = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
# What makes one grapheme with the character before it.
_EXTENDING = r"[\p{M}\u0E33\u0EB3\u200C\u200D\uFF9E\uFF9F\n]"

_T = TypeVar("_T", int, bytes)
_Fields = Mapping[int, Sequence[int | bytes]]
_Entries = Sequence[tuple[str, float]]


class Kind(IntEnum):
    """What a piece is, as numbered in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model: its pieces in the order of their ids, and how text is prepared for them."""

    path: Path
    pieces: tuple[Piece, ...]
    algorithm: Algorithm
    unk_id: int
    byte_fallback: bool
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    treat_whitespace_as_suffix: bool

    def texts(self, *kinds: Kind) -> list[str]:
        """The texts of the pieces of these kinds; of all pieces when none is given."""
        return [piece.text for piece in self.pieces if not kinds or piece.kind in kinds]


def read(path: Path) -> SentencePiece:
    """The model in the file `path`.

    Raises `CheckpointError` when there is no such file, or it is cut off or not a SentencePiece model.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not there, which says how text is cut into tokens; download it")
    try:
        return _model(path, _fields(path.read_bytes()))
    except _MalformedError as error:
        raise CheckpointError(f"{path} is no complete SentencePiece model: {error}; download it again") from error


def build(model: SentencePiece, vocabulary: Sequence[str] | None = None, special: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer that cuts text as `model` does and calls the piece `vocabulary[i]` i; by default as `model` does.

    The piece for the unknown, the control pieces of `vocabulary` and those of `special` are registered as special;
    `encode_special_tokens` is set, so that their text in a text is only text. (A tokenizer.json does not keep that.)
    Pieces that `vocabulary` lacks are not used: text is cut into others. Entries that are no pieces of `model` decode,
    but never come out of encoding, unless what has no piece between characters that have is such an entry.

    Ids equal SentencePiece's, but for
    - ties: where two ways to cut have the same score in float32, as in a run of one character or in a book without
      an end of line, either may come out;
    - combining characters after a letter they could make one with, but that SentencePiece leaves there (ê + U+0301);
    - the text of a special token in a unigram model, which is always cut after its first character;
    - text that is removed altogether, where extra spaces are kept or the dummy one follows; and U+FDD0 to U+FDD3.

    Raises `CheckpointError` when `model` and `vocabulary` do not fit, or `model` has what cannot be expressed.
    """
    names = model.texts() if vocabulary is None else list(vocabulary)
    unknown = model.pieces[model.unk_id].text
    controls = {unknown, *special, *set(names).intersection(model.texts(Kind.CONTROL))}
    _check(model, names, controls)
    scores = _scores(model) | dict.fromkeys([*controls, *model.texts(Kind.BYTE)], 0.0)
    strays = _strays(model, names)
    marks = {name: _LONE if name in strays else _UNREACHABLE for name in names if name not in scores}
    entries = [(marks.get(name, "") + name, scores.get(name, 0.0)) for name in names]
    tokenizer = Tokenizer(_MODELS[model.algorithm](model, entries, unknown))
    tokenizer.normalizer = normalizers.Sequence([*_normalizers(model), *_stray_rules(model, strays)])
    tokenizer.decoder = decoders.Sequence(list(_decoders(model)))
    tokenizer.add_special_tokens([name for name in names if name in controls])
    return guarded(tokenizer, sorted(controls))


def guarded(tokenizer: Tokenizer, special: Iterable[str]) -> Tokenizer:
    """`tokenizer`, changed so that no text becomes one of the tokens `special` or one that stands for a byte.

    A Unigram model finds every entry of its vocabulary in a text. Those it must not find are cut after their first
    character before it sees them. The other models build tokens up, and have no rule to build these.
    """
    tokenizer.encode_special_tokens = True
    rests = defaultdict(list)
    for token in (*special, *(name for name in _BYTES if tokenizer.token_to_id(name) is not None)):
        rests[token[0]].append(re.escape(token[1:]))
    if not rests or not isinstance(tokenizer.model, models.Unigram):
        return tokenizer
    before = tokenizer.pre_tokenizer
    pattern = "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
    cut = pre_tokenizers.Split(Regex(pattern), "merged_with_previous")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut] if before is None else [before, cut])
    return tokenizer


def _check(model: SentencePiece, names: Sequence[str], controls: Set[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    missing = sorted(controls - set(names))
    inexpressible = [
        *(model.texts(Kind.USER_DEFINED, Kind.UNUSED) if model.algorithm == "bpe" else ()),
        *(text for text in model.texts(Kind.USER_DEFINED) if " " in text or _normalized(model, text) != text),
    ]
    for problem, tokens in {
        "has these tokens twice": twice,
        "lacks these tokens": missing,
        "has pieces of a kind that is not supported": inexpressible,
    }.items():
        if tokens:
            shown = ", ".join(map(repr, tokens[:5]))
            raise CheckpointError(
                f"the vocabulary of {model.path} {problem}: {shown}; take a checkpoint that has a tokenizer.json"
            )


def _scores(model: SentencePiece) -> dict[str, float]:
    """The scores of the pieces that can be found in a text; those a user defined come before all others."""
    normal = {piece.text: piece.score for piece in model.pieces if piece.kind is Kind.NORMAL}
    best = max(normal.values(), default=0.0)
    return normal | {text: len(text.encode()) * best - 0.1 for text in model.texts(Kind.USER_DEFINED)}


def _unigram(model: SentencePiece, entries: _Entries, unknown: str) -> models.Model:
    unk_id = [name for name, _ in entries].index(unknown)
    return models.Unigram(list(entries), unk_id=unk_id, byte_fallback=model.byte_fallback)


def _bpe(model: SentencePiece, entries: _Entries, unknown: str) -> models.Model:
    vocabulary = {name: i for i, (name, _) in enumerate(entries)}
    pieces = sorted(
        (piece for piece in model.pieces if piece.kind is Kind.NORMAL and piece.text in vocabulary),
        key=lambda piece: -piece.score,
    )
    known = {piece.text for piece in pieces}
    # Of equal scores SentencePiece takes the leftmost; in a run of one character its left part is the longer.
    merges = [
        (piece.text[:i], piece.text[i:])
        for piece in pieces
        for i in range(len(piece.text) - 1, 0, -1)
        if piece.text[:i] in known and piece.text[i:] in known
    ]
    return models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)


_MODELS: dict[Algorithm, Callable[[SentencePiece, _Entries, str], models.Model]] = {"unigram": _unigram, "bpe": _bpe}


def _normalizers(model: SentencePiece) -> Iterator[normalizers.Normalizer]:
    space = _META if model.escape_whitespaces else " "
    yield normalizers.Replace(Regex(f"[{_JOINT}{_LONE}{_UNREACHABLE}]"), _FOREIGN)
    if model.precompiled_charsmap:
        yield from _character_rules(model)
    if model.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(r"\A +"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if model.add_dummy_prefix and not model.treat_whitespace_as_suffix:
        yield normalizers.Prepend(space)
    yield normalizers.Replace(" ", space)
    if model.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(rf"{space}+\z"), "")
    if model.add_dummy_prefix and model.treat_whitespace_as_suffix:
        yield normalizers.Replace(Regex(r"(?<=[\s\S])\z"), space)


def _character_rules(model: SentencePiece) -> Iterator[normalizers.Normalizer]:
    """The rules for characters, applied to one at a time, then to those that make one with the letter before.

    `Precompiled` looks rules up by grapheme. It takes the first that begins like a short grapheme and drops the rest
    of it, such as the second of two accents, and has none for a long one, such as a decomposed Hangul syllable.
    """
    precompiled = _precompiled(model)
    # Not at the start of a text: NFC would fail after an insertion there.
    yield normalizers.Replace(Regex(rf"(?<=[\s\S])(?={_EXTENDING})"), _JOINT)
    yield precompiled
    if precompiled.normalize_str("a\u0303") == "\u00e3":
        # Only what composes: elsewhere NFC would change the order in which Arabic and Hebrew signs are written.
        yield normalizers.Replace(Regex(f"{_JOINT}(?=[{_composing()}])"), "")
        yield normalizers.NFC()
    yield normalizers.Replace(_JOINT, "")


def _precompiled(model: SentencePiece) -> normalizers.Precompiled:
    try:
        return normalizers.Precompiled(model.precompiled_charsmap)
    except Exception as error:  # the library raises no narrower one
        raise CheckpointError(f"{model.path} has broken rules for characters ({error}); download it again") from error


def _normalized(model: SentencePiece, text: str) -> str:
    return _precompiled(model).normalize_str(text) if model.precompiled_charsmap else text


def _letters(model: SentencePiece) -> set[str]:
    """The characters that are pieces."""
    return {text for text in model.texts(Kind.NORMAL, Kind.USER_DEFINED) if len(text) == 1}


def _strays(model: SentencePiece, names: Iterable[str]) -> set[str]:
    """The entries that are no pieces, and have no character that is one."""
    letters = _letters(model)
    return {name for name in set(names).difference(model.texts()) if letters.isdisjoint(name)}


def _stray_rules(model: SentencePiece, strays: Iterable[str]) -> Iterator[normalizers.Normalizer]:
    """Marks what is one of `strays` as a whole: SentencePiece gives it as it stands, and Marian looks that up."""
    entries, letters = "|".join(map(re.escape, sorted(strays))), _class(_letters(model))
    if entries and letters:
        yield normalizers.Replace(Regex(f"(?<=[{letters}])(?=(?:{entries})(?:[{letters}]|\\z))"), _LONE)


def _class(characters: Iterable[str]) -> str:
    """The inside of a class of a regular expression."""
    return "".join(f"\\x{{{ord(character):X}}}" for character in sorted(characters))


@cache
def _composing() -> str:
    """The characters that make one with a letter before them."""
    parts = ((chr(code), decomposition(chr(code)).split()) for code in range(sys.maxunicode + 1))
    pairs = ((whole, pair) for whole, pair in parts if len(pair) == 2 and not pair[0].startswith("<"))
    return _class({chr(int(pair[1], 16)) for whole, pair in pairs if normalize("NFC", whole) == whole})


def _decoders(model: SentencePiece) -> Iterator[decoders.Decoder]:
    yield decoders.Replace(Regex(f"[{_LONE}{_UNREACHABLE}]"), "")
    if model.escape_whitespaces:
        yield decoders.Replace(_META, " ")
    if model.byte_fallback:
        yield decoders.ByteFallback()
    yield decoders.Fuse()
    if model.remove_extra_whitespaces:
        yield decoders.Strip(" ", sys.maxsize, 0)
    elif model.add_dummy_prefix:
        yield decoders.Strip(" ", 1, 0)


class _MalformedError(Exception):
    """What is wrong with the file."""


def _model(path: Path, fields: _Fields) -> SentencePiece:
    """Field numbers are those of sentencepiece_model.proto, defaults too."""
    trainer, normalizer = _fields(_one(fields, 2, b"")), _fields(_one(fields, 3, b""))
    if not trainer or not normalizer:
        raise _MalformedError("it ends before the settings")
    pieces = tuple(_piece(_fields(_typed(raw, bytes))) for raw in fields.get(1, ()))
    unknown = [i for i, piece in enumerate(pieces) if piece.kind is Kind.UNKNOWN]
    if len(unknown) != 1:
        raise _MalformedError(f"it has {len(unknown)} pieces for the unknown, not 1")
    algorithm = _one(trainer, 3, 1)
    if algorithm not in _ALGORITHMS:
        raise CheckpointError(f"{path} is a model of words or characters; only unigram and bpe models are supported")
    return SentencePiece(
        path=path,
        pieces=pieces,
        algorithm=_ALGORITHMS[algorithm],
        unk_id=unknown[0],
        byte_fallback=bool(_one(trainer, 35, 0)),
        precompiled_charsmap=_one(normalizer, 2, b""),
        add_dummy_prefix=bool(_one(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_one(normalizer, 4, 1)),
        escape_whitespaces=bool(_one(normalizer, 5, 1)),
        treat_whitespace_as_suffix=bool(_one(trainer, 24, 0)),
    )


def _piece(fields: _Fields) -> Piece:
    raw, kind = _one(fields, 2, bytes(4)), _one(fields, 3, 1)
    try:
        text, (score,) = _one(fields, 1, b"").decode("utf-8"), struct.unpack("<f", raw)
        piece = Piece(text, score, Kind(kind))
    except (UnicodeDecodeError, struct.error, ValueError) as error:
        raise _MalformedError(f"it has a broken piece ({error})") from error
    if not text or not math.isfinite(score):
        raise _MalformedError(f"it has a broken piece ({text!r} with the score {score})")
    return piece


def _one(fields: _Fields, number: int, default: _T) -> _T:
    """The field `number`: of several the last, as protobuf has it."""
    return _typed(fields[number][-1], type(default)) if number in fields else default


def _typed(value: int | bytes, expected: type[_T]) -> _T:
    if not isinstance(value, expected):
        raise _MalformedError("it has a field of another type")
    return value


_WIDTHS = {1: 8, 5: 4}  # bytes of a field, by its wire type


def _fields(data: bytes) -> _Fields:
    """The values in a message of protobuf, by the number of their field: integers, and all others as bytes."""
    fields: dict[int, list[int | bytes]] = defaultdict(list)
    offset = 0
    while offset < len(data):
        key, offset = _varint(data, offset)
        number, wire = key >> 3, key & 7
        if number == 0 or wire not in {0, 1, 2, 5}:
            raise _MalformedError("it is of another format")
        if wire == 0:
            value, offset = _varint(data, offset)
            fields[number].append(value)
            continue
        size, offset = (_WIDTHS[wire], offset) if wire in _WIDTHS else _varint(data, offset)
        if size > len(data) - offset:
            raise _MalformedError("it is cut off, or of another format")
        fields[number].append(data[offset : offset + size])
        offset += size
    return fields


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """The integer at `offset`, seven bits a byte and the lowest first, and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(data):
            break
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
    raise _MalformedError("it is cut off, or of another format")
