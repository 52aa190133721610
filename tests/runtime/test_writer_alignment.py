"""Which words of a real sentence those of its translation looked at."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from heedful.runtime import load
from heedful.runtime.text.results import Written
from heedful.runtime.text.writer import Translator

pytestmark = pytest.mark.network

TEXTS = [
    "How are you today?",
    "The meeting begins at nine, and everyone is asked to be there a few minutes before.",
    "Prices rose by 3.5% in the second quarter of 2021.",
    "Don't worry, be happy!",
    "No way!  Are you sure? I am.",
    "我们 ∮ 🌍",
    "and " * 40,
    "",
    " \t ",
]


@pytest.fixture(scope="module")
def students(translate_bundle: Callable[[str], Path]) -> Callable[[str], Translator]:
    return cache(lambda precision: load(translate_bundle(precision), "cpu", threads=2))


@pytest.fixture(params=["fp32", "int8"])
def student(request: pytest.FixtureRequest, students: Callable[[str], Translator]) -> Translator:
    return students(request.param)


def links(translator: Translator, text: str, **options: object) -> set[tuple[str, str]]:
    written = translator(text, alignment=True, **options)
    assert isinstance(written, Written)
    pairs = set()
    for sentence in written.sentences:
        assert sentence.alignment is not None
        for word, those in zip(sentence.alignment.target, sentence.alignment.links, strict=True):
            pairs |= {(sentence.alignment.source[i], word) for i in those}
    return pairs


@pytest.mark.parametrize("beams", [1, 4])
def test_words_are_aligned_without_changing_the_text(student: Translator, beams: int) -> None:
    plain, aligned = (student(TEXTS, beams=beams, shortlist=False, alignment=each) for each in (False, True))
    assert isinstance(plain, list)
    assert isinstance(aligned, list)
    for before, written in zip(plain, aligned, strict=True):
        assert replace(written, sentences=tuple(replace(one, alignment=None) for one in written.sentences)) == before
        for sentence in written.sentences:
            found = sentence.alignment
            assert found is not None
            assert (found.source, found.target) == (tuple(sentence.source.split()), tuple(sentence.text.split()))
            assert found.weights.shape == (len(found.target), len(found.source))
            assert found.weights.dtype == np.float32
            assert (found.weights >= 0).all()
            assert (found.weights.sum(axis=1) <= 1 + 1e-5).all()
            for row, those in zip(found.weights, found.links, strict=True):
                assert list(those) == [i for i, weight in enumerate(row) if weight > 0 and weight >= row.max() / 2]


def test_links_join_words_that_mean_the_same(student: Translator) -> None:
    expected = {("How", "Como"), ("you", "você"), ("are", "está"), ("today?", "hoje?")}
    assert links(student, "How are you today?") == expected
    found = links(student, "Please close the door when you leave.  I love you.", beams=4)
    assert {("Please", "Por"), ("close", "feche"), ("door", "porta"), ("when", "quando")} <= found


def test_a_prompt_is_not_linked(student: Translator) -> None:
    written = student("I love you.", prompt="Tell her: ", alignment=True)
    assert isinstance(written, Written)
    (sentence,) = written.sentences
    assert sentence.alignment is not None
    assert sentence.alignment.source == ("I", "love", "you.")
    assert (sentence.alignment.weights.sum(axis=1) <= 1 + 1e-5).all()
    assert ("love", "amo.") in links(student, "I love you.", prompt="Tell her: ")
