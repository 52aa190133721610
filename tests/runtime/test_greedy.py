"""A text by itself, written in one run of a graph: what step by step is written, and by nobody's leave."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heedful.runtime import InputError, load
from heedful.runtime.text.greedy import Greedy
from heedful.runtime.text.results import Written
from heedful.runtime.text.writer import Translator

pytestmark = pytest.mark.network

TEXT = "the a dog, cats. Lisbon 3.5 we saw? never “sea” and-or über 我们 didn't yesterday"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def translator(translate_bundle: Callable[[str], Path]) -> Translator:
    opened = load(translate_bundle("int8"), "cpu", threads=2)
    assert isinstance(opened, Translator)
    return opened


@pytest.fixture(scope="module")
def greedy(translator: Translator) -> Greedy:
    return Greedy(translator.model)


def one(translator: Translator, text: str, **options: object) -> Written:
    found = translator(text, split=False, **options)
    assert isinstance(found, Written)
    return found


def source(translator: Translator, text: str) -> list[int]:
    return translator.model.framing("en", "pt").source(translator.model.tokens.encode(text))


@settings(deadline=None, max_examples=40)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), shortlist=st.booleans(), most=st.integers(2, 99)
)
def test_it_is_what_is_written_step_by_step(
    translator: Translator, words: list[str], shortlist: bool, most: int
) -> None:
    """Who asks for an alignment has the steps."""
    text = " ".join(words)
    found = one(translator, text, shortlist=shortlist, max_length=most)
    steps = one(translator, text, shortlist=shortlist, max_length=most, alignment=True)
    assert (found.text, found.tokens) == (steps.text, steps.tokens)
    # a sum is the same to the last bit over the same words
    assert found.score == steps.score


def test_it_has_limits(translator: Translator, greedy: Greedy) -> None:
    tokens = source(translator, "We saw the sea.")
    assert greedy.write(tokens, 0, 257, short=False) is None
    hypothesis = greedy.write(tokens, 0, 256, short=False)
    assert hypothesis is not None
    assert hypothesis.ended
    cut = greedy.write(tokens, 0, 2, short=False)
    assert cut is not None
    assert (cut.tokens, cut.ended) == (hypothesis.tokens[:2], False)


def test_who_finds_it_taken_goes_another_way(translator: Translator) -> None:
    expected = one(translator, "We saw the sea.")
    greedy = translator._greedy
    assert greedy is not None
    with greedy._taken:
        assert greedy.write(source(translator, "We saw the sea."), 0, 20, short=False) is None
        assert one(translator, "We saw the sea.") == expected
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: one(translator, "We saw the sea."), range(40))) == [expected] * 40


def test_options_that_are_equal_but_not_the_same_are_told_apart(translator: Translator) -> None:
    """What options mean is remembered."""
    assert one(translator, "Yes.", beams=1) == one(translator, "Yes.", beams=1)
    with pytest.raises(InputError, match="beams must be a whole number"):
        one(translator, "Yes.", beams=True)
    with pytest.raises(InputError, match="beams must be a whole number"):
        one(translator, "Yes.", beams=[1])
    for most in range(2, 90):
        assert len(one(translator, "We saw the sea and the dog.", max_length=most).tokens) <= most - 1
