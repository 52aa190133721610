"""Searches over a made-up model that is a table of logits by text, beside every text written out and weighed."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.runtime.engine.decoder import All, Best, Feed, Scores
from heedful.runtime.engine.generate import Job, generate
from heedful.runtime.engine.rules import BadWords, Logits, NoRepeatNgram, NotBefore, RepetitionPenalty, Rule, Suppress
from heedful.runtime.engine.search import Beam, Hypothesis, Limits, Sample, Search

END = 0
PROMPT = (1, 3)
Text = tuple[int, ...]
Model = Callable[[Text], Logits]


def model(vocabulary: int, seed: int = 0, spread: float = 1.5) -> Model:
    """Logits that depend on the whole text, prompt included."""

    def logits(text: Text) -> Logits:
        return np.random.default_rng([seed, *text]).normal(0, spread, vocabulary).astype(np.float32)

    return logits


class Reader:
    """Steps a model by what each new token may see: the text of a hypothesis is what its mask shows. Gives all logits,
    however few are enough.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.spare = 5
        self.written: dict[int, list[int]] = {}
        self.fed: list[list[int]] = []

    def step(self, feeds: Mapping[int, Feed]) -> dict[int, Scores]:
        self.fed.append(sorted(feeds))
        return {row: self._read(self.written.setdefault(row, []), feed) for row, feed in feeds.items()}

    def release(self, row: int) -> None:
        del self.written[row]

    def _read(self, written: list[int], feed: Feed) -> All:
        if feed.kept is not None:
            written[:] = [written[slot] for slot in feed.kept]
        assert feed.at == len(written)
        written += feed.tokens
        assert feed.mask.shape == (len(feed.tokens), len(written))
        texts = [tuple(np.array(written)[seen].tolist()) for seen in feed.mask]
        assert [len(text) - 1 for text in texts] == list(feed.positions)
        return scores_of(np.stack([self.model(texts[i]) for i in feed.select]))


def scores_of(logits: Logits) -> All:
    return All(logits, np.log(np.exp(logits.astype(np.float64)).sum(axis=1)).astype(np.float32))


def run(search: Search, model: Model, prompt: Sequence[int] = PROMPT) -> list[Hypothesis]:
    generate(Reader(model), [Job(0, prompt, search)])
    return search.results()


def logprobs(logits: Logits) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return np.asarray(wide - np.log(np.exp(wide).sum()))


def weigh(model: Model, text: Text, prompt: Text = PROMPT) -> float:
    """Log-probability of `text`, end token included."""
    return float(sum(logprobs(model((*prompt, *text[:i])))[token] for i, token in enumerate(text)))


def whole(one: Hypothesis) -> Text:
    return (*one.tokens, *[END] * one.ended)


def all_texts(vocabulary: int, length: int) -> Iterator[Text]:
    """Every text that ends by the end token, or without one at `length`."""
    for count in range(1, length + 1):
        for text in product(range(vocabulary), repeat=count):
            if END not in text[:-1] and (text[-1] == END or count == length):
                yield text


@pytest.mark.parametrize("seed", range(20))
def test_greedy_search_takes_the_best_token_each_time(seed: int) -> None:
    makes, expected = model(6, seed), list[int]()
    while len(expected) < 8 and (not expected or expected[-1] != END):
        expected.append(int(makes((*PROMPT, *expected)).argmax()))
    (found,) = run(Sample(Limits(END, 8)), makes)
    assert whole(found) == tuple(expected)
    assert found.ended == (expected[-1] == END)
    assert found.logprob == pytest.approx(weigh(makes, tuple(expected)), rel=1e-5)
    assert found.avg_logprob == pytest.approx(found.logprob / (len(found.tokens) + 1))


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize(("vocabulary", "length"), [(4, 3), (3, 4), (9, 1)])
def test_a_beam_as_wide_as_all_texts_finds_all(vocabulary: int, length: int, length_penalty: float) -> None:
    makes = model(vocabulary)
    search = Beam(Limits(END, length), width=vocabulary**length, length_penalty=length_penalty)
    found = run(search, makes)
    expected = {text: weigh(makes, text) for text in all_texts(vocabulary, length)}
    ranked = sorted(expected, key=lambda text: -expected[text] / len(text) ** length_penalty)
    assert [whole(one) for one in found] == ranked
    for one, text in zip(found, ranked, strict=True):
        assert one.ended == (text[-1] == END)
        assert one.logprob == pytest.approx(expected[text], rel=1e-5)
        assert one.score == pytest.approx(expected[text] / len(text) ** length_penalty, rel=1e-5)


def beam_by_hand(makes: Model, length: int, width: int, penalty: float, patience: float) -> list[Text]:
    """Every continuation of every live text is weighed and sorted at each step."""
    live, done = [(0.0, Text())], list[tuple[float, Text]]()
    for count in range(1, length + 1):
        following = [
            (score + logprob, (*text, token))
            for score, text in live
            for token, logprob in enumerate(logprobs(makes((*PROMPT, *text))).tolist())
        ]
        following.sort(reverse=True)
        over = [one for one in following[:width] if one[1][-1] == END or count == length]
        done += [(score / count**penalty, text) for score, text in over]
        live = [one for one in following if one[1][-1] != END][:width]
        if len(done) >= max(1, round(patience * width)):
            break
    return [text for _, text in sorted(done, reverse=True)]


@pytest.mark.parametrize("patience", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_patience_is_how_many_texts_must_end(width: int, patience: float) -> None:
    early = 0
    for seed in range(20):
        makes = model(7, seed)
        found = [whole(one) for one in run(Beam(Limits(END, 9), width=width, patience=patience), makes)]
        expected = beam_by_hand(makes, 9, width, 1.0, patience)
        assert found == expected[: max(width, round(patience * width))]
        early += len(found[0]) < 9
    assert early >= 5


@given(seed=st.integers(0, 2**32 - 1), vocabulary=st.integers(2, 1000), length=st.integers(1, 6))
def test_a_beam_of_one_is_greedy(seed: int, vocabulary: int, length: int) -> None:
    makes, limits = model(vocabulary, seed), Limits(END, length)
    (greedy,) = run(Sample(limits), makes)
    (beam,) = run(Beam(limits, width=1, patience=1.0), makes)
    assert (beam.tokens, beam.ended) == (greedy.tokens, greedy.ended)
    assert beam.logprob == pytest.approx(greedy.logprob, abs=1e-4)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_no_text_is_longer_than_its_limit(length: int, count: int) -> None:
    """Of a model that never ends by itself."""

    def makes(text: Text) -> Logits:
        return np.concatenate([[np.float32(-50)], model(5)(text)[1:]])

    for search in (Sample(Limits(END, length), temperature=1, count=count), Beam(Limits(END, length), width=count)):
        found = run(search, makes)
        assert [(len(one.tokens), one.ended) for one in found] == [(length, False)] * count


def test_samples_are_reproducible_and_weighed_at_temperature_one() -> None:
    def draw(seed: int) -> list[Hypothesis]:
        rng = np.random.default_rng(seed)
        return run(Sample(Limits(END, 6), temperature=0.8, count=8, rng=rng), model(6))

    first = draw(7)
    assert first == draw(7)
    assert first != draw(8)
    assert len(first) == 8
    assert len({one.tokens for one in first}) > 4
    assert [one.score for one in first] == sorted((one.score for one in first), reverse=True)
    for one in first:
        assert one.logprob == pytest.approx(weigh(model(6), whole(one)), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_distribution(temperature: float) -> None:
    count, logits = (
        4000,
        np.log(np.array([0.0, 0.4, 0.3, 0.15, 0.1, 0.05]), where=np.arange(6) > 0, out=np.full(6, -np.inf)),
    )
    search = Sample(Limits(END, 1), temperature=temperature, count=count, rng=np.random.default_rng(3))
    drawn = Counter(one.tokens[0] for one in run(search, lambda text: logits.astype(np.float32)))
    expected = count * np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    assert drawn[END] == 0
    # with 4 degrees of freedom chi-square exceeds 20 once in two thousand times
    assert sum((drawn[i] - expected[i]) ** 2 / expected[i] for i in range(1, 6)) < 20


RULES = (Suppress([2, 4]), Suppress([END], at_start=True), NoRepeatNgram(1))


def allowed(text: Text, token: int) -> bool:
    return token not in (2, 4) and token not in text and bool(text or token != END)


@pytest.mark.parametrize("seed", range(10))
def test_rules_bind_every_search(seed: int) -> None:
    """Log-probabilities are among the tokens allowed; beams rank by those among all tokens."""
    makes, limits = model(9, seed), Limits(END, 4, RULES)
    rng = np.random.default_rng(seed)
    for search in (Sample(limits), Sample(limits, temperature=1, count=5, rng=rng), Beam(limits, width=5)):
        for one in run(search, makes):
            text, logprob, score = whole(one), 0.0, 0.0
            for i, token in enumerate(text):
                everything = logprobs(makes((*PROMPT, *text[:i])))
                share = sum(np.exp(everything[each]) for each in range(9) if allowed(text[:i], each))
                assert allowed(text[:i], token)
                score += everything[token]
                logprob += everything[token] - np.log(share)
            assert one.logprob == pytest.approx(logprob, rel=1e-5)
            if isinstance(search, Beam):
                assert one.score == pytest.approx(score / len(text), rel=1e-5)


def test_jobs_run_together_as_they_run_alone() -> None:
    prompts = [[3, 7], [1, 4, 1], [5, 9], [2, 6, 5, 3]]

    def searches() -> list[Search]:
        limits = [Limits(END, length) for length in (2, 9, 5, 9)]
        return [
            Sample(limits[0]),
            Beam(limits[1], width=3),
            Sample(limits[2], temperature=1, count=4),
            Beam(limits[3], width=2),
        ]

    makes = model(11)
    jobs = [Job(row, prompts[i], search) for i, (row, search) in enumerate(zip([4, 0, 7, 2], searches(), strict=True))]
    reader = Reader(makes)
    generate(reader, jobs)
    for job, prompt, alone in zip(jobs, prompts, searches(), strict=True):
        assert job.search.results() == run(alone, makes, prompt)
    assert sorted(reader.fed[:3]) == [[0], [2], [4, 7]]  # prompts of one length together, so that none is padded
    assert [0, 2, 4, 7] in reader.fed
    assert len(reader.fed[-1]) < 4  # those that are over are left alone


def test_logits_after_the_prompt_can_be_watched() -> None:
    watched = Job(0, [3, 1, 4], Sample(Limits(END, 3)), watch=[0, 2])
    generate(Reader(model(6)), [watched])
    assert watched.prompt_logits is not None
    np.testing.assert_array_equal(watched.prompt_logits, [model(6)((3,)), model(6)((3, 1, 4))])
    assert watched.search.results() == run(Sample(Limits(END, 3)), model(6), [3, 1, 4])


class Ranker(Reader):
    """Gives only the best of the logits to those who say how many are enough; `asked` are those numbers."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.asked: list[int] = []

    def step(self, feeds: Mapping[int, Feed]) -> dict[int, Scores]:
        self.asked += [feed.wanted.best for feed in feeds.values()]
        return {row: best_of(scores, feeds[row].wanted.best) for row, scores in super().step(feeds).items()}


def best_of(scores: Scores, count: int) -> Scores:
    """The `count` best of each row, or all if there are fewer; all logits if `count` is 0."""
    if not count:
        return scores
    assert isinstance(scores, All)
    tokens = np.argsort(-scores.logits, axis=1, kind="stable")[:, :count]
    total = scores.total.tolist()
    return Best(np.take_along_axis(scores.logits, tokens, 1).tolist(), tokens.tolist(), total, total)


LENGTH = 6
letters = st.integers(1, 5)
some_rules = st.lists(
    st.one_of(
        st.builds(Suppress, st.lists(letters, max_size=2)),
        st.just(Suppress([END], at_start=True)),
        st.builds(NoRepeatNgram, st.integers(1, 3)),
        st.builds(BadWords, st.lists(st.lists(letters, min_size=1, max_size=3), max_size=3)),
        st.builds(NotBefore, st.just(END), st.integers(0, LENGTH)),
    ),
    max_size=4,
)
limits = st.builds(
    Limits, st.just(END), st.integers(1, LENGTH), some_rules, before=st.integers(0, 2), forced_end=st.booleans()
)
# letters are less likely to come: where rules and limits leave enough others, some text is always possible
vocabularies = st.integers(24, 60)


# sums in another order may turn two texts over that are all but equally likely
@settings(derandomize=True)
@given(
    limits=limits, seed=st.integers(0, 10**6), vocabulary=vocabularies, width=st.integers(1, 5),
    patience=st.sampled_from([None, 0.5, 1.0, 2.0]), length_penalty=st.sampled_from([0.0, 0.6, 1.0, 1.4]),
)  # fmt: skip
def test_the_best_logits_are_enough_for_a_beam(
    limits: Limits, seed: int, vocabulary: int, width: int, patience: float | None, length_penalty: float
) -> None:
    def search() -> Beam:
        return Beam(limits, width=width, length_penalty=length_penalty, patience=patience)

    check_best(search, model(vocabulary, seed), limits)


@given(limits=limits, seed=st.integers(0, 10**6), vocabulary=vocabularies)
def test_the_best_logits_are_enough_for_greedy_search(limits: Limits, seed: int, vocabulary: int) -> None:
    check_best(lambda: Sample(limits), model(vocabulary, seed), limits)


def check_best(search: Callable[[], Search], makes: Model, limits: Limits) -> None:
    """What is found among the best is what is found among all."""
    ranker, job = Ranker(makes), Job(0, PROMPT, search())
    generate(ranker, [job])
    found, expected = job.search.results(), run(search(), makes)
    assert [whole(one) for one in found] == [whole(one) for one in expected]
    if isinstance(job.search, Beam) or not limits.rules:
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
    if not limits.rules:
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-5)
    assert all(ranker.asked)


@pytest.mark.parametrize("rules", [[RepetitionPenalty(2)], [Suppress([3]), RepetitionPenalty(2)]])
def test_rules_that_look_at_logits_are_given_all(rules: list[Rule]) -> None:
    for search in (Sample(Limits(END, 4, rules)), Beam(Limits(END, 4, rules), width=2)):
        ranker = Ranker(model(9))
        generate(ranker, [Job(0, PROMPT, search)])
        assert set(ranker.asked) == {0}
    assert Sample(Limits(END, 4), temperature=0.5).wanted.best == 0


@pytest.mark.parametrize("reader", [Reader, Ranker])
@pytest.mark.parametrize("rules", [[], [RepetitionPenalty(2)]])
def test_a_text_ends_where_rules_leave_no_token(reader: type[Reader], rules: list[Rule]) -> None:
    """As with a shortlist only some may come at all: the end, but not yet, and three others, each of them once."""
    limits, makes = Limits(END, 8, [NoRepeatNgram(1), NotBefore(END, 8), *rules]), model(4)
    for search in (Sample(limits), Sample(limits, temperature=1, count=2), Beam(limits, width=3)):
        generate(reader(lambda text: np.append(makes(text), np.full(9, -np.inf, np.float32))), [Job(0, PROMPT, search)])
        assert {(*sorted(one.tokens), one.ended) for one in search.results()} == {(1, 2, 3, False)}
        assert np.isfinite([one.score for one in search.results()]).all()


def never_ends(vocabulary: int) -> Model:
    def logits(text: Text) -> Logits:
        return np.concatenate([[np.float32(-50)], model(vocabulary)(text)[1:]])

    return logits


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_text_can_be_made_to_end(length: int) -> None:
    """Its last token is the end then, at no cost."""
    makes, limits = never_ends(5), Limits(END, length, forced_end=True)
    searches = (Sample(limits), Sample(limits, temperature=1, count=3), Beam(limits, width=1), Beam(limits, width=3))
    for search in searches:
        for one in run(search, makes):
            assert (len(one.tokens), one.ended) == (length - 1, True)
            if not isinstance(search, Sample) or not search.temperature:
                assert one.logprob == pytest.approx(weigh(makes, one.tokens), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(("before", "penalty"), [(0, 1.0), (1, 1.0), (2, 0.7), (1, 2.0)])
def test_all_texts_are_ranked_by_what_is_counted(before: int, penalty: float, forced: bool) -> None:
    """Some tokens of the prompt, and the end that is forced, count in the length and weigh nothing."""
    makes, vocabulary, length = model(4, 11), 4, 3
    limits = Limits(END, length, before=before, forced_end=forced)
    found = run(Beam(limits, width=vocabulary**length, length_penalty=penalty), makes)
    if forced:
        shorter = all_texts(vocabulary, length - 1)
        weights = {text if text[-1] == END else (*text, END): weigh(makes, text) for text in shorter}
    else:
        weights = {text: weigh(makes, text) for text in all_texts(vocabulary, length)}
    scores = {text: weight / (len(text) + before) ** penalty for text, weight in weights.items()}
    assert [whole(one) for one in found] == sorted(scores, key=lambda text: -scores[text])
    assert [one.score for one in found] == pytest.approx(sorted(scores.values(), reverse=True), rel=1e-5)


@pytest.mark.parametrize(("before", "best"), [(0, (1, 2)), (9, ())])
def test_what_is_counted_before_favours_the_short(before: int, best: Text) -> None:
    """By the mean of its tokens the longer text is better, by the sum the shorter."""
    chances = {(): [0.5, 0.5, 0], (1,): [0.1, 0.3, 0.6]}

    def makes(text: Text) -> Logits:
        shares = np.array(chances.get(text[len(PROMPT) :], [1, 0, 0]))
        return np.asarray(np.log(np.maximum(shares, 1e-9)), np.float32)

    assert run(Beam(Limits(END, 3, before=before), width=2), makes)[0].tokens == best
