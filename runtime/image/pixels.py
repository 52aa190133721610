"""Pictures in: any file, bytes, stream, array or PIL image becomes the pixels that a model reads."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from heedful.runtime.errors import InputError
from heedful.runtime.home import check_address

PictureSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any]

# What may stand for white, by type of array or PIL mode; the first that no value exceeds does.
_WHITES = {"u1": (255,), "u2": (65535,), "f2": (1,), "f4": (1,), "f8": (1,), "I": (255, 65535), "F": (1, 255, 65535)}
# Pixels in a picture whose shorter side is resized: a thin strip would need any number of them.
_LARGEST = 1 << 28


@dataclass(frozen=True, slots=True)
class Framing:
    """How a model wants its pictures: resized, then cropped or padded with black evenly to (height, width)."""

    height: int
    width: int
    resize: tuple[int, int] | int  # (height, width), or the length of the shorter side, which keeps the shape
    resample: str  # a name of PIL.Image.Resampling in lower case


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture, and what a model reads of it.

    pixels: (height, width, 3), RGB, not normalised. region: left, top, right, bottom of what `pixels` show, in those of
    the whole picture as it is to be seen; it reaches outside where they are padded. upright: that picture in RGB, where
    it was to be kept.
    """

    pixels: NDArray[np.uint8]
    region: tuple[float, float, float, float]
    upright: Image.Image | None = None


def read_picture(
    source: PictureSource, framing: Framing, name: str | None = None, *, keep_upright: bool = False
) -> Picture:
    """Turn `source` the right way up and into RGB, then resize and crop it as `framing` says.

    `source` is a path, the bytes of a file, a binary file object (read from its beginning and left open), a PIL image
    (not changed), or an array of shape (height, width) or (height, width, channels) with 1, 3 or 4 channels, of uint8,
    uint16 or floats in [0, 1]. Of an animation the first frame is read; behind what is transparent there is white.
    16 bits become 8 by 1/257, as does PIL's mode I where a value exceeds 255; white in mode F is 1, or 255 or 65535
    where a value exceeds that. `name` is what messages call the source. The whole picture, three bytes a pixel, is
    there with `keep_upright` only.

    Raises InputError: nothing there, no picture, damaged, larger than Pillow's limit, an array that cannot be used.
    """
    name = name or _name(source)
    with _opened(source, name) as opened, _readable(name):
        upright = _upright(opened if isinstance(opened, Image.Image) else _image(opened, name), name)
    pixels, region = _framed(upright, framing, name)
    return Picture(pixels, region, upright if keep_upright else None)


def _name(source: PictureSource) -> str:
    named = isinstance(source, str | os.PathLike)
    path = source if named else getattr(source, "filename", None) or getattr(source, "name", None)
    if isinstance(path, str | os.PathLike):
        return os.fspath(path)[:1000] or "<empty path>"  # a mistake can make it as long as a file
    return f"<{type(source).__name__}>"


def _framed(
    upright: Image.Image, framing: Framing, name: str
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """`Picture.pixels` and `Picture.region`."""
    if isinstance(framing.resize, int):
        width, height = (framing.resize * side // min(upright.size) for side in upright.size)
    else:
        height, width = framing.resize
    if width * height > _LARGEST:
        raise InputError(f"{name}: {upright.width} x {upright.height} pixels are too thin a strip; crop it first")
    resized = upright.resize((width, height), Image.Resampling[framing.resample.upper()])
    left, top = (width - framing.width) // 2, (height - framing.height) // 2
    right, bottom = left + framing.width, top + framing.height
    # what lies outside Pillow makes black
    pixels = np.array(resized.crop((left, top, right, bottom)))
    across, down = upright.width / width, upright.height / height
    return pixels, (left * across, top * down, right * across, bottom * down)


def _upright(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise InputError(f"{name}: no pixels in {image.width} x {image.height}")
    image.load()
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # whatever damaged EXIF leads to; a viewer, too, then shows the picture as it is stored
        turned = image.copy()
    return _rgb(turned, name)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        levels, clear = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray(_eight_bits(levels, _WHITES.get(image.mode, (65535,)), name))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(levels != clear).convert("L"))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image)
    return canvas


def _of_array(values: NDArray[Any], name: str) -> Image.Image:
    whites = _WHITES.get(values.dtype.str[1:])
    if whites is None:
        raise InputError(f"{name}: values of type {values.dtype}; pass uint8, uint16 or floats in [0, 1]")
    if values.size == 0 or (values.ndim != 2 and (values.ndim != 3 or values.shape[2] not in (1, 3, 4))):
        raise InputError(f"{name}: shape {values.shape} must be (height, width) or (height, width, 1, 3 or 4), no 0")
    levels = values if values.dtype == np.uint8 else _eight_bits(values, whites, name)
    return Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels)


def _eight_bits(values: NDArray[Any], whites: tuple[int, ...], name: str) -> NDArray[np.uint8]:
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= whites[-1]:  # nor is it where a value is NaN
        raise InputError(f"{name}: values from {low:.6g} to {high:.6g}; scale them to [0, {whites[-1]}]")
    return np.rint(values * (255 / next(white for white in whites if high <= white))).astype(np.uint8)


def _opened(source: PictureSource, name: str) -> AbstractContextManager[BinaryIO | Image.Image]:
    if isinstance(source, np.ndarray):
        return nullcontext(_of_array(source, name))
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        check_address(os.fspath(source), name)
        try:
            return open(source, "rb")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", error)
            raise InputError(f"{name}: {reason}; pass the path of a picture that can be read") from error
    if isinstance(source, Image.Image) or (hasattr(source, "read") and not isinstance(source, io.TextIOBase)):
        return nullcontext(source)
    raise InputError(f"{name}: no picture; pass a path, bytes, a binary file object, a PIL image or an array")


def _image(file: BinaryIO, name: str) -> Image.Image:
    if not (file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")):
        file = io.BytesIO(file.read())
    file.seek(0)
    if not file.read(1):
        raise InputError(f"{name}: empty")
    image = Image.open(file)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        # up to twice the limit Pillow itself would only warn
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, the limit is {limit}")
    return image


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        with _HUSH:
            yield
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture, or not of a format that Pillow reads") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too large ({error}); shrink it, or open it with PIL and pass the image") from error
    except Exception as error:  # readers of some formats raise anything
        raise InputError(f"{name}: damaged or cut short ({error})") from error


class _Hush:
    """Ignores Pillow's warnings while any thread is inside; their own `catch_warnings` would undo one another's."""

    def __init__(self) -> None:
        self._lock, self._inside, self._filters = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.close()


_HUSH = _Hush()
