"""T5 (Raffel et al. 2020, arXiv 1910.10683), v1.0 and v1.1, and its descendants of the same layout (flan-t5, mT5)."""

from collections.abc import Mapping
from typing import Any

from heedful.export.generation import token
from heedful.export.text import Frame, TextFamily
from heedful.export.weights import NameTable
from heedful.models.seq2seq import Seq2SeqConfig
from heedful.models.text import StackConfig
from heedful.models.transformer import ActivationName, LayerConfig
from heedful.runtime.errors import CheckpointError

Json = Mapping[str, Any]

# feed_forward_proj: activation and whether it is gated
_FEED_FORWARDS: dict[str, tuple[ActivationName, bool]] = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
}
# relative positions have no last one: a limit of memory
_POSITIONS = 4096


def configure(config: Json, tied: bool) -> Seq2SeqConfig:
    """The sizes of both stacks."""
    kind = config.get("feed_forward_proj", "relu")
    if kind not in _FEED_FORWARDS:
        raise CheckpointError(f"config.json asks for feed_forward_proj {kind!r}: known are {', '.join(_FEED_FORWARDS)}")
    activation, gated = _FEED_FORWARDS[kind]
    layer = LayerConfig(
        config["d_model"],
        config["num_heads"],
        config["d_ff"],
        head_dim=config["d_kv"],
        scale=1.0,
        bias=False,
        norm="rms",
        eps=config.get("layer_norm_epsilon", 1e-6),
        activation=activation,
        gated=gated,
    )

    def stack(layers: int, **output: Any) -> StackConfig:
        return StackConfig(
            vocabulary=config["vocab_size"],
            layers=layers,
            layer=layer,
            positions="relative",
            max_positions=_POSITIONS,
            buckets=config.get("relative_attention_num_buckets", 32),
            max_distance=config.get("relative_attention_max_distance", 128),
            final_norm=True,
            **output,
        )

    layers = config["num_layers"]
    decoder_layers = config.get("num_decoder_layers") or layers
    # v1.0 scales its outputs, v1.1 and mT5 do not; newer configurations say so, older ones in a roundabout way
    tied_in_v1 = config.get("tie_word_embeddings", True) and config["model_type"] != "mt5"
    scaled = config.get("scale_decoder_outputs", tied_in_v1)
    scale = config["d_model"] ** -0.5 if scaled else 1.0
    return Seq2SeqConfig(stack(layers), stack(decoder_layers, tied=tied, output_scale=scale))


def names(config: Seq2SeqConfig) -> NameTable:
    """Where the layout keeps each module."""
    inner = ["wi_0", "wi_1"] if config.encoder.layer.gated else ["wi"]
    modules: dict[str, list[str]] = {
        "encoder.tokens": ["shared"],
        "decoder.tokens": ["shared"],
        "decoder.output": ["lm_head"],
    }
    for side, last in (("encoder", 1), ("decoder", 2)):
        block = f"{side}.block.{{}}.layer"
        modules |= {
            f"{side}.norm": [f"{side}.final_layer_norm"],
            f"{side}.positions.bias": [f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"],
            f"{side}.layers.{{}}.attention_norm": [f"{block}.0.layer_norm"],
            f"{side}.layers.{{}}.attention.query_key_value": [f"{block}.0.SelfAttention.{part}" for part in "qkv"],
            f"{side}.layers.{{}}.attention.output": [f"{block}.0.SelfAttention.o"],
            f"{side}.layers.{{}}.feed_forward_norm": [f"{block}.{last}.layer_norm"],
            f"{side}.layers.{{}}.feed_forward.inner": [f"{block}.{last}.DenseReluDense.{part}" for part in inner],
            f"{side}.layers.{{}}.feed_forward.output": [f"{block}.{last}.DenseReluDense.wo"],
        }
    cross = "decoder.block.{}.layer.1"
    modules |= {
        "decoder.layers.{}.cross_attention_norm": [f"{cross}.layer_norm"],
        "decoder.layers.{}.cross_attention.query": [f"{cross}.EncDecAttention.q"],
        "decoder.layers.{}.cross_attention.key_value": [f"{cross}.EncDecAttention.{part}" for part in "kv"],
        "decoder.layers.{}.cross_attention.output": [f"{cross}.EncDecAttention.o"],
    }
    return NameTable(
        modules=modules,
        parameters={},
        # tied to the embedding, or left over from old versions
        ignored=[
            r"(en|de)coder\.embed_tokens\.weight",
            "lm_head.weight",
            r".*EncDecAttention\.relative_attention_bias.*",
        ],
    )


def frame(config: Json, generation: Json) -> Frame:
    """Sources end with the end token; targets begin with padding."""
    return Frame([], [token(config, "eos_token_id")], [token(generation, "decoder_start_token_id")])


FAMILIES = (TextFamily("t5", "translate", ("t5", "mt5"), configure, names, frame, lambda config: "t5"),)
