"""Writes a checkpoint in Hugging Face's layout, for rivals that read no other, and compares the logits with ours.

    python benchmarks/rivals/to_huggingface.py CHECKPOINT FOLDER

Runs in Heedful's own environment.
"""

import argparse
import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from heedful.export import whisper
from heedful.export.checkpoint import open_checkpoint
from heedful.export.whisper_names import NAMES
from heedful.models.whisper import Whisper, WhisperConfig

TOLERANCE = 1e-3


def spread(model: Whisper) -> dict[str, Tensor]:
    """The weights of `model` under the names they have in transformers, joint projections taken apart."""
    table = NAMES["huggingface"]
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        number = table.numbers.findall(name)
        key = table.numbers.sub("{}", name)
        module, _, leaf = key.rpartition(".")
        names = [f"{source}.{leaf}" for source in table.modules.get(module, ())] or [table.parameters[key]]
        parts = parameter.chunk(len(names))
        tensors |= {each.format(*number): part.clone() for each, part in zip(names, parts, strict=True)}
    return tensors


def settings(config: WhisperConfig, tokens: dict[str, Any]) -> dict[str, Any]:
    """What transformers' WhisperConfig is made from."""
    return {
        "vocab_size": config.vocabulary,
        "d_model": config.width,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.encoder_heads,
        "decoder_attention_heads": config.decoder_heads,
        "encoder_ffn_dim": config.encoder_inner,
        "decoder_ffn_dim": config.decoder_inner,
        "num_mel_bins": config.mels,
        "max_source_positions": config.audio_positions,
        "max_target_positions": config.text_positions,
        "decoder_start_token_id": tokens["start"],
        **{f"{name}_token_id": tokens["end"] for name in ("bos", "eos", "pad")},
    }


def rules(config: WhisperConfig, description: dict[str, Any]) -> dict[str, Any]:
    """What transformers' GenerationConfig is made from."""
    tokens = description["tokens"]
    # an English-only model that names any of these would be asked for its language all the same
    choices = {
        "lang_to_id": {f"<|{language}|>": token for language, token in tokens["languages"].items()},
        "task_to_id": {task: tokens[task] for task in ("transcribe", "translate")},
    }
    return {
        "max_length": config.text_positions,
        "decoder_start_token_id": tokens["start"],
        **{f"{name}_token_id": tokens["end"] for name in ("bos", "eos", "pad")},
        "suppress_tokens": description["suppress"],
        "begin_suppress_tokens": description["suppress_first"],
        "no_timestamps_token_id": tokens["no_timestamps"],
        "prev_sot_token_id": tokens["previous"],
        "max_initial_timestamp_index": 50,
        "is_multilingual": bool(tokens["languages"]),
        **(choices if tokens["languages"] else {}),
        "alignment_heads": [list(head) for head in description["alignment_heads"]],
    }


def difference(ours: Whisper, theirs: Any, extractor: Any, start: int) -> float:
    """The largest difference of their logits from ours, over the largest of ours, on a few seconds of speech."""
    (speech,) = whisper.fixture_windows(1, ours.config.samples)
    waveform = torch.zeros(1, ours.config.samples)
    waveform[0, : len(speech)] = torch.from_numpy(speech)
    tokens = torch.tensor([[start, *range(1000, 1008)]])
    features = extractor(speech, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        expected = ours(waveform, tokens)
        found = theirs(input_features=features, decoder_input_ids=tokens).logits
    return float((found - expected).abs().max() / expected.abs().max())


def write(name: str, folder: Path) -> None:
    """Write the checkpoint `name` to `folder`; nothing is left there when the logits differ."""
    checkpoint = open_checkpoint(name)
    ours = whisper.load(checkpoint)
    tokenizers = {"tokenizer.json": Tokenizer.from_file(str(checkpoint.tokenizer))}
    description = whisper.describe(checkpoint, ours, tokenizers)
    # only now: transformers imports torchaudio, which loads without CUDA only after our model has asked for its filters
    hf: Any = import_module("transformers")
    tokens = description["tokens"]
    theirs = hf.WhisperForConditionalGeneration(hf.WhisperConfig(**settings(ours.config, tokens))).eval()
    # not strict: keys have no bias in transformers, and the projection to logits is tied
    theirs.load_state_dict(spread(ours), strict=False)
    theirs.generation_config = hf.GenerationConfig(**rules(ours.config, description))
    extractor = hf.WhisperFeatureExtractor(feature_size=ours.config.mels)
    found = difference(ours, theirs, extractor, tokens["start"])
    if found > TOLERANCE:
        raise RuntimeError(f"the logits of {name} in transformers differ from ours by {found:.1e} of the largest")
    print(f"{folder}: logits differ by {found:.1e} of the largest")
    theirs.save_pretrained(folder)
    extractor.save_pretrained(folder)
    shutil.copy(checkpoint.tokenizer, folder / "tokenizer.json")
    # by hand: the class that save_pretrained names here is not known to the rivals' older transformers
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(arguments.checkpoint, arguments.folder)
