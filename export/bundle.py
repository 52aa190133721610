"""Checkpoint in, verified bundle out."""

import copy
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import Tokenizer, decoders, pre_tokenizers

from heedful.export import whisper
from heedful.export.certificate import certify
from heedful.export.checkpoint import Checkpoint, open_checkpoint
from heedful.export.flash import use_flash
from heedful.export.fold import fold_queries, fold_scales
from heedful.export.quantize import quantize
from heedful.export.storage import store
from heedful.export.trace import trace
from heedful.models.whisper import Whisper
from heedful.runtime.bundle import MANIFEST, VERSION, Bundle, sha256
from heedful.runtime.engine.device import choose_device
from heedful.runtime.errors import CheckpointError, ExportError
from heedful.runtime.home import home, is_name
from heedful.runtime.speech.model import SpeechModel

Precision = Literal["fp32", "int8", "fp16"]


def export(
    checkpoint: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    precision: Precision = "fp32",
    *,
    revision: str | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> Path:
    """Export `checkpoint`, a folder, a fetched name or `org/name` on the Hub at `revision`, as the bundle `bundle`.

    `bundle` is a folder to make, or a name for the bundle folder. `report` is told what is being done. Raises
    CheckpointError for a checkpoint that cannot be read, ExportError when the bundle is there already or the graphs
    differ from the PyTorch model by more than the precision allows; then nothing is written.
    """
    if precision not in get_args(Precision):
        raise ExportError(f"unknown precision {precision!r}: choose one of {', '.join(get_args(Precision))}")
    target = home() / "bundles" / bundle if is_name(os.fspath(bundle)) else Path(bundle)
    if target.exists():
        raise ExportError(f"{target} is there already: remove it, or choose another name")
    report(f"reading {checkpoint}")
    opened = open_checkpoint(checkpoint, revision)
    if not whisper.recognises(opened):
        kind = opened.config.get("model_type", "an unknown family")
        raise CheckpointError(f"{opened.source} is of {kind}; Heedful exports whisper")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            folder = Path(temporary) / target.name
            folder.mkdir()
            _write(opened, folder, precision, report)
            folder.rename(target)
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error}") from error
    return target


def _write(checkpoint: Checkpoint, folder: Path, precision: Precision, report: Callable[[str], None]) -> None:
    model = whisper.load(checkpoint)
    fold_scales(model)
    tokenizer = _tokenizer(checkpoint)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    description = whisper.describe(checkpoint, model, tokenizer)
    files = [*_graphs(model, description, folder, precision, report), "tokenizer.json"]
    manifest: dict[str, Any] = {
        "heedful": VERSION,
        "task": "transcribe",
        "family": "whisper",
        "precision": precision,
        "source": {"name": checkpoint.source, "format": checkpoint.format, "license": checkpoint.license},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "files": {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in files},
        "decoder": _decoder_shape(model, precision),
        "speech": description,
    }
    report("comparing with PyTorch")
    bundled = SpeechModel(Bundle(folder, manifest), choose_device("cpu"))
    manifest["certificate"] = certify(model, bundled, precision, description["alignment_heads"])
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _graphs(
    model: Whisper, description: dict[str, Any], folder: Path, precision: Precision, report: Callable[[str], None]
) -> list[str]:
    """Trace, quantize and store; names of the files."""
    if precision == "fp16":
        # a copy: the certificate compares with the weights as the checkpoint has them
        half = copy.deepcopy(model).half()
        half.log_mel = model.log_mel  # a spectrum spans more than float16 can hold
        model = half
    traced = {}
    for graph in whisper.graphs(model, description):
        report(f"tracing the {graph.name}")
        traced[graph.name] = trace(graph)
        if graph.name == "decoder":
            fold_queries(traced[graph.name])
        if precision == "int8":
            use_flash(traced[graph.name])
            quantize(graph.name, traced[graph.name])
    return store(traced, folder)


def _decoder_shape(model: Whisper, precision: Precision) -> dict[str, Any]:
    config = model.config
    return {
        "layers": config.decoder_layers,
        "heads": config.decoder_heads,
        "head_dim": config.width // config.decoder_heads,
        "frames": config.audio_positions,
        "positions": config.text_positions,
        "vocabulary": config.vocabulary,
        "dtype": "float16" if precision == "fp16" else "float32",
    }


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer, with the decoder that its byte-level splitting calls for: some files leave it out."""
    try:
        tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{checkpoint.tokenizer} cannot be read: {error}") from error
    if tokenizer.decoder is None and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
