"""Read Marian's binary models (the *.bin of Firefox Translations): headers, names, shapes, then data; little-endian."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heedful.export.stated import read_mapping
from heedful.runtime.errors import CheckpointError

_Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]

_HEAD = struct.Struct("<QQ")  # The version, then the number of items.
_HEADER = struct.Struct("<QQQQ")  # Of an item: the length of its name, its type, its rank and the size of its data.
_VERSION = 1
_PLAUSIBLE_VERSIONS = range(1, 256)
_NAME_LENGTHS = range(2, 4097)
_MAX_RANK = 8
_ALIGNMENT = 256  # The data of an item may be followed by padding up to a multiple of this.
_CONFIGURATION = "special:model.yml"
_SPECIAL = "special:"
_TEXT = 0x101
_FLOATS = {0x402: "<f2", 0x404: "<f4"}
_INT8 = {0x4101, 0x10001}  # In the forks that Firefox uses, and in Marian itself since it has packed layouts.
_MULTIPLIER = struct.Struct("<f")
_PACKED = 0xB800  # Flags of layouts for FBGEMM, AVX2, AVX-512 and SSSE3.
_TABLES = ("Wemb", "Wpos", "Wtype")  # Looked up by row, so never transposed.
_ALPHA = "_QuantMultA"
_OWN_MULTIPLIER = "_QuantMultB"


def recognises(folder: Path) -> bool:
    """Whether `folder` holds a *.bin that begins as Marian's do: a small version, then a plausible first item."""
    return bool(_models(folder))


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the model in `folder` by name, in float32 and torch's layout.

    Matrices are (out, in), tables of embeddings (rows, width), vectors (n,), scalars have no dimension. An int8 tensor
    comes back divided by its multiplier, which is kept as `NAME_QuantMultB`; `NAME_QuantMultA` is, where the file has
    it, the multiplier of the activations that NAME is applied to.

    Raises `CheckpointError`, with the offset, when the file is cut off, too long, malformed or packed for a processor.
    """
    reader = _Reader(_model(folder))
    tensors: dict[str, torch.Tensor] = {}
    for item in _items(reader):
        for name, tensor in _tensors(reader, item):
            if name in tensors:
                raise reader.error(f"tensor {name!r} occurs twice", item.header)
            tensors[name] = tensor
    return tensors


def configuration(folder: Path) -> dict[str, Any]:
    """The options that the model in `folder` was made with, as it states them in special:model.yml."""
    reader = _Reader(_model(folder))
    found = next((item for item in _items(reader) if item.name == _CONFIGURATION), None)
    if found is None:
        raise CheckpointError(f"{reader.path} lacks {_CONFIGURATION}, which says what model it is; convert it again")
    text = _data(reader, found, 1).tobytes().rstrip(b"\0")
    try:
        return read_mapping(text)
    except ValueError as error:
        raise reader.error(f"{_CONFIGURATION} {error}", found.offset) from error


def _models(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.bin")) if path.is_file() and _begins_as_marians(path)]


def _model(folder: Path) -> Path:
    found = _models(folder)
    if not found:
        raise CheckpointError(f"{folder} holds no *.bin of Marian's; give the folder of a model that marian-conv wrote")
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds {', '.join(path.name for path in found)}: keep one")
    return found[0]


def _begins_as_marians(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD.size + _HEADER.size)
    if len(head) < _HEAD.size + _HEADER.size:
        return False
    version, count = _HEAD.unpack_from(head)
    length, _, rank, _ = _HEADER.unpack_from(head, _HEAD.size)
    fits = 0 < count * _HEADER.size < path.stat().st_size
    return version in _PLAUSIBLE_VERSIONS and fits and length in _NAME_LENGTHS and rank <= _MAX_RANK


@dataclass(frozen=True)
class _Item:
    """What a file says of one item; `header` and `offset` are where its header and its data begin."""

    name: str
    kind: int
    shape: tuple[int, ...]
    size: int
    header: int
    offset: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def is_table(self) -> bool:
        return any(part in self.name for part in _TABLES)


class _Reader:
    """A file read from front to back; every read is checked against its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: _Bytes = np.memmap(path, np.uint8, "r")
        self.offset = 0

    def error(self, problem: str, offset: int | None = None) -> CheckpointError:
        at = self.offset if offset is None else offset
        return CheckpointError(f"{self.path} at byte {at}: {problem}; download or convert the model again")

    def skip(self, size: int, what: str) -> int:
        """Pass over `size` bytes; where they begin."""
        if size > self.data.size - self.offset:
            raise self.error(f"the file ends inside {what}")
        self.offset += size
        return self.offset - size

    def take(self, format: struct.Struct, what: str) -> tuple[Any, ...]:
        start = self.skip(format.size, what)
        return format.unpack(self.data[start : self.offset].tobytes())

    def string(self, size: int, what: str) -> str:
        start = self.skip(size, what)
        try:
            text = self.data[start : start + size].tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8", start) from error
        if text.find("\0") != len(text) - 1:
            raise self.error(f"{what} does not end where its length says", start)
        return text[:-1]

    def view(self, item: _Item) -> _Bytes:
        return self.data[item.offset : item.offset + item.size]

    def finish(self) -> None:
        if left := self.data.size - self.offset:
            raise self.error(f"{left} bytes follow the end of the model")


def _items(reader: _Reader) -> list[_Item]:
    headers = _read_headers(reader)
    names = [reader.string(length, f"the name of item {i}") for i, (length, *_) in enumerate(headers)]
    shapes = [_read_shape(reader, name, rank) for name, (_, _, rank, _) in zip(names, headers, strict=True)]
    (padding,) = reader.take(struct.Struct("<Q"), "the length of the padding")
    reader.skip(padding, "the padding before the data")
    items = []
    for i, (name, shape, (_, kind, _, size)) in enumerate(zip(names, shapes, headers, strict=True)):
        offset = reader.skip(size, f"the data of {name!r}")
        items.append(_Item(name, kind, shape, size, _HEAD.size + i * _HEADER.size, offset))
    reader.finish()
    return items


def _read_headers(reader: _Reader) -> list[tuple[int, ...]]:
    version, count = reader.take(_HEAD, "the version and the number of items")
    if version != _VERSION:
        raise reader.error(f"version {version} of the format is not supported ({_VERSION} is)", 0)
    if count * _HEADER.size > reader.data.size - reader.offset:
        raise reader.error(f"the number of items is {count}, more than the file can hold", 8)
    return [reader.take(_HEADER, f"the header of item {i}") for i in range(count)]


def _read_shape(reader: _Reader, name: str, rank: int) -> tuple[int, ...]:
    start = reader.offset
    if rank > _MAX_RANK:
        raise reader.error(f"{name!r} has {rank} dimensions, more than {_MAX_RANK}")
    shape = reader.take(struct.Struct(f"<{rank}i"), f"the shape of {name!r}")
    if any(dimension < 1 for dimension in shape):
        raise reader.error(f"{name!r} has the shape {shape}, which holds nothing", start)
    return shape


def _tensors(reader: _Reader, item: _Item) -> Iterator[tuple[str, torch.Tensor]]:
    """`item` as a tensor, with its multiplier when that is needed to undo its quantization; nothing for a text."""
    if item.kind == _TEXT and item.name.startswith(_SPECIAL):
        return
    if item.kind in _INT8:
        values, multiplier = _int8(reader, item)
        yield item.name, _arranged(values / multiplier, item, transposed=True)
        if not item.name.endswith(_ALPHA):
            yield item.name + _OWN_MULTIPLIER, multiplier
    elif item.kind in _FLOATS:
        dtype = np.dtype(_FLOATS[item.kind])
        values = torch.from_numpy(_data(reader, item, dtype.itemsize).view(dtype).astype(np.float32))
        yield item.name, _arranged(values, item, transposed=False)
    else:
        packed = ", a layout packed for one kind of processor" if item.kind & _PACKED else ""
        raise reader.error(
            f"{item.name!r} is of Marian's type {item.kind:#x}{packed}, while float32, float16 and intgemm8 are "
            "supported (marian-conv --gemm-type)",
            item.header,
        )


def _int8(reader: _Reader, item: _Item) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of `item` and its multiplier, which follows them."""
    data = _data(reader, item, 1, _MULTIPLIER.size)
    (multiplier,) = _MULTIPLIER.unpack(data[item.count :].tobytes())
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise reader.error(f"{item.name!r} has the multiplier {multiplier}", item.offset + item.count)
    return torch.from_numpy(data[: item.count].view(np.int8).astype(np.float32)), torch.tensor(multiplier)


def _data(reader: _Reader, item: _Item, itemsize: int, trailer: int = 0) -> _Bytes:
    """The bytes of `item` without its padding, `trailer` bytes after the values included."""
    size = item.count * itemsize + trailer
    if not size <= item.size < size + _ALIGNMENT:
        raise reader.error(f"{item.name!r} has {item.size} bytes, but its shape {item.shape} needs {size}", item.header)
    return reader.view(item)[:size]


def _arranged(values: torch.Tensor, item: _Item, transposed: bool) -> torch.Tensor:
    """`values` as torch has them: Marian multiplies by (in, out), which it stores `transposed` when quantized."""
    shape = item.shape
    while shape and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or item.is_table:
        return values.reshape(shape)
    rows, columns = shape
    return values.reshape(columns, rows) if transposed else values.reshape(rows, columns).T.contiguous()
