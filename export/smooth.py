"""Numbers that are to be rounded made more alike, from channel to channel; results stay the same.

What leaves a normalisation has channels of very different size, and the largest decides what a unit of all others
stands for. The map that reads it can take a part of that over: each channel is divided by a number, and the column of
the map that it is multiplied with is multiplied by it. Source: Xiao et al. 2022, SmoothQuant, arXiv 2211.10438, whose
sizes of activations are measured; here the normalisation's own weights say them, so no data is needed.

It is for encoders, whose maps have one scale a column: the blocks of a speech decoder lose by it more than they gain.
"""

import torch
from torch import Tensor, nn

from heedful.models.transformer import EncoderLayer

# how much of the difference the map takes over, and how many standard deviations the largest number is away
_SHARE = 0.8
_REACH = 3.0
_LEAST = 1e-6


@torch.no_grad()
def smooth(encoder: nn.Module) -> None:
    """Make what the layers of `encoder` read more alike, in place, where they are normalised before each block."""
    for layer in encoder.modules():
        if isinstance(layer, EncoderLayer) and layer.norm_first:
            _smooth(layer.attention_norm, layer.attention.query_key_value)
            _smooth(layer.feed_forward_norm, layer.feed_forward.inner)


def _smooth(norm: nn.Module, linear: nn.Linear) -> None:
    weight, bias = norm.weight, getattr(norm, "bias", None)
    assert isinstance(weight, Tensor)
    reach = _REACH * weight.abs() + (0 if bias is None else bias.abs())
    largest = linear.weight.abs().amax(0)
    factor = reach.clamp_min(_LEAST) ** _SHARE / largest.clamp_min(_LEAST) ** (1 - _SHARE)
    weight /= factor
    if bias is not None:
        bias /= factor
    linear.weight *= factor
