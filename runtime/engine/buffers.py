"""Memory that graphs read and write in place: one buffer whose rows are the inputs being decoded."""

import math
import mmap
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from heedful.runtime.engine.device import Device


class Buffer(Protocol):
    """Rows of equal shape, contiguous, so that the first n of them can be bound to a graph as one tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    def pointer(self, row: int = 0) -> int:
        """Address of the first byte of `row`."""

    def read(self, row: int) -> NDArray[np.generic]:
        """A copy of `row` (heads, slots, width) in main memory."""

    def write(self, parts: Mapping[int, NDArray[np.generic]]) -> None:
        """Put each row's part (heads, n, width) into its first n slots."""

    def move(self, row: int, slots: NDArray[np.intp], to: int) -> None:
        """Move these slots of `row`, in this order, to the slots from `to` on."""

    def resized(self, slots: int, used: Sequence[int]) -> "Buffer":
        """A buffer of `slots` slots (axis 2) a row that holds the first `used[row]` slots of each row of this one.

        It may lie in the same memory: this one must not be used any more.
        """


class HostBuffer:
    """A buffer in main memory, zero at first: a slot that was never written must not hold a NaN.

    Rows take up memory only once they are written.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, pages: mmap.mmap | None = None) -> None:
        count = math.prod(shape)
        self.pages = _pages(count * np.dtype(dtype).itemsize) if pages is None else pages
        self.array: NDArray[np.generic] = np.frombuffer(self.pages, dtype, count).reshape(shape)
        self.shape, self.dtype = shape, self.array.dtype

    def pointer(self, row: int = 0) -> int:
        return int(self.array.ctypes.data) + row * self.array.strides[0]

    def swap(self, a: int, b: int) -> None:
        """Exchange two rows."""
        held = self.read(a)
        self.array[a] = self.array[b]
        self.array[b] = held

    def read(self, row: int) -> NDArray[np.generic]:
        copy: NDArray[np.generic] = self.array[row].copy()
        return copy

    def write(self, parts: Mapping[int, NDArray[np.generic]]) -> None:
        for row, part in parts.items():
            self.array[row, :, : part.shape[1]] = part

    def move(self, row: int, slots: NDArray[np.intp], to: int) -> None:
        heads = self.array[row]
        heads[:, to : to + len(slots)] = heads.take(slots, axis=1)

    def resized(self, slots: int, used: Sequence[int]) -> "HostBuffer":
        rows, heads, _, dim = self.shape
        size = rows * heads * slots * dim * self.array.itemsize
        # who changes once does so again: in the same pages, since a new one costs as much as several copies of it
        stays = size <= len(self.pages) < 32 * size
        pages = self.pages if stays else _pages(4 * size)
        other = HostBuffer((rows, heads, slots, dim), self.array.dtype, pages)
        # in an order in which none is written over before it is moved; numpy copies a row that overlaps with itself
        for row in reversed(range(rows)) if slots > self.shape[2] else range(rows):
            # memory of rows that were never written is not touched, and so takes no room
            if used[row]:
                other.write({row: self.array[row, :, : used[row]]})
        return other


def _pages(size: int) -> mmap.mmap:
    """`size` bytes of zeros, straight from the system: numpy's may come from freed memory, and are then written one by
    one. A process that is forked from this one has its own from then on.
    """
    if sys.platform == "win32":  # where no process is forked
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class DeviceBuffer:
    """A buffer in the memory of a GPU."""

    def __init__(self, array: NDArray[np.generic], device: Device) -> None:
        self.value = ort.OrtValue.ortvalue_from_numpy(array, device.name, 0)
        self.device = device
        self.shape, self.dtype = array.shape, array.dtype
        self.stride = array.strides[0]

    def pointer(self, row: int = 0) -> int:
        return int(self.value.data_ptr()) + row * self.stride

    def read(self, row: int) -> NDArray[np.generic]:
        copy: NDArray[np.generic] = self.value.numpy()[row].copy()
        return copy

    def write(self, parts: Mapping[int, NDArray[np.generic]]) -> None:
        # here and below by way of main memory, all of it at once: onnxruntime has no copy within a device
        array = self.value.numpy()
        for row, part in parts.items():
            array[row, :, : part.shape[1]] = part
        self.value.update_inplace(array)

    def move(self, row: int, slots: NDArray[np.intp], to: int) -> None:
        array = self.value.numpy()
        array[row, :, to : to + len(slots)] = array[row].take(slots, axis=1)
        self.value.update_inplace(array)

    def resized(self, slots: int, used: Sequence[int]) -> "DeviceBuffer":
        kept = min(slots, self.shape[2])
        array = np.zeros((*self.shape[:2], slots, self.shape[3]), self.dtype)
        array[:, :, :kept] = self.value.numpy()[:, :, :kept]
        return DeviceBuffer(array, self.device)


def allocate(shape: tuple[int, ...], dtype: DTypeLike, device: Device) -> Buffer:
    """A zeroed buffer in the memory of `device`."""
    return HostBuffer(shape, dtype) if device.name == "cpu" else DeviceBuffer(np.zeros(shape, dtype), device)
