"""Transcription of windows with `generate` of transformers, whatever computes underneath."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor


@cache
def companions(folder: str) -> tuple[Any, Any]:
    """The feature extractor and the tokenizer of the model in `folder`."""
    return WhisperFeatureExtractor.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)


def transcription(model: Any, request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The timed part of a request: `windows`, .npy files of at most 30 s at 16 kHz, one after another, features
    included, with `options` for `generate`. The answer holds `text`.
    """
    torch.set_num_threads(request["threads"])
    extractor, tokenizer = companions(request["model"])
    windows = [np.load(window) for window in request["windows"]]

    def text(window: np.ndarray[Any, np.dtype[np.float32]]) -> str:
        features = extractor(window, sampling_rate=16_000, return_tensors="pt").input_features
        tokens = model.generate(features, **request["options"])
        return str(tokenizer.decode(tokens[0], skip_special_tokens=True)).strip()

    def timed() -> dict[str, Any]:
        with torch.inference_mode():
            return {"text": " ".join(map(text, windows))}

    return timed
