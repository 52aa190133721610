"""A picture once for each word of its caption, with the places lit that the word looked at."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from heedful.runtime.drawing.style import BODY, HEAT, INK, LABEL, PAPER, Pen, coloured, sheet

SIDE, GAP = 224, 16
CAPTION = 30  # pixels under each panel
NARROWEST = 140  # of the places that words are written in
FEWEST, MOST = 4, 6  # panels in a row
DIMMED, LIT = 0.42, 0.8  # light left of the picture; how much of the hottest place is heat


def draw_panels(
    picture: Image.Image,
    words: Sequence[tuple[str, NDArray[np.float32]]],
    region: tuple[float, float, float, float],
    title: str,
) -> Image.Image:
    """The plain picture, then for each word the picture dimmed under the word's heat.

    A heat map (rows, columns), all >= 0, is laid over `region` (left, top, right, bottom in pixels of `picture`), each
    stretched to its own maximum.
    """
    pen = Pen.for_texts([title, *(word for word, _ in words)])
    ratio = SIDE / max(picture.size)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    small = picture.convert("RGB").resize(size, Resampling.LANCZOS)
    left, top, right, bottom = (round(edge * ratio) for edge in region)
    panels = [("", small), *((word, lit(small, heat, (left, top, right, bottom))) for word, heat in words)]

    width = max(size[0], NARROWEST)
    pitch, drop = width + GAP, size[1] + GAP + (CAPTION if words else 0)
    columns = in_a_row(len(panels), BODY // drop)
    body = Image.new("RGB", (columns * pitch - GAP, ceil(len(panels) / columns) * drop - GAP), PAPER)
    for i, (word, panel) in enumerate(panels):
        x, y = i % columns * pitch, i // columns * drop
        body.paste(panel, (x + (width - panel.width) // 2, y))
        mask = pen.line(word, LABEL, width)
        body.paste(INK, (x + (width - mask.width) // 2, y + panel.height + 5), mask)
    return sheet(body, title, pen)


def in_a_row(count: int, most_rows: int) -> int:
    """Panels in a row: the last row is as full as may be, and no more rows than fit on a sheet."""
    rows = min(ceil(count / MOST), most_rows)
    return min(count, max(FEWEST, ceil(count / rows)))


def lit(picture: Image.Image, heat: NDArray[np.float32], region: tuple[int, int, int, int]) -> Image.Image:
    """The picture dimmed, with the colours of the heat where there is any."""
    spread = spread_out(heat, region, picture.size)
    amount = LIT * spread[..., None]
    dimmed = np.asarray(picture, np.float32) * DIMMED
    return Image.fromarray((dimmed * (1 - amount) + coloured(spread, HEAT) * amount).round().astype(np.uint8))


def spread_out(
    heat: NDArray[np.float32], region: tuple[int, int, int, int], size: tuple[int, int]
) -> NDArray[np.float32]:
    """The heat of each pixel of a panel, 0 to 1, smoothly enlarged over its region."""
    left, top, right, bottom = region
    canvas = Image.new("F", size)
    hottest = heat.max(initial=0)
    if hottest > 0 and right > left and bottom > top:
        # Divided first: a tiny maximum would be lost to what the enlarging rounds off.
        stretched = Image.fromarray((heat / hottest).astype(np.float32))
        canvas.paste(stretched.resize((right - left, bottom - top), Resampling.BICUBIC), (left, top))
    return np.asarray(canvas, np.float32).clip(0, 1)
