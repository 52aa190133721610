"""Marian's own models, above all the small students with recurrent decoders that Firefox translates with.

A folder holds the model (`model.enpt.intgemm.alphas.bin`), its vocabulary (`vocab.enpt.spm`, or one for each side),
perhaps a shortlist (`lex.50.50.enpt.s2t.bin`) and a decoder's settings (`*.yml`), as Firefox and Bergamot ship them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from heedful.export.activations import activation
from heedful.export.checkpoint import Checkpoint
from heedful.export.family import Family
from heedful.export.integer import set_scales
from heedful.export.plan import TEXT
from heedful.export.shortlist import Shortlist, read_shortlist
from heedful.export.stated import read_mapping
from heedful.export.text import graphs, subject, tokenizer_files
from heedful.export.weights import NameTable, load_weights
from heedful.models.seq2seq import Seq2Seq, Seq2SeqConfig
from heedful.models.text import StackConfig
from heedful.models.transformer import LayerConfig
from heedful.runtime.errors import CheckpointError

# what must be so for the model to be the one in models/seq2seq.py
_EXPECTED: dict[str, set[Any]] = {
    "type": {"transformer"},
    "transformer-ffn-depth": {2},
    "transformer-decoder-autoreg": {"rnn", "self-attention"},
    "transformer-preprocess": {"", "n"},
    "transformer-postprocess": {"dan", "da"},
    "transformer-tied-layers": {()},
    "transformer-train-position-embeddings": {False},
    "tied-embeddings-all": {True},
}
_POSITIONS = 1024
# longer than any sentence that students are trained on
_LONGEST = 256
_EPSILON = 1e-6

_WEIGHT = re.compile(r"(encoder|decoder)_l(\d+)_(self|context|rnn|ffn)_([Wb])([a-z0-9]*)")
_NORM = re.compile(r"(encoder|decoder)_l(\d+)_(self|context|rnn|ffn)_(?:Wo|ffn)_ln_(scale|bias)")
_OTHERS = {"Wemb": "embedding.weight", "decoder_ff_logit_out_b": "output_bias", "none": "output.weight"}
_LEAVES = {"W": "weight", "b": "bias", "scale": "weight", "bias": "bias"}

_LAYER = {
    "attention_norm": ["self.norm"],
    "attention.query_key_value": ["self.q", "self.k", "self.v"],
    "attention.output": ["self.o"],
    "cross_attention_norm": ["context.norm"],
    "cross_attention.query": ["context.q"],
    "cross_attention.key_value": ["context.k", "context.v"],
    "cross_attention.output": ["context.o"],
    "feed_forward_norm": ["ffn.norm"],
    "feed_forward.inner": ["ffn.1"],
    "feed_forward.output": ["ffn.2"],
}
_RECURRENT = {"attention_norm": ["rnn.norm"], "attention.gate_input": ["rnn.f", "rnn.input"]}


def plain_name(name: str) -> str:
    """Marian's name of a tensor as one of a module's, layers counted from 0: `encoder.layers.0.self.q.weight`."""
    if match := _WEIGHT.fullmatch(name):
        side, layer, block, kind, part = match.groups()
        return f"{side}.layers.{int(layer) - 1}.{block}.{part or 'input'}.{_LEAVES[kind]}"
    if match := _NORM.fullmatch(name):
        side, layer, block, kind = match.groups()
        return f"{side}.layers.{int(layer) - 1}.{block}.norm.{_LEAVES[kind]}"
    return _OTHERS.get(name, name)


def names(recurrent: bool) -> NameTable:
    """Where `plain_name` puts each module."""
    modules = {"encoder.tokens": ["embedding"], "decoder.tokens": ["embedding"]}
    for side in ("encoder", "decoder"):
        parts = _LAYER | (_RECURRENT if side == "decoder" and recurrent else {})
        for ours, theirs in parts.items():
            modules[f"{side}.layers.{{}}.{ours}"] = [f"{side}.layers.{{}}.{part}" for part in theirs]
    return NameTable(modules, parameters={"decoder.output_bias": "output_bias"}, ignored=[r".*_QuantMult[AB]"])


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether `checkpoint` is a model of Marian's."""
    return checkpoint.format == "marian"


def configure(config: Mapping[str, Any]) -> Seq2SeqConfig:
    """Sizes and kinds from the configuration inside the model."""
    for key, allowed in _EXPECTED.items():
        value = config.get(key)
        if (tuple(value) if isinstance(value, list) else value) not in allowed:
            raise CheckpointError(f"the model was trained with {key}: {value!r}, which Heedful does not know")
    width = config["dim-emb"]
    recurrent = config["transformer-decoder-autoreg"] == "rnn"
    if recurrent and config.get("dec-cell") != "ssru":
        raise CheckpointError(f"the model has the recurrent cell {config.get('dec-cell')!r}; Heedful knows ssru")

    def stack(layers: int, *, recurrent: bool = False, **kinds: bool) -> StackConfig:
        layer = LayerConfig(
            width,
            config["transformer-heads"],
            config["transformer-dim-ffn"],
            norm_first=config["transformer-preprocess"] == "n",
            eps=_EPSILON,
            activation=activation(config["transformer-ffn-activation"]),
            recurrent=recurrent,
        )
        return StackConfig(
            vocabulary=config["dim-vocabs"][-1],
            layers=layers,
            layer=layer,
            positions="sinusoidal",
            max_positions=_POSITIONS,
            embedding_scale=width**0.5,
            final_norm=config.get("transformer-postprocess-top") == "n",
            **kinds,
        )

    decoder = stack(config["dec-depth"], recurrent=recurrent, zero_start=True, output_bias=True)
    return Seq2SeqConfig(stack(config["enc-depth"]), decoder)


def load(checkpoint: Checkpoint) -> Seq2Seq:
    """The model with the weights of `checkpoint`, float32, and, where they are quantized, their scales."""
    try:
        config = configure(checkpoint.config)
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.source}: the model's configuration lacks {error}") from error
    model = Seq2Seq(config)
    tensors = {plain_name(name): tensor for name, tensor in checkpoint.tensors.items()}
    table = names(config.decoder.layer.recurrent)
    load_weights(model, tensors, table)
    note_scales(model, tensors, table)
    return model.eval()


def note_scales(model: Seq2Seq, tensors: Mapping[str, Tensor], table: NameTable) -> None:
    """Note in every module the scales that the checkpoint states for its matrix."""
    activations, multipliers = (
        {plain_name(name.removesuffix(end)): float(value) for name, value in tensors.items() if name.endswith(end)}
        for end in ("_QuantMultA", "_QuantMultB")
    )
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        parts = [name for name in table.sources(f"{path}.weight", tensors) if name is not None]
        read = ["output.weight"] if isinstance(module, nn.Embedding) else parts
        if not all(part in multipliers for part in parts) or len({activations.get(part) for part in read}) != 1:
            continue
        columns = [torch.full((len(tensors[part]),), 1 / multipliers[part]) for part in parts]
        if read[0] in activations:
            set_scales(module, 1 / activations[read[0]], torch.cat(columns))


def tokenizers(checkpoint: Checkpoint) -> dict[str, Tokenizer]:
    """The vocabulary's tokenizer, or one for each side."""
    return tokenizer_files(checkpoint, "student")


def languages(checkpoint: Checkpoint) -> list[str] | None:
    """Source and target language, as the names of the files say: `model.enpt.bin`."""
    for file in sorted(checkpoint.path.glob("model.*.bin")):
        if match := re.match(r"model\.([a-z]{2})([a-z]{2})\.", file.name):
            return [match[1], match[2]]
    return None


def decoder_settings(folder: Path) -> dict[str, Any]:
    """What the *.yml in `folder` say of how to translate."""
    settings: dict[str, Any] = {}
    for file in sorted(folder.glob("*.yml")):
        try:
            settings |= read_mapping(file.read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} {error}; download it again") from error
    return settings


def describe(checkpoint: Checkpoint, model: Seq2Seq, tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
    """What the runtime must know."""
    end = tokenizers["tokenizer.json"].token_to_id("</s>")
    settings = decoder_settings(checkpoint.path)
    decoder = model.config.decoder
    return {
        "pair": languages(checkpoint),
        # the first token is not looked at
        "frame": {"before": [], "after": [end], "start": [end], "forced": 0},
        "languages": {},
        "end": end,
        "positions": _LONGEST,
        "prefixes": {},
        "search": {
            "beams": settings.get("beam-size", 1),
            "length_penalty": float(settings.get("normalize", 1.0)),
            "early_stopping": False,
            "no_repeat_ngram": 0,
            "min_length": 0,
            "max_length": _POSITIONS,
            "length_factor": float(settings.get("max-length-factor", 3.0)),
            "forced_end": False,
            "bad_words": [],
            "suppress": [],
        },
        # the first head of the last layer is trained to follow the source
        "alignment_heads": [(decoder.layers - 1, 0)],
    }


def shortlist(checkpoint: Checkpoint, model: Seq2Seq) -> Shortlist | None:
    """The shortlist beside the model."""
    files = sorted(checkpoint.path.glob("lex.*.bin"))
    return read_shortlist(files[0], model.config.decoder.vocabulary) if files else None


FAMILY = Family(
    name="marian-student",
    task="translate",
    section="text",
    plan=TEXT,
    recognises=recognises,
    load=load,
    tokenizers=tokenizers,
    describe=describe,
    graphs=graphs,
    subject=subject,
    shortlist=shortlist,
)
