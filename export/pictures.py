"""What preprocessor_config.json says of pictures: how they are resized and cropped, and by what they are normalised."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heedful.export.checkpoint import Checkpoint, read_json
from heedful.runtime.errors import CheckpointError

Json = Mapping[str, Any]
Channels = tuple[float, float, float]

_HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_OPENAI: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# transformers' classes, without what versions add to their names, and what they do where the file is silent
_CLASSES: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, **_HALF},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224, **_HALF},
    "Blip": {"size": 384, "resample": 3, **_OPENAI},
    "CLIP": {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, "crop_size": 224, **_OPENAI},
}
_VERSIONS = re.compile(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$")
# as Pillow numbers them
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


@dataclass(frozen=True)
class Pictures:
    """How a model wants its pictures: `framing` as runtime/image/pixels.py has it, and each channel's mean and spread,
    of values from 0 to 1.
    """

    framing: dict[str, Any]
    mean: Channels
    std: Channels


def read_pictures(checkpoint: Checkpoint, default: str, size: tuple[int, int]) -> Pictures:
    """What the files of `checkpoint` say for a model that reads pictures of `size`, (height, width); the class
    `default` where they do not name one.

    Raises CheckpointError when they ask for what Heedful does not know, or for another size.
    """
    stated = checkpoint.preprocessor or read_json(checkpoint.path / "processor_config.json").get("image_processor", {})
    named = stated.get("image_processor_type") or stated.get("feature_extractor_type") or default
    kind = _VERSIONS.sub("", named)
    if kind not in _CLASSES:
        raise CheckpointError(f"{checkpoint.source} wants pictures made by {named}: known are {', '.join(_CLASSES)}")
    settings = _CLASSES[kind] | {name: value for name, value in stated.items() if value is not None}
    try:
        return _pictures(checkpoint, kind, settings, size)
    except (LookupError, TypeError, ValueError) as error:
        used = ("size", "crop_size", "resample", "image_mean", "image_std")
        stated = {name: settings.get(name) for name in used}
        raise CheckpointError(
            f"{checkpoint.source}: the preprocessor's settings make no sense ({error!r}): {stated}"
        ) from error


def _pictures(checkpoint: Checkpoint, kind: str, settings: Json, size: tuple[int, int]) -> Pictures:
    _check(checkpoint, settings)
    resize = _resize(settings["size"], kind)
    cropped = _square(settings["crop_size"]) if settings.get("do_center_crop") else resize
    if cropped != size:
        raise CheckpointError(
            f"{checkpoint.source}: the preprocessor makes pictures of {cropped}, but the model reads {size}"
        )
    framing = {
        "height": size[0],
        "width": size[1],
        "resize": resize,
        "resample": _RESAMPLING[settings["resample"]],
    }
    if not settings.get("do_normalize", True):
        return Pictures(framing, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Pictures(framing, _channels(settings["image_mean"]), _channels(settings["image_std"]))


def _check(checkpoint: Checkpoint, settings: Json) -> None:
    usual = {"do_resize": True, "do_rescale": True}
    for name, value in usual.items():
        if settings.get(name, value) != value:
            raise CheckpointError(
                f"{checkpoint.source}: the preprocessor has {name} {settings[name]}: it must be {value}"
            )
    if not math.isclose(settings.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-5):
        raise CheckpointError(f"{checkpoint.source}: the preprocessor's rescale_factor must be 1/255")


def _resize(size: Any, kind: str) -> tuple[int, int] | int:
    """Height and width, or the length of the shorter side; CLIP means that by a plain number."""
    if isinstance(size, int):
        return size if kind == "CLIP" else (size, size)
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    return _square(size)


def _square(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list):
        height, width = size
        return int(height), int(width)
    return int(size["height"]), int(size["width"])


def _channels(values: Any) -> Channels:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
