"""What a translation or summary gives back: frozen and typed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where the words of a result looked: `weights` (target words, source words) float32, each row adding up to at most
    1 (the rest went to what is no word), and for each target word the source words it `links` to.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: NDArray[np.float32]
    links: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Sentence:
    """One stretch of a text that was read and written at once.

    `score` is the mean natural-log probability of a token, the end token counted; `tokens` are the ids behind `text`;
    `alignment` is None unless asked for.
    """

    source: str
    text: str
    score: float
    tokens: tuple[int, ...]
    alignment: Alignment | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A whole text, translated or summarised, white space between its sentences kept."""

    text: str
    sentences: tuple[Sentence, ...]

    @property
    def score(self) -> float:
        """Mean natural-log probability of a token; 0 where there was nothing to read."""
        counts = [len(sentence.tokens) + 1 for sentence in self.sentences]
        total = sum(sentence.score * count for sentence, count in zip(self.sentences, counts, strict=True))
        return total / sum(counts) if counts else 0.0

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids behind the text, sentence after sentence."""
        return tuple(token for sentence in self.sentences for token in sentence.tokens)
