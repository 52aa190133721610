"""Checkpoint in, verified bundle out."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import onnx_ir as ir

from heedful.export.certificate import certify
from heedful.export.checkpoint import Checkpoint, open_checkpoint
from heedful.export.families import find_family
from heedful.export.family import Family
from heedful.export.flash import cut_heads_within, use_flash
from heedful.export.fold import drop_zeros, fold_queries, fold_scales
from heedful.export.greedy import repeat
from heedful.export.integer import find_scales
from heedful.export.plan import BEAMS, GREEDY, quantize
from heedful.export.rank import rank_logits
from heedful.export.reshape import state_shapes
from heedful.export.shortlist import FILE as SHORTLIST
from heedful.export.shortlist import SHORT, Shortlist, keep_to_words, shorten
from heedful.export.smooth import smooth, smooth_logits
from heedful.export.storage import store
from heedful.export.trace import trace
from heedful.export.unfold import unfold_convolutions
from heedful.export.workspace import workspace
from heedful.runtime.bundle import MANIFEST, VERSION, Bundle, read_manifest
from heedful.runtime.errors import BundleError, ExportError, OutdatedBundleError
from heedful.runtime.home import home, is_name
from heedful.runtime.verified import sha256

Precision = Literal["fp32", "int8", "fp16"]
Report = Callable[[str], None]


def export(
    checkpoint: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    precision: Precision = "fp32",
    *,
    revision: str | None = None,
    report: Report = lambda step: None,
) -> Path:
    """Export `checkpoint`, a folder, a fetched name or `org/name` on the Hub at `revision`, as the bundle `bundle`.

    `bundle` is a folder to make, or a name for the bundle folder; a bundle there that is of an older format, which this
    version does not read, is replaced. `report` is told what is being done. Raises CheckpointError for a checkpoint
    that cannot be read, ExportError when the bundle is there already or the graphs differ from the PyTorch model by
    more than the precision allows; then nothing is written, and what was there stays.
    """
    if precision not in get_args(Precision):
        raise ExportError(f"unknown precision {precision!r}: choose one of {', '.join(get_args(Precision))}")
    target = home() / "bundles" / bundle if is_name(os.fspath(bundle)) else Path(bundle)
    if target.exists() and not _is_outdated(target):
        raise ExportError(f"{target} is there already: remove it, or choose another name")
    report(f"reading {checkpoint}")
    opened = open_checkpoint(checkpoint, revision)
    family = find_family(opened)
    try:
        with workspace(target) as temporary:
            folder = temporary / target.name
            folder.mkdir()
            _write(opened, family, folder, precision, report)
            # asked anew: meanwhile another export may have made a bundle, which stays
            if _is_outdated(target):
                target.rename(temporary / f"{target.name}.outdated")
            folder.rename(target)
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error}") from error
    return target


def _is_outdated(path: Path) -> bool:
    """Whether `path` is a bundle of a format from before this version's."""
    try:
        read_manifest(path)
    except BundleError as error:
        return isinstance(error, OutdatedBundleError)
    return False


def _write(checkpoint: Checkpoint, family: Family, folder: Path, precision: Precision, report: Report) -> None:
    model = family.load(checkpoint)
    fold_scales(model)
    drop_zeros(model)
    if precision == "int8":
        smooth(model.encoder)
        smooth_logits(model)
    tokenizers = family.tokenizers(checkpoint)
    for name, tokenizer in tokenizers.items():
        tokenizer.save(str(folder / name), pretty=False)
    texts = family.texts(tokenizers)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    description = family.describe(checkpoint, model, tokenizers)
    shortlist = family.shortlist(checkpoint, model)
    graphs = _graphs(model, family, description, precision, report)
    shape = _decoder_shape(model, precision) | _memory_shape(graphs["decoder"])
    # for a core's cache; a GPU has others
    row_by_row = precision == "int8"
    files = [*_stored(graphs, family, row_by_row, shortlist, description, folder), *tokenizers, *texts]
    manifest: dict[str, Any] = {
        "heedful": VERSION,
        "task": family.task,
        "family": family.name,
        "precision": precision,
        "source": {"name": checkpoint.source, "format": checkpoint.format, "license": checkpoint.license},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "files": {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in files},
        "decoder": shape,
        family.section: description,
    }
    report("comparing with PyTorch")
    # with the checkpoint read into a model again, which no rewrite has touched, in place of the one that was rewritten
    del model, graphs
    manifest["certificate"] = certify(family.subject(family.load(checkpoint), Bundle(folder, manifest)), precision)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _graphs(
    model: Any, family: Family, description: dict[str, Any], precision: Precision, report: Report
) -> dict[str, ir.Model]:
    """Trace, rewrite and quantize; in float16 `model` becomes that, in place."""
    if precision == "fp16":
        # a spectrum spans more than float16 can hold, and the bytes of a picture are exact in float32
        for name, part in model.named_children():
            if name not in {"log_mel", "normalize"}:
                part.half()
    traced = {}
    for graph in family.graphs(model, description):
        # products in floats are added up in another order in a loop, which would change the last bits of a score
        if graph.name == GREEDY and precision != "int8":
            continue
        report(f"tracing the {graph.name}")
        traced[graph.name] = trace(graph)
        unfold_convolutions(traced[graph.name])
        state_shapes(traced[graph.name])
    if precision == "int8":
        if BEAMS in family.plan:
            traced[BEAMS] = traced["decoder"].clone()
        known = find_scales(model)
        for name, graph_model in traced.items():
            use_flash(graph_model)
            cut_heads_within(graph_model)
            quantize(family.plan[name], graph_model, known)
    for decoder in _decoders(traced):
        # where beams have a graph of their own, the other sees single tokens or whole prompts
        fold_queries(decoder, own=BEAMS not in traced or decoder is traced[BEAMS])
    return traced


def _decoders(graphs: dict[str, ir.Model]) -> list[ir.Model]:
    """Those of `graphs` that step tokens over the whole vocabulary."""
    return [graphs[name] for name in ("decoder", BEAMS) if name in graphs]


def _stored(
    graphs: dict[str, ir.Model],
    family: Family,
    row_by_row: bool,
    shortlist: Shortlist | None,
    description: dict[str, Any],
    folder: Path,
) -> list[str]:
    """Write the graphs, and a decoder more where there is a shortlist; names of the files."""
    decoder = graphs["decoder"]
    sources: dict[str, str] = {}
    files: list[str] = []
    if shortlist is not None:
        graphs[SHORT["decoder"]], sources = shorten(decoder)
        if GREEDY in graphs:
            graphs[SHORT[GREEDY]] = keep_to_words(graphs[GREEDY])
        # few, and row by row a single sentence would take longer
        rank_logits(graphs[SHORT["decoder"]])
        shortlist.save(folder / SHORTLIST)
        files = [SHORTLIST]
    for each in _decoders(graphs):
        if family.rank is None:
            rank_logits(each, row_by_row=row_by_row)
        else:
            family.rank(each, description, row_by_row)
    for name in (GREEDY, SHORT[GREEDY]):
        if name in graphs:
            repeat(graphs[name], description["end"])
    files = [*store(graphs, folder), *files]
    if sources:
        description["shortlist"] = {name: _place(decoder, source) for name, source in sources.items()}
    return files


def _place(model: ir.Model, name: str) -> dict[str, Any]:
    """Where the weights' file has the constant `name`."""
    tensor = model.graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    shape = list(tensor.numpy().shape)
    return {"offset": tensor.offset, "dtype": str(tensor.dtype.numpy()), "shape": shape}


def _decoder_shape(model: Any, precision: Precision) -> dict[str, Any]:
    config = model.decoder.config
    layer = model.decoder.layers[0]
    attention = layer.attention if layer.prefixed else layer.cross_attention
    return {
        "layers": config.layers,
        "heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "frames": model.frames,
        "positions": config.max_positions,
        "vocabulary": config.vocabulary,
        "dtype": "float16" if precision == "fp16" else "float32",
        "cache": {
            part: [tensor.shape[1], tensor.shape[3]] for part, tensor in model.decoder.empty(1, 1)[0]._asdict().items()
        },
    }


def _memory_shape(decoder: ir.Model) -> dict[str, Any]:
    """What the decoder says of the parts of a layer's memory, if they are not keys and values as they were computed."""
    prefix = "memory.0."
    found = [value for value in decoder.graph.inputs if (value.name or "").startswith(prefix)]
    parts = {
        str(value.name).removeprefix(prefix): [str(value.dtype.numpy()), list(value.shape)[1:]]
        for value in found
        if value.dtype is not None and value.shape is not None
    }
    return {"memory": parts} if len(parts) > 2 else {}
