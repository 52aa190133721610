"""A text bundle opened: its graphs, and what stands around its texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.device import RUN
from heedful.runtime.engine.model import Model
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.errors import InputError
from heedful.runtime.text.shortlist import ShortDecoder, Shortlist
from heedful.runtime.text.tokens import TextTokens

# sources are padded to a multiple of this whatever is beside them: the order in which attention adds up its scores
# depends on their number
_STRIDE = 2
# bytes of weights; below it threads wait for one another longer than they save (docs/experiments.md)
_LARGE = 64 << 20
# the family of bundles whose decoders begin with nothing (export/student.py)
_STUDENT = "marian-student"
GREEDY = {False: "greedy", True: "greedy-shortlist"}
"""Graphs that write a text in one run, by whether they keep to the shortlist (export/greedy.py)."""


@dataclass(frozen=True, slots=True)
class Framing:
    """Token ids around the texts of one pair of languages: see `source`; `start` is what every target begins with, of
    which the last `forced` count as written by the model.
    """

    before: list[int]
    after: list[int]
    start: list[int]
    forced: int

    def source(self, text: Sequence[int]) -> list[int]:
        return [*self.before, *text, *self.after]


class TextModel(Model):
    """What one bundle knows of text, beside its graphs."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__(sessions)
        text = self.bundle.manifest["text"]
        self.tokens = TextTokens(self.bundle)
        self.end: int = text["end"]
        self.positions: int = text["positions"]
        self.languages: dict[str, int] = text["languages"]
        self.pair: list[str] | None = text["pair"]
        self.prefixes: dict[str, str] = text["prefixes"]
        self.search: dict[str, Any] = text["search"]
        # a student does not look at the token that its texts start with, which is none of the text
        self.unread = int(self.bundle.manifest["family"] == _STUDENT)
        self._frame: dict[str, Any] = text["frame"]

    def framing(self, source: str | None, target: str | None) -> Framing:
        """What stands around texts in these languages. Raises InputError for one that the model has not, or needs."""

        def ids(part: str) -> list[int]:
            return [
                item if isinstance(item, int) else self._language(source if item == "source" else target, item)
                for item in self._frame[part]
            ]

        return Framing(ids("before"), ids("after"), ids("start"), self._frame["forced"])

    def _language(self, code: str | None, side: str) -> int:
        known = ", ".join(self.languages)
        if code is None:
            raise InputError(f"this model needs to know the {side} language: give one of {known}")
        if code not in self.languages:
            raise InputError(f"unknown {side} language {code!r}: this model knows {known}")
        return self.languages[code]

    def languages_for(self, source: str | None, target: str | None) -> tuple[str | None, str | None]:
        """The languages of a request: those it names, else the only ones the model has.

        Raises InputError for one that the model does not have, or a target where it cannot be told of any.
        """
        if self.pair is None:
            if target is not None and not any("target" in self._frame[part] for part in ("before", "after", "start")):
                raise InputError(f"this model cannot be told to write {target!r}: leave target out, or use a prompt")
            return source, target
        for given, known, side in ((source, self.pair[0], "from"), (target, self.pair[1], "to")):
            if given not in {None, known}:
                raise InputError(f"this model translates from {' to '.join(self.pair)}, not {side} {given!r}")
        return self.pair[0], self.pair[1]

    def some_languages(self) -> tuple[str | None, str | None]:
        """A pair of languages that the model has, None where it has no choice."""
        codes = list(self.languages)
        return (codes[0], codes[-1]) if codes else (None, None)

    @property
    def is_large(self) -> bool:
        """Whether reading the weights takes so long that cores had better do it together."""
        return int(self.bundle.manifest["files"]["weights.bin"]["bytes"]) >= _LARGE

    @property
    def has_shortlist(self) -> bool:
        """Whether the bundle says which tokens a translation may use."""
        return "shortlist.npz" in self.bundle.manifest["files"]

    @cached_property
    def shortlist(self) -> Shortlist:
        """The bundle's shortlist, read when it is first needed."""
        return Shortlist(self.bundle)

    @property
    def has_greedy(self) -> bool:
        """Whether the bundle has graphs that write a text in one run, which are for the CPU."""
        return self.device.name == "cpu" and f"{GREEDY[False]}.onnx" in self.bundle.manifest["files"]

    def short_decoder(self, rows: int) -> ShortDecoder:
        """A decoder that looks at the tokens that the bundle's shortlist allows, and at no others."""
        return ShortDecoder(self.shortlist, self.sessions.open("shortlist"), self.shape, self.device, rows)

    def padded(self, sources: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What an encoder takes for sources of like length: tokens (b, n) int64, and how many of them are real (b,)."""
        lengths = [len(source) for source in sources]
        width = _padded(max(lengths))
        tokens = [[*source, *[0] * (width - len(source))] for source in sources]
        return np.array(tokens, np.int64), np.array(lengths, np.int64)

    def encode(self, decoder: Decoder, sources: Mapping[int, Sequence[int]]) -> None:
        """Write what the decoder attends to for each row's source tokens, framing included."""
        if isinstance(decoder, ShortDecoder):
            decoder.allow(dict(sources))
        names = [f"memory.{name}" for name in decoder.memory]
        memories: dict[int, dict[str, NDArray[Any]]] = {}
        shapes: dict[int, list[int]] = {}
        for row, source in sources.items():
            shapes.setdefault(_padded(len(source)), []).append(row)
        for rows in shapes.values():
            tokens, lengths = self.padded([sources[row] for row in rows])
            outputs = self.encoder.run(names, {"source": tokens, "lengths": lengths}, RUN)
            for i, row in enumerate(rows):
                parts = (output[i, :, : lengths[i]] for output in outputs)
                memories[row] = dict(zip(decoder.memory, parts, strict=True))
        decoder.buffers.remember(memories)


def _padded(length: int) -> int:
    return _STRIDE * -(-length // _STRIDE)
