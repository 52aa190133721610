"""Read weights in Hugging Face's layout: one safetensors file, or shards named by an index."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from heedful.runtime.errors import CheckpointError
from heedful.runtime.home import is_name

_INDEX = ".safetensors.index.json"


def recognises(folder: Path) -> bool:
    """Whether `folder` holds a safetensors file or an index of some."""
    return any(folder.glob("*.safetensors")) or any(folder.glob(f"*{_INDEX}"))


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of `folder` by name, with the shapes and dtypes they are stored in.

    Raises `CheckpointError` when a file is missing, damaged, or not what the index says.
    """
    single = folder / "model.safetensors"
    if single.is_file():
        return _load(single)
    if indices := sorted(folder.glob(f"*{_INDEX}")):
        return _read_sharded(_only(indices))
    return _load(_only(sorted(folder.glob("*.safetensors"))))


def _only(candidates: list[Path]) -> Path:
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise CheckpointError(
            f"{candidates[0].parent} holds {names}: keep one, or rename the one to read to model.safetensors"
        )
    return candidates[0]


def _read_sharded(index: Path) -> dict[str, torch.Tensor]:
    shard_of = _weight_map(index)
    shards = {name: _load(_shard(index, name)) for name in sorted(set(shard_of.values()))}
    missing = [name for name, shard in shard_of.items() if name not in shards[shard]]
    if missing:
        raise CheckpointError(
            f"{index.parent / shard_of[missing[0]]} lacks {missing[0]!r}, which {index.name} says it holds; "
            "download the checkpoint again"
        )
    return {name: shards[shard][name] for name, shard in shard_of.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to shard file name."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(shard) for name, shard in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no index of safetensors files (a JSON object with a `weight_map`); download it again"
        ) from error


def _shard(index: Path, name: str) -> Path:
    # By the text of the name, not by where the file really is: the Hub's cache is made of links.
    if not is_name(name):
        raise CheckpointError(
            f"{index} names the shard {name!r}, which is not a file beside it: do not trust this checkpoint"
        )
    return index.parent / name


def _load(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; download the checkpoint again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}); download it again") from error
