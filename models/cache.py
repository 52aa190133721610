"""The key/value cache: tensors in, tensors out, so that the eager model is the exportable model."""

from typing import NamedTuple

import torch
from torch import Tensor


class KeyValue(NamedTuple):
    """Keys and values of one layer, each (b, heads, slots, head_dim)."""

    key: Tensor
    value: Tensor


@torch.library.custom_op("heedful::scatter_slots", mutates_args=())
def scatter_slots(past: Tensor, new: Tensor, at: Tensor) -> Tensor:
    """`past` (b, h, slots, d) with `new` (b, h, n, d) written into slots at[i] ... at[i] + n - 1 of each input i.

    `at` (b,) is int64. One standard `TensorScatter` node in ONNX, in place where past and present share a buffer.
    """
    slots = at[:, None] + torch.arange(new.shape[2], device=at.device)
    index = slots[:, None, :, None].expand(-1, past.shape[1], -1, past.shape[3])
    return past.scatter(2, index, new)


@scatter_slots.register_fake
def _(past: Tensor, new: Tensor, at: Tensor) -> Tensor:
    return torch.empty_like(past)


def write(cache: KeyValue, new: KeyValue, at: Tensor) -> KeyValue:
    """The cache with `new` written from slot `at` (b,) of each input on."""
    return KeyValue(scatter_slots(cache.key, new.key, at), scatter_slots(cache.value, new.value, at))
