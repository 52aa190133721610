"""What a unit of a weight in 8 bits stands for, so chosen that sums of products are exact on every CPU.

x86 without VNNI multiplies unsigned numbers of 8 bits by signed ones and adds up the products of two neighbouring
inputs in 16 bits, which 255 * 127 + 255 * 127 overflows. 255 * 128 does not: so the two weights of a pair share the
range that one would have by itself. Where they have different signs, or one is small, that costs nothing; the scales of
trained models grow by 7 to 23 % on average (docs/performance.md).
"""

import numpy as np
from numpy.typing import NDArray

MOST = 127
"""What the integers of two neighbouring inputs in a column may come to, those of one sign."""

_LEAST = 1e-12


def column_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smallest scale of each column of `weight` (k, n) that keeps pairs of integers within `MOST`, (n,) float32.

    Rounding may add one to that: 128, which still fits.
    """
    k, n = weight.shape
    whole = np.concatenate([weight, np.zeros((k % 2, n), np.float32)])
    pairs = whole.reshape(-1, 2, n)
    largest = np.maximum(np.maximum(pairs, 0).sum(1), np.maximum(-pairs, 0).sum(1)).max(0)
    scales: NDArray[np.float32] = np.maximum(largest, _LEAST).astype(np.float32) / MOST
    return scales
