"""The families whose checkpoints are laid out like BART's: BART, mBART, Pegasus, Marian, M2M-100 and NLLB."""

import math
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from heedful.export.activations import activation
from heedful.export.checkpoint import Checkpoint
from heedful.export.generation import first, token
from heedful.export.text import SOURCE, TARGET, Frame, Part, TextFamily
from heedful.export.weights import NameTable
from heedful.models.seq2seq import Seq2Seq, Seq2SeqConfig
from heedful.models.text import StackConfig
from heedful.models.transformer import LayerConfig

Json = Mapping[str, Any]

LAYER_PARTS = {
    "attention_norm": ["self_attn_layer_norm"],
    "attention.query_key_value": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.output": ["self_attn.out_proj"],
    "cross_attention_norm": ["encoder_attn_layer_norm"],
    "cross_attention.query": ["encoder_attn.q_proj"],
    "cross_attention.key_value": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "cross_attention.output": ["encoder_attn.out_proj"],
    "feed_forward_norm": ["final_layer_norm"],
    "feed_forward.inner": ["fc1"],
    "feed_forward.output": ["fc2"],
}


def names(config: Seq2SeqConfig) -> NameTable:
    """Where the layout keeps each module; `model.` left out."""
    shared = config.shared_embedding
    modules: dict[str, list[str]] = {
        "encoder.tokens": ["shared" if shared else "encoder.embed_tokens"],
        "decoder.tokens": ["shared" if shared else "decoder.embed_tokens"],
        "decoder.output": ["lm_head"],
    }
    for side in ("encoder", "decoder"):
        modules |= {
            f"{side}.positions": [f"{side}.embed_positions"],
            f"{side}.embedding_norm": [f"{side}.layernorm_embedding"],
            f"{side}.norm": [f"{side}.layer_norm"],
        }
        for ours, theirs in LAYER_PARTS.items():
            modules[f"{side}.layers.{{}}.{ours}"] = [f"{side}.layers.{{}}.{part}" for part in theirs]
    return NameTable(
        modules=modules,
        parameters={"decoder.output_bias": "final_logits_bias"},
        # tied to the embedding, or computed
        ignored=["shared.weight", r"(en|de)coder\.embed_(tokens|positions)\.weights?", "lm_head.weight"],
    )


def stack(config: Json, side: str, **kinds: Any) -> StackConfig:
    """One side's stack; `kinds` are the fields of `StackConfig` and `LayerConfig` that the family sets itself."""
    norm_first = kinds.pop("norm_first")
    layer = LayerConfig(
        config["d_model"],
        config[f"{side}_attention_heads"],
        config[f"{side}_ffn_dim"],
        norm_first=norm_first,
        activation=activation(config["activation_function"]),
    )
    return StackConfig(
        vocabulary=(side == "decoder" and config.get("decoder_vocab_size")) or config["vocab_size"],
        layers=config[f"{side}_layers"],
        layer=layer,
        max_positions=config["max_position_embeddings"],
        embedding_scale=math.sqrt(config["d_model"]) if config.get("scale_embedding") else 1.0,
        **kinds,
    )


def configure(**kinds: Any) -> Any:
    """Reads the sizes of both stacks from config.json; logits have a bias unless `kinds` says otherwise."""

    def read(config: Json, tied: bool) -> Seq2SeqConfig:
        output = {"output_bias": kinds.get("output_bias", True), "tied": tied}
        return Seq2SeqConfig(
            encoder=stack(config, "encoder", **kinds),
            decoder=stack(config, "decoder", **(kinds | output)),
            shared_embedding=config.get("share_encoder_decoder_embeddings", True),
        )

    return read


def _timescale(config: Json) -> float:
    """In Marian and Pegasus wavelengths are spaced as if one more followed the longest, unlike in M2M-100."""
    half = config["d_model"] // 2
    return float(10_000.0 ** ((half - 1) / half))


def _marian(config: Json, tied: bool) -> Seq2SeqConfig:
    timescale = _timescale(config)
    return configure(norm_first=False, positions="sinusoidal", max_timescale=timescale)(config, tied)


def _pegasus(config: Json, tied: bool) -> Seq2SeqConfig:
    timescale = _timescale(config)
    return configure(norm_first=True, positions="sinusoidal", max_timescale=timescale, final_norm=True)(config, tied)


def _plain(config: Json, generation: Json) -> Frame:
    """Sources end with the end token."""
    return Frame([], [token(config, "eos_token_id")], [token(generation, "decoder_start_token_id")])


def _bart(config: Json, generation: Json) -> Frame:
    forced = generation.get("forced_bos_token_id")
    begin: list[Part] = [] if forced is None else [first(forced)]
    start: list[Part] = [token(generation, "decoder_start_token_id"), *begin]
    return Frame([token(config, "bos_token_id")], [token(config, "eos_token_id")], start, len(begin))


def _between(config: Json, generation: Json) -> Frame:
    """Sources begin with their language, targets with theirs after the start."""
    end = token(config, "eos_token_id")
    start = generation.get("decoder_start_token_id")
    return Frame([SOURCE], [end], [end if start is None else first(start), TARGET], 1)


def _mbart(config: Json, generation: Json) -> Frame:
    """mBART-50 is framed like M2M-100; the first mBART had the language last, and targets began with theirs."""
    if config.get("tokenizer_class") == "MBart50Tokenizer":
        return _between(config, generation)
    return Frame([], [token(config, "eos_token_id"), SOURCE], [TARGET])


class _MarianFamily(TextFamily):
    """Marian's models; to those of several target languages a token before the source names the one to write."""

    def describe(self, checkpoint: Checkpoint, model: Seq2Seq, tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
        described = super().describe(checkpoint, model, tokenizers)
        # only the vocabulary says which they are: a group, such as `mul`, looks like one language in the settings
        if described["languages"]:
            described["pair"] = None
            described["frame"]["before"] = [TARGET]
        return described


FAMILIES = (
    _MarianFamily("marian", "translate", ("marian",), _marian, names, _plain, lambda config: "marian", ">>(.+)<<"),
    TextFamily(
        "bart",
        "summarize",
        ("bart",),
        configure(norm_first=False, positions="learned", position_offset=2, embedding_norm=True),
        names,
        _bart,
        lambda config: "bart",
    ),
    TextFamily(
        "mbart",
        "translate",
        ("mbart",),
        configure(norm_first=True, positions="learned", position_offset=2, embedding_norm=True, final_norm=True),
        names,
        _mbart,
        lambda config: "mbart50" if config.get("tokenizer_class") == "MBart50Tokenizer" else "mbart",
        r"([a-z]{2}_[A-Z]{2})",
    ),
    TextFamily("pegasus", "summarize", ("pegasus",), _pegasus, names, _plain, lambda config: "pegasus"),
    TextFamily(
        "m2m_100",
        "translate",
        ("m2m_100", "nllb"),
        configure(norm_first=True, positions="sinusoidal", position_offset=2, final_norm=True, output_bias=False),
        names,
        _between,
        lambda config: "nllb" if config.get("tokenizer_class") == "NllbTokenizer" else "m2m_100",
        r"__([a-z]{2,3})__|([a-z]{3}_[A-Z][a-z]{3})",
    ),
)
