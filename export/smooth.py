"""Numbers that are to be rounded made more alike, from channel to channel; results stay the same.

What leaves a normalisation has channels of very different size, and the largest decides what a unit of all others
stands for. The map that reads it can take a part of that over: each channel is divided by a number, and the column of
the map that it is multiplied with is multiplied by it. Source: Xiao et al. 2022, SmoothQuant, arXiv 2211.10438, whose
sizes of activations are measured; here the normalisation's own weights say them, so no data is needed.

It is for encoders, whose maps have one scale a column, and for the embedding as the matrix of the logits: the blocks of
a speech decoder's other maps lose by it more than they gain.
"""

import torch
from torch import Tensor, nn

from heedful.models.positions import Learned
from heedful.models.text import Stack, TokenDecoder
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
    if hasattr(linear, "column_scale"):
        return  # scales that a model states are of the numbers that it was trained with
    weight, bias = norm.weight, getattr(norm, "bias", None)
    assert isinstance(weight, Tensor)
    reach = _REACH * weight.abs() + (0 if bias is None else bias.abs())
    largest = linear.weight.abs().amax(0)
    factor = reach.clamp_min(_LEAST) ** _SHARE / largest.clamp_min(_LEAST) ** (1 - _SHARE)
    weight /= factor
    if bias is not None:
        bias /= factor
    linear.weight *= factor


@torch.no_grad()
def smooth_logits(model: nn.Module) -> None:
    """Make what the logits of `model` are computed from more alike, in place, where the embedding is their matrix, a
    normalisation comes before and learned positions after it.

    The embedding also loses its mean over the vocabulary, which positions get: logits change by one number, the same
    for all tokens, on which no probability depends. In some channels it is ten times what tokens differ by.
    """
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    for decoder in stacks:
        if isinstance(decoder, TokenDecoder):
            # an encoder that has the decoder's embedding must read the same embeddings as before
            _smooth_logits(decoder, [stack for stack in stacks if stack.tokens is decoder.tokens])


def _smooth_logits(decoder: TokenDecoder, readers: list[Stack]) -> None:
    """`readers` are the stacks that look tokens up in the decoder's embedding, the decoder among them."""
    norm, positions = decoder.norm, [stack.positions for stack in readers if isinstance(stack.positions, Learned)]
    if decoder.output is not None or not isinstance(norm, nn.LayerNorm) or len(positions) < len(readers):
        return
    if not isinstance(decoder.transform, nn.Identity) or any(stack.config.zero_start for stack in readers):
        return
    table = decoder.tokens.weight
    mean = table.mean(0)
    table -= mean
    # both sides of the product as large as each other: what is rounded to a few bits is the embedding as well
    factor = ((norm.weight**2 + norm.bias**2).sqrt().clamp_min(_LEAST) / table.std(0).clamp_min(_LEAST)).sqrt()
    table *= factor
    norm.weight.div_(factor)
    norm.bias.div_(factor)
    for stack, learned in zip(readers, positions, strict=True):
        learned.weight += mean * stack.config.embedding_scale
        stack.spread = 1 / factor
