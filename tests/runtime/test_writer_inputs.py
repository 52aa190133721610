"""Anything that may be passed in to be translated: any text, texts of any length, and what is no text or no option."""

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heedful.runtime import InputError, load
from heedful.runtime.text.results import Written
from heedful.runtime.text.writer import Translator

pytestmark = pytest.mark.network

TRICKY = [*" \t\n\r\0\x1b\x7f\x85\u00ad\u2028\u3000\u00a0\u200b\u200d\u2060\ufeff\ud83c\udf0d▁。我", "🌍", "\r\n", ". "]
TRICKY += ["Hello.", "how are you?", "</s>", "<unk>", "e\u0301", "\U000e0001", "\uffff", "“Go.” "]
anything = st.text() | st.lists(st.sampled_from(TRICKY), max_size=8).map("".join)
SPACES = "".join(chr(i) for i in range(0x3001) if chr(i).isspace() and unicodedata.category(chr(i)) != "Cc") + "\t"
LINE_ENDS = str.maketrans("\r\n", "  ")


@pytest.fixture(scope="module")
def student(translate_bundle: Callable[[str], Path]) -> Translator:
    translator: Translator = load(translate_bundle("int8"), "cpu", threads=2)
    return translator


def one(translator: Translator, text: str, **options: object) -> Written:
    found = translator(text, **options)
    assert isinstance(found, Written)
    return found


def visible(text: str) -> str:
    """`text` with spaces for control characters and halves of characters, and without what shows nothing."""
    kinds = {"Cc": " ", "Cs": " "}
    shown = (each for each in text if each not in "\u00ad\u2060\ufeff")
    return "".join(each if each == "\t" else kinds.get(unicodedata.category(each), each) for each in shown)


def check_structure(text: str, written: Written) -> None:
    """Nothing of `text` is lost: it is the sentences that were read, and the white space between the written ones."""
    rest, rebuilt = visible(text), ""
    for sentence in written.sentences:
        assert sentence.source == sentence.source.strip() != ""
        gap, rest = rest.split(sentence.source, 1)
        assert gap.strip() == ""
        rebuilt += gap + sentence.text
    assert rest.strip() == ""
    assert written.text.translate(LINE_ENDS) == rebuilt + rest


@pytest.mark.parametrize("split", [True, False])
@settings(deadline=None, max_examples=40)
@given(texts=st.lists(anything, max_size=5))
def test_any_text_is_taken_and_its_white_space_kept(student: Translator, texts: list[str], split: bool) -> None:
    found = student(texts, max_length=6, split=split)
    assert isinstance(found, list)
    for text, written in zip(texts, found, strict=True):
        check_structure(text, written)


@settings(deadline=None)
@given(line=st.text(SPACES))
def test_white_space_alone_comes_back_as_it_is(student: Translator, line: str) -> None:
    written = one(student, line, alignment=True)
    assert (written.text, written.sentences, written.tokens, written.score) == (line, (), (), 0.0)


@pytest.mark.parametrize(
    "text",
    ["I love you.\nYes.", "I love you.\n\nYes.\n", "\n  I love you.\r\n\r\n\tYes.  \r\n", "\n", "\n\n \r\n"],
)
def test_lines_and_paragraphs_stay(student: Translator, text: str) -> None:
    assert one(student, text).text == text.replace("I love you.", "Eu te amo.").replace("Yes.", "Sim.")


@pytest.mark.parametrize(
    ("stuff", "split"),
    [("interesting ", True), ("interesting ", False), ("interesting", True), ("information,  ", True), ("我", True)],
)
def test_a_very_long_line_is_read_in_parts_that_fit(student: Translator, stuff: str, split: bool) -> None:
    line = (stuff * 100_000)[:100_000]
    written = one(student, line, max_length=2, split=split)
    check_structure(line, written)
    tokens, room = student.model.tokens, student.model.positions - 1
    assert max(len(tokens.encode(sentence.source)) for sentence in written.sentences) <= room
    # and in no more parts than need be
    assert len(written.sentences) <= len(tokens.encode(line)) / (0.8 * room) + 1


def test_a_prompt_is_read_and_is_no_part_of_the_text(student: Translator) -> None:
    text, prompt = "I love you.", "Tell her: "
    prompted = one(student, text, prompt=prompt)
    assert prompted.text == one(student, prompt + text, split=False).text != one(student, text).text
    assert [sentence.source for sentence in prompted.sentences] == [text]
    check_structure("word " * 1000, one(student, "word " * 1000, prompt="so " * 100, max_length=2))
    with pytest.raises(InputError, match="the prompt 'so so so"):
        student(text, prompt="so " * 2000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 5}, "unknown option 'beam_size'.*beams"),
        ({"beams": 0}, "beams must be a whole number from 1 to 256, not 0"),
        ({"beams": 257}, "beams"),
        ({"beams": 2.5}, "beams"),
        ({"beams": True}, "beams"),
        ({"batch": 0}, "batch"),
        ({"batch": None}, "batch"),
        ({"ahead": 0}, "ahead must be a whole number from 1"),
        ({"ahead": None}, "ahead"),
        ({"max_length": 0}, "max_length"),
        ({"min_length": -1}, "min_length"),
        ({"no_repeat_ngram": "2"}, "no_repeat_ngram"),
        ({"length_penalty": "high", "beams": 2}, "length_penalty"),
        ({"length_penalty": float("nan"), "beams": 2}, "length_penalty"),
        ({"early_stopping": "always"}, "early_stopping must be True, False or 'never', not 'always'"),
        ({"early_stopping": 1}, "early_stopping"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0, not 0"),
        ({"repetition_penalty": "1.2"}, "repetition_penalty must be a number"),
        ({"prompt": 5}, "prompt"),
        ({"split": "yes"}, "split"),
        ({"alignment": "no"}, "alignment"),
        ({"shortlist": "no"}, "shortlist"),
        ({"source": "de"}, "from en to pt, not from 'de'"),
        ({"target": "tlh"}, "from en to pt, not to 'tlh'"),
        ({"source": "pt", "target": "en"}, "from en to pt, not from 'pt'"),
    ],
)
def test_an_option_that_cannot_be_is_named(student: Translator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        student("Yes.", **options)
    with pytest.raises(InputError, match=message):
        student.stream(["Yes."], **options)


def test_how_far_is_read_ahead_may_be_said_of_any_texts(student: Translator) -> None:
    assert one(student, "Yes.", ahead=1).text == "Sim."
    for texts in (["Yes."], ["Yes.", "Yes."]):
        assert student(texts, ahead=1) == [*student.stream(texts, ahead=1)] == [one(student, "Yes.")] * len(texts)


def test_the_only_languages_may_be_named(student: Translator) -> None:
    assert one(student, "Yes.", source="en", target="pt").text == "Sim."


@pytest.mark.parametrize(
    ("text", "kind"),
    [(5, "int"), (None, "NoneType"), (b"No.", "bytes"), ([None], "NoneType"), (["Yes.", b"No."], "bytes")],
)
def test_what_is_no_text_is_named(student: Translator, text: object, kind: str) -> None:
    with pytest.raises(InputError, match=f"must be a str.*, not {kind}"):
        student(text)  # type: ignore[arg-type]
    assert one(student, "Yes.").text == "Sim."


@pytest.mark.parametrize("ahead", [1, 8, 1000])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_comes_before_an_error_is_written(student: Translator, count: int, ahead: int) -> None:
    def broken() -> Iterator[str]:
        yield from ["Yes."] * count
        raise OSError("the line is dead")

    mixed: list[Any] = [*["Yes."] * count, 5, "Yes."]
    for texts, error, message in ((broken(), OSError, "dead"), (iter(mixed), InputError, "must be a str, not int")):
        found: list[str] = []
        with pytest.raises(error, match=message):
            found.extend(written.text for written in student.stream(texts, ahead=ahead))
        assert found == ["Sim."] * count
    assert one(student, "Yes.").text == "Sim."
