"""What cannot be used as a picture: one error that names it and says what to do, and no file left open."""

import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from heedful.runtime.errors import InputError
from heedful.runtime.image.pixels import Framing, read_picture

SQUARE = Framing(8, 8, (8, 8), "bicubic")
OPEN_FILES = Path("/proc/self/fd")


def encoded(kind: str, width: int = 64, height: int = 64) -> bytes:
    file = io.BytesIO()
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(levels).save(file, kind)
    return file.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG file whose header states this size, and that holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def is_open(path: Path) -> bool:
    """Whether this process holds the file open, where that can be seen."""
    if not OPEN_FILES.exists():
        return False
    # one that another thread closes while we look has no target any more: realpath then returns the link itself
    return any(os.path.realpath(descriptor) == str(path.resolve()) for descriptor in OPEN_FILES.iterdir())


FILES: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "empty"),
    "letter.jpg": (b"It was the best of times.\n" * 50, "not a picture"),
    "header-cut.png": (encoded("PNG")[:20], "damaged or cut short|not a picture"),
    "cut.jpg": (encoded("JPEG")[:-200], "damaged or cut short"),
    "cut.png": (encoded("PNG")[:-200], "damaged or cut short"),
    "cut.gif": (encoded("GIF")[:-200], "damaged or cut short"),
    "cut.webp": (encoded("WEBP")[:-200], "damaged or cut short|not a picture"),
    "cut.tif": (encoded("TIFF")[:2000], "damaged or cut short|not a picture"),
    "hollow.png": (claiming(64, 64), "damaged or cut short"),
    "large.png": (claiming(10_000, 10_000), "10000 x 10000 pixels.*shrink it, or open it with PIL"),
    "larger.png": (claiming(30_000, 30_000), "900000000 pixels.*shrink it, or open it with PIL"),
}


@pytest.mark.parametrize("given_as", ["path", "text", "file"])
@pytest.mark.parametrize(("name", "data", "message"), [(name, *each) for name, each in FILES.items()], ids=FILES)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, name: str, data: bytes, message: str, given_as: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    if given_as == "file":
        with path.open("rb") as file, pytest.raises(InputError) as caught:
            read_picture(file, SQUARE)
    else:
        with pytest.raises(InputError) as caught:
            read_picture(path if given_as == "path" else str(path), SQUARE)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert re.search(message, said)
    assert "\n" not in said
    # the error is still held, and with it all that it could keep open
    assert not is_open(path)


def test_a_name_given_is_the_one_in_the_message() -> None:
    with pytest.raises(InputError, match=r"^third of five: empty"):
        read_picture(b"", SQUARE, name="third of five")


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("missing.png", "No such file or directory")])
def test_a_path_that_leads_to_no_file_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / name))}: {reason}; pass the path of a picture"):
        read_picture(tmp_path / name, SQUARE)


def test_what_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "private.png"
    path.write_bytes(encoded("PNG"))
    path.chmod(0)
    if not os.geteuid():  # nothing is forbidden to root

        def forbidden(*_: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(InputError, match=r"private\.png: Permission denied; pass the path"):
        read_picture(path, SQUARE)


def test_pillow_s_own_limit_is_the_one_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("PNG", 40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
    with pytest.raises(InputError, match="<bytes>: too large"):
        read_picture(data, SQUARE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert read_picture(data, SQUARE).region == (0, 0, 40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_picture(data, SQUARE).region == (0, 0, 40, 30)


def test_a_large_image_opened_by_the_caller_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("PNG", 40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.warns(Image.DecompressionBombWarning):
        image = Image.open(io.BytesIO(data))
    assert read_picture(image, SQUARE).region == (0, 0, 40, 30)


def test_a_strip_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(InputError, match="200000 x 1 pixels are too thin a strip; crop it"):
        read_picture(Image.new("L", (200_000, 1)), Framing(224, 224, 224, "bicubic"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.org/cat.jpg", "https://example.org/cat.jpg: an address; download it first"),
        ("S3://bucket/cat.jpg", "an address; download it first"),
        ("data:image/png;base64," + "iVBORw0K" * 10_000, "an address"),
        ("iVBORw0K" * 10_000, "File name too long"),
        ("cat\0.png", "null byte"),
        ("", "<empty path>: "),
        (b"", "<bytes>: empty"),
        (io.BytesIO(), "<BytesIO>: empty"),
        (io.StringIO("text"), "<StringIO>: no picture; pass a path, .*a binary file object"),
        (None, "<NoneType>: no picture"),
        ([0, 1], "<list>: no picture"),
        (Image.new("RGB", (0, 5)), "<Image>: no pixels in 0 x 5"),
        (Image.fromarray(np.full((2, 2), 70_000, np.int32)), r"70000; scale them to \[0, 65535\]"),
        (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "nan; scale them"),
        (np.zeros((0, 5, 3), np.uint8), r"<ndarray>: shape \(0, 5, 3\)"),
        (np.zeros((5, 0)), r"shape \(5, 0\)"),
        (np.zeros(5), r"shape \(5,\)"),
        (np.zeros((3, 50, 50), np.uint8), r"shape \(3, 50, 50\) must be \(height, width\)"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros((1, 5, 5, 3), np.uint8), r"shape \(1, 5, 5, 3\)"),
        (np.zeros((5, 5), np.int64), "type int64; pass uint8, uint16 or floats"),
        (np.zeros((5, 5), bool), "type bool"),
        (np.zeros((5, 5), complex), "type complex128"),
        (np.full((5, 5, 3), 200.0), r"values from 200 to 200; scale them to \[0, 1\]"),
        (np.full((5, 5, 3), -0.5), r"values from -0.5 to -0.5"),
        (np.full((5, 5, 3), np.nan), "values from nan"),
        (np.full((5, 5, 3), np.inf), "values from inf"),
    ],
    ids=lambda value: value[:20].replace("\0", "") if isinstance(value, str) else None,
)
def test_what_is_no_picture_is_refused(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_picture(source, SQUARE)
    assert len(str(caught.value)) < 1200
