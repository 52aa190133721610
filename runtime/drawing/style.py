"""What all drawings share: colours, lettering and the sheet under them."""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

PAPER, INK, GREY, RULE = "#ffffff", "#202328", "#6b7178", "#d5d9de"
MARGIN = 28
CAP = 6000  # pixels a side
BODY = CAP - 2 * MARGIN  # what is left of them for a drawing on its sheet
TITLE, LABEL, SMALLEST = 24, 17, 11  # sizes of letters
TITLE_WIDTH, TITLE_LINES = 480, 12  # at least, at most

# Both scales were laid out in OKLab, anchors at equal steps of its lightness (0.16 to 0.94 and 1 to 0.25): brightness
# alone tells more from less, to colour-blind eyes and in grey print too.
HEAT = ("#11022b", "#390447", "#6a0154", "#9c0d4d", "#c63436", "#e85b22", "#fb8b2e", "#fcc047", "#f3f287")
SHADES = ("#ffffff", "#b5d2e8", "#6fa4d2", "#3e75ad", "#21487b", "#071e4c")

# The font that comes with Pillow has plain Latin letters only; these are tried when it lacks one.
SYSTEM_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf"),
    *("Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc"),
)
BUILT_IN = ""
NO_CHARACTER = "\uffff"


def coloured(values: NDArray[np.float32], scale: tuple[str, ...]) -> NDArray[np.uint8]:
    """`values` of 0 to 1, of any shape, as colours (..., 3) of the scale."""
    anchors = np.array([list(bytes.fromhex(anchor[1:])) for anchor in scale])
    places = np.linspace(0, 1, len(scale))
    return np.stack([np.interp(values, places, channel).round() for channel in anchors.T], axis=-1).astype(np.uint8)


@cache
def font(face: str, size: int) -> FreeTypeFont:
    """The font of a file name, or the one that comes with Pillow."""
    return ImageFont.truetype(face, size) if face else cast(FreeTypeFont, ImageFont.load_default(size))


def loads(face: str) -> bool:
    """Whether this machine has the font."""
    try:
        font(face, SMALLEST)
    except OSError:
        return False
    return True


@cache
def faces() -> tuple[str, ...]:
    """All fonts there are on this machine, the best liked first."""
    return (BUILT_IN, *filter(loads, SYSTEM_FONTS))


@cache
def has(face: str, character: str) -> bool:
    """Whether a font draws the character as anything but its sign for an unknown one."""
    drawn, unknown = (font(face, LABEL).getmask(each) for each in (character, NO_CHARACTER))
    return (drawn.size, bytes(drawn)) != (unknown.size, bytes(unknown))


def tidy(text: str) -> str:
    """The text on one line, without characters that are not for the eye."""
    shown = "".join(letter for letter in text if letter.isprintable() or letter.isspace())
    return unicodedata.normalize("NFC", " ".join(shown.split()))


@dataclass(frozen=True, slots=True)
class Pen:
    """Writes in one font, in masks to paste ink through."""

    face: str

    @classmethod
    def for_texts(cls, texts: Iterable[str]) -> Self:
        """A pen with the font that lacks the fewest of all these characters, so that one drawing has one font."""
        letters = set(tidy("".join(texts))) - {" "}
        return cls(min(faces(), key=lambda face: sum(not has(face, letter) for letter in letters)))

    def readable(self, text: str) -> str:
        """`text` tidied; a letter that the font lacks loses its accent."""
        letters = tidy(text)
        return "".join(each if has(self.face, each) else unicodedata.normalize("NFD", each)[0] for each in letters)

    def length(self, text: str, size: int) -> int:
        """Pixels that the text takes on one line."""
        return ceil(font(self.face, size).getlength(self.readable(text)))

    def line(self, text: str, size: int, width: int) -> Image.Image:
        """One line of at most `width` pixels: smaller where it must be, then cut."""
        text = self.readable(text)
        sizes = range(size, min(size, SMALLEST) - 1, -1)
        chosen = font(self.face, next((each for each in sizes if self.length(text, each) <= width), sizes[-1]))
        if chosen.getlength(text) > width:
            lengths = range(1, len(text))
            kept = bisect_right(lengths, width, key=lambda n: ceil(chosen.getlength(text[:n] + "…")))
            text = text[:kept].rstrip() + "…"
        mask = Image.new("L", (min(width, max(1, ceil(chosen.getlength(text)))), sum(chosen.getmetrics())))
        ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=chosen)
        return mask

    def block(self, text: str, size: int, width: int, lines: int) -> Image.Image:
        """Lines of at most `width` pixels; what does not fit on the last is cut."""
        rest, wrapped = self.readable(text).split(), list[Image.Image]()
        while rest and len(wrapped) < lines:
            fits = bisect_right(range(1, len(rest) + 1), width, key=lambda n: self.length(" ".join(rest[:n]), size))
            taken = len(rest) if len(wrapped) == lines - 1 else max(1, fits)
            wrapped.append(self.line(" ".join(rest[:taken]), size, width))
            rest = rest[taken:]
        block = Image.new("L", (width, sum(line.height for line in wrapped)))
        for i, line in enumerate(wrapped):
            block.paste(line, (0, sum(each.height for each in wrapped[:i])))
        return block


def sheet(body: Image.Image, title: str, pen: Pen) -> Image.Image:
    """A drawing with its title above, on white with even margins, never larger than the cap."""
    width = max(body.width, TITLE_WIDTH if title else 0)
    head = pen.block(title, TITLE, width, TITLE_LINES)
    top = MARGIN + (head.height + MARGIN // 2 if head.height else 0)
    page = Image.new("RGB", (width + 2 * MARGIN, top + body.height + MARGIN), PAPER)
    page.paste(INK, (MARGIN, MARGIN), head)
    page.paste(body, (MARGIN, top))
    page.thumbnail((CAP, CAP))
    return page
