"""Read CTranslate2's model.bin: a header, variables and aliases, all little-endian and unaligned."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from heedful.runtime.errors import CheckpointError

_FILE = "model.bin"
_HEAD = struct.Struct("<IH")  # The version, then the length of the name.
_VERSIONS = range(4, 7)
_PLAUSIBLE_VERSIONS = range(2, 256)
_LONGEST_NAME = 256
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
_QUANTIZED = {torch.int8, torch.int16}
_SCALE = "_scale"
_MAX_RANK = 8
_SMALLEST_VARIABLE = 10  # An empty name, a rank of 0, a dtype, a size and one byte.
_SMALLEST_ALIAS = 6


def recognises(folder: Path) -> bool:
    """Whether `folder` holds a model.bin that begins as CTranslate2's do: a small version, then a name in ASCII."""
    path = folder / _FILE
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD.size + _LONGEST_NAME)
    if len(head) < _HEAD.size:
        return False
    version, length = _HEAD.unpack_from(head)
    name = head[_HEAD.size : _HEAD.size + length]
    ends = len(name) == length and name.endswith(b"\0")
    return version in _PLAUSIBLE_VERSIONS and ends and name[:-1].isalnum() and name.isascii()


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The variables of `folder`/model.bin by name, an alias being the same tensor under another name.

    Shapes and dtypes are as stored, scalars have no dimension; int8 and int16 weights come back as float32, divided
    by their scales, which are left out.

    Raises `CheckpointError`, with the offset, when the file is cut off, too long or otherwise malformed.
    """
    reader = _Reader(folder / _FILE)
    _read_header(reader)
    variables = _read_variables(reader)
    names = {name: name for name in variables} | _read_aliases(reader, variables)
    reader.finish()
    plain = {name: _dequantized(reader, name, variables) for name in variables}
    scales = {name + _SCALE for name, variable in variables.items() if variable is not plain[name]}
    return {name: plain[stored] for name, stored in names.items() if stored not in scales}


class _Reader:
    """A file read from front to back; every read is checked against its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = np.memmap(path, np.uint8, "r")
        self.offset = 0

    def error(self, problem: str, offset: int | None = None) -> CheckpointError:
        at = self.offset if offset is None else offset
        return CheckpointError(f"{self.path} at byte {at}: {problem}; download or convert the checkpoint again")

    def take(self, size: int, what: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """The next `size` bytes, copied, so that they outlive the file."""
        if size > self.data.size - self.offset:
            raise self.error(f"the file ends inside {what}")
        taken = np.array(self.data[self.offset : self.offset + size])
        self.offset += size
        return taken

    def integer(self, format: str, what: str) -> int:
        (value,) = struct.unpack("<" + format, self.take(struct.calcsize("<" + format), what).tobytes())
        return int(value)

    def count(self, smallest: int, what: str) -> int:
        """A number of things to follow, each of at least `smallest` bytes."""
        start = self.offset
        value = self.integer("I", what)
        if value * smallest > self.data.size - self.offset:
            raise self.error(f"the {what} is {value}, more than the file can hold", start)
        return value

    def string(self, what: str) -> str:
        start = self.offset
        raw = self.take(self.integer("H", what), what).tobytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8", start) from error
        if text.find("\0") != len(text) - 1:
            raise self.error(f"{what} does not end where its length says", start)
        return text[:-1]

    def finish(self) -> None:
        if left := self.data.size - self.offset:
            raise self.error(f"{left} bytes follow the end of the model")


def _read_header(reader: _Reader) -> None:
    version = reader.integer("I", "the version")
    if version not in _VERSIONS:
        supported = f"{_VERSIONS[0]} to {_VERSIONS[-1]}"
        raise reader.error(f"version {version} of the format is not supported ({supported} are)", 0)
    reader.string("the name of the specification")
    reader.integer("I", "the revision")


def _read_variables(reader: _Reader) -> dict[str, torch.Tensor]:
    variables: dict[str, torch.Tensor] = {}
    for _ in range(reader.count(_SMALLEST_VARIABLE, "number of variables")):
        start = reader.offset
        name = reader.string("a variable's name")
        if name in variables:
            raise reader.error(f"variable {name!r} occurs twice", start)
        variables[name] = _read_tensor(reader, name)
    return variables


def _read_tensor(reader: _Reader, name: str) -> torch.Tensor:
    start = reader.offset
    rank = reader.integer("B", f"the rank of {name!r}")
    if rank > _MAX_RANK:
        raise reader.error(f"{name!r} has {rank} dimensions, more than {_MAX_RANK}", start)
    shape = [reader.integer("I", f"the shape of {name!r}") for _ in range(rank)]
    kind = reader.integer("B", f"the dtype of {name!r}")
    size = reader.integer("I", f"the size of {name!r}")
    if kind >= len(_DTYPES):
        raise reader.error(f"{name!r} is of the unknown dtype {kind}", start)
    if size == 0 or size != math.prod(shape) * _DTYPES[kind].itemsize:
        raise reader.error(f"{name!r} has {size} bytes, which is not shape {shape} of {_DTYPES[kind]}", start)
    return torch.from_numpy(reader.take(size, f"the data of {name!r}")).view(_DTYPES[kind]).reshape(shape)


def _read_aliases(reader: _Reader, variables: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Alias to the name of the variable it stands for."""
    aliases: dict[str, str] = {}
    for _ in range(reader.count(_SMALLEST_ALIAS, "number of aliases")):
        start = reader.offset
        alias, name = reader.string("an alias"), reader.string("an alias's variable")
        if alias in variables or alias in aliases:
            raise reader.error(f"alias {alias!r} is the name of another variable", start)
        if name not in variables:
            raise reader.error(f"alias {alias!r} stands for {name!r}, which does not exist", start)
        aliases[alias] = name
    return aliases


def _dequantized(reader: _Reader, name: str, variables: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The variable `name`; a quantized one as q / scale, with one scale for all or one a row (first dimension)."""
    tensor, scale = variables[name], variables.get(name + _SCALE)
    if tensor.dtype not in _QUANTIZED or tensor.dim() == 0:
        return tensor
    if scale is None:
        if tensor.dim() == 1:  # A short list or a text, stored as integers.
            return tensor
        raise CheckpointError(f"{reader.path}: {name!r} is quantized and has no scale; convert the checkpoint again")
    scale = scale.float()
    if scale.numel() not in {1, len(tensor)} or not bool((scale.isfinite() & (scale > 0)).all()):
        raise CheckpointError(
            f"{reader.path}: {name!r} needs a scale of one positive number, or one a row; convert the checkpoint again"
        )
    return tensor.float() / scale.reshape(-1, *[1] * (tensor.dim() - 1))
