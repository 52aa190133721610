"""Translation of real sentences by a real student: what is written, and that it depends on nothing but the text."""

import asyncio
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle, islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from heedful.runtime import BusyError, InputError, load
from heedful.runtime.engine.decoder import Feed
from heedful.runtime.text.model import TextModel
from heedful.runtime.text.results import Sentence, Written
from heedful.runtime.text.shortlist import ShortDecoder
from heedful.runtime.text.writer import Translator

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


@pytest.fixture(scope="module", params=["fp32", "int8", "int8, few sentences on all cores"])
def student(request: pytest.FixtureRequest, students: Callable[[str], Translator]) -> Iterator[Translator]:
    with pytest.MonkeyPatch.context() as patch:
        if "few" in request.param:
            # as for a model whose weights take long to read
            patch.setattr(TextModel, "is_large", True)
            students = students.__wrapped__  # type: ignore[attr-defined]
        yield students(request.param.partition(",")[0])


@pytest.fixture(scope="module")
def small(students: Callable[[str], Translator]) -> Translator:
    return students("int8")


def one(translator: Translator, text: str, **options: object) -> Written:
    found = translator(text, **options)
    assert isinstance(found, Written)
    return found


def many(translator: Translator, texts: Sequence[str], **options: object) -> list[Written]:
    found = translator(texts, **options)
    assert isinstance(found, list)
    return found


def same(found: Sequence[Written], expected: Sequence[Written]) -> None:
    """Texts and tokens are the same. Sums over different shortlists may differ in the last bits."""
    assert [(each.text, each.tokens) for each in found] == [(each.text, each.tokens) for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-5)


@pytest.mark.parametrize("shortlist", [False, None])
def test_sentences_are_translated(student: Translator, shortlist: bool | None) -> None:
    found = many(student, SENTENCES, shortlist=shortlist)
    assert [written.text for written in found] == [*EXPECTED.values()]


def test_a_text_gives_a_result_and_a_list_a_list(small: Translator) -> None:
    texts = [TEXTS[0], TEXTS[1], TEXTS[0]]
    same(many(small, texts), [one(small, text) for text in texts])
    same(many(small, tuple(texts)), many(small, texts))
    assert many(small, []) == []


def logits(translator: Translator, sentence: Sentence) -> NDArray[np.float64]:
    """What the decoder says before each token of `sentence` and its end, given those before: (n + 1, vocabulary)."""
    model = translator.model
    framing, decoder = model.framing(*model.languages_for(None, None)), model.decoder(1)
    model.encode(decoder, {0: framing.source(model.tokens.encode(sentence.source))})
    rows = []
    for i, token in enumerate([*framing.start, *sentence.tokens]):
        found = decoder.step({0: Feed([token], [i], i, np.ones((1, i + 1), np.bool_), [0])})[0]
        rows.append(np.asarray(found.logits, np.float64)[0])
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
    for written in many(translator, TEXTS, shortlist=False, beams=beams):
        total = 0.0
        for sentence in written.sentences:
            said, text = logits(translator, sentence), [*sentence.tokens, translator.model.end]
            logprob = float(logprobs(said)[range(len(text)), text].sum())
            total += logprob
            assert sentence.score == pytest.approx(logprob / len(text), abs=1e-4)
            assert sentence.text == pieces.decode(list(sentence.tokens))
            if beams == 1:
                assert said.argmax(axis=1).tolist() == text
        assert written.tokens == tuple(token for sentence in written.sentences for token in sentence.tokens)
        count = len(written.tokens) + len(written.sentences)
        assert written.score == pytest.approx(total / count if count else 0.0, abs=1e-4)


@pytest.mark.parametrize("shortlist", [False, True])
@pytest.mark.parametrize("beams", [8, 9, 64, 256])
def test_beams_are_as_wide_as_asked(small: Translator, beams: int, shortlist: bool) -> None:
    """Wider than the fold of queries, and than what the shortlist leaves for so short a text."""
    assert one(small, "I love you.", beams=beams, shortlist=shortlist).text == "Eu te amo."


def test_lengths_are_kept_to(small: Translator) -> None:
    """They count the start and the end of a text, as transformers does."""
    plain = one(small, SENTENCES[1])
    for most in (1, 2, 5, 9):
        assert one(small, SENTENCES[1], max_length=most).tokens == plain.tokens[: max(most - 1, 1)]
    for beams in (1, 3):
        assert len(one(small, SENTENCES[0], beams=beams).tokens) == 5
        assert len(one(small, SENTENCES[0], min_length=12, beams=beams).tokens) >= 11
        longest = one(small, "and the dog " * 20, no_repeat_ngram=2, beams=beams).tokens
        pairs = list(pairwise(longest))
        assert len(set(pairs)) == len(pairs) > 5
    garbage = "zxq " * 50
    assert len(one(small, garbage).tokens) <= 2.5 * (len(small.model.tokens.encode(garbage)) + 1)


@pytest.mark.parametrize("shortlist", [False, True])
@pytest.mark.parametrize("beams", [1, 4])
def test_what_a_text_starts_with_is_none_of_it(small: Translator, beams: int, shortlist: bool) -> None:
    """It is the end token, which the student does not look at: rules against repeats let the text end."""
    for text in ("I love you.", "Please close the door when you leave."):
        plain = one(small, text, beams=beams, shortlist=shortlist)
        assert len({*plain.tokens}) == len(plain.tokens)
        assert one(small, text, beams=beams, shortlist=shortlist, no_repeat_ngram=1).text == plain.text
    penalised = one(small, "I love you.", beams=beams, shortlist=shortlist, repetition_penalty=1e6)
    assert penalised.text == "Eu te amo."


@pytest.mark.parametrize("beams", [1, 2])
def test_no_text_is_longer_than_the_positions(small: Translator, monkeypatch: pytest.MonkeyPatch, beams: int) -> None:
    """However long it is asked to be: a step past the last position would fail for all texts of its lane."""
    monkeypatch.setitem(small.model.search, "length_factor", None)
    most = small.model.shape.positions - 1
    endless = small.submit("I love you.", min_length=5_000, max_length=5_000, beams=beams)
    assert one(small, SENTENCES[0], alignment=True).text == EXPECTED[SENTENCES[0]]
    written = endless.result(60)
    assert isinstance(written, Written)
    assert len(written.tokens) == most


def test_sentences_are_read_one_by_one_unless_they_should_not(small: Translator) -> None:
    text = "I love you.  Where is the nearest train station?"
    assert [sentence.source for sentence in one(small, text).sentences] == text.split("  ")
    assert one(small, text).text == "Eu te amo.  Onde está a estação de trem mais próxima?"
    assert [sentence.source for sentence in one(small, text, split=False).sentences] == [text]


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


@settings(deadline=None, max_examples=12)
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
    for future, wanted, (*_, shortlist) in zip(futures, expected, chosen, strict=True):
        found = future.result(60)
        assert isinstance(found, list)
        same(found, wanted)
        assert shortlist or found == wanted


def test_submitted_requests_give_what_calls_give(small: Translator) -> None:
    async def ask() -> list[Written]:
        futures = [small.submit(text) for text in SENTENCES]
        return [each for each in await asyncio.gather(*map(asyncio.wrap_future, futures)) if isinstance(each, Written)]

    same(asyncio.run(ask()), many(small, SENTENCES))
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
    """Texts without end, of which it is known which were taken."""

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
        unread = source.taken[len(found) : -1]
        assert sum(len(text) + 1 for text in unread) < ahead
        assert ahead > 1 or unread == []
    same(found, many(small, source.taken[:30], max_length=6))
    stream.close()  # type: ignore[attr-defined]


def test_a_stream_takes_constant_memory(small: Translator) -> None:
    texts = (" " * 10_000 if i % 50 else "Yes." for i in range(60))
    one(small, "Yes.")
    tracemalloc.start()
    try:
        found = sum(len(written.text) for written in small.stream(texts, ahead=20_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == 58 * 10_000 + 2 * len("Sim.")
    assert peak < 0.3e6


@pytest.mark.parametrize(("beams", "strong"), [(1, 4.0), (3, 500.0)])
def test_a_repetition_penalty_goes_with_a_shortlist(small: Translator, beams: int, strong: float) -> None:
    """What came is less likely to come again, and only tokens of the shortlist come at all. A beam multiplies
    log-probabilities, which are all but zero here: it takes a strong one."""
    text = "The dog saw the dog that saw the other dog, and the other dog saw the dog."
    plain, fresh = (
        one(small, text, beams=beams, shortlist=True, repetition_penalty=penalty).sentences[0].tokens
        for penalty in (1.0, strong)
    )
    assert len(set(fresh)) / len(fresh) > len(set(plain)) / len(plain)
    lanes = small.lanes(True)
    with lanes.place() as place:
        decoder = place.batcher.decoder
        assert isinstance(decoder, ShortDecoder)
        assert set(fresh) <= {*np.flatnonzero(decoder.shortlist.allowed(small.model.tokens.encode(text)))}
