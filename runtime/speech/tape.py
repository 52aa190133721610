"""Audio as it comes, remembered only as far back as anyone still needs it."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class Tape:
    """A window onto a stream of mono float32 `chunks`; positions are samples from its start."""

    def __init__(self, chunks: Iterator[NDArray[np.float32]]) -> None:
        self.chunks = chunks
        self.held: NDArray[np.float32] = np.zeros(0, np.float32)
        self.begin = 0
        self.ended = False

    @property
    def heard(self) -> int:
        """Samples that have come so far."""
        return self.begin + len(self.held)

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """Samples start ... start + count - 1, fewer at the end of the stream; those before are forgotten."""
        waiting = [self.held]
        heard = self.heard
        while heard < start + count and not self.ended:
            chunk = next(self.chunks, None)
            if chunk is None:
                self.ended = True
            else:
                waiting.append(chunk)
                heard += len(chunk)
        held = np.concatenate(waiting) if len(waiting) > 1 else self.held
        self.held = held[max(0, start - self.begin) :]
        self.begin = max(self.begin, min(start, heard))
        return self.held[:count]
