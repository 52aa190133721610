"""Which words of a real sentence those of its translation looked at."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from heedful.runtime import load
from heedful.runtime.bundle import Bundle
from heedful.runtime.text.alignment import words_of
from heedful.runtime.text.results import Written
from heedful.runtime.text.tokens import TextTokens
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


# of which tokenizers normalise some and cut others into bytes
WORDS = ["I", "love", "you.", "Well…", "oﬃce", "ﬁnd", "½", "½½", "cafe\u0301", "Ⅷ", "한글", "🌍", "🤖🌍!", "我们", "∮"]


@pytest.fixture(scope="module", params=["pieces", "bytes"])
def tokens(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokens:
    """Those of the student, and those of BART's kind."""
    if request.param == "pieces":
        students: Callable[[str], Translator] = request.getfixturevalue("students")
        return students("int8").model.tokens
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("bytes")
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextTokens(Bundle(folder, {"files": {"tokenizer.json": {}}}))


@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8),
    spaces=st.lists(st.sampled_from([" ", "  ", "\t", "\u3000 "]), min_size=8, max_size=8),
    prompt=st.sampled_from(["", "Tell her: ", "Well…  ½ 🌍 "]),
)
def test_every_token_read_is_dealt_to_the_word_it_is_of(
    tokens: TextTokens, words: list[str], spaces: list[str], prompt: str
) -> None:
    """A word has the tokens it has by itself; one of white space may be of none."""
    text = "".join(map("".join, zip(spaces, words, strict=False))).lstrip()
    found, where = words_of(text, tokens.read_spans(prompt, text))
    assert found == words
    assert len(where) == len(tokens.encode(prompt + text))
    for i, word in enumerate(words):
        alone = len(tokens.encode(word))
        assert alone - 1 <= np.count_nonzero(where == i) <= alone
    assert where[where >= 0].tolist() == sorted(where[where >= 0])


def test_links_are_those_of_the_text_as_it_was_given(student: Translator) -> None:
    """Though two spaces are read as one, and an ellipsis as three points."""
    assert links(student, "I  love you.") == links(student, "I love you.")
    expected = {("Well…", "Bem..."), ("I", "eu"), ("said", "disse"), ("so.", "assim.")}
    assert links(student, "Well… I said so.") == expected
