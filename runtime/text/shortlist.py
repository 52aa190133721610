"""Which tokens a translation may use, given its source: so few that their logits cost little."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.decoder import All, Best, Decoder, Feed, Scores


class Shortlist:
    """The shortlist of a bundle, and the rows of the output matrix that belong to its tokens."""

    def __init__(self, bundle: Bundle) -> None:
        with np.load(bundle.file("shortlist.npz"), allow_pickle=False) as file:
            self.frequent = int(file["frequent"])
            self.offsets, self.targets = file["offsets"], file["targets"]
        weights = bundle.file("weights.bin")
        self._rows = {
            # as a plain array: taking rows of a memmap costs more than the rows
            name: np.asarray(np.memmap(weights, place["dtype"], "r", place["offset"], tuple(place["shape"])))
            for name, place in bundle.manifest["text"]["shortlist"].items()
        }
        self.vocabulary = len(next(iter(self._rows.values())))

    def allowed(self, source: Sequence[int]) -> NDArray[np.bool_]:
        """Whether a translation of the `source` tokens may use each token (vocabulary,): the frequent ones, those of
        the source itself, and the best for each of them.
        """
        found = np.zeros(self.vocabulary, np.bool_)
        found[: self.frequent] = True
        best = (self.targets[self.offsets[token] : self.offsets[token + 1]] for token in source)
        found[np.concatenate([source, *best])] = True
        return found

    def words(self, source: Sequence[int]) -> NDArray[np.int64]:
        """The tokens that a translation of the `source` tokens may use, in rising order."""
        return np.flatnonzero(self.allowed(source))

    def rows(self, tokens: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What the graph needs of the output matrix for these tokens."""
        return {name: np.ascontiguousarray(rows[tokens]) for name, rows in self._rows.items()}


class ShortDecoder(Decoder):
    """A decoder that computes the logits of the tokens that one of its rows may use, and gives each row its own."""

    def __init__(self, shortlist: Shortlist, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shortlist = shortlist
        self.allowed: dict[int, NDArray[np.bool_]] = {}
        self.tokens = np.zeros(0, np.int64)  # those of all rows, in rising order
        self.mask = np.zeros((self.rows, 0), np.float32)  # 0 for those that a row may use, else minus infinity
        self.given: dict[str, NDArray[Any]] = {}
        self._fed: list[tuple[int, int]] = []  # rows of the last step, and of how many tokens each wanted the logits

    @property
    def choices(self) -> int:
        return len(self.tokens)

    def allow(self, sources: dict[int, Sequence[int]]) -> None:
        """From now on each of these rows may use the tokens that its source allows."""
        self.allowed |= {row: self.shortlist.allowed(source) for row, source in sources.items()}
        self.tokens = np.flatnonzero(np.logical_or.reduce(list(self.allowed.values())))
        self.given = self.shortlist.rows(self.tokens)
        self._fed = []
        self.mask = np.full((self.rows, len(self.tokens)), -np.inf, np.float32)
        for row, allowed in self.allowed.items():
            self.mask[row, allowed[self.tokens]] = 0

    def release(self, row: int) -> None:
        super().release(row)
        self.allowed.pop(row, None)

    def _extra(self, feeds: Mapping[int, Feed]) -> dict[str, NDArray[Any]]:
        fed = [(row, len(feed.select)) for row, feed in feeds.items()]
        if fed != self._fed:
            self._fed = fed
            rows, counts = zip(*fed, strict=True)
            self.given["allowed"] = self.mask[np.repeat(rows, counts)]
        return self.given

    def _found(self, scores: Scores) -> Scores:
        if isinstance(scores, Best):
            return scores._replace(tokens=self.tokens[np.asarray(scores.tokens)].tolist())
        logits = np.full((len(scores.logits), self.shape.vocabulary), -np.inf, np.float32)
        logits[:, self.tokens] = scores.logits
        return All(logits, scores.total)
