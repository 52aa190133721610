"""What a decoder keeps of the tokens it has read: tensors in, tensors out.

So the eager model is the exportable model. A cache has slots, one for each token; all hypotheses about an input share
them.
"""

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


class KeyValue(NamedTuple):
    """Keys and values of one layer, each (b, heads, slots, head_dim)."""

    key: Tensor
    value: Tensor


class State(NamedTuple):
    """States of a recurrent layer, (b, 1, slots, width)."""

    state: Tensor


C = TypeVar("C", KeyValue, State)


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


def write(cache: C, new: C, at: Tensor) -> C:
    """The cache with `new` written from slot `at` (b,) of each input on."""
    return type(cache)(*(scatter_slots(past, fresh, at) for past, fresh in zip(cache, new, strict=True)))
