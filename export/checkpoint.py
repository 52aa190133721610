"""A checkpoint: the weights, configuration and tokenizer that a model is exported from, in whatever format they are."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from heedful.export import ctranslate2, huggingface, marian_binary
from heedful.export.catalog import CATALOG
from heedful.export.hub import PICKLES, snapshot
from heedful.runtime.errors import CheckpointError
from heedful.runtime.home import home, is_name, locate

Format = Literal["huggingface", "ctranslate2", "marian"]


class _Reader(Protocol):
    """What a module that reads a format offers."""

    def recognises(self, folder: Path) -> bool: ...
    def read(self, folder: Path) -> dict[str, torch.Tensor]: ...


_READERS: dict[Format, _Reader] = {
    "ctranslate2": ctranslate2,
    "marian": marian_binary,
    "huggingface": huggingface,
}

SHIPPED = Path(__file__).with_name("checkpoints")
"""Checkpoints that come with the package."""

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_PICKLE_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
_CONVERT = (
    "convert them once with `CLASS.from_pretrained(FOLDER).save_pretrained(FOLDER)` of the transformers class that "
    "config.json names, or, where that does not know the file, with `safetensors.torch.save_file({name: "
    "tensor.contiguous().clone() for name, tensor in torch.load(FILE, weights_only=True).items()}, TARGET)`, TARGET "
    "being model.safetensors beside it"
)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a folder of weights says.

    `source` is what the user named, with `@commit` when it came from the Hugging Face Hub. `config`, `generation` and
    `preprocessor` are config.json, generation_config.json and preprocessor_config.json, empty when there is none.
    `tensors` have the names, shapes and dtypes they are stored in (quantized weights: float32).
    `tokenizer` is the path of tokenizer.json, if there is one; `license` is None when nothing states it.
    """

    path: Path
    source: str
    format: Format
    config: dict[str, Any]
    generation: dict[str, Any]
    preprocessor: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    tokenizer: Path
    license: str | None


def open_checkpoint(name_or_path: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Read the checkpoint that `name_or_path` means: a folder, the name of a fetched one, or `org/name` on the Hub.

    `revision` (branch, tag or commit) applies to the Hub only.

    Raises `CheckpointError` when nothing is found, something is missing or damaged, or the weights are pickled.
    """
    path, source = _find(os.fspath(name_or_path), revision)
    format = _recognise(path)
    if format == "huggingface" and not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json, which says what model the weights are of; add it")
    return Checkpoint(
        path=path,
        source=source,
        format=format,
        config=marian_binary.configuration(path) if format == "marian" else read_json(path / "config.json"),
        generation=read_json(path / "generation_config.json"),
        preprocessor=read_json(path / "preprocessor_config.json"),
        tokenizer=path / "tokenizer.json",
        license=_license(path),
        tensors=_READERS[format].read(path),
    )


def _find(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of the checkpoint and its source."""
    path = locate(name, "checkpoints")
    if not path.exists() and is_name(name) and (SHIPPED / name).is_dir():
        path = SHIPPED / name
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(f"{path} is a folder and has no revision {revision!r}: leave the revision out")
        return path, name
    if path.exists():
        raise CheckpointError(f"{path} is a file: give the folder that holds it, config.json and tokenizer.json")
    fetchable = sorted(entry.name for entry in CATALOG.values() if entry.kind == "checkpoints")
    if name in fetchable:
        raise CheckpointError(f"checkpoint {name!r} is not here yet: run `heedful fetch {name}`")
    if _HUB_ID.fullmatch(name):
        path = snapshot(name, revision)
        return path, f"{name}@{path.name}"
    raise CheckpointError(
        f"no checkpoint {name!r}: it is not a folder, not in {home() / 'checkpoints'}, not one that comes with Heedful "
        f"({', '.join(shipped())}), not one to fetch ({', '.join(fetchable)}), and not a model of the Hugging Face Hub "
        "(org/name)"
    )


def shipped() -> list[str]:
    """The names of the checkpoints that come with the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())


def _recognise(folder: Path) -> Format:
    """The format of the weights in `folder`, by what the files hold."""
    for format, reader in _READERS.items():
        if reader.recognises(folder):
            return format
    if pickles := [file.name for file in sorted(folder.iterdir()) if _is_pickle(file)]:
        raise CheckpointError(
            f"the weights in {folder} are pickled ({', '.join(pickles)}): a pickle can run code when it is loaded, "
            f"so it never is; {_CONVERT}"
        )
    raise CheckpointError(
        f"{folder} holds no weights: expected model.safetensors, model.safetensors.index.json with its shards, or "
        f"CTranslate2's model.bin; where a model has pickled weights only, {_CONVERT}"
    )


def _is_pickle(file: Path) -> bool:
    """Whether `file` is a pickle, bare or in the zip archive that torch.save writes."""
    if file.suffix not in PICKLES or not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(4).startswith(_PICKLE_MAGIC)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again")
    return content


def _license(folder: Path) -> str | None:
    """What the catalogue states of a fetched checkpoint, else `license:` in the front matter of its README.md."""
    entry = CATALOG.get(folder.name)
    if entry and folder == home() / entry.kind / entry.artifact:
        return entry.license
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    front_matter = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8-sig", errors="replace"), re.DOTALL)
    stated = front_matter and re.search(r"""^license:[ \t]*["']?([\w.+-]+)""", front_matter[1], re.MULTILINE)
    return stated[1] if stated else None
