"""Exporting a small checkpoint that transformers saved: what lies in the bundle, and that a failure leaves nothing."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from heedful.export import bundle as exporting
from heedful.export import certificate
from heedful.export.bundle import Precision, export
from heedful.export.certificate import TOLERANCES, Tolerance, fixture_windows
from heedful.export.checkpoint import open_checkpoint
from heedful.export.graphs import Graph
from heedful.export.trace import trace
from heedful.export.whisper import load
from heedful.models.filterbank import mel_filterbank
from heedful.models.spectrogram import LogMel
from heedful.runtime.bundle import open_bundle
from heedful.runtime.engine.device import choose_device
from heedful.runtime.errors import CheckpointError, ExportError
from heedful.runtime.home import listed
from heedful.runtime.speech.model import SpeechModel

hf: Any = transformers

LANGUAGES = ("en", "de")
STEERING = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
END = 256
VOCABULARY = END + 2 + len(LANGUAGES) + len(STEERING) + 51  # a timestamp for every 20 ms of a second
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "num_mel_bins": 80,
    "max_source_positions": 50, "max_target_positions": 64, "pad_token_id": END, "bos_token_id": END,
    "eos_token_id": END, "decoder_start_token_id": END + 1,
}  # fmt: skip


def tokenizer() -> Tokenizer:
    """One token a byte, then the special ones; without a decoder, as some published files are."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({byte: i for i, byte in enumerate(bytes_)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ("endoftext", "startoftranscript", *LANGUAGES, *STEERING)
    made.add_special_tokens([f"<|{name}|>" for name in special])
    return made


@pytest.fixture(scope="module")
def theirs() -> Any:
    mel_filterbank(201, 80, 16_000)  # transformers imports torchaudio, which loads everywhere only after this
    torch.manual_seed(0)
    theirs = hf.WhisperForConditionalGeneration(hf.WhisperConfig(**SIZES)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(0, 0.15)
    stated = {"alignment_heads": [[1, 2], [0, 0]], "suppress_tokens": [7, 5], "is_multilingual": True}
    for name, value in stated.items():
        setattr(theirs.generation_config, name, value)
    return theirs
