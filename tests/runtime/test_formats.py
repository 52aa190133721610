"""Output formats, read back by other libraries: srt, pysubs2, csv and json."""

import csv
import html
import io
import json
import math
from datetime import timedelta

import pysubs2
import pytest
import srt
from hypothesis import given
from hypothesis import strategies as st

from heedful.runtime.errors import InputError
from heedful.runtime.speech.formats import FORMATS, WRITERS, render, writer
from heedful.runtime.speech.results import Segment, Transcript, Word


def segment(start: float, end: float, text: str, number: int = 0, **others: object) -> Segment:
    fields: dict[str, object] = {
        "seek": 0.0,
        "tokens": (50363, 632),
        "temperature": 0.0,
        "avg_logprob": -0.25,
        "compression_ratio": 1.5,
        "no_speech_prob": 0.01,
    }
    return Segment(id=number, start=start, end=end, text=text, **(fields | others))  # type: ignore[arg-type]


def transcript(*segments: Segment) -> Transcript:
    text = "".join(piece.text for piece in segments)
    return Transcript(text, "transcribe", "en", 1.0, 3600.0, segments)


CITIES = transcript(
    segment(0.0, 4.5, " It was the best of times,"),
    segment(4.5, 9.25, " c'était le « pire »; 狄更斯 🌍"),
    segment(3661.0, 3662.5, " it was the age of wisdom."),
)


def test_the_five_formats_of_a_short_transcript() -> None:
    assert render(CITIES, "txt") == (
        "It was the best of times,\nc'était le « pire »; 狄更斯 🌍\nit was the age of wisdom.\n"
    )
    assert render(CITIES, "srt") == (
        "1\n00:00:00,000 --> 00:00:04,500\nIt was the best of times,\n\n"
        "2\n00:00:04,500 --> 00:00:09,250\nc'était le « pire »; 狄更斯 🌍\n\n"
        "3\n01:01:01,000 --> 01:01:02,500\nit was the age of wisdom.\n\n"
    )
    assert render(CITIES, "vtt") == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:04.500\nIt was the best of times,\n\n"
        "00:00:04.500 --> 00:00:09.250\nc'était le « pire »; 狄更斯 🌍\n\n"
        "01:01:01.000 --> 01:01:02.500\nit was the age of wisdom.\n\n"
    )
    assert render(CITIES, "tsv") == (
        "start\tend\ttext\n"
        "0\t4500\tIt was the best of times,\n"
        "4500\t9250\tc'était le « pire »; 狄更斯 🌍\n"
        "3661000\t3662500\tit was the age of wisdom.\n"
    )
    assert json.loads(render(CITIES, "json"))["text"] == CITIES.text


@pytest.mark.parametrize("name", FORMATS)
def test_segments_given_one_by_one_make_the_same_text(name: str) -> None:
    chosen = writer(name)
    pieces = [chosen.begin(), *map(chosen.segment, CITIES.segments), chosen.finish(CITIES)]
    assert "".join(pieces) == render(CITIES, name)
    if name != "json":
        assert all(pieces[1:-1]), "a segment should be written when it is known"


def test_formats_are_those_that_can_be_written() -> None:
    assert set(FORMATS) == set(WRITERS) == {"txt", "srt", "vtt", "tsv", "json"}


@pytest.mark.parametrize("name", ["docx", "", "SRT"])
def test_an_unknown_format_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}'.*txt, srt, vtt, tsv, json"):
        render(CITIES, name)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.0004, "00:00:00,000"),
        (1.0006, "00:00:01,001"),
        (59.9996, "00:01:00,000"),
        (3599.9996, "01:00:00,000"),
        (360_000.5, "100:00:00,500"),
    ],
)
def test_times_round_to_the_millisecond(seconds: float, written: str) -> None:
    assert f"\n{written} --> " in render(transcript(segment(seconds, seconds + 1, "x")), "srt")


@pytest.mark.parametrize("arrow", ["-->", "--->", "-->-->", "00:00:01,000 --> 00:00:02,000"])
def test_an_arrow_in_the_text_makes_no_new_cue(arrow: str) -> None:
    spoken = transcript(segment(0, 1, f"left {arrow} right"), segment(1, 2, "next"))
    for name in ("srt", "vtt"):
        lines = render(spoken, name).splitlines()
        assert sum("-->" in line for line in lines) == 2
    assert [cue.content for cue in srt.parse(render(spoken, "srt"))][1:] == ["next"]


def test_markup_in_the_text_stays_text_in_vtt() -> None:
    text = "a < b & <i>c</i> &lt;"
    (cue,) = pysubs2.SSAFile.from_string(render(transcript(segment(0, 1, text)), "vtt"), "vtt")
    assert html.unescape(cue.text) == text


@pytest.mark.parametrize("name", ["txt", "srt", "vtt", "tsv"])
def test_segments_without_text_are_left_out(name: str) -> None:
    words = segment(1, 2, "words")
    assert render(transcript(segment(0, 1, " \n"), words, segment(2, 3, "")), name) == render(transcript(words), name)


def test_a_cue_lasts_at_least_a_millisecond() -> None:
    (cue,) = srt.parse(render(transcript(segment(2.0, 2.0, "x")), "srt"))
    assert cue.end - cue.start == timedelta(milliseconds=1)


LINE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)
WORDS = LINE.map(str.strip).filter(lambda text: any(map(str.isalpha, text)) and "->" not in text)
TIMES = st.floats(0, 100_000)
SEGMENTS = st.lists(
    st.builds(lambda start, length, text: segment(start, start + length, text), TIMES, st.floats(0.01, 30), WORDS)
)
BREAKS = st.sampled_from(["\n", "\r\n", "\r", "\t", "\n\n", "\u2028", "\v"])


def near(seconds: float) -> object:
    """To the millisecond, by either rule of rounding halves."""
    return pytest.approx(seconds * 1000, abs=0.501)


@given(SEGMENTS)
def test_srt_reads_back(segments: list[Segment]) -> None:
    text = render(transcript(*segments), "srt")
    cues = list(srt.parse(text))
    assert [cue.index for cue in cues] == list(range(1, len(segments) + 1))
    assert [cue.content for cue in cues] == [piece.text for piece in segments]
    for cue, other, piece in zip(cues, pysubs2.SSAFile.from_string(text, "srt"), segments, strict=True):
        assert cue.start / timedelta(milliseconds=1) == other.start == near(piece.start)
        assert cue.end / timedelta(milliseconds=1) == other.end == near(piece.end)


@given(SEGMENTS)
def test_vtt_reads_back(segments: list[Segment]) -> None:
    text = render(transcript(*segments), "vtt")
    assert text.startswith("WEBVTT\n\n")
    cues = pysubs2.SSAFile.from_string(text, "vtt", keep_html_tags=True)
    assert [html.unescape(cue.text) for cue in cues] == [piece.text for piece in segments]
    assert [cue.start for cue in cues] == [near(piece.start) for piece in segments]
    assert [cue.end for cue in cues] == [near(piece.end) for piece in segments]


@given(SEGMENTS, BREAKS)
def test_tsv_reads_back_one_row_a_segment(segments: list[Segment], gap: str) -> None:
    broken = [segment(piece.start, piece.end, f"{gap}{piece.text}{gap}end{gap}") for piece in segments]
    text = render(transcript(*broken), "tsv")
    header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    assert header == ["start", "end", "text"]
    assert [words.split() for _, _, words in rows] == [[*piece.text.split(), "end"] for piece in segments]
    assert [(int(start), int(end)) for start, end, _ in rows] == [(near(x.start), near(x.end)) for x in segments]


@given(SEGMENTS, BREAKS)
def test_txt_is_one_line_a_segment(segments: list[Segment], gap: str) -> None:
    broken = [segment(piece.start, piece.end, f" {piece.text}{gap}end{gap}") for piece in segments]
    lines = render(transcript(*broken), "txt").splitlines()
    assert [line.split() for line in lines] == [[*piece.text.split(), "end"] for piece in segments]


def test_json_holds_the_fields_of_verbose_json() -> None:
    spoken = transcript(
        segment(30.0, 31.5, " Größe 狄", number=7, seek=30.0, temperature=0.2),
        segment(31.5, 32.0, " end.", number=8, seek=30.0),
    )
    text = render(spoken, "json")
    assert "Größe 狄" in text
    fields = json.loads(text)
    assert list(fields) == ["task", "language", "duration", "text", "segments"]
    assert fields["task"] == "transcribe"
    assert fields["language"] == "en"
    assert fields["duration"] == 3600.0
    assert fields["text"] == " Größe 狄 end."
    assert fields["segments"][0] == {
        "id": 7,
        "seek": 3000,
        "start": 30.0,
        "end": 31.5,
        "text": " Größe 狄",
        "tokens": [50363, 632],
        "temperature": 0.2,
        "avg_logprob": -0.25,
        "compression_ratio": 1.5,
        "no_speech_prob": 0.01,
    }
    assert fields["segments"][1]["id"] == 8


def test_json_holds_words_when_there_are_any() -> None:
    words = (Word(0.0, 0.5, " It", 0.9), Word(0.5, 0.75, " was", 0.8))
    spoken = transcript(segment(0, 1, " It was", words=words), segment(1, 2, "", words=()))
    fields = json.loads(render(spoken, "json"))
    expected = [
        {"word": " It", "start": 0.0, "end": 0.5, "probability": 0.9},
        {"word": " was", "start": 0.5, "end": 0.75, "probability": 0.8},
    ]
    assert fields["words"] == expected
    assert [piece["words"] for piece in fields["segments"]] == [expected, []]


@given(st.lists(st.floats(), min_size=3, max_size=3), st.text(st.characters(exclude_categories=["Cs"])))
def test_json_reads_back_by_the_strict_rule(numbers: list[float], text: str) -> None:
    logprob, ratio, silence = numbers
    odd = segment(0, 1, text, avg_logprob=logprob, compression_ratio=ratio, no_speech_prob=silence)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    (read,) = json.loads(render(transcript(odd), "json"), parse_constant=refuse)["segments"]
    assert read["text"] == text
    expected = [number if math.isfinite(number) else None for number in numbers]
    assert [read["avg_logprob"], read["compression_ratio"], read["no_speech_prob"]] == expected
