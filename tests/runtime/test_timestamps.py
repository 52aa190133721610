"""Timestamps: the rule beside that of transformers and its own grammar, segments beside ones cut by hand."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from heedful.models.filterbank import mel_filterbank
from heedful.runtime.engine.rules import Logits
from heedful.runtime.speech.timestamps import Span, TimestampRule, split_segments

END, NO_TIMESTAMPS, VOCABULARY = 6, 9, 22
FIRST = NO_TIMESTAMPS + 1
FRAME = 0.02

texts = st.integers(0, END - 1)
stamps = st.integers(FIRST, VOCABULARY - 1)
odd = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)


@st.composite
def valid(draw: st.DrawFn) -> list[int]:
    """What a decoder that obeys the rule may have written: segments between rising timestamps, cut off anywhere."""
    edges = sorted(draw(st.sets(stamps, max_size=8)))
    written: list[int] = []
    for start, end in zip(edges[::2], edges[1::2], strict=False):
        written += [start, *draw(st.lists(texts, min_size=1, max_size=3)), end]
    return written[: draw(st.integers(0, len(written)))]


def scores(values: st.SearchStrategy[float]) -> st.SearchStrategy[Logits]:
    row = st.lists(values, min_size=VOCABULARY, max_size=VOCABULARY)
    return row.map(lambda drawn: np.array(drawn, np.float32))


# whole numbers and few: no sum of their exponentials comes within rounding of another, so libraries must agree
whole = scores(st.integers(-5, 5).map(float) | st.just(-np.inf))


@pytest.fixture(scope="module", autouse=True)
def transformers_loads() -> None:
    """transformers imports torchaudio, which loads beside a CPU build of torch only after this."""
    mel_filterbank(201, 80, 16_000)


def ruled(logits: Logits, generated: list[int], latest_start: int = 5) -> Logits:
    changed, before = logits.copy(), list(generated)
    for tokens in TimestampRule(END, NO_TIMESTAMPS, latest_start)(changed, generated):
        changed[tokens] = -np.inf
    assert generated == before
    return changed


@given(logits=whole, prompt=odd, generated=odd | valid(), latest_start=st.integers(0, VOCABULARY - FIRST))
def test_the_rule_is_that_of_transformers(
    logits: Logits, prompt: list[int], generated: list[int], latest_start: int
) -> None:
    config = transformers.GenerationConfig.from_dict(
        {"eos_token_id": END, "no_timestamps_token_id": NO_TIMESTAMPS, "max_initial_timestamp_index": latest_start}
    )
    processor = transformers.WhisperTimeStampLogitsProcessor(config, begin_index=len(prompt))
    ids = torch.tensor([[*prompt, *generated]], dtype=torch.int64)
    expected = processor(ids, torch.as_tensor(logits)[None])[0].numpy()
    np.testing.assert_array_equal(ruled(logits, generated, latest_start), expected)


@given(logits=whole, generated=odd | valid(), shift=st.integers(-100, 100))
def test_the_rule_looks_past_a_constant(logits: Logits, generated: list[int], shift: int) -> None:
    found = ruled(logits + np.float32(shift), generated)
    np.testing.assert_array_equal(found, ruled(logits, generated) + np.float32(shift))


@given(seed=st.integers(0, 2**32 - 1), latest_start=st.integers(0, 5))
def test_whatever_the_model_says_segments_come_out(seed: int, latest_start: int) -> None:
    """Timestamps open the text, stand in pairs between segments, and every closed segment lasts."""
    rng = np.random.default_rng(seed)
    written: list[int] = []
    while len(written) < 30:
        logits = rng.normal(0, 2, VOCABULARY).astype(np.float32)
        logits[END + 1 : FIRST] = -np.inf  # other rules keep the special tokens away
        token = int(ruled(logits, written, latest_start).argmax())
        if token == END:
            break
        written.append(token)
    assert re.fullmatch("(ST+S)*(ST*)?", "".join("S" if token >= FIRST else "T" for token in written))
    marks = [token for token in written if token >= FIRST]
    assert FIRST <= marks[0] <= FIRST + latest_start
    assert marks == sorted(marks)
    assert all(start < end for start, end in zip(marks[::2], marks[1::2], strict=False))


def test_timestamps_win_by_their_sum() -> None:
    """Four at even odds together outweigh a text token that is likelier than each of them."""
    logits = np.full(VOCABULARY, -np.inf, np.float32)
    logits[2], logits[FIRST + 4 : FIRST + 8] = np.log(0.3), np.log(0.7 / 4)
    assert np.flatnonzero(np.isfinite(ruled(logits, [FIRST, 1]))).tolist() == list(range(FIRST + 4, FIRST + 8))
    logits[2], logits[FIRST + 4 : FIRST + 8] = np.log(0.6), np.log(0.4 / 4)
    np.testing.assert_array_equal(ruled(logits, [FIRST, 1]), logits)


def at(seconds: float) -> int:
    """The timestamp token of a second."""
    return FIRST + round(seconds / FRAME)


SPLITS = {
    "nothing": ([], [(0.0, 30.0, 0)], 30.0),
    "no timestamps": ([1, 2], [(0.0, 30.0, 2)], 30.0),
    "opened only": ([at(1), 1, 2], [(1.0, 30.0, 3)], 30.0),
    "opened at 0 only": ([at(0), 1, 2], [(0.0, 30.0, 3)], 30.0),
    "one segment": ([at(0.5), 1, 2, at(4.26)], [(0.5, 4.26, 4)], 30.0),
    "closed only": ([1, 2, at(4)], [(0.0, 4.0, 3)], 30.0),
    "two, the last cut off": ([at(0), 1, at(2), at(2), 2, 3], [(0.0, 2.0, 3)], 2.0),
    "two, the last about to begin": ([at(0), 1, at(2), at(2.5)], [(0.0, 2.0, 3)], 2.0),
    "two, the last closed": ([at(0), 1, at(2), at(2.5), 2, 3, at(7)], [(0.0, 2.0, 3), (2.5, 7.0, 4)], 30.0),
    "three, the last cut off": (
        [at(0), 1, at(2), at(3), 2, at(5.98), at(6), 3],
        [(0.0, 2.0, 3), (3.0, 5.98, 3)],
        5.98,
    ),
    "opened after the audio ends": ([at(31), 1], [(30.0, 30.0, 2)], 30.0),
}


@pytest.mark.parametrize(("tokens", "expected", "following"), SPLITS.values(), ids=SPLITS)
def test_segments_are_cut_where_timestamps_meet(
    tokens: list[int], expected: list[tuple[float, float, int]], following: float
) -> None:
    """Expected: start, end and number of tokens of each; and where the next window begins."""
    spans, found = split_segments(tokens, FIRST, FRAME, 30.0)
    assert [(span.start, span.end, len(span.tokens)) for span in spans] == expected
    assert found == following
    assert [token for span in spans for token in span.tokens] == tokens[: sum(count for _, _, count in expected)]


@given(tokens=valid(), duration=st.floats(1, 30))
def test_segments_of_a_valid_text_stand_in_order(tokens: list[int], duration: float) -> None:
    spans, following = split_segments(tokens, FIRST, FRAME, duration)
    assert all(0 <= span.start <= span.end <= duration for span in spans)
    assert all(before.end <= after.start for before, after in pairwise(spans))
    assert following in (duration, spans[-1].end)
    kept = [token for span in spans for token in span.tokens]
    assert kept == tokens[: len(kept)]
    # what is left out is heard again
    assert kept == tokens or following < duration


def test_times_are_whole_frames() -> None:
    spans, _ = split_segments([at(0.06), 1, at(0.58)], FIRST, FRAME, 1.0)
    assert spans == [Span(0.06, 0.58, (at(0.06), 1, at(0.58)))]  # 0.02 times 29 is 0.5800000000000001
