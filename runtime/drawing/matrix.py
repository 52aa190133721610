"""Which word looked at which, as a matrix; when each word was said, over an axis of time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.Image import Resampling, Transpose

from heedful.runtime.drawing.style import BODY, GREY, INK, PAPER, RULE, SHADES, SMALLEST, Pen, coloured, sheet

LARGEST_CELL, SMALLEST_CELL, MATRIX = 64, 15, 1320  # pixels; of the whole matrix where its cells may choose
LEGEND, GAP = 220, 8  # most pixels for a word beside the matrix, and between the two
ROOM = BODY - LEGEND - GAP - 100

ROW_SECONDS, PER_SECOND, NARROWEST_ROW = 10, 160, 800
WAVE, BOX, AXIS, BETWEEN = 64, 66, 26, 18  # heights of the parts of a row
LETTERS, FINEST = 14, 7
APART = 100  # pixels between ticks, at least
KEY = (120, 12)
DARK = 0.55  # from this shade on, ink is white


def draw_matrix(weights: NDArray[np.float32], rows: Sequence[str], columns: Sequence[str], title: str) -> Image.Image:
    """A cell for each of `weights` (rows, columns), all >= 0: the more, the darker."""
    pen = Pen.for_texts([title, *rows, *columns])
    longest = max(len(rows), len(columns), 1)
    cell = min(max(SMALLEST_CELL, min(LARGEST_CELL, MATRIX // longest)), max(1, ROOM // longest))
    size = max(SMALLEST, min(20, cell * 6 // 10))
    width, height = (min(len(words) * cell, ROOM) for words in (columns, rows))
    # Where cells are smaller than letters, only every so manyth word is written.
    beside, above = (
        {i: pen.line(words[i], size, LEGEND) for i in range(0, len(words), ceil(SMALLEST_CELL / cell))}
        for words in (rows, columns)
    )
    left, top = (max((mask.width for mask in masks.values()), default=0) + GAP for masks in (beside, above))

    body = Image.new("RGB", (left + width + 1, top + height + 1), PAPER)
    for i, mask in beside.items():
        middle = top + round((i + 0.5) * height / len(rows))
        body.paste(INK, (left - GAP - mask.width, middle - mask.height // 2), mask)
    for i, mask in above.items():
        middle = left + round((i + 0.5) * width / len(columns))
        body.paste(INK, (middle - mask.height // 2, top - GAP - mask.width), mask.transpose(Transpose.ROTATE_90))
    if weights.size:
        shades = coloured(weights / (weights.max() or 1), SHADES)
        body.paste(Image.fromarray(shades).resize((width, height), Resampling.BOX), (left, top))
        rule(ImageDraw.Draw(body), (left, top, left + width, top + height), cell)
    return sheet(body, title, pen)


def rule(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], cell: int) -> None:
    """Thin lines between cells large enough for them, and around them all."""
    left, top, right, bottom = box
    if cell >= SMALLEST_CELL // 2:
        for x in range(left + cell, right, cell):
            draw.line((x, top, x, bottom), RULE)
        for y in range(top + cell, bottom, cell):
            draw.line((left, y, right, y), RULE)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=GREY)


@dataclass(frozen=True, slots=True)
class Strip:
    """An axis of time, `rows` of `width` pixels read like lines of text."""

    start: float
    scale: float  # pixels per second
    rows: int
    width: int

    @classmethod
    def over(cls, seconds: tuple[float, float], row_height: int) -> Self:
        """The axis from one time to another, in rows of about ten seconds unless they would outgrow a sheet."""
        span = max(seconds[1] - seconds[0], 1 / PER_SECOND)
        rows = max(1, min(round(span / ROW_SECONDS), (BODY - 100) // row_height))
        width = max(NARROWEST_ROW, min(round(span / rows * PER_SECOND), BODY - 1))
        return cls(seconds[0], rows * width / span, rows, width)

    def place(self, time: float) -> int:
        """Pixels from the start, all rows in one."""
        return round((time - self.start) * self.scale)

    def pieces(self, start: float, end: float) -> Iterator[tuple[int, int, int]]:
        """The row, left and right of each part of a span of time, which takes a pixel at least."""
        first = self.place(start)
        first -= first == self.rows * self.width  # a word at the very end keeps its pixel too
        last = max(first + 1, self.place(end))
        for row in range(max(0, first // self.width), min(self.rows, ceil(last / self.width))):
            origin = row * self.width
            yield row, max(first - origin, 0), min(last - origin, self.width)

    def ticks(self) -> Iterator[tuple[int, int, str]]:
        """The row, pixel and label of each round time on the axis."""
        steps = (digit * 10.0**power for power in range(-2, 12) for digit in (1, 2, 5))
        step = next(step for step in steps if step * self.scale >= APART)
        end = self.start + self.rows * self.width / self.scale
        for i in range(ceil(self.start / step), floor(end / step) + 1):
            row, x = divmod(self.place(i * step), self.width)
            yield (row, x, f"{i * step:.10g} s") if row < self.rows else (row - 1, self.width, f"{i * step:.10g} s")


def draw_times(
    words: Sequence[tuple[str, float, float, float]],
    seconds: tuple[float, float],
    waveform: NDArray[np.float32] | None,
    title: str,
) -> Image.Image:
    """Each word (text, start, end, probability) as a box over the time it takes, under the sound where there is one.

    `waveform` goes from the first of `seconds` to the second.
    """
    pen = Pen.for_texts([title, *(text for text, *_ in words)])
    wave = WAVE if waveform is not None and waveform.size else 0
    pitch = wave + BOX + AXIS + BETWEEN
    strip = Strip.over(seconds, pitch)
    body = Image.new("RGB", (strip.width + 1, strip.rows * pitch + KEY[1]), PAPER)
    draw = ImageDraw.Draw(body)

    for row, x, label in strip.ticks():
        foot = row * pitch + wave + BOX
        draw.line((x, row * pitch, x, foot + 4), RULE)
        mask = pen.line(label, SMALLEST + 1, APART)
        body.paste(GREY, (min(max(0, x - mask.width // 2), body.width - mask.width), foot + 6), mask)
    for row in range(strip.rows):
        draw.line((0, row * pitch + wave + BOX, strip.width, row * pitch + wave + BOX), GREY)
    if waveform is not None and wave:
        for row, mask in enumerate(envelopes(waveform, strip)):
            body.paste(SHADES[2], (0, row * pitch), mask)
    for text, start, end, probability in words:
        boxes = [(x, row * pitch + wave, to, row * pitch + wave + BOX) for row, x, to in strip.pieces(start, end)]
        for box in boxes:
            draw.rectangle(box, tuple(coloured(np.array(probability, np.float32), SHADES).tolist()), GREY)
        if boxes:
            widest = max(boxes, key=lambda box: box[2] - box[0])
            write(body, pen, text, widest, PAPER if probability > DARK else INK)
    draw_key(body, pen)
    return sheet(body, title, pen)


def envelopes(waveform: NDArray[np.float32], strip: Strip) -> Iterator[Image.Image]:
    """A mask for each row: how far the sound swings at each pixel, about the middle."""
    starts = np.arange(strip.rows * strip.width) * waveform.size // (strip.rows * strip.width)
    swings = np.maximum.reduceat(np.abs(waveform), starts)
    swings = swings / (swings.max() or 1) * (WAVE / 2 - 3)
    away = np.abs(np.arange(WAVE) - (WAVE - 1) / 2)
    for row in swings.reshape(strip.rows, strip.width):
        # The pixel at the edge is as strong as it is covered.
        yield Image.fromarray(((row - away[:, None] + 1).clip(0, 1) * 255).astype(np.uint8))


def write(body: Image.Image, pen: Pen, text: str, box: tuple[int, int, int, int], ink: str) -> None:
    """A word in the middle of its box: turned where the box is too narrow, left out where no letter would fit."""
    left, top, right, bottom = box
    width, height = right - left - 4, bottom - top - 6
    turned = width < min(height, pen.length(text, SMALLEST))
    size = min(LETTERS, width * 3 // 4 + 1) if turned else LETTERS
    if size < FINEST:
        return
    mask = pen.line(text, size, height if turned else width)
    mask = mask.transpose(Transpose.ROTATE_90) if turned else mask
    body.paste(ink, ((left + right + 1 - mask.width) // 2, (top + bottom + 1 - mask.height) // 2), mask)


def draw_key(body: Image.Image, pen: Pen) -> None:
    """What the shades stand for, in the lower right corner."""
    ends = [pen.line(text, SMALLEST + 1, APART) for text in ("probability 0", "1")]
    x, y = body.width - KEY[0] - ends[1].width - GAP, body.height - KEY[1]
    shades = coloured(np.linspace(0, 1, KEY[0], dtype=np.float32)[None].repeat(KEY[1], axis=0), SHADES)
    body.paste(Image.fromarray(shades), (x, y))
    ImageDraw.Draw(body).rectangle((x, y, x + KEY[0], y + KEY[1] - 1), outline=GREY)
    for mask, at in zip(ends, (x - GAP - ends[0].width, x + KEY[0] + GAP), strict=True):
        body.paste(GREY, (at, y + (KEY[1] - mask.height) // 2), mask)
