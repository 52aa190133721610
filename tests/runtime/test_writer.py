"""Translation of real sentences by a real student, and of anything else that is passed in."""

import asyncio
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from heedful.runtime import BusyError, InputError, load
from heedful.runtime.engine.decoder import Best, Feed
from heedful.runtime.text.results import Sentence, Written
from heedful.runtime.text.writer import Translator

# ruff: noqa: RUF001

pytestmark = pytest.mark.network

# What a float64 implementation written apart from this project makes of the same weights, over the whole vocabulary.
EXPECTED = {
    "How are you today?": "Como você está hoje?",
    "The meeting begins at nine, and everyone is asked to be there a few minutes before.": (
        "A reunião começa às nove, e todos são convidados a estar lá alguns minutos antes."
    ),
    "I love you.": "Eu te amo.",
    "She had never seen the sea, but she had read about it so often that she thought she knew it well.": (
        "Ela nunca tinha visto o mar, mas ela tinha lido sobre isso tantas vezes que ela pensou que sabia bem."
    ),
    "Prices rose by 3.5% in the second quarter of 2021.": "Os preços aumentaram 3,5% no segundo trimestre de 2021.",
    "Where is the nearest train station?": "Onde está a estação de trem mais próxima?",
    "Please close the door when you leave.": "Por favor, feche a porta quando você sair.",
    "Don't worry, be happy!": "Não se preocupe, seja feliz!",
    "Dogs bark; cats meow.": "Cães casca; gatos meow.",
}
SENTENCES = [*EXPECTED]
TEXTS = [
    *SENTENCES,
    "Yes.",
    "",
    " \t ",
    "No way!  Are you sure? I am.",
    "我们 ∮ 🌍",
    "and " * 40,
    f"{SENTENCES[1]} " * 3,
]


@pytest.fixture(scope="module")
def students(translate_bundle: Callable[[str], Path]) -> Callable[[str], Translator]:
    """Gives the student in a precision."""
    return cache(lambda precision: load(translate_bundle(precision), "cpu", threads=2))


@pytest.fixture(scope="module", params=["fp32", "int8"])
def student(request: pytest.FixtureRequest, students: Callable[[str], Translator]) -> Translator:
    return students(request.param)


@pytest.fixture(scope="module")
def small(students: Callable[[str], Translator]) -> Translator:
    return students("int8")


def one(translator: Translator, text: str, **options: object) -> Written:
    found = translator(text, **options)
    assert isinstance(found, Written)
    return found


def many(translator: Translator, texts: list[str], **options: object) -> list[Written]:
    found = translator(texts, **options)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("shortlist", [False, None])
def test_sentences_are_translated(student: Translator, shortlist: bool | None) -> None:
    found = many(student, SENTENCES, shortlist=shortlist)
    assert [written.text for written in found] == [*EXPECTED.values()]


def test_a_text_gives_a_result_and_a_list_a_list(small: Translator) -> None:
    texts = [TEXTS[0], TEXTS[1], TEXTS[0]]
    assert many(small, texts) == [one(small, text) for text in texts]
    assert many(small, []) == []
    assert small(tuple(texts)) == many(small, texts)


def logits(translator: Translator, sentence: Sentence) -> NDArray[np.float64]:
    """What the decoder says before each token of `sentence` and its end, given those before: (n + 1, vocabulary)."""
    model = translator.model
    framing, decoder = model.framing(*model.languages_for(None, None)), model.decoder(1)
    model.encode(decoder, {0: framing.source(model.tokens.encode(sentence.source))})
    rows = []
    for i, token in enumerate([*framing.start, *sentence.tokens]):
        feed = Feed(np.array([token]), np.array([i]), i, np.ones((1, i + 1), np.bool_), np.array([0]))
        scores = decoder.step({0: feed})[0]
        assert not isinstance(scores, Best)
        rows.append(scores[0].astype(np.float64))
    return np.stack(rows)


def logprobs(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))


@pytest.mark.parametrize("beams", [1, 4])
def test_scores_and_tokens_are_those_of_the_text(
    students: Callable[[str], Translator], student_en_pt: Path, beams: int
) -> None:
    """The tokens are fed again one by one and the logits of the whole vocabulary looked at."""
    translator = students("fp32")
    (vocabulary,) = student_en_pt.glob("vocab*.spm")
    pieces = SentencePieceProcessor(model_file=str(vocabulary))
    for written in many(translator, TEXTS, shortlist=False, beams=beams, length_penalty=1.0):
        sums = []
        for sentence in written.sentences:
            said, text = logits(translator, sentence), [*sentence.tokens, translator.model.end]
            sums.append(float(logprobs(said)[range(len(text)), text].sum()))
            assert sentence.score == pytest.approx(sums[-1] / len(text), abs=1e-4)
            assert sentence.text == pieces.decode(list(sentence.tokens))
            if beams == 1:
                best = said.argmax(axis=1).tolist()
                assert best[:-1] == text[:-1]
                assert best[-1] == translator.model.end or len(text) > 2.5 * len(pieces.encode(sentence.source))
        assert written.tokens == tuple(token for sentence in written.sentences for token in sentence.tokens)
        count = len(written.tokens) + len(written.sentences)
        assert written.score == pytest.approx(sum(sums) / count if count else 0.0, abs=1e-4)


def test_a_wider_beam_finds_what_is_likelier(student: Translator) -> None:
    greedy, wide = (many(student, SENTENCES, beams=beams, shortlist=False) for beams in (1, 6))
    assert sum(written.score for written in wide) > sum(written.score for written in greedy)
    assert [written.text for written in wide] != [written.text for written in greedy]


@pytest.mark.parametrize("shortlist", [False, True])
@pytest.mark.parametrize("beams", [8, 9, 64, 256])
def test_beams_are_as_wide_as_asked(small: Translator, beams: int, shortlist: bool) -> None:
    """Wider than the fold of queries, and than what the shortlist leaves for so short a text."""
    assert one(small, "I love you.", beams=beams, shortlist=shortlist).text == "Eu te amo."


# texts, how many side by side, beams, whether by the shortlist
Call = tuple[list[str], int, int, bool]
calls = st.tuples(
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=9),
    st.sampled_from([1, 3, 32]),
    st.sampled_from([1, 4]),
    st.booleans(),
)


@pytest.fixture(scope="module")
def alone(student: Translator) -> Callable[[str, int, bool], Written]:
    """What a text gives when nothing else is asked for."""
    return cache(lambda text, beams, shortlist: one(student, text, beams=beams, shortlist=shortlist))


@settings(deadline=None, max_examples=10)
@given(chosen=st.lists(calls, min_size=1, max_size=4))
def test_a_result_does_not_depend_on_its_neighbours(
    student: Translator, alone: Callable[[str, int, bool], Written], chosen: list[Call]
) -> None:
    """Calls of several threads at once, each with texts of any length side by side."""
    expected = [[alone(text, beams, shortlist) for text in texts] for texts, _, beams, shortlist in chosen]
    futures = [
        student.submit(texts, batch=batch, beams=beams, shortlist=shortlist)
        for texts, batch, beams, shortlist in chosen
    ]
    assert [future.result(60) for future in futures] == expected


def test_submitted_requests_give_what_calls_give(small: Translator) -> None:
    async def ask() -> list[object]:
        futures = [small.submit(text) for text in SENTENCES]
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    assert asyncio.run(ask()) == many(small, SENTENCES)
    with pytest.raises(InputError, match="beams"):
        small.submit("Yes.", beams=0).result(30)


def test_more_requests_than_the_queue_holds_are_refused(translate_bundle: Callable[[str], Path]) -> None:
    translator = load(translate_bundle("int8"), "cpu", threads=1, queue=1)
    first = translator.stream(cycle(["Yes."]), ahead=1)
    assert next(first).text == "Sim."
    with pytest.raises(BusyError, match="1 requests are under way"):
        translator("No.")
    first.close()
    assert translator("Yes.").text == "Sim."


class Counted:
    """Texts without end, of which it is known how many were taken."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = cycle(texts)
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.taken.append(text)
            yield text


@pytest.mark.parametrize("ahead", [1, 100, 400])
def test_results_come_before_the_source_is_exhausted(small: Translator, ahead: int) -> None:
    source = Counted(TEXTS)
    stream = small.stream(source, ahead=ahead, max_length=6)
    assert source.taken == []
    found = []
    for written in islice(stream, 30):
        found.append(written)
        unread = sum(len(text) + 1 for text in source.taken[len(found) : -1])
        assert unread < ahead
        assert len(source.taken) == len(found) or ahead > 1
    assert found == many(small, source.taken[:30], max_length=6)
    stream.close()  # type: ignore[attr-defined]


def test_a_stream_takes_constant_memory(small: Translator) -> None:
    texts = (" " * 10_000 if i % 50 else "Yes." for i in range(300))
    one(small, "Yes.")
    tracemalloc.start()
    try:
        found = sum(len(written.text) for written in small.stream(texts, ahead=50_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == 294 * 10_000 + 6 * len("Sim.")
    assert peak < 1e6


TRICKY = [
    *" \t\n\r\0\x1b\x7f\x85\u00ad\u2028\u3000\u00a0\u200b\u200d\u2060\ufeff\ud83c\udf0d",
    "🌍",
    "\r\n",
    ". ",
    "A. ",
]
TRICKY += ["Hello.", "how are you?", "我", "</s>", "<unk>", "▁", "e\u0301", "\U000e0001", "\uffff", "。", "“Go.” "]
anything = st.text() | st.lists(st.sampled_from(TRICKY), max_size=8).map("".join)
SPACES = "".join(chr(i) for i in range(0x3001) if chr(i).isspace() and unicodedata.category(chr(i)) != "Cc") + "\t"
LINE_ENDS = str.maketrans("\r\n", "  ")


def visible(text: str) -> str:
    """`text` with spaces for control characters and halves of characters, and without what shows nothing."""
    kinds = {"Cc": " ", "Cs": " "}
    shown = (each for each in text if each not in "\u00ad\u2060\ufeff")
    return "".join(each if each == "\t" else kinds.get(unicodedata.category(each), each) for each in shown)


def check_structure(text: str, written: Written) -> None:
    """What is between the sentences of `text` is between those of the result, and is white space."""
    rest, rebuilt = visible(text), ""
    for sentence in written.sentences:
        assert sentence.source == sentence.source.strip() != ""
        gap, rest = rest.split(sentence.source, 1)
        assert gap.strip() == ""
        rebuilt += gap + sentence.text
    assert rest.strip() == ""
    assert written.text.translate(LINE_ENDS) == rebuilt + rest


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(anything, max_size=5), split=st.sampled_from([None, False]))
def test_any_text_is_taken_and_its_white_space_kept(small: Translator, texts: list[str], split: bool | None) -> None:
    for text, written in zip(texts, many(small, texts, max_length=6, split=split), strict=True):
        check_structure(text, written)


@settings(deadline=None)
@given(line=st.text(SPACES))
def test_white_space_alone_comes_back_as_it_is(small: Translator, line: str) -> None:
    written = one(small, line, alignment=True)
    assert (written.text, written.sentences, written.tokens, written.score) == (line, (), (), 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "I love you.\nYes.",
        "I love you.\n\nYes.\n",
        "\n  I love you.\r\n\r\n\tYes.  \r\n",
        "\n",
        "\n\n \r\n",
    ],
)
def test_lines_and_paragraphs_stay(small: Translator, text: str) -> None:
    expected = text.replace("I love you.", "Eu te amo.").replace("Yes.", "Sim.")
    assert one(small, text).text == expected


@pytest.fixture(scope="module")
def short_sighted(translate_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Translator:
    """The student, were it made for 64 positions."""
    source, folder = translate_bundle("int8"), tmp_path_factory.mktemp("bundles") / "short-sighted"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    manifest = (source / "bundle.json").read_text()
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").write_text(manifest.replace('"positions": 1024', '"positions": 64'))
    translator: Translator = load(folder, "cpu", threads=2)
    assert translator.model.positions == 64
    return translator


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("stuff", ["interesting ", "interesting", "information,  ", "我", "x我"])
def test_a_very_long_line_is_read_in_parts_that_fit(short_sighted: Translator, stuff: str, split: bool) -> None:
    line = (stuff * 100_000)[:100_000]
    written = one(short_sighted, line, max_length=3, split=split)
    check_structure(line, written)
    tokens = short_sighted.model.tokens
    counts = [len(tokens.encode(sentence.source)) for sentence in written.sentences]
    assert max(counts) <= 63
    # no shorter than need be
    assert len(counts) <= len(tokens.encode(line)) / 40 + 1


def test_a_sentence_longer_than_the_model_reads_is_translated_whole(student: Translator) -> None:
    text = "and the dog, " * 400
    written = one(student, text)
    check_structure(text, written)
    assert 2 <= len(written.sentences) <= 4
    assert written.text.count("cão") > 300


def test_sentences_are_read_one_by_one_unless_they_should_not(small: Translator) -> None:
    text = "I love you.  Where is the nearest train station?"
    assert [sentence.source for sentence in one(small, text).sentences] == text.split("  ")
    assert one(small, text).text == "Eu te amo.  Onde está a estação de trem mais próxima?"
    assert [sentence.source for sentence in one(small, text, split=False).sentences] == [text]


def test_lengths_are_kept_to(small: Translator) -> None:
    """They count the start and the end of a text, as transformers does."""
    plain = one(small, SENTENCES[1])
    for most in (1, 2, 5, 9):
        tokens = one(small, SENTENCES[1], max_length=most).tokens
        assert tokens == plain.tokens[: max(most - 1, 1)]
    for beams in (1, 3):
        assert len(one(small, "Yes.", min_length=12, beams=beams).tokens) >= 11
        longest = one(small, SENTENCES[1] * 3, no_repeat_ngram=1, beams=beams).sentences[0].tokens
        assert len(set(longest)) == len(longest)
    garbage = "zxq " * 50
    assert len(one(small, garbage).tokens) <= 2.5 * (len(small.model.tokens.encode(garbage)) + 1)


def links(written: Written) -> set[tuple[str, str]]:
    pairs = set()
    for sentence in written.sentences:
        assert sentence.alignment is not None
        for word, those in zip(sentence.alignment.target, sentence.alignment.links, strict=True):
            pairs |= {(sentence.alignment.source[i], word) for i in those}
    return pairs


@pytest.mark.parametrize("beams", [1, 4])
def test_words_are_aligned_without_changing_the_text(student: Translator, beams: int) -> None:
    options = {"beams": beams, "max_length": 60}
    plain, aligned = many(student, TEXTS, **options), many(student, TEXTS, alignment=True, **options)
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
    found = links(one(student, "How are you today?", alignment=True))
    assert found == {("How", "Como"), ("you", "você"), ("are", "está"), ("today?", "hoje?")}
    found = links(one(student, "Please close the door when you leave.  I love you.", alignment=True))
    assert {("Please", "Por"), ("close", "feche"), ("door", "porta"), ("when", "quando"), ("you.", "te")} <= found


def test_a_prompt_is_read_and_is_no_part_of_the_text(small: Translator) -> None:
    text, prompt = "I love you.", "Tell her: "
    prompted = one(small, text, prompt=prompt, alignment=True)
    assert prompted.text == one(small, prompt + text, split=False).text != one(small, text).text
    (sentence,) = prompted.sentences
    assert sentence.source == text
    assert sentence.alignment is not None
    assert sentence.alignment.source == ("I", "love", "you.")
    assert ("love", "amo.") in links(prompted)
    with pytest.raises(InputError, match="the prompt 'so so so"):
        small(text, prompt="so " * 2000)


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
        ({"max_length": 0}, "max_length"),
        ({"min_length": -1}, "min_length"),
        ({"no_repeat_ngram": "2"}, "no_repeat_ngram"),
        ({"length_penalty": "high"}, "length_penalty"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"early_stopping": "never"}, "early_stopping"),
        ({"prompt": 5}, "prompt"),
        ({"split": "yes"}, "split"),
        ({"alignment": "no"}, "alignment"),
        ({"source": "de"}, "from en to pt, not from 'de'"),
        ({"target": "tlh"}, "from en to pt, not to 'tlh'"),
        ({"source": "pt", "target": "en"}, "from en to pt, not from 'pt'"),
    ],
)
def test_an_option_that_cannot_be_is_named(small: Translator, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small("Yes.", **options)
    with pytest.raises(InputError, match=message):
        small.stream(["Yes."], **options)


def test_the_only_languages_may_be_named(small: Translator) -> None:
    assert one(small, "Yes.", source="en", target="pt") == one(small, "Yes.")


@pytest.mark.parametrize(
    ("text", "kind"), [(5, "int"), (None, "NoneType"), ([None], "NoneType"), (["Yes.", b"No."], "bytes")]
)
def test_what_is_no_text_is_named(small: Translator, text: object, kind: str) -> None:
    with pytest.raises(InputError, match=f"must be a str.*, not {kind}"):
        small(text)  # type: ignore[arg-type]
    assert one(small, "Yes.").text == "Sim."
