"""Arithmetic done once, at export, instead of at every step."""

import math

import torch
from torch import nn

from heedful.models.attention import CrossAttention, DotProductScore, SelfAttention


@torch.no_grad()
def fold_scales(model: nn.Module) -> None:
    """Take the scale of every dot product into the map that makes its queries, in place.

    The result is the same up to rounding, exactly the same where the scale is a power of two. It is worth half the
    time of a decoding step's cross-attention: only with a scale of 1 does onnxruntime multiply one query's row with
    the keys where they lie, without packing them first.
    """
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention) and isinstance(module.score, DotProductScore):
            scale = 1 / math.sqrt(module.head_dim) if module.score.scale is None else module.score.scale
            source = module.query_key_value if isinstance(module, SelfAttention) else module.query
            queries = module.heads * module.head_dim
            for parameter in source.parameters():
                parameter[:queries] *= scale
            module.score.scale = 1.0
