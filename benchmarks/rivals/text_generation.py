"""Translation with `generate` of transformers, whatever computes underneath."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from order import longest_first
from transformers import PreTrainedTokenizerFast


def translation(model: Any, request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The timed part of a Translation (task.py), from lines to `translations`."""
    torch.set_num_threads(request["threads"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(request["model"])
    batch, length = request["batch"], request["length"]
    options = {"num_beams": request["beams"], "do_sample": False}
    if length:
        options |= {"min_new_tokens": length, "max_new_tokens": length}

    def translate(lines: list[str]) -> Iterator[str]:
        for start in range(0, len(lines), batch):
            sources = tokenizer(lines[start : start + batch], padding=True, return_tensors="pt")
            tokens = model.generate(sources.input_ids, attention_mask=sources.attention_mask, **options)
            yield from tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def timed() -> dict[str, Any]:
        with torch.inference_mode():
            return {"translations": longest_first(request["lines"], translate)}

    return timed
