"""What all families of captioners share: their description, generation rules, graphs and check."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer

from heedful.export.checkpoint import Checkpoint
from heedful.export.family import Family, Subject
from heedful.export.generation import first, search
from heedful.export.graphs import Graph, Reading, build_graphs
from heedful.export.pictures import Pictures
from heedful.export.plan import IMAGE
from heedful.export.tokenizers import find_tokenizer
from heedful.models.captioner import Captioner
from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.device import choose_device
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.image.model import CaptionModel

# where a checkpoint does not say how long a caption may be
_LONGEST = 64
# colours of the ground, of a large shape and of a small one in pictures to check with
_PICTURES = (("#86b6e0", "#3f7d3a", "#e8c14d"), ("#20242c", "#b8432f", "#f2efe8"), ("#d9d4c7", "#5b4636", "#27507a"))


@dataclass(frozen=True)
class ImageFamily:
    """A family of captioners.

    `recognises` and `load` are a `Family`'s; `pictures` says how it wants its pictures; `ends` which tokens a caption
    begins and ends with.
    """

    name: str
    recognises: Callable[[Checkpoint], bool]
    load: Callable[[Checkpoint], Captioner]
    pictures: Callable[[Checkpoint], Pictures]
    ends: Callable[[Checkpoint], tuple[Any, Any]]

    @property
    def family(self) -> Family:
        return Family(
            name=self.name,
            task="caption",
            section="image",
            plan=IMAGE,
            recognises=self.recognises,
            load=self.load,
            tokenizers=lambda checkpoint: {"tokenizer.json": find_tokenizer(checkpoint.path)},
            describe=self.describe,
            graphs=graphs,
            subject=subject,
        )

    def describe(self, checkpoint: Checkpoint, model: Captioner, tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
        start, end = self.ends(checkpoint)
        encoder, decoder = model.config.encoder, model.config.decoder
        generation = checkpoint.config | checkpoint.generation
        stated = generation.get("max_length") or generation.get("max_new_tokens")
        limit = decoder.max_positions if stated else min(decoder.max_positions, _LONGEST)
        return {
            "framing": self.pictures(checkpoint).framing,
            "grid": encoder.grid,
            "extra_tokens": encoder.extra_tokens,
            "start": [first(start)],
            "end": first(end),
            "search": search(generation, 1, limit),
            "alignment_heads": alignment_heads(model),
        }


def alignment_heads(model: Captioner) -> list[tuple[int, int]]:
    """All heads of the upper half of the decoder."""
    config = model.config.decoder
    layers = range(config.layers // 2, config.layers)
    return [(layer, head) for layer in layers for head in range(config.layer.heads)]


def graphs(model: Captioner, description: dict[str, Any]) -> list[Graph]:
    """The graphs to trace."""
    pixels = {"pixels": torch.zeros(2, *model.config.encoder.size, 3, dtype=torch.uint8)}
    return build_graphs(model, pixels, {"pixels": {0: "b"}}, reading(model, description))


def reading(model: Captioner, description: dict[str, Any]) -> Reading:
    """What the aligner shows."""
    return Reading(description["alignment_heads"], model.config.decoder.vocabulary)


def draw(ground: str, large: str, small: str) -> Image.Image:
    """A picture of two shapes before a ground that turns into noise, for want of a photograph."""
    shade = Image.linear_gradient("L").resize((320, 240))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8))
    picture = Image.composite(Image.new("RGB", shade.size, ground), noise, shade)
    canvas = ImageDraw.Draw(picture)
    canvas.polygon([(20, 220), (110, 60), (230, 220)], large)
    canvas.ellipse([210, 30, 270, 90], small)
    return picture


def subject(model: Captioner, bundle: Bundle) -> Subject:
    """The bundle beside its model, on a few drawn pictures."""
    opened = CaptionModel(Sessions(bundle, choose_device("cpu")))
    pixels = [opened.read(draw(*colours)).pixels for colours in _PICTURES]
    with torch.no_grad():
        memory = model.encode(torch.stack([torch.from_numpy(each) for each in pixels]))
    prompted = [*opened.start, *opened.tokens.encode("a picture of")]
    return Subject(
        model=model,
        opened=opened,
        inputs=pixels,
        memory=memory,
        lengths=None,
        prompts=[opened.start, prompted],
        header=opened.start,
        end=opened.end,
        reading=reading(model, bundle.manifest["image"]),
    )
