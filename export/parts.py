"""The stacks that captioners are made of, as Hugging Face lays them out: encoders of images, decoders of text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heedful.export.activations import activation
from heedful.export.bart import LAYER_PARTS
from heedful.models.text import StackConfig
from heedful.models.transformer import LayerConfig
from heedful.models.vision import ViTConfig
from heedful.runtime.errors import CheckpointError

Json = Mapping[str, Any]
Names = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Part:
    """One stack in a layout.

    `configure` reads its configuration; of decoders, given whether logits are the product with the embedding, and the
    width of the memory where it may not be the decoder's. `modules` and `parameters` say where ours are, after a
    prefix; `ignored` and `optional` are as in `NameTable`.
    """

    configure: Callable[..., Any]
    modules: Names
    parameters: Names
    ignored: Sequence[str] = ()
    optional: Sequence[str] = ()


def _layers(ours: str, theirs: str, parts: Names) -> dict[str, Sequence[str]]:
    """Where `parts` of a layer are, for all layers."""
    return {f"{ours}.layers.{{}}.{name}": [f"{theirs}.{{}}.{part}" for part in found] for name, found in parts.items()}


def _vit(config: Json, *, extra_tokens: int = 1, eps: float = 1e-5, **kinds: Any) -> ViTConfig:
    size, patch = config["image_size"], config["patch_size"]
    if not isinstance(size, int) or not isinstance(patch, int) or config.get("num_channels", 3) != 3:
        raise CheckpointError("the configuration asks for images that are not square or have no three channels")
    layer = LayerConfig(
        config["hidden_size"],
        config["num_attention_heads"],
        config["intermediate_size"],
        eps=config.get("layer_norm_eps", eps),
        activation=activation(config["hidden_act"]),
    )
    return ViTConfig((size, size), patch, config["num_hidden_layers"], layer, extra_tokens, **kinds)


def _google(*extra: str) -> Part:
    """ViT and DeiT, whose `extra` tokens have these names."""
    return Part(
        configure=lambda config: _vit(config, extra_tokens=len(extra), eps=1e-12),
        modules={
            "encoder.patches": ["embeddings.patch_embeddings.projection"],
            "encoder.norm": ["layernorm"],
            **_layers(
                "encoder",
                "encoder.layer",
                {
                    "attention_norm": ["layernorm_before"],
                    "attention.query_key_value": [f"attention.attention.{part}" for part in ("query", "key", "value")],
                    "attention.output": ["attention.output.dense"],
                    "feed_forward_norm": ["layernorm_after"],
                    "feed_forward.inner": ["intermediate.dense"],
                    "feed_forward.output": ["output.dense"],
                },
            ),
        },
        parameters={
            "encoder.extra": [f"embeddings.{name}" for name in extra],
            "encoder.positions": ["embeddings.position_embeddings"],
        },
        ignored=[r"pooler\..*"],
        # of models trained without
        optional=[r"encoder\.layers\.\d+\.attention\.query_key_value\.bias"],
    )


def _openai(query_key_value: Sequence[str], output: str, positions: str, **kinds: Any) -> Part:
    """The encoders of CLIP and BLIP."""
    return Part(
        configure=lambda config: _vit(config, **kinds),
        modules={
            "encoder.patches": ["embeddings.patch_embedding"],
            "encoder.embedding_norm": ["pre_layrnorm"],
            "encoder.norm": ["post_layernorm"],
            **_layers(
                "encoder",
                "encoder.layers",
                {
                    "attention_norm": ["layer_norm1"],
                    "attention.query_key_value": [f"self_attn.{part}" for part in query_key_value],
                    "attention.output": [f"self_attn.{output}"],
                    "feed_forward_norm": ["layer_norm2"],
                    "feed_forward.inner": ["mlp.fc1"],
                    "feed_forward.output": ["mlp.fc2"],
                },
            ),
        },
        parameters={"encoder.extra": ["embeddings.class_embedding"], "encoder.positions": [f"embeddings.{positions}"]},
        ignored=[r"embeddings\.position_ids"],
        optional=[r"encoder\.layers\.\d+\.attention\.query_key_value\.bias"],
    )


ENCODERS = {
    "vit": _google("cls_token"),
    "deit": _google("cls_token", "distillation_token"),
    "blip": _openai(["qkv"], "projection", "position_embedding"),
    "clip": _openai(
        ["q_proj", "k_proj", "v_proj"], "out_proj", "position_embedding.weight", patch_bias=False, embedding_norm=True
    ),
}


def _attention(block: str) -> list[str]:
    return [f"{block}.self.{part}" for part in ("query", "key", "value")]


_BERT_LAYER: dict[str, Sequence[str]] = {
    "attention_norm": ["attention.output.LayerNorm"],
    "attention.query_key_value": _attention("attention"),
    "attention.output": ["attention.output.dense"],
    "feed_forward_norm": ["output.LayerNorm"],
    "feed_forward.inner": ["intermediate.dense"],
    "feed_forward.output": ["output.dense"],
}
_BERT_CROSS: dict[str, Sequence[str]] = {
    "cross_attention_norm": ["crossattention.output.LayerNorm"],
    "cross_attention.query": _attention("crossattention")[:1],
    "cross_attention.key_value": _attention("crossattention")[1:],
    "cross_attention.output": ["crossattention.output.dense"],
}


def _bert(body: str, head: str, output: str, *, prefixed: bool = False) -> Part:
    """BERT as a decoder, its stack called `body`, what makes logits `head`, with a transform unless `prefixed`."""

    def configure(config: Json, *, tied: bool, memory_width: int | None) -> StackConfig:
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise CheckpointError("the configuration asks for relative positions in BERT, which Heedful does not know")
        layer = LayerConfig(
            config["hidden_size"],
            config["num_attention_heads"],
            config["intermediate_size"],
            eps=config.get("layer_norm_eps", 1e-12),
            norm_first=False,
            activation=activation(config["hidden_act"]),
            memory_width=memory_width,
            prefixed=prefixed,
        )
        return StackConfig(
            config["vocab_size"],
            config["num_hidden_layers"],
            layer,
            "learned",
            config["max_position_embeddings"],
            embedding_norm=True,
            tied=tied,
            output_bias=True,
            output_transform=not prefixed,
        )

    return Part(
        configure,
        modules={
            "decoder.tokens": [f"{body}embeddings.word_embeddings"],
            "decoder.positions": [f"{body}embeddings.position_embeddings"],
            "decoder.embedding_norm": [f"{body}embeddings.LayerNorm"],
            "decoder.transform.dense": [f"{head}transform.dense"],
            "decoder.transform.norm": [f"{head}transform.LayerNorm"],
            "decoder.output": [output],
            **_layers("decoder", f"{body}encoder.layer", _BERT_LAYER if prefixed else _BERT_LAYER | _BERT_CROSS),
        },
        parameters={"decoder.output_bias": [f"{head}bias"]},
        ignored=[
            rf"{body}embeddings\.(position_ids|token_type_embeddings\.weight)",
            rf"{body}pooler\..*",
            rf"{output}\..*",
        ],
    )


def _configure_gpt2(config: Json, *, tied: bool, memory_width: int | None) -> StackConfig:
    if config.get("scale_attn_by_inverse_layer_idx") or not config.get("scale_attn_weights", True):
        raise CheckpointError("the configuration asks for scores scaled by layer, which Heedful does not know")
    layer = LayerConfig(
        config["n_embd"],
        config["n_head"],
        config.get("n_inner") or 4 * config["n_embd"],
        eps=config.get("layer_norm_epsilon", 1e-5),
        activation=activation(config["activation_function"]),
        memory_width=memory_width,
    )
    positions = config["n_positions"]
    return StackConfig(config["vocab_size"], config["n_layer"], layer, "learned", positions, final_norm=True, tied=tied)


def _configure_trocr(config: Json, *, tied: bool, memory_width: int | None) -> StackConfig:
    learned = config.get("use_learned_position_embeddings", True)
    width = config["d_model"]
    layer = LayerConfig(
        width,
        config["decoder_attention_heads"],
        config["decoder_ffn_dim"],
        norm_first=False,
        activation=activation(config["activation_function"]),
        memory_width=memory_width,
    )
    return StackConfig(
        config["vocab_size"],
        config["decoder_layers"],
        layer,
        "learned" if learned else "sinusoidal",
        config["max_position_embeddings"],
        # learned positions begin at 2, computed ones behind that of the padding
        position_offset=2 if learned else config.get("pad_token_id", 1) + 1,
        embedding_scale=width**0.5 if config.get("scale_embedding") else 1.0,
        embedding_norm=config.get("layernorm_embedding", True),
        tied=tied,
    )


DECODERS = {
    "blip": _bert("bert.", "cls.predictions.", "cls.predictions.decoder"),
    "bert": _bert("bert.", "cls.predictions.", "cls.predictions.decoder"),
    "git": _bert("git.", "output.", "output", prefixed=True),
    "gpt2": Part(
        _configure_gpt2,
        modules={
            "decoder.tokens": ["transformer.wte"],
            "decoder.positions": ["transformer.wpe"],
            "decoder.norm": ["transformer.ln_f"],
            "decoder.output": ["lm_head"],
            **_layers(
                "decoder",
                "transformer.h",
                {
                    "attention_norm": ["ln_1"],
                    "attention.query_key_value": ["attn.c_attn"],
                    "attention.output": ["attn.c_proj"],
                    "cross_attention_norm": ["ln_cross_attn"],
                    "cross_attention.query": ["crossattention.q_attn"],
                    "cross_attention.key_value": ["crossattention.c_attn"],
                    "cross_attention.output": ["crossattention.c_proj"],
                    "feed_forward_norm": ["ln_2"],
                    "feed_forward.inner": ["mlp.c_fc"],
                    "feed_forward.output": ["mlp.c_proj"],
                },
            ),
        },
        parameters={},
        # masks that older versions stored
        ignored=[r"transformer\.h\.\d+\.(attn|crossattention)\.(masked_)?bias", r"lm_head\.weight"],
    ),
    "trocr": Part(
        _configure_trocr,
        modules={
            "decoder.tokens": ["model.decoder.embed_tokens"],
            "decoder.positions": ["model.decoder.embed_positions"],
            "decoder.embedding_norm": ["model.decoder.layernorm_embedding"],
            "decoder.output": ["output_projection"],
            **_layers("decoder", "model.decoder.layers", LAYER_PARTS),
        },
        parameters={},
        ignored=[r"model\.decoder\.embed_positions\.(weights|_float_tensor)", r"output_projection\.weight"],
    ),
}
