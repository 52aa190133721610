"""The checkpoint folder that `heedful.export` reads: weights, configuration, tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch
from data import END, PAD, PUNCTUATION, SPECIAL, START, UNKNOWN
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from heedful.models.captioner import Captioner

LICENSE = "apache-2.0 AND research-only data"


def tokenizer(words: list[str]) -> Tokenizer:
    """Words of a text without its punctuation, in lower case; their ids are their places in `words`."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, SPECIAL[UNKNOWN]))
    made.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(PUNCTUATION), "")])
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIAL])
    return made


def configurations(model: Captioner, search: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The JSON files by name; `search` holds beams, length penalty and the longest caption."""
    config = model.config
    encoder, decoder = config.encoder, config.decoder
    return {
        "config.json": {
            "model_type": "captioner",
            "architectures": ["Captioner"],
            "image_size": encoder.size[0],
            "width": decoder.layer.width,
            "heads": decoder.layer.heads,
            "inner": decoder.layer.inner,
            "encoder_layers": encoder.layers,
            "decoder_layers": decoder.layers,
            "vocab_size": decoder.vocabulary,
            "max_position_embeddings": decoder.max_positions,
            "license": LICENSE,
        },
        "generation_config.json": {
            "decoder_start_token_id": START,
            "eos_token_id": END,
            "pad_token_id": PAD,
            "suppress_tokens": [PAD, START, UNKNOWN],
            "early_stopping": False,
        }
        | search,
        "preprocessor_config.json": {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": encoder.size[0], "width": encoder.size[1]},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(config.mean),
            "image_std": list(config.std),
        },
    }


def save(model: Captioner, words: list[str], search: dict[str, Any], folder: Path) -> None:
    """Writes everything but the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer(words).save(str(folder / "tokenizer.json"))
    for name, content in configurations(model, search).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
