"""What checkpoints say of pictures, and what becomes of pictures by that, beside transformers with the same files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from heedful.export.checkpoint import open_checkpoint
from heedful.export.pictures import Pictures, read_pictures
from heedful.models.filterbank import mel_filterbank
from heedful.models.vision import Normalize
from heedful.runtime.errors import CheckpointError
from heedful.runtime.image.pixels import Framing, read_picture

hf: Any = transformers

# transformers' classes, and the side of what they make where nothing is said
CLASSES = {"ViT": 224, "DeiT": 224, "Blip": 384, "CLIP": 224}
SIDE = 24
SQUARE = {"height": SIDE, "width": SIDE}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
NEW: dict[str, dict[str, Any]] = {
    "ViT": {"size": SQUARE, "resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    "ViT, nearest": {"size": SQUARE, "resample": 0},
    "ViT, hamming": {"size": SQUARE, "resample": 5},
    "Blip": {"size": SQUARE, "resample": 1, "do_convert_rgb": True, "do_pad": True},
    "DeiT": {"size": {"height": 30, "width": 40}, "crop_size": SQUARE} | IMAGENET,
    "DeiT, padded": {"size": {"height": 20, "width": 31}, "crop_size": SQUARE} | IMAGENET,
    "DeiT, whole": {"size": SQUARE, "do_center_crop": False, "crop_size": {"height": 10, "width": 10}} | IMAGENET,
    "CLIP": {"size": {"shortest_edge": 27}, "crop_size": SQUARE, "do_convert_rgb": True},
    "CLIP, padded": {"size": {"shortest_edge": 21}, "crop_size": SQUARE},
    "CLIP, square": {"size": SQUARE, "do_center_crop": False},
    "CLIP, not normalised": {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE, "do_normalize": False},
}
# before transformers 4.25
OLD: dict[str, dict[str, Any]] = {
    "ViT": {"size": SIDE, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "DeiT": {"size": 30, "crop_size": SIDE, "do_center_crop": True, "resample": 3} | IMAGENET,
    "Blip": {"size": SIDE},
    "CLIP": {"size": 30, "crop_size": SIDE, "do_center_crop": True, "resample": 3},
}


@pytest.fixture(scope="module", autouse=True)
def transformers_loads() -> None:
    """transformers imports torchaudio, which loads beside a CPU build of torch only after this."""
    mel_filterbank(201, 80, 16_000)


def of_class(name: str, ending: str = "ImageProcessor") -> str:
    return name.partition(",")[0] + ending


PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
# files by what is special about them: the name and what it says
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (PREPROCESSOR, {"image_processor_type": of_class(name)} | said) for name, said in NEW.items()},
    **{
        f"{name}, old": (PREPROCESSOR, {"feature_extractor_type": of_class(name, "FeatureExtractor")} | said)
        for name, said in OLD.items()
    },
    **{
        f"{name}, within": (PROCESSOR, {"image_processor": {"image_processor_type": of_class(name)} | NEW[name]})
        for name in CLASSES
    },
    "ViT, fast": (PREPROCESSOR, {"image_processor_type": "ViTImageProcessorFast"} | NEW["ViT"]),
}


def written(folder: Path, file: str, said: dict[str, Any]) -> Path:
    """`folder`, with a checkpoint that says this."""
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / file).write_text(json.dumps(said))
    return folder


def read(folder: Path, default: str = "ViT", side: int = SIDE) -> Pictures:
    return read_pictures(open_checkpoint(folder), default, (side, side))


def ours(pictures: Pictures, image: Image.Image) -> NDArray[np.float32]:
    pixels = read_picture(image, Framing(**pictures.framing)).pixels
    found: NDArray[np.float32] = Normalize(pictures.mean, pictures.std)(torch.from_numpy(pixels)).numpy()
    return found


def compare(pictures: Pictures, processor: Any, width: int, height: int, seed: int) -> None:
    """On a random picture."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    expected = processor(images=image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    np.testing.assert_allclose(ours(pictures, image), expected, rtol=0, atol=1e-5)


sides = st.integers(3, 90)


@pytest.mark.parametrize("name", FILES)
def test_pictures_are_made_as_by_transformers(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = written(tmp_path_factory.mktemp("checkpoint"), *FILES[name])
    pictures, processor = read(folder), hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert type(processor).__name__ == of_class(name, "ImageProcessorPil")

    @settings(max_examples=12)
    @given(width=sides, height=sides, seed=st.integers(0, 2**32 - 1))
    def check(width: int, height: int, seed: int) -> None:
        compare(pictures, processor, width, height, seed)

    check()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("said", [None, {}, {"image_processor_type": "{}ImageProcessor"}], ids=str)
def test_what_is_not_said_is_as_the_class_has_it(name: str, said: dict[str, str] | None, tmp_path: Path) -> None:
    """The default class where none is named."""
    named = {key: value.format(name) for key, value in (said or {}).items()}
    written(tmp_path, "unread.json" if said is None else PREPROCESSOR, named)
    pictures = read(tmp_path, "ViT" if named else name, CLASSES[name])
    compare(pictures, getattr(hf, of_class(name, "ImageProcessorPil"))(), 61, 47, 0)


def test_pictures_need_not_be_square(tmp_path: Path) -> None:
    said = {"size": {"height": 40, "width": 50}, "crop_size": {"height": 18, "width": 44}} | IMAGENET
    written(tmp_path, PREPROCESSOR, {"image_processor_type": "DeiTImageProcessor"} | said)
    pictures = read_pictures(open_checkpoint(tmp_path), "ViT", (18, 44))
    compare(pictures, hf.DeiTImageProcessorPil(**said), 61, 47, 0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"image_processor_type": "SwinImageProcessor"}, "made by SwinImageProcessor: known are ViT, DeiT, Blip, CLIP"),
        ({"feature_extractor_type": "BeitFeatureExtractor"}, "made by BeitFeatureExtractor"),
        ({"size": {"height": 24, "width": 32}}, r"makes pictures of \(24, 32\), but the model reads \(24, 24\)"),
        ({"size": 32}, r"makes pictures of \(32, 32\)"),
        ({}, r"makes pictures of \(224, 224\)"),
        ({"image_processor_type": "CLIPImageProcessor", "size": SIDE, "do_center_crop": False}, "pictures of 24"),
        ({"do_resize": False}, "do_resize False: it must be True"),
        ({"do_rescale": False}, "do_rescale False: it must be True"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor must be 1/255"),
        ({"size": {"longest_edge": 24}}, "size"),
        ({"size": {"height": 24}}, "width"),
        ({"size": SQUARE, "do_center_crop": True}, "crop_size"),
        ({"size": SQUARE, "resample": 7}, "resample"),
        ({"size": SQUARE, "image_mean": [0.5]}, "image_mean"),
    ],
    ids=str,
)
def test_what_is_not_known_is_named(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(written(tmp_path, PREPROCESSOR, said))
