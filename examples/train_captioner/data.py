"""Photos, their captions, the words of the captions, and captions packed into rows."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNKNOWN = range(4)
PUNCTUATION = r"[^\w\s]"

Caption = tuple[str, ...]


@dataclass(frozen=True)
class Photo:
    """A photo and what people wrote about it, each caption a tuple of words."""

    path: Path
    captions: tuple[Caption, ...]


def split_words(text: str) -> Caption:
    """Lower case, no punctuation."""
    return tuple(re.sub(PUNCTUATION, "", text.lower()).split())


def read_photos(folder: Path, split: str) -> list[Photo]:
    """The photos of a split, in the order of captions.jsonl."""
    entries = map(json.loads, (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        Photo(folder / "images" / entry["image"], tuple(map(split_words, entry["captions"])))
        for entry in entries
        if entry["split"] == split
    ]


def count_words(photos: Iterable[Photo], least: int) -> list[str]:
    """The vocabulary: special tokens, then the words seen at least so often, frequent ones first."""
    counts = Counter(word for photo in photos for caption in photo.captions for word in caption)
    words = sorted((word for word, count in counts.items() if count >= least), key=lambda word: (-counts[word], word))
    return [*SPECIAL, *words]


def crop(image: Image.Image, smallest: float, chance: random.Random) -> Image.Image:
    """A random part of the image, at least `smallest` of each side long, at the size of the whole."""
    width, height = (round(side * chance.uniform(smallest, 1)) for side in image.size)
    left, top = chance.randint(0, image.width - width), chance.randint(0, image.height - height)
    return image.resize(image.size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))


def look(path: Path, size: int, views: int, smallest: float, chance: random.Random) -> Tensor:
    """(views, size, size, 3), uint8: the whole photo, its mirror image, then cropped ones, every other mirrored."""
    image = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    seen = [image if i < 2 else crop(image, smallest, chance) for i in range(views)]
    return torch.from_numpy(np.stack([np.asarray(ImageOps.mirror(x) if i % 2 else x) for i, x in enumerate(seen)]))


class Rows(NamedTuple):
    """The captions of a photo one after the other in one row; each token sees only its own caption so far."""

    tokens: Tensor  # (b, n)
    targets: Tensor  # (b, n), the token that follows
    positions: Tensor  # (b, n), counted in each caption
    owners: Tensor  # (b, n), which caption of the photo, -1 where there is none

    @property
    def mask(self) -> Tensor:
        """(b, 1, n, n), bool: True where a token may be seen."""
        same = self.owners[:, :, None] == self.owners[:, None, :]
        return same.tril()[:, None]


def pack(photos: Sequence[Sequence[Sequence[int]]]) -> Rows:
    """Captions as ids, without start and end."""
    longest = max(sum(len(caption) + 1 for caption in captions) for captions in photos)
    rows = np.zeros((4, len(photos), longest), np.int64)
    rows[3] = -1
    for row, captions in enumerate(photos):
        at = 0
        for owner, caption in enumerate(captions):
            end = at + len(caption) + 1
            rows[:, row, at:end] = [START, *caption], [*caption, END], range(end - at), [owner] * (end - at)
            at = end
    return Rows(*torch.from_numpy(rows))
