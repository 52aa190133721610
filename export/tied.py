"""The embedding as the matrix that logits are made with: checkpoints have it once, by either name, or twice."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def is_tied(tensors: Mapping[str, Tensor], output: str, embedding: str) -> bool:
    """Whether the matrix `output` is the `embedding`. Some checkpoints store it again all the same."""
    own, shared = tensors.get(output), tensors.get(embedding)
    return own is None or (shared is not None and torch.equal(own, shared))


def with_embedding(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], output: str, embedding: str
) -> dict[str, Tensor]:
    """`tensors` with the `embedding`, which is the matrix `output` where the checkpoint has that alone.

    Of tensors that are one safetensors keeps the name that is first in the alphabet. Not where `config` says that the
    two are not one.
    """
    stands_in = output in tensors and config.get("tie_word_embeddings") is not False
    return ({embedding: tensors[output]} if stands_in else {}) | dict(tensors)
