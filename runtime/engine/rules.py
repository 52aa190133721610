"""Rules of generation: pure functions that rule tokens out by setting their logits to minus infinity.

A rule is called with the logits (vocabulary,) of one hypothesis, float32, which it may change in place, and the tokens
generated so far, the prompt left out. It must not depend on a constant added to all logits.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class Rule(Protocol):
    """Rules tokens out of `logits` in place, given the tokens `generated` so far."""

    def __call__(self, logits: Logits, generated: Sequence[int]) -> None: ...


class Suppress:
    """Tokens that never come; with `at_start`, tokens that never come first."""

    def __init__(self, tokens: Sequence[int], *, at_start: bool = False) -> None:
        self.tokens = np.asarray(sorted(tokens), dtype=np.int64)
        self.at_start = at_start

    def __call__(self, logits: Logits, generated: Sequence[int]) -> None:
        if not (self.at_start and generated):
            logits[self.tokens] = -np.inf


class NoRepeatNgram:
    """No run of `size` tokens comes twice."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, logits: Logits, generated: Sequence[int]) -> None:
        context = tuple(generated[len(generated) - self.size + 1 :])
        for i in range(len(generated) - self.size + 1):
            if tuple(generated[i : i + self.size - 1]) == context:
                logits[generated[i + self.size - 1]] = -np.inf


class RepetitionPenalty:
    """Tokens that came before lose: positive logits are divided by `penalty`, negative ones multiplied.

    Source: Keskar et al. 2019, arXiv 1909.05858. Unlike the other rules this one looks at the logits' zero.
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty

    def __call__(self, logits: Logits, generated: Sequence[int]) -> None:
        seen = np.unique(np.asarray(generated, dtype=np.int64))
        scores = logits[seen]
        logits[seen] = np.where(scores > 0, scores / self.penalty, scores * self.penalty)
