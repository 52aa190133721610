"""What a caption gives back: frozen and typed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, slots=True, eq=False)
class CaptionWord:
    """A word of a caption: its `probability`, of its tokens together, and its `heatmap` (rows, columns) float32, how
    much it attended to each part of `Caption.region`; what is missing to 1 went to what is no part of the picture.
    """

    text: str
    probability: float
    heatmap: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One caption of several: `score` is the mean natural-log probability of a token, the end token counted if it was
    written.
    """

    text: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Caption:
    """What is said of a picture.

    `tokens` are the ids behind `text`, the prompt's left out; `candidates` are as many captions as were asked for, this
    one first. `words` and the `picture`, stood upright, are there if heat maps were asked for; `region` are the left,
    top, right and bottom of the part of it that the model saw, in pixels.
    """

    text: str
    score: float
    tokens: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    words: tuple[CaptionWord, ...]
    region: tuple[float, float, float, float]
    picture: Image.Image | None = None
