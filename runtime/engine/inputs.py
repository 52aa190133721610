"""What a graph reads anew in every step: arrays that are bound once and written to where they lie."""

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from heedful.runtime.engine.device import Device


class Inputs:
    """Arrays in main memory for those inputs of a graph that are in `names`.

    To bind one takes longer than to write it, so an array that keeps its shape keeps its place. Memory is borrowed: the
    arrays must live as long as they are bound.
    """

    def __init__(self, binding: ort.IOBinding, names: Set[str], device: Device) -> None:
        self.binding = binding
        self.names = names
        self.arrays: dict[str, NDArray[Any]] = {}
        self._unbound: set[str] = set()
        # what is bound for another device is copied there at once
        self._stays = device.name == "cpu"

    def put(self, name: str, shape: tuple[int, ...], numbers: Sequence[int]) -> None:
        """Write `numbers`, as many as `shape` has, for the input `name`, int64."""
        if name in self.names:
            self.room(name, shape).reshape(-1)[:] = numbers

    def room(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.int64) -> NDArray[Any]:
        """The array for the input `name`, of this shape, to be written before `bind`."""
        array = self.arrays.get(name)
        if array is None or array.shape != shape:
            array = np.empty(shape, dtype)
            self.give(name, array)
        return array

    def give(self, name: str, array: NDArray[Any]) -> None:
        """Take `array` for the input `name`."""
        if self.arrays.get(name) is not array:
            self.arrays[name] = array
            self._unbound.add(name)

    def bind(self) -> None:
        """Have the next run read the arrays."""
        for name in self._unbound if self._stays else self.arrays:
            array = self.arrays[name]
            self.binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._unbound.clear()
