"""What one call of a writer asks for: its texts in pieces, and how each is to be written about."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from heedful.runtime.engine.search import Limits, Search
from heedful.runtime.engine.settings import build_rules, build_search
from heedful.runtime.errors import InputError
from heedful.runtime.text.lines import clean
from heedful.runtime.text.model import Framing, TextModel
from heedful.runtime.text.options import TextOptions
from heedful.runtime.text.results import Sentence
from heedful.runtime.text.split import Piece, split_sentences, split_to_fit

# a line and what ends it; the last may have no end
_LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|$)")


@dataclass(slots=True)
class Task:
    """A piece of a text to be read: its tokens, framing left out, and what was written once it was."""

    piece: Piece
    tokens: list[int]
    sentence: Sentence | None = None


class Request:
    """One call: what its options mean for the model."""

    def __init__(self, model: TextModel, options: TextOptions, *, split: bool) -> None:
        self.model = model
        self.options = options
        self.split = split if options.split is None else options.split
        source, target = model.languages_for(options.source, options.target)
        self.language = source or "en"
        self.framing: Framing = model.framing(source, target)
        self.settings = options.search(model.search)
        self.prompt = options.prompt or ""
        self.short = bool(options.shortlist)
        if self.short and not model.has_shortlist:
            raise InputError(f"{model.bundle.path} has no shortlist: leave shortlist out")
        self.prompt_length = len(model.tokens.encode(self.prompt))
        self.rules = build_rules(self.settings, self.framing.start, model.end, unread=model.unread)
        self.room = model.positions - len(self.framing.source([]))
        if self.room < 2 + self.prompt_length:
            raise InputError(f"the prompt {self.prompt[:40]!r} leaves no room for a text: this model reads {self.room}")

    def tasks(self, text: str) -> list[Task]:
        """The pieces of `text`, each short enough to be read at once."""
        tasks = []
        for piece in self._pieces(text):
            tokens = self._encode(piece.text) if piece.text else []
            if len(tokens) <= self.room:
                tasks.append(Task(piece, tokens))
                continue
            for part in split_to_fit(piece.text, lambda part: len(self._encode(part)) <= self.room):
                tasks.append(Task(part, self._encode(part.text)))
            tasks[-1].piece = replace(tasks[-1].piece, tail=tasks[-1].piece.tail + piece.tail)
        return tasks

    def _pieces(self, text: str) -> Iterator[Piece]:
        if not self.split:
            yield from _whole(clean(text))
            return
        for line, end in _LINE.findall(text):
            *pieces, last = split_sentences(clean(line), self.language) or [Piece("", "")]
            yield from pieces
            yield replace(last, tail=last.tail + end)

    def _encode(self, text: str) -> list[int]:
        return self.model.tokens.encode(self.prompt + text)

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is always the next, until it ends the text, and that is all that is asked for."""
        settings = self.settings
        plain = settings["beams"] == 1 and not settings["forced_end"] and not self.rules
        return plain and len(self.framing.start) == 1 and not self.options.alignment

    def length(self, source: Sequence[int]) -> int:
        """How many tokens may be written about `source`: no more than the model has positions for."""
        settings = self.settings
        length = min(settings["max_length"], self.model.shape.positions) - len(self.framing.start)
        if settings["length_factor"] is not None:
            length = min(length, round(settings["length_factor"] * len(source)))
        return max(int(length), 1)

    def search(self, source: Sequence[int]) -> Search:
        """The search for what to write about `source` tokens."""
        settings = self.settings
        limits = Limits(
            self.model.end,
            self.length(source),
            self.rules,
            before=self.framing.forced,
            forced_end=settings["forced_end"],
        )
        return build_search(settings, limits)


def _whole(text: str) -> list[Piece]:
    """`text` in one piece; white space before it is the tail of an empty one."""
    stripped = text.strip()
    start = text.index(stripped)
    return [Piece("", text[:start]), Piece(stripped, text[start + len(stripped) :])]
