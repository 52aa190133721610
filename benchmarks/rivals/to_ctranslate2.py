"""Writes a Marian model in Hugging Face's layout as CTranslate2 reads it, without torch and transformers.

    python benchmarks/rivals/to_ctranslate2.py SOURCE FOLDER

Runs in CTranslate2's environment. Each weight goes where CTranslate2's own converter puts it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import TransformerSpec
from ctranslate2.specs.common_spec import Activation
from safetensors.numpy import load_file
from tokenizers import Tokenizer

# projections that CTranslate2 multiplies at once
SELF = ("q", "k", "v"), ("out",)
CROSS = ("q",), ("k", "v"), ("out",)
LEAVES = "weight", "bias"
ACTIVATIONS = {"swish": Activation.SWISH, "relu": Activation.RELU}

Array = np.ndarray[Any, np.dtype[np.float32]]
Tensors = dict[str, Array]


def sinusoids(positions: int, width: int) -> Array:
    """(positions, width): all sines, then all cosines."""
    angles = np.arange(positions)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def fill_linear(spec: Any, tensors: Tensors, *names: str) -> None:
    spec.weight, spec.bias = (np.concatenate([tensors[f"{name}.{leaf}"] for name in names]) for leaf in LEAVES)


def fill_norm(spec: Any, tensors: Tensors, name: str) -> None:
    spec.gamma, spec.beta = (tensors[f"{name}.{leaf}"] for leaf in LEAVES)


def fill_attention(spec: Any, tensors: Tensors, name: str, joint: tuple[tuple[str, ...], ...]) -> None:
    for linear, projections in zip(spec.linear, joint, strict=True):
        fill_linear(linear, tensors, *(f"{name}.{projection}_proj" for projection in projections))
    fill_norm(spec.layer_norm, tensors, f"{name}_layer_norm")


def fill_layers(layers: Any, tensors: Tensors, side: str) -> None:
    for number, layer in enumerate(layers):
        name = f"model.{side}.layers.{number}"
        fill_attention(layer.self_attention, tensors, f"{name}.self_attn", SELF)
        if side == "decoder":
            fill_attention(layer.attention, tensors, f"{name}.encoder_attn", CROSS)
        fill_linear(layer.ffn.linear_0, tensors, f"{name}.fc1")
        fill_linear(layer.ffn.linear_1, tensors, f"{name}.fc2")
        fill_norm(layer.ffn.layer_norm, tensors, f"{name}.final_layer_norm")


def filled(config: dict[str, Any], tensors: Tensors) -> TransformerSpec:
    """The model of `config`, in CTranslate2's terms. The padding token, which is last, is not among its words: it only
    starts a translation, with an embedding of zeros.
    """
    spec = TransformerSpec.from_config(
        (config["encoder_layers"], config["decoder_layers"]),
        config["encoder_attention_heads"],
        pre_norm=False,
        activation=ACTIVATIONS[config["activation_function"]],
    )
    words = tensors["model.shared.weight"][:-1]
    positions = sinusoids(config["max_position_embeddings"], config["d_model"])
    for side in "encoder", "decoder":
        half = getattr(spec, side)
        half.scale_embeddings = np.float32(config["d_model"] ** 0.5 if config["scale_embedding"] else 1)
        half.position_encodings.encodings = positions
        fill_layers(half.layer, tensors, side)
    spec.decoder.start_from_zero_embedding = True
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = spec.decoder.projection.weight = words
    spec.decoder.projection.bias = tensors["final_logits_bias"][0, :-1]
    return spec


def write(source: Path, folder: Path) -> None:
    """Write the model in `source` to `folder`, in float32."""
    config = json.loads((source / "config.json").read_text())
    ids = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=ids.__getitem__)
    spec = filled(config, load_file(source / "model.safetensors"))
    spec.register_source_vocabulary(tokens[:-1])
    spec.register_target_vocabulary(tokens[:-1])
    spec.config.eos_token = spec.config.decoder_start_token = tokens[config["eos_token_id"]]
    spec.validate()
    spec.optimize()
    folder.mkdir(parents=True)
    spec.save(str(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(arguments.source, arguments.folder)
