"""What keeps a network from learning its data by heart, and is no part of it: dropout by hooks."""

import torch
from torch import Tensor, nn

from heedful.models.captioner import Captioner

_POOL = 1 << 24


class Dropout:
    """Dropout whose masks are cut at random from a pool drawn once: drawing one a call doubles a step's time."""

    def __init__(self, rate: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        kept = torch.rand(_POOL, generator=generator) >= rate
        self.pool = (kept / (1 - rate)).bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        start = int(torch.randint(_POOL - x.numel(), ()))
        return x * self.pool[start : start + x.numel()].view_as(x).to(x.dtype)

    def hook(self, module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """For `register_forward_hook`."""
        return self(output) if module.training else None


def add_dropout(model: Captioner, drop: Dropout) -> None:
    """Drops embeddings of words and what each block adds, while training."""
    model.decoder.tokens.register_forward_hook(drop.hook)
    for name, module in model.named_modules():
        if name.startswith(("decoder.layers", "encoder.layers")) and name.endswith(".output"):
            module.register_forward_hook(drop.hook)


def see(photos: int, tokens: int, hidden: float) -> Tensor:
    """(photos, 1, 1, tokens), bool: False for the share `hidden` of image tokens that are not to be seen."""
    return torch.rand(photos, 1, 1, tokens) >= hidden


def forget(tokens: Tensor, other: int, rate: float) -> Tensor:
    """Replaces the share `rate` of tokens by `other`."""
    return tokens.masked_fill(torch.rand(tokens.shape) < rate, other)
