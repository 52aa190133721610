"""Where things lie in the drawings, pixel by pixel; two drawings that differ in one thing show where it was drawn."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageChops

from heedful.runtime.drawing.matrix import draw_matrix, draw_times
from heedful.runtime.drawing.panels import draw_panels
from heedful.runtime.drawing.style import HEAT, SHADES, Pen, coloured

CAP = 6000
ODD = [
    "",
    " ",
    "a\nb\t",
    "😀👩‍👩‍👧",
    "中文",
    "\ud800",
    "e\u0301",
    "\u202eabc",
    "\x00",
    "você",
    "ﬁ",
    "W" * 300,
    "w " * 300,
]
SEA = (60, 120, 180)
BLANK = np.zeros((7, 7), np.float32)

Box = tuple[int, int, int, int]


def box(left: Image.Image, right: Image.Image) -> Box:
    """Where two drawings of one size differ: left, top, and behind the last right and bottom."""
    assert left.size == right.size
    found = ImageChops.difference(left, right).getbbox()
    assert found is not None
    return found


def light(image: Image.Image) -> NDArray[np.float64]:
    """CIE lightness of each pixel, 0 to 100."""
    rgb = np.asarray(image.convert("RGB"), np.float64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ (0.2126, 0.7152, 0.0722)
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def one_hot(shape: tuple[int, int], place: tuple[int, int]) -> NDArray[np.float32]:
    heat = np.zeros(shape, np.float32)
    heat[place] = 0.3
    return heat


def sea(width: int = 448, height: int = 336) -> Image.Image:
    return Image.new("RGB", (width, height), SEA)


def panels(drawing: Image.Image) -> list[Box]:
    """The plain panel, found by its colour, and those to its right."""
    pixels = np.asarray(drawing)
    rows, columns = (np.flatnonzero((pixels == SEA).all(axis=-1).any(axis=axis)) for axis in (1, 0))
    top, bottom, width = rows[0], rows[-1] + 1, columns[-1] + 1 - columns[0]
    painted = (pixels[(top + bottom) // 2] != 255).any(axis=-1)
    starts = np.flatnonzero(painted & ~np.roll(painted, 1))
    assert np.array_equal(np.flatnonzero(painted), (starts[:, None] + np.arange(width)).ravel())
    return [(int(x), int(top), int(x + width), int(bottom)) for x in starts]


@pytest.mark.parametrize("scale", [HEAT, SHADES])
def test_colours_change_in_lightness_evenly_and_one_way(scale: tuple[str, ...]) -> None:
    steps = np.diff(light(Image.fromarray(coloured(np.linspace(0, 1, 17, dtype=np.float32)[None], scale)))[0])
    assert (np.sign(steps) == np.sign(steps[0])).all()
    assert abs(steps).max() < 2 * abs(steps).min()
    assert abs(steps.sum()) > 80


@given(
    size=st.sampled_from([(448, 336), (300, 600), (100, 100)]),
    crop=st.sampled_from([(0.0, 0.0, 1.0, 1.0), (0.25, 0.0, 0.75, 1.0), (0.1, 0.2, 0.6, 0.9)]),
    shape=st.sampled_from([(7, 7), (14, 14), (5, 9)]),
    data=st.data(),
)
@settings(max_examples=25)
def test_the_hottest_place_is_where_the_map_has_its_maximum(
    size: tuple[int, int], crop: tuple[float, ...], shape: tuple[int, int], data: st.DataObject
) -> None:
    row, column = (data.draw(st.integers(0, length - 1)) for length in shape)
    left, top, right, bottom = (part * side for part, side in zip(crop, size * 2, strict=True))
    drawing = draw_panels(sea(*size), [("word", one_hot(shape, (row, column)))], (left, top, right, bottom), "")
    _, place = panels(drawing)
    panel = light(drawing.crop(place))
    y, x = (np.mean(each) for each in np.nonzero(panel == panel.max()))
    scale = panel.shape[1] / size[0]
    cell = (right - left) / shape[1] * scale, (bottom - top) / shape[0] * scale
    assert abs(x - (left * scale + (column + 0.5) * cell[0])) <= cell[0] / 2
    assert abs(y - (top * scale + (row + 0.5) * cell[1])) <= cell[1] / 2


def test_outside_the_region_the_picture_is_only_dimmed() -> None:
    region = (112, 84, 336, 252)
    cold, hot = (draw_panels(sea(), [("word", heat)], region, "") for heat in (BLANK, np.ones((7, 7), np.float32)))
    plain, dimmed = panels(cold)
    scale = (plain[2] - plain[0]) / 448
    expected = [dimmed[i % 2] + edge * scale for i, edge in enumerate(region)]
    assert box(cold, hot) == pytest.approx(expected, abs=1)
    assert len(set(cold.crop(dimmed).get_flattened_data())) == 1
    assert light(cold.crop(dimmed)).max() < light(cold.crop(plain)).min()


@pytest.mark.parametrize("region", [(-50, -50, 500, 400), (400, 300, 300, 200), (1000, 1000, 2000, 2000), (5, 5, 5, 5)])
def test_a_region_may_leave_the_picture(region: Box) -> None:
    drawing = draw_panels(sea(), [("word", one_hot((7, 7), (3, 3)))], region, "")
    assert len(panels(drawing)) == 2


@pytest.mark.parametrize("power", [-60, -10, 10, 60])
def test_each_map_is_stretched_to_its_own_maximum(power: int) -> None:
    heat = np.random.default_rng(0).random((7, 7), np.float32)
    one, other = (draw_panels(sea(), [("word", each)], (0, 0, 448, 336), "") for each in (heat, heat * 2.0**power))
    assert one == other


def test_heat_is_enlarged_smoothly() -> None:
    drawing = draw_panels(sea(), [("word", one_hot((7, 7), (3, 3)))], (0, 0, 448, 336), "")
    panel = light(drawing.crop(panels(drawing)[1]))
    steps = max(abs(np.diff(panel, axis=axis)).max() for axis in (0, 1))
    assert steps < np.ptp(panel) / 5


@pytest.mark.parametrize(
    ("words", "columns"), [(0, 1), (2, 3), (3, 4), (5, 6), (6, 4), (8, 5), (11, 6), (12, 5), (20, 6)]
)
def test_panels_stand_four_to_six_in_a_row(words: int, columns: int) -> None:
    drawing = draw_panels(sea(), [("word", BLANK)] * words, (0, 0, 448, 336), "")
    assert len(panels(drawing)) == columns


@pytest.mark.parametrize("word", ODD)
@pytest.mark.parametrize("size", [(448, 336), (90, 400)])
def test_words_keep_under_their_own_panel(word: str, size: tuple[int, int]) -> None:
    drawing, blank = (draw_panels(sea(*size), [(each, BLANK)] * 3, (0, 0, *size), "") for each in (word, ""))
    boxes = panels(drawing)
    middles = [(left[2] + right[0]) // 2 for left, right in pairwise(boxes)]
    for x in [0, *middles, drawing.width - 1]:
        assert (np.asarray(drawing)[:, x] == 255).all()
    if word.isprintable() and word.strip():
        assert box(drawing, blank)[1] >= boxes[0][3]


def test_the_whole_caption_is_the_title() -> None:
    caption = " ".join(["a dog on the grass"] * 12)
    short, long = (draw_panels(sea(), [("a", BLANK)], (0, 0, 448, 336), text) for text in ("a dog", caption))
    lines = panels(long)[0][1] - panels(short)[0][1]
    ends = draw_panels(sea(), [("a", BLANK)], (0, 0, 448, 336), caption[:-1] + "m")
    assert lines > 3 * 20
    assert panels(short)[0][1] < box(long, ends)[3] <= panels(long)[0][1]


def grid(rows: list[str], columns: list[str]) -> Callable[[float, float], tuple[int, int]]:
    """Where in a drawing the point (row, column) of its matrix lies, from two cells that are told apart."""
    shape = len(rows), len(columns)
    none = draw_matrix(np.zeros(shape, np.float32), rows, columns, "")
    first, last = (
        box(none, draw_matrix(one_hot(shape, place), rows, columns, ""))
        for place in ((0, 0), (shape[0] - 1, shape[1] - 1))
    )

    def at(row: float, column: float) -> tuple[int, int]:
        spans = (first[0], last[2], column / shape[1]), (first[1], last[3], row / shape[0])
        x, y = (round(start + (end - start) * part) for start, end, part in spans)
        return x, y

    return at


@given(rows=st.integers(1, 8), columns=st.integers(1, 8), data=st.data())
@settings(max_examples=25)
def test_a_larger_weight_is_darker(rows: int, columns: int, data: st.DataObject) -> None:
    values = st.lists(st.floats(0, 1, width=32), min_size=rows * columns, max_size=rows * columns)
    weights = np.array(data.draw(values), np.float32).reshape(rows, columns)
    names = [str(i) for i in range(rows)], [str(i) for i in range(columns)]
    at = grid(*names)
    lightness = light(draw_matrix(weights, *names, ""))
    cells = np.array([[lightness[at(i + 0.5, j + 0.5)[::-1]] for j in range(columns)] for i in range(rows)]).ravel()
    order = np.argsort(weights, axis=None)
    assert (np.diff(cells[order]) <= 0).all()
    assert (cells[weights.ravel() == 0] == 100).all()
    if weights.max() > 0:
        assert cells[weights.argmax()] < 20


@pytest.mark.parametrize("count", [2, 15, 60, 100])
def test_each_word_is_written_along_its_own_cells(count: int) -> None:
    words = ["Hygge"] * count
    at = grid(words, words)
    weights = np.zeros((count, count), np.float32)
    whole = draw_matrix(weights, words, words, "")
    for i in (0, count // 2, count - 1):
        without = [*words[:i], "", *words[i + 1 :]]
        (x, y), (right, bottom) = at(i, i), at(i + 1, i + 1)
        beside = box(whole, draw_matrix(weights, without, words, ""))
        above = box(whole, draw_matrix(weights, words, without, ""))
        assert beside[2] <= at(0, 0)[0]
        assert y <= beside[1] < beside[3] <= bottom
        assert above[3] <= at(0, 0)[1]
        assert x <= above[0] < above[2] <= right
        assert beside[3] - beside[1] == above[2] - above[0] >= 8  # turned by 90 degrees, and legible


@pytest.mark.parametrize(
    "shape", [(0, 0), (0, 3), (3, 0), (1, 1), (1, 420), (420, 1), (400, 400), (1, 7000), (6500, 2)]
)
def test_a_matrix_of_any_shape_is_drawn_within_the_cap(shape: tuple[int, int]) -> None:
    rows, columns = (["word"] * length for length in shape)
    full, empty = (
        draw_matrix(make(shape, np.float32), rows, columns, "A long title " * 9) for make in (np.ones, np.zeros)
    )
    assert max(full.size) <= CAP
    assert (full != empty) == (min(shape) > 0)


Word = tuple[str, float, float, float]


def times(words: list[Word], seconds: tuple[float, float] = (0, 8), title: str = "") -> Image.Image:
    return draw_times(words, seconds, None, title)


def rows_of(drawing: Image.Image, other: Image.Image) -> list[Box]:
    """Where two drawings differ, one box a row."""
    pixels: NDArray[np.uint8] = np.asarray(ImageChops.difference(drawing, other)).max(axis=-1)
    edges = np.flatnonzero(np.diff(pixels.max(axis=1) > 0, prepend=False, append=False))
    found = []
    for top, bottom in edges.reshape(-1, 2).tolist():
        columns = np.flatnonzero(pixels[top:bottom].max(axis=0))
        found.append((int(columns[0]), top, int(columns[-1]) + 1, bottom))
    return found


@given(start=st.floats(0, 8), length=st.floats(0.02, 8), offset=st.sampled_from([0.0, 3.25, 3600.0]))
@settings(max_examples=25)
def test_a_box_lasts_as_long_as_its_word(start: float, length: float, offset: float) -> None:
    seconds, end = (offset, offset + 8), min(8, start + length)
    none = times([], seconds)
    ((left, _, right, _),) = rows_of(none, times([("", *seconds, 0.9)], seconds))
    x, _, to, _ = box(none, times([("", offset + start, offset + end, 0.9)], seconds))
    scale = (right - left - 1) / 8
    assert x == pytest.approx(left + start * scale, abs=1.1)
    assert to - 1 == pytest.approx(left + end * scale, abs=1.1)


def test_a_long_recording_is_wrapped_into_rows_of_ten_seconds() -> None:
    seconds = (0, 40)
    none = times([], seconds)
    rows = rows_of(none, times([("", 0, 40, 0.9)], seconds))
    assert len(rows) == 4
    left, _, right, _ = rows[0]
    scale = (right - left - 1) / 10
    (found,) = rows_of(none, times([("", 12, 13.5, 0.9)], seconds))
    assert found == pytest.approx((left + 2 * scale, rows[1][1], left + 3.5 * scale + 1, rows[1][3]), abs=1)
    across = rows_of(none, times([("", 9, 10.5, 0.9)], seconds))
    assert across[0] == pytest.approx((left + 9 * scale, rows[0][1], right, rows[0][3]), abs=1)
    assert across[1] == pytest.approx((left, rows[1][1], left + 0.5 * scale + 1, rows[1][3]), abs=1)


@pytest.mark.parametrize("word", [*ODD, " Hello", "incomprehensibilities"])
@pytest.mark.parametrize("length", [0, 0.05, 0.12, 0.3, 2])
def test_a_word_stays_inside_its_box(word: str, length: float) -> None:
    # The title keeps the font the same where the word is missing.
    empty, written = (times([(text, 2, 2 + length, 0.9)], title=word) for text in ("", word))
    legible = length > 0.1 and any(letter.isprintable() and not letter.isspace() for letter in word)
    assert (written != empty) == legible
    if legible:
        outer, inner = box(times([], title=word), empty), box(empty, written)
        assert outer[0] < inner[0] < inner[2] < outer[2]
        assert outer[1] < inner[1] < inner[3] < outer[3]


def test_a_word_is_turned_when_its_box_is_narrow() -> None:
    for length, turned in ((0.2, True), (1.0, False)):
        left, top, right, bottom = box(*(times([(text, 2, 2 + length, 0.9)]) for text in ("", "lantern")))
        assert (bottom - top > right - left) == turned


@given(probabilities=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted))
@settings(max_examples=25)
def test_a_likelier_word_is_darker(probabilities: list[float]) -> None:
    x, y, _, _ = box(times([]), times([("", 2, 3, 1)]))
    low, high = (light(times([("word", 2, 3, probability)]))[y + 3, x + 3] for probability in probabilities)
    assert low >= high
    assert low - high >= 50 * (probabilities[1] - probabilities[0]) - 1


def test_ticks_stand_at_round_seconds() -> None:
    seconds = (0.25, 8.25)
    none = times([], seconds)
    left, top, right, bottom = box(none, times([("", *seconds, 0.9)], seconds))
    ticks = np.flatnonzero((np.asarray(none)[(top + bottom) // 2] != 255).any(axis=-1))
    found = (ticks - left) * 8 / (right - left - 1) + 0.25
    assert found == pytest.approx(np.arange(1, 9), abs=0.01)


def test_the_envelope_follows_the_sound() -> None:
    def draw(waveform: NDArray[np.float32] | None) -> Image.Image:
        return draw_times([], (0, 8), waveform, "")

    left, _, right, _ = box(times([]), times([("", 0, 8, 0.9)]))
    scale = (right - left - 1) / 8
    silence = np.zeros(8000, np.float32)
    loud = silence.copy()
    loud[2000:3000], loud[5000:5500] = -1, 0.5
    x, top, to, bottom = box(draw(silence), draw(loud))
    assert (x, to) == pytest.approx((left + 2 * scale, left + 5.5 * scale), abs=1.5)
    painted = (np.asarray(draw(loud))[top:bottom] != np.asarray(draw(silence))[top:bottom]).any(axis=-1).sum(axis=0)
    high, low, none = (painted[round(left + second * scale)] for second in (2.3, 5.3, 4.3))
    assert none == 0
    assert high / low == pytest.approx(2, rel=0.15)
    assert draw(None).height == draw(np.zeros(0, np.float32)).height < draw(silence).height
    assert draw(loud) == draw((loud / 64).astype(np.float32))
    assert draw(np.ones(3, np.float32)).size == draw(silence).size


@pytest.mark.parametrize("seconds", [(5, 5), (0, 0.01), (1e5, 3e5)])
def test_a_recording_of_any_length_is_drawn_within_the_cap(seconds: tuple[float, float]) -> None:
    words = [("word", seconds[0], seconds[1], 0.9), ("early", -9, -8, 0.5), ("late", 1e6, 1e6 + 1, 0.5)]
    drawing = draw_times(words, seconds, np.ones(9, np.float32), "Title")
    assert max(drawing.size) <= CAP
    assert drawing == draw_times(words[:1], seconds, np.ones(9, np.float32), "Title")
    assert drawing != draw_times([], seconds, np.ones(9, np.float32), "Title")


def test_very_many_panels_are_drawn_within_the_cap() -> None:
    drawing = draw_panels(sea(20, 20), [("word", BLANK)] * 560, (0, 0, 20, 20), "very many words " * 300)
    assert max(drawing.size) <= CAP


@given(text=st.text(st.characters(), max_size=12))
@settings(max_examples=30)
def test_any_text_can_be_drawn(text: str) -> None:
    weights = np.eye(2, dtype=np.float32)
    for drawing in (
        draw_panels(sea(8, 8), [(text, BLANK)], (0, 0, 8, 8), text),
        draw_matrix(weights, [text, text], [text, "b"], text),
        draw_times([(text, 0, 1, 0.5)], (0, 2), None, text),
    ):
        assert max(drawing.size) <= CAP


@pytest.mark.parametrize(("word", "plain"), [("você", "voce"), ("Škoda", "Skoda")])
def test_without_any_other_font_letters_lose_their_accents(word: str, plain: str) -> None:
    assert Pen("").line(word, 17, 200) == Pen("").line(plain, 17, 200)
    assert Pen("").line("a\u0302", 17, 200) == Pen("").line("a", 17, 200)
