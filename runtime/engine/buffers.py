"""Memory that graphs read and write in place: one buffer whose rows are the inputs being decoded."""

from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from heedful.runtime.engine.device import Device


class Buffer(Protocol):
    """Rows of equal shape, contiguous, so that the first n of them can be bound to a graph as one tensor."""

    shape: tuple[int, ...]

    def pointer(self, row: int = 0) -> int:
        """Address of the first byte of `row`."""

    def widened(self, slots: int) -> "Buffer":
        """A buffer of `slots` slots (axis 2) a row that begins with what this one holds."""


class HostBuffer:
    """A buffer in main memory, zero at first: a slot that was never written must not hold a NaN."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.array: NDArray[np.generic] = np.zeros(shape, dtype)
        self.shape = shape

    def pointer(self, row: int = 0) -> int:
        return int(self.array.ctypes.data) + row * self.array.strides[0]

    def swap(self, a: int, b: int) -> None:
        """Exchange two rows."""
        held = self.array[a].copy()
        self.array[a] = self.array[b]
        self.array[b] = held

    def widened(self, slots: int) -> "HostBuffer":
        rows, heads, _, dim = self.shape
        wider = HostBuffer((rows, heads, slots, dim), self.array.dtype)
        wider.array[:, :, : self.shape[2]] = self.array
        return wider


class DeviceBuffer:
    """A buffer in the memory of a GPU."""

    def __init__(self, array: NDArray[np.generic], device: Device) -> None:
        self.value = ort.OrtValue.ortvalue_from_numpy(array, device.name, 0)
        self.device = device
        self.shape = array.shape
        self.stride = array.strides[0]

    def pointer(self, row: int = 0) -> int:
        return int(self.value.data_ptr()) + row * self.stride

    def widened(self, slots: int) -> "DeviceBuffer":
        # by way of main memory: rare, and onnxruntime has no copy within a device
        old = self.value.numpy()
        return DeviceBuffer(np.pad(old, ((0, 0), (0, 0), (0, slots - self.shape[2]), (0, 0))), self.device)


def allocate(shape: tuple[int, ...], dtype: DTypeLike, device: Device) -> Buffer:
    """A zeroed buffer in the memory of `device`."""
    return HostBuffer(shape, dtype) if device.name == "cpu" else DeviceBuffer(np.zeros(shape, dtype), device)
