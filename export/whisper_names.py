"""What Whisper's weights are called in each format of checkpoints."""

from heedful.export.weights import NameTable


def _huggingface_attention(prefix: str, parts: str) -> list[str]:
    return [f"{prefix}.{part}_proj" for part in parts]


NAMES: dict[str, NameTable] = {
    "huggingface": NameTable(
        modules={
            "encoder.first": ["model.encoder.conv1"],
            "encoder.second": ["model.encoder.conv2"],
            "encoder.norm": ["model.encoder.layer_norm"],
            "encoder.layers.{}.attention_norm": ["model.encoder.layers.{}.self_attn_layer_norm"],
            "encoder.layers.{}.attention.query_key_value": _huggingface_attention(
                "model.encoder.layers.{}.self_attn", "qkv"
            ),
            "encoder.layers.{}.attention.output": ["model.encoder.layers.{}.self_attn.out_proj"],
            "encoder.layers.{}.feed_forward_norm": ["model.encoder.layers.{}.final_layer_norm"],
            "encoder.layers.{}.feed_forward.inner": ["model.encoder.layers.{}.fc1"],
            "encoder.layers.{}.feed_forward.output": ["model.encoder.layers.{}.fc2"],
            "decoder.tokens": ["model.decoder.embed_tokens"],
            "decoder.positions": ["model.decoder.embed_positions"],
            "decoder.norm": ["model.decoder.layer_norm"],
            "decoder.layers.{}.attention_norm": ["model.decoder.layers.{}.self_attn_layer_norm"],
            "decoder.layers.{}.attention.query_key_value": _huggingface_attention(
                "model.decoder.layers.{}.self_attn", "qkv"
            ),
            "decoder.layers.{}.attention.output": ["model.decoder.layers.{}.self_attn.out_proj"],
            "decoder.layers.{}.cross_attention_norm": ["model.decoder.layers.{}.encoder_attn_layer_norm"],
            "decoder.layers.{}.cross_attention.query": ["model.decoder.layers.{}.encoder_attn.q_proj"],
            "decoder.layers.{}.cross_attention.key_value": _huggingface_attention(
                "model.decoder.layers.{}.encoder_attn", "kv"
            ),
            "decoder.layers.{}.cross_attention.output": ["model.decoder.layers.{}.encoder_attn.out_proj"],
            "decoder.layers.{}.feed_forward_norm": ["model.decoder.layers.{}.final_layer_norm"],
            "decoder.layers.{}.feed_forward.inner": ["model.decoder.layers.{}.fc1"],
            "decoder.layers.{}.feed_forward.output": ["model.decoder.layers.{}.fc2"],
        },
        parameters={"encoder.positions": "model.encoder.embed_positions.weight"},
        ignored=["proj_out.weight"],  # tied to the token embedding
    ),
    "ctranslate2": NameTable(
        modules={
            "encoder.first": ["encoder/conv1"],
            "encoder.second": ["encoder/conv2"],
            "encoder.norm": ["encoder/layer_norm"],
            "encoder.layers.{}.attention_norm": ["encoder/layer_{}/self_attention/layer_norm"],
            "encoder.layers.{}.attention.query_key_value": ["encoder/layer_{}/self_attention/linear_0"],
            "encoder.layers.{}.attention.output": ["encoder/layer_{}/self_attention/linear_1"],
            "encoder.layers.{}.feed_forward_norm": ["encoder/layer_{}/ffn/layer_norm"],
            "encoder.layers.{}.feed_forward.inner": ["encoder/layer_{}/ffn/linear_0"],
            "encoder.layers.{}.feed_forward.output": ["encoder/layer_{}/ffn/linear_1"],
            "decoder.tokens": ["decoder/embeddings"],
            "decoder.norm": ["decoder/layer_norm"],
            "decoder.layers.{}.attention_norm": ["decoder/layer_{}/self_attention/layer_norm"],
            "decoder.layers.{}.attention.query_key_value": ["decoder/layer_{}/self_attention/linear_0"],
            "decoder.layers.{}.attention.output": ["decoder/layer_{}/self_attention/linear_1"],
            "decoder.layers.{}.cross_attention_norm": ["decoder/layer_{}/attention/layer_norm"],
            "decoder.layers.{}.cross_attention.query": ["decoder/layer_{}/attention/linear_0"],
            "decoder.layers.{}.cross_attention.key_value": ["decoder/layer_{}/attention/linear_1"],
            "decoder.layers.{}.cross_attention.output": ["decoder/layer_{}/attention/linear_2"],
            "decoder.layers.{}.feed_forward_norm": ["decoder/layer_{}/ffn/layer_norm"],
            "decoder.layers.{}.feed_forward.inner": ["decoder/layer_{}/ffn/linear_0"],
            "decoder.layers.{}.feed_forward.output": ["decoder/layer_{}/ffn/linear_1"],
        },
        parameters={
            "encoder.positions": "encoder/position_encodings/encodings",
            "decoder.positions.weight": "decoder/position_encodings/encodings",
        },
        ignored=[
            "decoder/projection/weight",  # tied to the token embedding
            r"(en|de)coder/(num_heads|pre_norm|activation|scale_embeddings|start_from_zero_embedding)",
            r"decoder/(alibi(_use_positive_positions)?|scale_alibi|alignment_(heads|layer))",
        ],
        separator="/",
    ),
}

# what makes the logits, where it is stored as well, and the embedding, which it must be
MATRICES = {
    "huggingface": ("proj_out.weight", "model.decoder.embed_tokens.weight"),
    "ctranslate2": ("decoder/projection/weight", "decoder/embeddings/weight"),
}
