"""Writes a model of the shape of opus-mt, with seeded weights and made-up words, in Hugging Face's layout.

    python benchmarks/rivals/opus.py FOLDER

Time does not depend on what the weights are, only on how long translations get, and that a benchmark fixes. Every word
is one token, so that texts tell tokens apart. Runs in Heedful's own environment, transformers not needed.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as Joined
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

# the bundle made of it, and how many tokens a line and its translation have
BUNDLE, TOKENS, NEW = "opus-shaped-int8", 20, 40
LAYERS, WIDTH, INNER, HEADS, VOCABULARY = 6, 512, 2048, 8, 58_101
END, UNKNOWN, PAD = 0, 1, VOCABULARY - 1
# Plain random layers forget what they read and repeat a word for ever. These deviations sharpen attention, leave more
# of the residual than layers add to it, and let the last layer turn a word into another: texts of several words.
GAINS = {f"decoder.layers.{LAYERS - 1}.fc2": 8, "q_proj": 2, "k_proj": 2, "out_proj": 0.5, "fc2": 0.5}
ATTENTIONS = {"encoder": ("self_attn",), "decoder": ("self_attn", "encoder_attn")}

CONFIG = {
    "architectures": ["MarianMTModel"],
    "model_type": "marian",
    "is_encoder_decoder": True,
    "vocab_size": VOCABULARY,
    "decoder_vocab_size": VOCABULARY,
    "d_model": WIDTH,
    **{f"{side}_layers": LAYERS for side in ATTENTIONS},
    **{f"{side}_attention_heads": HEADS for side in ATTENTIONS},
    **{f"{side}_ffn_dim": INNER for side in ATTENTIONS},
    "activation_function": "swish",
    "max_position_embeddings": 512,
    "scale_embedding": True,
    "static_position_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": False,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
}
GENERATION = {
    "bad_words_ids": [[PAD]],
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
    "max_length": 512,
    "num_beams": 4,
    "renormalize_logits": True,
}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "model_max_length": 512,
}


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the linear and normalising modules' weights."""
    for side, attentions in ATTENTIONS.items():
        for number in range(LAYERS):
            layer = f"model.{side}.layers.{number}"
            for attention in attentions:
                yield from ((f"{layer}.{attention}.{each}_proj", (WIDTH, WIDTH)) for each in ("q", "k", "v", "out"))
                yield f"{layer}.{attention}_layer_norm", (WIDTH,)
            yield f"{layer}.fc1", (INNER, WIDTH)
            yield f"{layer}.fc2", (WIDTH, INNER)
            yield f"{layer}.final_layer_norm", (WIDTH,)


def weights(seed: int = 0) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Weights that keep activations near unit variance."""
    random = np.random.default_rng(seed)

    def normal(shape: tuple[int, ...], deviation: float, mean: float = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
        return mean + deviation * random.standard_normal(shape, np.float32)

    # scaled by the root of the width, as the model does, embeddings have unit variance too
    words = normal((VOCABULARY, WIDTH), WIDTH**-0.5)
    words[PAD] = 0
    tensors = {"model.shared.weight": words, "final_logits_bias": normal((1, VOCABULARY), 0.1)}
    for name, shape in shapes():
        gain = next((gain for end, gain in GAINS.items() if name.endswith(end)), 1)
        matrix = len(shape) == 2
        tensors[f"{name}.weight"] = normal(shape, gain * shape[-1] ** -0.5) if matrix else normal(shape, 0.1, 1)
        tensors[f"{name}.bias"] = normal(shape[:1], 0.02)
    return tensors


def words() -> list[str]:
    """The words of the model, after its end and unknown token, before its padding."""
    syllables = list(map("".join, product("bcdfghjklmnprstvz", "aeiou")))
    return list(map("".join, islice(product(syllables, repeat=3), PAD - UNKNOWN - 1)))


def tokenizer() -> Tokenizer:
    """A unigram model, as opus-mt has, whose pieces are whole words."""
    pieces = ["</s>", "<unk>", *(f"▁{word}" for word in words()), "<pad>"]
    made = Tokenizer(Unigram([(piece, -10.0) for piece in pieces], unk_id=UNKNOWN))
    made.add_special_tokens(["</s>", "<unk>", "<pad>"])
    made.pre_tokenizer, made.decoder = Metaspace(), Joined()
    made.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return made


def lines(number: int, tokens: int, seed: int = 0) -> list[str]:
    """So many different lines of so many tokens each, the end of the text among them."""
    chosen = np.random.default_rng(seed).choice(words(), (number, tokens - 1))
    return list(map(" ".join, chosen))


def write(folder: Path) -> None:
    """Write the model to `folder`."""
    folder.mkdir(parents=True)
    tables = {"config": CONFIG, "generation_config": GENERATION, "tokenizer_config": TOKENIZER}
    for name, table in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(table, indent=2) + "\n")
    tokenizer().save(str(folder / "tokenizer.json"))
    save_file(weights(), folder / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
