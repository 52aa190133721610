"""Segments: words dealt out by where their tokens lie, and times that keep their order and their limits."""

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heedful.runtime.engine.search import Hypothesis
from heedful.runtime.speech.results import Segment
from heedful.runtime.speech.segments import build_segment, deal_words
from heedful.runtime.speech.timestamps import Span
from heedful.runtime.speech.windows import Decoded
from heedful.runtime.speech.words import TimedWord

DECODED = Decoded(Hypothesis((1, 2, 3), -2.0, -0.5, ended=True), " window", 0.2, 0.2, 1.25, 0.125, 0.0)

times = st.floats(0, 30)


def word(start: float, end: float, text: str = " word", tokens: int = 1) -> TimedWord:
    return TimedWord(text, tokens, start, end, 0.5)


def built(
    span: tuple[float, float],
    words: list[TimedWord] | None = None,
    offset: float = 0.0,
    limits: tuple[float, float] = (0.0, 30.0),
) -> Segment:
    return build_segment(Span(*span, (7, 8, 9)), " text", words, offset, limits, DECODED)


def pairs(edges: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(edges[::2], edges[1::2], strict=True))


def ordered(count: int) -> st.SearchStrategy[list[tuple[float, float]]]:
    """`count` starts and ends, one after the other."""
    return st.lists(times, min_size=2 * count, max_size=2 * count).map(sorted).map(pairs)


Window = tuple[list[TimedWord], list[Span], list[int]]


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Words in order of time, spans in order, and how many tokens of the words lie in each: words may lie across."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    counts = [len(run) for run in draw(st.text("ab", min_size=sum(sizes), max_size=sum(sizes)).map(runs))]
    words = [word(*time, f" {i}", sizes[i]) for i, time in enumerate(draw(ordered(len(sizes))))]
    spans = [Span(*time, (0,) * count) for time, count in zip(draw(ordered(len(counts))), counts, strict=True)]
    return words, spans, counts


def runs(letters: str) -> list[str]:
    """`letters` cut wherever they change."""
    return ["".join(run) for _, run in groupby(letters)]


@given(window=windows(), speech_end=st.floats(-10, 0))
def test_every_word_goes_where_its_first_token_lies(window: Window, speech_end: float) -> None:
    words, spans, counts = window
    dealt = deal_words(words, spans, counts, speech_end)
    firsts = [0, *accumulate(one.tokens for one in words)]
    bounds = pairwise([0, *accumulate(counts)])
    expected = [[f" {i}" for i in range(len(words)) if low <= firsts[i] < high] for low, high in bounds]
    assert [[one.text for one in mine] for mine in dealt] == expected


def test_words_that_lie_across_spans_move_no_others() -> None:
    words = [word(i, i + 1, f" {i}", size) for i, size in enumerate([3, 1, 2])]
    spans = [Span(i, i + 1, (0, 0)) for i in range(3)]
    dealt = deal_words(words, spans, [2, 2, 2], 0.0)
    assert [[one.text for one in mine] for mine in dealt] == [[" 0"], [" 1"], [" 2"]]


@given(
    window=windows(),
    speech_end=st.floats(-10, 0),
    offset=st.floats(0, 36_000),
    limit=times,
    timed=st.booleans(),
)
def test_segments_and_words_keep_order_and_limits(
    window: Window, speech_end: float, offset: float, limit: float, timed: bool
) -> None:
    """Built one after the other, each from the end of the one before."""
    words, spans, counts = window
    dealt: Sequence[list[TimedWord] | None] = (
        deal_words(words, spans, counts, speech_end) if timed else [None] * len(spans)
    )
    last, floor = round(offset, 3), 0.0
    for span, mine in zip(spans, dealt, strict=True):
        segment = build_segment(span, " text", mine, offset, (floor, limit), DECODED)
        floor = segment.end - offset
        assert last <= segment.start <= segment.end <= round(offset + limit, 3)
        last = segment.end
        edges = [time for one in segment.words or () for time in (one.start, one.end)]
        assert edges == sorted(edges)
        assert edges[:1] + edges[-1:] == ([segment.start, segment.end] if edges else [])
        assert (segment.words is None) == (mine is None)
        assert [one.text for one in segment.words or ()] == [one.text for one in mine or ()]


def test_a_segment_holds_what_was_decoded() -> None:
    segment = built((1.0, 4.0), [word(1.25, 2.0), word(2.5, 3.0, " more")], offset=60.0)
    assert (segment.seek, segment.start, segment.end, segment.text, segment.tokens) == (
        *(60.0, 61.25, 63.0),
        " text",
        (7, 8, 9),
    )
    assert (segment.temperature, segment.avg_logprob) == (0.2, -0.5)
    assert (segment.compression_ratio, segment.no_speech_prob) == (1.25, 0.125)
    assert segment.words is not None
    assert [(one.start, one.end, one.text, one.probability) for one in segment.words] == [
        (61.25, 62.0, " word", 0.5),
        (62.5, 63.0, " more", 0.5),
    ]


@pytest.mark.parametrize(
    ("span", "limits", "expected"),
    [
        ((1.0, 4.0), (0.0, 30.0), (11.0, 14.0)),
        ((1.0, 4.0), (2.0, 3.0), (12.0, 13.0)),
        ((1.0, 4.0), (5.0, 6.0), (15.0, 15.0)),
        ((1.0, 4.0), (0.0, 0.5), (10.5, 10.5)),
        ((1.00049, 4.00051), (0.0, 30.0), (11.0, 14.001)),
    ],
)
@pytest.mark.parametrize("words", [None, []], ids=["no words asked for", "no words found"])
def test_a_segment_without_words_has_the_times_of_its_span(
    words: list[TimedWord] | None, span: tuple[float, float], limits: tuple[float, float], expected: tuple[float, float]
) -> None:
    segment = built(span, words, 10.0, limits)
    assert (segment.start, segment.end) == expected
    assert segment.words == (None if words is None else ())


# these make 0.5 s the length of a typical word
USUAL = [(20.0, 20.5), (20.5, 21.0), (21.0, 21.5)]
FITTED = {
    "begins too early": ((2.0, 5.0), [(1.0, 2.4), (2.4, 3.0)], [(1.9, 2.4), (2.4, 3.0)]),
    "begins in time": ((2.0, 5.0), [(1.6, 2.4), (2.4, 3.0)], [(1.6, 2.4), (2.4, 3.0)]),
    "ends before its span": ((2.0, 5.0), [(0.5, 1.0), (1.0, 1.5)], [(0.5, 1.0), (1.0, 1.5)]),
    "ends too late": ((2.0, 5.0), [(2.0, 2.5), (4.8, 6.0)], [(2.0, 2.5), (4.8, 5.3)]),
    "ends too late, long": ((2.0, 5.0), [(2.0, 2.5), (4.0, 6.0)], [(2.0, 2.5), (4.0, 5.0)]),
    "ends in time": ((2.0, 5.0), [(2.0, 2.5), (4.8, 5.4)], [(2.0, 2.5), (4.8, 5.4)]),
    "reaches out at both ends": ((2.0, 5.0), [(1.0, 6.0)], [(2.0, 5.0)]),
}


@pytest.mark.parametrize(("span", "given", "expected"), FITTED.values(), ids=FITTED)
def test_words_are_fitted_to_their_span(
    span: tuple[float, float], given: list[tuple[float, float]], expected: list[tuple[float, float]]
) -> None:
    words = [word(*time) for time in [*given, *USUAL]]
    spans = [Span(*span, (0,) * len(given)), Span(20.0, 21.5, (0,) * 3)]
    # speech was heard until then, so that no pause is cut away
    first, _ = deal_words(words, spans, [len(given), 3], given[0][1])
    assert [(one.start, one.end) for one in first] == [pytest.approx(time) for time in expected]


def test_a_pause_between_spans_is_given_to_no_word() -> None:
    words = [word(0.0, 0.5), word(0.5, 1.0), word(1.0, 9.0), word(9.0, 9.5)]
    spans = [Span(0.0, 1.0, (0, 0)), Span(8.25, 9.5, (0, 0))]
    before, after = deal_words(words, spans, [2, 2], 0.0)
    assert [(one.start, one.end) for one in before] == [(0.0, 0.5), (0.5, 1.0)]
    assert [(one.start, one.end) for one in after] == [(8.0, 9.0), (9.0, 9.5)]


def test_words_are_left_as_they_were() -> None:
    words = [word(0.0, 9.0), word(9.0, 9.5)]
    before = list(words)
    deal_words(words, [Span(8.0, 9.1, (0, 0))], [2], 0.0)
    assert words == before
