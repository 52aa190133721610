"""What the encoder's frozen parts make of photos, computed once and kept."""

import random
from collections.abc import Sequence

import torch
from data import Photo, look
from lite0 import lower, upper
from settings import Settings
from torch import Tensor
from tqdm import tqdm

from heedful.models.captioner import Captioner
from heedful.models.efficientnet import CHANNELS


def autocast() -> torch.autocast:
    """bf16 where that is enough."""
    return torch.autocast("cpu", torch.bfloat16)


@torch.no_grad()
def activations(model: Captioner, photos: Sequence[Photo], views: int, settings: Settings) -> Tensor:
    """(photos, views, 112, 14, 14), bf16: what the first trained block reads of each view."""
    chance, found = random.Random(settings.seed), []
    for start in tqdm(range(0, len(photos), 8), "photos"):
        group = photos[start : start + 8]
        pixels = torch.cat([look(p.path, settings.size, views, settings.smallest_crop, chance) for p in group])
        with autocast():
            x = lower(model.encoder.network, model.normalize(pixels).permute(0, 3, 1, 2))
        found.append(x.contiguous().bfloat16().unflatten(0, (-1, views)))
    return torch.cat(found)


@torch.no_grad()
def features(model: Captioner, source: Tensor) -> Tensor:
    """activations (photos, views, 112, 14, 14) -> image tokens (photos, views, 49, 1280), bf16."""
    found = torch.empty(*source.shape[:2], 49, CHANNELS, dtype=torch.bfloat16)
    for start in tqdm(range(0, len(source), 16), "features"):
        with autocast():
            x = upper(model.encoder.network, source[start : start + 16].flatten(0, 1))
        found[start : start + 16] = x.unflatten(0, (-1, source.shape[1]))
    return found
