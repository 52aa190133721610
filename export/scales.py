"""Weights in 8 bits whose products are exact on every CPU.

x86 without VNNI multiplies unsigned numbers of 8 bits by signed ones and adds up the products of two neighbouring
inputs in 16 bits, which 255 * 127 + 255 * 127 overflows. 255 * 128 does not: so the two weights of a pair share the
range that one would have by itself. Where they have different signs, or one is small, that costs nothing; the scales of
trained models grow by 7 to 23 % on average (docs/experiments.md).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 127
"""The largest integer of a weight, and what those of a pair may come to where a scale is chosen for them."""

_PAIR = 128
_LEAST = 1e-12


def column_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smallest scale of each column of `weight` (k, n) that keeps pairs of one sign within `MOST`, (n,) float32.

    Rounding may add one to a pair: 128, which still fits.
    """
    pairs = _pairs(weight)
    largest = np.maximum(np.maximum(pairs, 0).sum(1), np.maximum(-pairs, 0).sum(1)).max(0)
    scales: NDArray[np.float32] = np.maximum(largest, _LEAST).astype(np.float32) / MOST
    return scales


def in_units(weight: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.int8]:
    """`weight` (k, n) in units of the scales `columns` (n,), rounded to even: (k, n) int8.

    With other scales than `column_scales` a pair may come to more than fits: each of the two then gives up half of the
    excess.
    """
    units = np.rint(weight / columns).clip(-MOST, MOST).astype(np.int16)
    pairs = _pairs(units)
    together = np.abs(pairs.sum(1))
    excess = np.where(pairs[:, 0] * pairs[:, 1] > 0, np.maximum(together - _PAIR, 0), 0)
    signs = np.sign(pairs)
    pairs[:, 0] -= signs[:, 0] * (excess // 2)
    pairs[:, 1] -= signs[:, 1] * (excess - excess // 2)
    return np.ascontiguousarray(pairs.reshape(-1, weight.shape[1])[: len(weight)].astype(np.int8))


def fitted(weight: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scales `columns` (n,) that a model states for `weight` (k, n), or larger ones for those columns whose pairs
    would give up more than all their weights lose by another rounding.
    """
    larger = np.maximum(columns, column_scales(weight))
    losses = [((in_units(weight, scales) * scales - weight) ** 2).sum(0) for scales in (columns, larger)]
    return np.where(losses[0] <= losses[1], columns, larger)


def _pairs(weight: NDArray[np.generic]) -> NDArray[Any]:
    """A copy of `weight` (k, n) as pairs of rows (ceil(k / 2), 2, n), a row of zeros beside the last if k is odd."""
    k, n = weight.shape
    return np.concatenate([weight, np.zeros((k % 2, n), weight.dtype)]).reshape(-1, 2, n)
