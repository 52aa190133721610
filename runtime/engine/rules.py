"""Rules of generation: which tokens must not come next.

A rule is called with the logits (vocabulary,) of one hypothesis, float32, those of tokens that other rules ruled out at
minus infinity, and the tokens generated so far, the prompt left out. It must not depend on a constant added to all
logits.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Tokens = NDArray[np.int64] | slice


class Rule(Protocol):
    """Tokens that must not follow those `generated` so far, in parts, none of which holds a token twice."""

    def __call__(self, logits: Logits, generated: Sequence[int]) -> Iterable[Tokens]: ...


class Ruling(Protocol):
    """Rules that a decoder's graph can apply, given numbers that it knows a text by."""

    def of(self, generated: Sequence[int]) -> Sequence[int]:
        """The numbers of a text of at least one token."""


class Ban(ABC):
    """A rule that knows before it sees any logits what it rules out."""

    @abstractmethod
    def banned(self, generated: Sequence[int]) -> Sequence[int]:
        """The tokens that must not come after those `generated` so far."""

    def __call__(self, logits: Logits, generated: Sequence[int]) -> Iterable[Tokens]:
        banned = np.unique(np.asarray(self.banned(generated), np.int64))
        # a checkpoint may state tokens that the model does not have
        return [banned[banned < len(logits)]]


class Suppress(Ban):
    """Tokens that never come; with `at_start`, tokens that never come first."""

    def __init__(self, tokens: Sequence[int], *, at_start: bool = False) -> None:
        self.tokens = sorted(set(tokens))
        self.at_start = at_start
        self._array = np.asarray(self.tokens, np.int64)

    def banned(self, generated: Sequence[int]) -> Sequence[int]:
        return () if self.at_start and generated else self.tokens

    def __call__(self, logits: Logits, generated: Sequence[int]) -> Iterable[Tokens]:
        # what is banned in every step is not sorted anew in every step
        return () if self.at_start and generated else [self._array[: self._array.searchsorted(len(logits))]]


class NoRepeatNgram(Ban):
    """No run of `size` tokens, at least one, comes twice in what is generated, or `before` it."""

    def __init__(self, size: int, before: Sequence[int] = ()) -> None:
        if size < 1:
            raise ValueError(f"a run has at least one token, not {size}")
        self.size = size
        self.before = list(before)

    def banned(self, generated: Sequence[int]) -> Sequence[int]:
        text = [*self.before, *generated]
        context = text[len(text) - self.size + 1 :]
        starts = range(len(text) - self.size + 1)
        return [text[i + self.size - 1] for i in starts if text[i : i + self.size - 1] == context]


class BadWords(Ban):
    """None of `words`, each a run of tokens, ever comes, nor ends what was begun by the tokens `before`."""

    def __init__(self, words: Sequence[Sequence[int]], before: Sequence[int] = ()) -> None:
        self.words = [(list(word[:-1]), word[-1]) for word in words if word]
        self.before = list(before)

    def banned(self, generated: Sequence[int]) -> Sequence[int]:
        text = [*self.before, *generated]
        return [last for begin, last in self.words if begin == text[len(text) - len(begin) :]]


class NotBefore(Ban):
    """`token` does not come before `length` others have."""

    def __init__(self, token: int, length: int) -> None:
        self.token = token
        self.length = length

    def banned(self, generated: Sequence[int]) -> Sequence[int]:
        return (self.token,) if len(generated) < self.length else ()


class RepetitionPenalty:
    """Rules nothing out, but tokens that came, in what is generated or `before` it, lose: of their logits, which are
    changed in place, positive ones are divided by `penalty`, negative ones multiplied.

    Source: Keskar et al. 2019, arXiv 1909.05858. Unlike the other rules this one looks at the logits' zero.
    """

    def __init__(self, penalty: float, before: Sequence[int] = ()) -> None:
        self.penalty = penalty
        self.before = list(before)

    def __call__(self, logits: Logits, generated: Sequence[int]) -> Iterable[Tokens]:
        seen = np.unique(np.asarray([*self.before, *generated], dtype=np.int64))
        scores = logits[seen]
        logits[seen] = np.where(scores > 0, scores / self.penalty, scores * self.penalty)
        return ()
