"""Whisper's tokens: the special ones, the prompt they make, and text from ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import punctuation
from typing import Any
from unicodedata import category

from tokenizers import Tokenizer, decoders

from heedful.runtime.errors import InputError
from heedful.runtime.speech.options import TranscribeOptions

_REPLACEMENT = "\ufffd"
# these write no spaces between words
_UNSPACED = {"zh", "ja", "th", "lo", "my", "yue"}


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids that steer Whisper, as bundle.json states them; `languages` is empty in an English-only model."""

    end: int
    start: int
    languages: dict[str, int]
    transcribe: int
    translate: int
    language_model: int
    previous: int
    no_speech: int
    no_timestamps: int
    first_timestamp: int


class SpeechTokens:
    """Tokenizer and special tokens of one model. Ids below `special.end` are text.

    What `tokenizer` opens takes as long to read as all that Python imports, and is opened where text becomes ids; for
    text from ids its `vocabulary`, the token of each id, is enough.
    """

    def __init__(
        self,
        tokenizer: Callable[[], Tokenizer],
        special: dict[str, Any],
        positions: int,
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        self._open = tokenizer
        self.special = SpecialTokens(**special)
        self.positions = positions
        self._vocabulary = vocabulary
        self._decoder = decoders.ByteLevel()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The whole tokenizer, to which the name of a token that is no text is only text."""
        tokenizer = self._open()
        added = tokenizer.get_added_tokens_decoder().items()
        # the file says neither that nor that timestamps are special
        tokenizer.add_special_tokens([token.content for number, token in added if number >= self.special.end])
        tokenizer.encode_special_tokens = True
        return tokenizer

    @property
    def multilingual(self) -> bool:
        return bool(self.special.languages)

    def check_language(self, language: str | None, task: str) -> None:
        """Raise InputError when the model does not know `language`, or is English-only and asked for more."""
        if self.multilingual:
            if language is not None and language not in self.special.languages:
                raise InputError(
                    f"unknown language {language!r}: this model knows {', '.join(sorted(self.special.languages))}"
                )
        elif language not in {None, "en"} or task == "translate":
            raise InputError(
                "this model knows English only: choose a multilingual one to translate from other languages"
            )

    def header(self, language: str, options: TranscribeOptions) -> list[int]:
        """The tokens that say what is to be done, from the start token on."""
        special = self.special
        header = [special.start]
        if self.multilingual:
            header += [special.languages[language], getattr(special, options.task)]
        return header if options.timestamps else [*header, special.no_timestamps]

    def prompt(self, header: Sequence[int], previous: Sequence[int], hotwords: Sequence[int]) -> list[int]:
        """`header` after the hotwords and as much of the `previous` tokens as fits in half of the positions."""
        room = self.positions // 2 - 1
        hotwords = hotwords[:room]
        kept = list(previous[len(previous) - min(len(previous), room - len(hotwords)) :])
        return [self.special.previous, *hotwords, *kept, *header] if hotwords or kept else list(header)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, stripped, as it would go on after other text."""
        return list(self.tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, special tokens left out."""
        texts = [token for token in tokens if token < self.special.end]
        if self._vocabulary is None:
            return str(self.tokenizer.decode(texts))
        return str(self._decoder.decode([self._vocabulary[token] for token in texts]))

    def words(self, tokens: Sequence[int], language: str) -> list[tuple[str, list[int]]]:
        """Text `tokens` as words, each with its tokens; where a language writes no spaces, as characters."""
        pieces = self._characters(tokens)
        if language in _UNSPACED:
            return pieces
        words: list[tuple[str, list[int]]] = []
        for text, ids in pieces:
            if not words or text.startswith(" ") or _is_mark(text):
                words.append((text, list(ids)))
            else:
                words[-1] = (words[-1][0] + text, [*words[-1][1], *ids])
        return words

    def _characters(self, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The shortest runs of tokens that are whole characters: a token can end in the middle of one."""
        pieces: list[tuple[str, list[int]]] = []
        run: list[int] = []
        for token in tokens:
            run.append(token)
            text = self.text(run)
            if not text.endswith(_REPLACEMENT):
                pieces.append((text, run))
                run = []
        return [*pieces, (self.text(run), run)] if run else pieces


def _is_mark(text: str) -> bool:
    """Whether `text` is one punctuation mark; accents and joiners, which belong to their word, are none."""
    return len(text) == 1 and (text in punctuation or category(text).startswith("P"))
