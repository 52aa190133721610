"""Which cache slots each hypothesis of one input may see.

All hypotheses about an input write into one shared run of slots. A hypothesis is then nothing but the set of slots it
sees, its prompt's and its ancestors': forking or dropping one copies a row of booleans, never a key or a value, and the
prompt is stored once however many hypotheses follow.
"""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray


@cache
def _own(count: int) -> NDArray[np.bool_]:
    """Which of `count` new slots each of as many hypotheses sees: its own."""
    return np.eye(count, dtype=np.bool_)


@lru_cache(1024)
def _all(count: int) -> NDArray[np.bool_]:
    """What a hypothesis sees to which all of `count` slots belong."""
    return np.ones((1, count), dtype=np.bool_)


class Slots:
    """The slots of one input: `used` of them are written; `visible` (hypotheses, used) bool."""

    def __init__(self) -> None:
        self.used = 0
        self.visible: NDArray[np.bool_] = np.zeros((1, 0), dtype=np.bool_)
        self._alone = True  # whether there never was more than one hypothesis, which then sees all

    def prefill(self, tokens: int) -> NDArray[np.bool_]:
        """Take `tokens` slots for a prompt, which one hypothesis now sees. Returns its causal mask (tokens, used)."""
        if self.used:
            raise ValueError("a prompt comes first: these slots are already in use")
        self.used = tokens
        self.visible = _all(tokens)
        return np.tri(tokens, dtype=np.bool_)

    def compact(self, parents: Sequence[int], spare: int) -> NDArray[np.intp] | None:
        """Forget the slots that no hypothesis of `parents` sees, once there are `spare` of them.

        Returns the slots kept (used,), in order, which are to be moved to the front; None if all stay where they are.
        It depends on nothing but these hypotheses: moving slots changes the last bits of what attention adds up.
        """
        if self._alone or self.used < spare:
            return None
        seen = self.visible[list(parents)].any(axis=0)
        if self.used - np.count_nonzero(seen) < spare:
            return None
        kept = np.flatnonzero(seen)
        self.visible = self.visible[:, kept]
        self.used = len(kept)
        return kept

    def step(self, parents: Sequence[int]) -> NDArray[np.bool_]:
        """Take one slot for each new hypothesis, the continuation of hypothesis `parents[i]`.

        Returns the mask (len(parents), used): what the parent saw and the new slot of its own.
        """
        self._alone = self._alone and len(parents) == 1
        self.used += len(parents)
        if self._alone:
            self.visible = _all(self.used)
        else:
            self.visible = np.concatenate([self.visible[list(parents)], _own(len(parents))], axis=1)
        return self.visible
