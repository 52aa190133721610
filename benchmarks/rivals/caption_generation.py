"""Captions with `generate` of transformers, whatever computes underneath."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedTokenizerFast


def captioning(model: Any, request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The timed part of a request of caption_speed.py, from the files of photos to `captions` and their `tokens`."""
    torch.set_num_threads(request["threads"])
    processor = AutoImageProcessor.from_pretrained(request["model"], use_fast=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(request["model"])
    photos, batch, length = (request[name] for name in ("photos", "batch", "length"))
    options = {"num_beams": request["beams"], "do_sample": False, "min_new_tokens": length, "max_new_tokens": length}

    def write() -> Iterator[list[int]]:
        for start in range(0, len(photos), batch):
            pictures = [Image.open(photo).convert("RGB") for photo in photos[start : start + batch]]
            pixels = processor(images=pictures, return_tensors="pt").pixel_values
            # what a caption begins with comes back too
            yield from model.generate(pixel_values=pixels, **options)[:, -length:].tolist()

    def timed() -> dict[str, Any]:
        with torch.inference_mode():
            tokens = list(write())
            return {"tokens": tokens, "captions": tokenizer.batch_decode(tokens, skip_special_tokens=True)}

    return timed
