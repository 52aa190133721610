"""Drawings of where a model looked: what stands on which page, and where pages are kept."""

from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from heedful.runtime import (
    Alignment,
    Caption,
    CaptionWord,
    InputError,
    Segment,
    Sentence,
    Transcript,
    Word,
    Written,
    explain,
)
from heedful.runtime.drawing.explain import PAGE, save, targets_of
from heedful.runtime.drawing.matrix import draw_matrix, draw_times
from heedful.runtime.drawing.panels import draw_panels

RATE = 16_000


def numbers(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).random(shape, np.float32)


def transcript(duration: float, *words: Word) -> Transcript:
    """Every word in a segment of its own."""
    segments = tuple(
        Segment(i, 0, word.start, word.end, word.text, (), 0, -0.5, 1, 0, (word,)) for i, word in enumerate(words)
    )
    return Transcript("".join(word.text for word in words), "transcribe", "en", 1, duration, segments)


CAPTION = Caption(
    "a cat", -0.5, (6, 20), (), (CaptionWord("a", 0.5, numbers(4, 4)), CaptionWord("cat", 0.25, numbers(4, 4))),
    (10, 0, 30, 30), Image.new("RGB", (40, 30), "teal"),
)  # fmt: skip
SENTENCES = tuple(
    Sentence(source, text, -0.5, (), Alignment(tuple(source.split()), tuple(text.split()), numbers(3, 2), ((), (), ())))
    for source, text in (("old sea", "o mar velho"), ("two boats", "os dois barcos"))
)


def test_a_caption_is_drawn_on_its_picture() -> None:
    assert CAPTION.picture
    words = [(word.text, word.heatmap) for word in CAPTION.words]
    assert explain(CAPTION) == [draw_panels(CAPTION.picture, words, (10, 0, 30, 30), "a cat")]
    assert explain(replace(CAPTION, words=())) != explain(CAPTION)


def test_a_text_has_a_page_for_every_sentence() -> None:
    pages = explain(Written("o mar velho. os dois barcos", SENTENCES))
    rows, columns = ["o", "mar", "velho"], ["old", "sea"]
    assert pages[0] == draw_matrix(numbers(3, 2), rows, columns, "o mar velho")
    assert pages[1:] == explain(Written("os dois barcos", SENTENCES[1:])) != pages[:1]
    assert explain(Written("", ())) == []


def test_speech_is_drawn_in_time() -> None:
    words = [Word(0.5, 1, " Two", 0.9), Word(1.25, 2, " boats.", 0.4)]
    sound = numbers(3 * RATE)
    shown = [("Two", 0.5, 1, 0.9), ("boats.", 1.25, 2, 0.4)]
    assert explain(transcript(3, *words)) == [draw_times(shown, (0, 3), None, "0 to 3 s")]
    assert explain(transcript(3, *words), waveform=sound) == [draw_times(shown, (0, 3), sound, "0 to 3 s")]
    slow = explain(transcript(3, *words), waveform=sound[::2], rate=RATE // 2)
    assert slow == [draw_times(shown, (0, 3), sound[::2], "0 to 3 s")]


def test_long_speech_has_a_page_for_every_four_minutes() -> None:
    """A word stands on the page on which it begins, and over the sound of that page."""
    rate = 10
    sound = numbers(round(600 * rate))
    words = [Word(239.5, 240.5, " one", 0.9), Word(240, 241, " two", 0.9), Word(500, 501, " three", 0.9)]
    shown: list[list[tuple[str, float, float, float]]] = [
        [("one", 239.5, 240.5, 0.9)],
        [("two", 240, 241, 0.9)],
        [("three", 500, 501, 0.9)],
    ]
    spans = [(0.0, 240.0), (240.0, 480.0), (480.0, 600.0)]
    titles = ["0 to 240 s", "240 to 480 s", "480 to 600 s"]
    pages = explain(transcript(600, *words), waveform=sound, rate=rate)
    for page, its, (start, end), title in zip(pages, shown, spans, titles, strict=True):
        assert page == draw_times(its, (start, end), sound[round(start * rate) : round(end * rate)], title)


@settings(max_examples=8)
@given(duration=st.floats(0, 3 * PAGE) | st.sampled_from([0.0, 0.01, PAGE, 2 * PAGE]))
def test_no_page_is_empty_or_lacks(duration: float) -> None:
    assert len(explain(transcript(duration))) == max(1, ceil(duration / PAGE))


@pytest.mark.parametrize("duration", [3, PAGE + 1])
def test_a_word_at_the_very_end_is_drawn_too(duration: float) -> None:
    last = Word(duration, duration, " end", 0.9)
    assert explain(transcript(duration, last)) != explain(transcript(duration))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (replace(CAPTION, picture=None, words=()), "this caption has no heat maps: .* heatmaps=True"),
        (Written("o mar", (replace(SENTENCES[0], alignment=None),)), "this text has no alignment: .* alignment=True"),
        (Written("o mar", (SENTENCES[0], replace(SENTENCES[1], alignment=None))), "alignment=True"),
        (
            replace(
                transcript(3, Word(0, 1, " a", 0.9)),
                segments=(Segment(0, 0, 0, 1, " a", (), 0, -0.5, 1, 0),),
            ),
            "this transcript has no word times: .* words=True",
        ),
    ],
    ids=["caption", "text", "one sentence", "speech"],
)
def test_what_was_not_asked_for_cannot_be_drawn(result: Caption | Written | Transcript, message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(result)


PAGES = [Image.new("RGB", (i + 1, 5), colour) for i, colour in enumerate(("red", "lime", "blue"))]


@pytest.mark.parametrize(
    ("count", "target", "names"),
    [
        (1, "a.png", ["a.png"]),
        (3, "a.png", ["a-1.png", "a-2.png", "a-3.png"]),
        (2, "new/folder/a.b.png", ["a.b-1.png", "a.b-2.png"]),
        (1, "new/a.JPG", ["a.JPG"]),
        (0, "a.png", []),
    ],
)
def test_several_pages_are_numbered(tmp_path: Path, count: int, target: str, names: list[str]) -> None:
    save(PAGES[:count], tmp_path / target)
    found = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert found == [(tmp_path / target).with_name(name) for name in names]
    for path, page in zip(found, PAGES, strict=False):
        with Image.open(path) as image:
            assert image.size == page.size
            np.testing.assert_allclose(np.asarray(image, int), np.asarray(page, int), atol=2)


@pytest.mark.parametrize("target", ["a.docx", "a", "file/a.png", "folder.png"])
def test_where_pages_cannot_be_kept_is_said(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=f"^{tmp_path / target} cannot be written: "):
        save(PAGES[:1], tmp_path / target)


@pytest.mark.parametrize(
    ("explain", "name", "expected"),
    [
        ("out.png", "b/cat.jpg", "out.png"),
        ("out/cat.PNG", "b/dog.jpg", "out/cat.PNG"),
        ("out", "b/cat.jpg", "out/cat.jpg.png"),
        ("out", "cat.png", "out/cat.png.png"),
        ("out.d", "two-cities", "out.d/two-cities.png"),
        (".", "stdin", "stdin.png"),
    ],
)
def test_a_drawing_is_named_after_what_it_is_about(explain: str, name: str, expected: str) -> None:
    assert targets_of(Path(explain), [name]) == {name: Path(expected)}


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    names = ["a.png", "album/a.png", "/tmp/a.png", "b.png"]
    expected = ["a.png.png", "album_a.png.png", "tmp_a.png.png", "b.png.png"]
    assert targets_of(Path("drawn"), names) == {
        name: Path("drawn", each) for name, each in zip(names, expected, strict=True)
    }
    assert targets_of(None, names) == {}
