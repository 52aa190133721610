"""Pictures in: what a model reads is what transformers' PIL processors make of it; all else is measured in numpy."""

import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from heedful.models.filterbank import mel_filterbank
from heedful.runtime.image.pixels import Framing, PictureSource, read_picture

SQUARE = Framing(8, 8, (8, 8), "bicubic")
RESAMPLING = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


def noise(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def upright(source: PictureSource) -> NDArray[np.uint8]:
    return np.asarray(read_picture(source, SQUARE, keep_upright=True).upright)


def processed(family: str, image: Image.Image, **options: Any) -> NDArray[np.uint8]:
    """What transformers' PIL processor of `family` reads of `image`, with its own settings but for `options`."""
    mel_filterbank(201, 80, 16_000)  # transformers imports torchaudio, which loads without CUDA only after this
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    classes: list[Any] = [BlipImageProcessorPil, CLIPImageProcessorPil, DeiTImageProcessorPil, ViTImageProcessorPil]
    (kind,) = (each for each in classes if each.__name__.startswith(family))
    read = kind(do_rescale=False, do_normalize=False, **options)(image)["pixel_values"][0]
    assert read.dtype == np.uint8
    return np.moveaxis(read, 0, -1)


@pytest.mark.parametrize(
    ("family", "framing"),
    [
        ("Blip", Framing(384, 384, (384, 384), "bicubic")),
        ("ViT", Framing(224, 224, (224, 224), "bilinear")),
        ("DeiT", Framing(224, 224, (256, 256), "bicubic")),
        ("CLIP", Framing(224, 224, 224, "bicubic")),
    ],
)
@pytest.mark.parametrize("size", [(301, 200), (77, 399)], ids=["wide", "tall"])
def test_each_family_reads_what_transformers_does(family: str, framing: Framing, size: tuple[int, int]) -> None:
    image = noise(*size)
    np.testing.assert_array_equal(read_picture(image, framing).pixels, processed(family, image))


SIDES = st.integers(1, 48)


@settings(max_examples=60)
@given(
    image=st.builds(noise, st.integers(1, 400), st.integers(1, 400)),
    framing=st.builds(Framing, SIDES, SIDES, SIDES | st.tuples(SIDES, SIDES), st.sampled_from(RESAMPLING)),
)
def test_any_framing_is_that_of_transformers(image: Image.Image, framing: Framing) -> None:
    """Crops with any difference, odd ones too, and crops larger than the picture, which are padded."""
    resize = framing.resize
    expected = processed(
        "DeiT",
        image,
        size={"shortest_edge": resize} if isinstance(resize, int) else {"height": resize[0], "width": resize[1]},
        crop_size={"height": framing.height, "width": framing.width},
        resample=Image.Resampling[framing.resample.upper()],
    )
    pixels = read_picture(image, framing).pixels
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(60, 300), st.integers(60, 300)),
    sides=st.tuples(st.integers(24, 48), st.integers(24, 48)),
    resize=st.integers(20, 60) | st.tuples(st.integers(20, 60), st.integers(20, 60)),
    at=st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)),
)
def test_what_lies_in_the_region_is_what_is_read(
    size: tuple[int, int], sides: tuple[int, int], resize: int | tuple[int, int], at: tuple[float, float]
) -> None:
    framing = Framing(*sides, resize, "bilinear")
    left, top, right, bottom = read_picture(Image.new("RGB", size), framing).region
    # a white mark of about a quarter of what is both read and there
    seen = np.array([[max(left, 0), max(top, 0)], [min(right, size[0]), min(bottom, size[1])]])
    centre, half = seen[0] + (seen[1] - seen[0]) * at, (seen[1] - seen[0]) / 8
    mark = np.round([*(centre - half), *(centre + half)]).astype(int)
    picture = Image.new("RGB", size)
    picture.paste("white", tuple(mark.tolist()))
    light = read_picture(picture, framing).pixels[..., 0] / 255.0
    rows, columns = np.indices(light.shape) + 0.5
    found = [(columns * light).sum() / light.sum(), (rows * light).sum() / light.sum()]
    middle = (mark[:2] + mark[2:]) / 2
    expected = (middle - (left, top)) / (right - left, bottom - top) * (framing.width, framing.height)
    np.testing.assert_allclose(found, expected, atol=0.3)


def test_the_region_of_a_picture_read_whole_is_all_of_it() -> None:
    assert read_picture(noise(301, 77), SQUARE).region == pytest.approx((0, 0, 301, 77))


def test_where_it_is_padded_the_region_reaches_outside() -> None:
    picture = read_picture(Image.new("RGB", (20, 10), "white"), Framing(20, 20, (10, 20), "bicubic"))
    assert picture.region == (0, -5, 20, 15)
    np.testing.assert_array_equal(picture.pixels[:, 0, 0], [0] * 5 + [255] * 10 + [0] * 5)


# what numpy does to the stored picture to show it as the EXIF standard says
TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_camera_held_any_way_gives_an_upright_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(noise(40, 24), "JPEG", exif=exif)
    np.testing.assert_array_equal(upright(data), TURNS[orientation](np.asarray(Image.open(io.BytesIO(data)))))


OPAQUE = ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "I", "RGBA", "LA", "PA"]


@pytest.mark.parametrize("mode", OPAQUE)
def test_an_opaque_picture_is_what_pillow_converts_it_to(mode: str) -> None:
    image = noise(31, 20).convert(mode)
    np.testing.assert_array_equal(upright(image), np.asarray(image.convert("RGB")))


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image.paste((255, 0, 0, 127), (8, 0, 16, 16))
    shown = upright(saved(image, "JPEG", quality=95, subsampling=0)).astype(int)
    np.testing.assert_allclose(shown[:, :6], np.broadcast_to([255, 0, 0], (16, 6, 3)), atol=4)
    np.testing.assert_allclose(shown[:, 10:], np.broadcast_to([0, 128, 128], (16, 6, 3)), atol=4)


LEVELS = np.linspace(0, 65535, 240).astype(np.uint16).reshape(6, 40)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (saved(Image.fromarray(LEVELS), "PNG"), np.round(LEVELS / 257)),
        (Image.fromarray(LEVELS // 256), np.round(LEVELS // 256 / 257)),
        (Image.fromarray(LEVELS.astype(np.int32)), np.round(LEVELS / 257)),
        (Image.fromarray((LEVELS // 257).astype(np.int32)), LEVELS // 257),
        (Image.fromarray((LEVELS / 65535).astype(np.float32)), np.round(LEVELS / 257)),
        (Image.fromarray((LEVELS // 257).astype(np.float32)), LEVELS // 257),
        (Image.fromarray(LEVELS.astype(np.float32)), np.round(LEVELS / 257)),
    ],
    ids=["16-bit PNG", "I;16", "I of 16 bits", "I of 8 bits", "F to 1", "F to 255", "F to 65535"],
)
def test_more_than_eight_bits_are_scaled(source: PictureSource, expected: NDArray[Any]) -> None:
    np.testing.assert_array_equal(upright(source), np.repeat(expected[..., None], 3, axis=2))


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(upright(data), np.asarray(frames[0]))


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_transparency_shows_white(levels: NDArray[np.uint8]) -> None:
    alpha = levels[..., 3:] / 255
    expected = levels[..., :3] * alpha + 255 * (1 - alpha)
    for source in (levels, Image.fromarray(levels), saved(Image.fromarray(levels), "PNG")):
        np.testing.assert_allclose(upright(source), expected, atol=0.51)


def test_a_palette_can_be_transparent() -> None:
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(1, 4)).convert("P")
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 100, 0, 0, 0, 250])
    shown = upright(saved(image, "PNG", transparency=bytes([255, 51, 0, 255])))
    np.testing.assert_array_equal(shown, [[[0, 0, 0], [244, 204, 204], [255, 255, 255], [0, 0, 250]]])


GREY = Image.fromarray(np.full((3, 4), 77, np.uint8))
CLEAR: dict[str, PictureSource] = {
    "RGBA": Image.new("RGBA", (4, 3), (10, 20, 30, 0)),
    "LA": Image.new("LA", (4, 3), (10, 0)),
    "array": np.zeros((3, 4, 4)),
    "grey": saved(GREY, "PNG", transparency=77),
    "colour": saved(GREY.convert("RGB"), "PNG", transparency=(77, 77, 77)),
    "16 bits": saved(Image.fromarray(np.full((3, 4), 30_000, np.uint16)), "PNG", transparency=30_000),
    "palette": saved(GREY.convert("P"), "PNG", transparency=bytes(256)),
    "GIF": saved(GREY, "GIF", transparency=77),
}


@pytest.mark.parametrize("source", CLEAR.values(), ids=CLEAR)
def test_what_is_wholly_transparent_is_white(source: PictureSource) -> None:
    np.testing.assert_array_equal(upright(source), np.full((3, 4, 3), 255))


LAYOUTS = st.tuples(st.integers(1, 9), st.integers(1, 9)) | st.tuples(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])
)
TYPES: dict[str, float] = {"u1": 255, "<u2": 65535, ">u2": 65535, "<f2": 1, "<f4": 1, ">f4": 1, "<f8": 1}


@given(st.data(), st.sampled_from(sorted(TYPES)), LAYOUTS)
def test_arrays_are_scaled_to_eight_bits(data: st.DataObject, kind: str, shape: tuple[int, ...]) -> None:
    elements = None if "u" in kind else st.floats(0, 1, width=16)
    values = data.draw(arrays.arrays(np.dtype(kind), shape, elements=elements))
    expected = values.astype(np.float64) * 255 / TYPES[kind]
    if expected.ndim == 2 or expected.shape[2] == 1:
        expected = np.repeat(expected.reshape(*shape[:2], 1), 3, axis=2)
    # to the nearest; halves are as good as whole in 16-bit floats
    np.testing.assert_allclose(upright(values), expected, atol=0.57 if kind == "<f2" else 0.501)


class Unseekable:
    """The least a stream can be."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def test_every_kind_of_source_gives_the_same(tmp_path: Path) -> None:
    image = noise(31, 20)
    data = saved(image, "PNG")
    path = tmp_path / "cat.png"
    path.write_bytes(data)
    at_its_end = io.BytesIO(data)
    at_its_end.seek(0, os.SEEK_END)
    receiving, sending = os.pipe()
    with os.fdopen(sending, "wb") as out:
        out.write(data)
    with path.open("rb") as file, os.fdopen(receiving, "rb", buffering=0) as pipe:
        for source in (path, str(path), data, file, pipe, at_its_end, Unseekable(data), image, np.asarray(image)):
            np.testing.assert_array_equal(upright(source), image)  # type: ignore[arg-type]
        assert not file.closed
        assert not at_its_end.closed


def with_everything() -> Image.Image:
    """A picture with a palette, transparency and an orientation."""
    image = noise(20, 10).quantize(16)
    image.info["transparency"] = bytes(range(0, 256, 16))
    image.getexif()[0x0112] = 6
    return image


@pytest.mark.parametrize("image", [noise(20, 10), with_everything(), noise(20, 10).convert("F")], ids=lambda i: i.mode)
def test_an_image_passed_in_stays_as_it_is(image: Image.Image) -> None:
    def state() -> tuple[Any, ...]:
        palette = image.palette and (image.palette.mode, image.palette.tobytes())
        return image.mode, image.size, image.tobytes(), dict(image.info), palette, dict(image.getexif())

    before = state()
    picture = read_picture(image, SQUARE, keep_upright=True)
    assert state() == before
    assert picture.upright is not None
    assert picture.upright is not image
    picture.pixels[:] = 0
    picture.upright.paste("red", (0, 0, *picture.upright.size))
    assert state() == before


@pytest.mark.parametrize("framing", [SQUARE, Framing(8, 8, 8, "bicubic")], ids=["squashed", "cropped"])
@pytest.mark.parametrize("size", [(1, 1), (20_000, 20)], ids=["dot", "strip"])
def test_any_size_is_read(framing: Framing, size: tuple[int, int]) -> None:
    picture = read_picture(saved(Image.new("RGB", size, "teal"), "PNG"), framing, keep_upright=True)
    assert picture.upright is not None
    assert picture.upright.size == size
    np.testing.assert_array_equal(picture.pixels, np.broadcast_to([0, 128, 128], (8, 8, 3)))


class Held(io.BytesIO):
    """A file that says when it is first read, and then waits."""

    def __init__(self, data: bytes, until: Event) -> None:
        super().__init__(data)
        self.reached, self._until = Event(), until

    def read(self, size: int | None = -1, /) -> bytes:
        self.reached.set()
        assert self._until.wait(10)
        return super().read(size)


def test_threads_neither_hear_pillow_s_warnings_nor_change_the_filters() -> None:
    """One begins before the other and ends before it. Of this EXIF Pillow warns, which here would be an error."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\xff\0\0\0\xff\0\0\0\0\0\0\0"
    data = saved(noise(64, 64), "JPEG", exif=exif)
    with pytest.warns(UserWarning, match="larger than file"):
        image = Image.open(io.BytesIO(data))
    before, ended = list(warnings.filters), Event()
    later = Held(data, until=ended)
    sooner = Held(data, until=later.reached)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(upright, sooner)
        assert sooner.reached.wait(10)
        second = pool.submit(upright, later)
        first.result()
        ended.set()
        np.testing.assert_array_equal(second.result(), first.result())
    assert list(warnings.filters) == before
    np.testing.assert_array_equal(first.result(), image)


def test_damaged_exif_does_not_spoil_the_picture() -> None:
    data = saved(noise(40, 24), "JPEG", exif=b"Exif\0\0neither of the two orders of bytes")
    np.testing.assert_array_equal(upright(data), np.asarray(Image.open(io.BytesIO(data))))
