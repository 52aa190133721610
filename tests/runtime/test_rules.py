"""Rules, beside the logits processors of transformers and what they say in plain words."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from heedful.models.filterbank import mel_filterbank
from heedful.runtime.engine.rules import (
    BadWords,
    Ban,
    Logits,
    NoRepeatNgram,
    NotBefore,
    RepetitionPenalty,
    Rule,
    Suppress,
)

VOCABULARY = 12

texts = st.lists(st.integers(0, VOCABULARY - 1), max_size=20)
repetitive = st.lists(st.integers(0, 2), max_size=20)
tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=6)
# of so few tokens that they come
words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=4)
bans = st.one_of(
    st.builds(Suppress, tokens, at_start=st.booleans()),
    st.builds(NoRepeatNgram, st.integers(1, 5), repetitive),
    st.builds(BadWords, words, repetitive),
    st.builds(NotBefore, st.integers(0, VOCABULARY - 1), st.integers(0, 20)),
)


@st.composite
def logits(draw: st.DrawFn) -> Logits:
    """Some tokens may be ruled out already."""
    values = st.one_of(st.floats(-50, 50, width=32), st.sampled_from([0.0, -np.inf]))
    return np.array(draw(st.lists(values, min_size=VOCABULARY, max_size=VOCABULARY)), np.float32)


@pytest.fixture(scope="module", autouse=True)
def transformers_loads() -> None:
    """transformers imports torchaudio, which loads beside a CPU build of torch only after this."""
    mel_filterbank(201, 80, 16_000)


def ruled(rule: Rule, scores: Logits, generated: list[int]) -> Logits:
    """What `rule` makes of `scores`, which stay as they are."""
    changed, before = scores.copy(), list(generated)
    for tokens in rule(changed, generated):
        assert len(np.unique(np.arange(VOCABULARY)[tokens])) == len(np.arange(VOCABULARY)[tokens])
        changed[tokens] = -np.inf
    assert generated == before
    return changed


def processed(processor: transformers.LogitsProcessor, scores: Logits, generated: list[int]) -> Logits:
    """What transformers makes of `scores`."""
    ids = torch.tensor([generated], dtype=torch.int64)
    result: Logits = processor(ids, torch.as_tensor(scores)[None].clone())[0].numpy()
    return result


@given(scores=logits(), banned=tokens, generated=texts)
def test_suppress(scores: Logits, banned: list[int], generated: list[int]) -> None:
    expected = [-np.inf if token in banned else score for token, score in enumerate(scores.tolist())]
    assert ruled(Suppress(banned), scores, generated).tolist() == expected
    at_start = ruled(Suppress(banned, at_start=True), scores, generated)
    assert at_start.tolist() == (scores.tolist() if generated else expected)


@given(scores=logits(), banned=tokens, generated=texts)
def test_suppress_is_that_of_transformers(scores: Logits, banned: list[int], generated: list[int]) -> None:
    always = transformers.SuppressTokensLogitsProcessor(banned)
    np.testing.assert_array_equal(ruled(Suppress(banned), scores, generated), processed(always, scores, generated))
    first = transformers.SuppressTokensAtBeginLogitsProcessor(banned, begin_index=0)
    at_start = ruled(Suppress(banned, at_start=True), scores, generated)
    np.testing.assert_array_equal(at_start, processed(first, scores, generated))


@given(scores=logits(), size=st.integers(1, 5), generated=texts | repetitive)
def test_no_repeat_ngram_is_that_of_transformers(scores: Logits, size: int, generated: list[int]) -> None:
    processor = transformers.NoRepeatNGramLogitsProcessor(size)
    found = ruled(NoRepeatNgram(size), scores, generated)
    np.testing.assert_array_equal(found, processed(processor, scores, generated))


@given(size=st.integers(1, 4), generated=texts | repetitive)
def test_no_repeat_ngram_forbids_repeats_and_nothing_else(size: int, generated: list[int]) -> None:
    ngrams = [generated[i : i + size] for i in range(len(generated) - size + 1)]
    found = ruled(NoRepeatNgram(size), np.zeros(VOCABULARY, np.float32), generated)
    for token, score in enumerate(found):
        repeats = [*generated, token][-size:] in ngrams and len(generated) >= size - 1
        assert score == (-np.inf if repeats else 0)


@given(scores=logits(), penalty=st.floats(0.5, 3), generated=texts)
def test_repetition_penalty_is_that_of_transformers(scores: Logits, penalty: float, generated: list[int]) -> None:
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    found = ruled(RepetitionPenalty(penalty), scores, generated)
    np.testing.assert_allclose(found, processed(processor, scores, generated), rtol=1e-6)


def test_repetition_penalty_makes_what_came_less_likely() -> None:
    scores = np.array([2, -2, 0, 2, -2], np.float32)
    found = ruled(RepetitionPenalty(2), scores, [0, 1, 2, 0])
    assert found.tolist() == [1, -4, 0, 2, -2]


@given(scores=logits(), banned=tokens, generated=texts, size=st.integers(1, 3), shift=st.integers(-100, 100))
def test_rules_that_forbid_look_past_a_constant(
    scores: Logits, banned: list[int], generated: list[int], size: int, shift: int
) -> None:
    """Logits are log-probabilities up to a constant: what is forbidden must not depend on it."""
    for rule in (Suppress(banned), Suppress(banned, at_start=True), NoRepeatNgram(size)):
        forbidden = np.isneginf(ruled(rule, scores, generated))
        shifted = ruled(rule, scores + np.float32(shift), generated)
        np.testing.assert_array_equal(np.isneginf(shifted), forbidden)
        np.testing.assert_array_equal(shifted[~forbidden], (scores + np.float32(shift))[~forbidden])


@given(scores=logits(), rule=bans, generated=texts | repetitive)
def test_what_a_ban_says_it_bans_is_all_that_it_rules_out(scores: Logits, rule: Ban, generated: list[int]) -> None:
    banned = set(rule.banned(generated))
    expected = [-np.inf if token in banned else score for token, score in enumerate(scores.tolist())]
    assert ruled(rule, scores, generated).tolist() == expected


@given(words=words, generated=repetitive)
def test_bad_words_are_never_completed_and_nothing_else_is_ruled_out(
    words: list[list[int]], generated: list[int]
) -> None:
    banned = BadWords(words).banned(generated)
    for token in range(VOCABULARY):
        text = [*generated, token]
        assert (token in banned) == any(text[-len(word) :] == word for word in words)


@given(scores=logits(), words=words.filter(bool), generated=repetitive)
def test_bad_words_are_those_of_transformers(scores: Logits, words: list[list[int]], generated: list[int]) -> None:
    """Which sees the start of the text too, and compares only as many tokens as there are with it."""
    processor = transformers.NoBadWordsLogitsProcessor(words, eos_token_id=VOCABULARY - 1)
    found = ruled(BadWords(words), scores, generated)
    np.testing.assert_array_equal(found, processed(processor, scores, [VOCABULARY - 1, *generated]))


@given(
    scores=logits(), size=st.integers(1, 4), words=words.filter(bool), before=repetitive, generated=repetitive
)  # fmt: skip
def test_what_came_before_the_text_counts_as_in_transformers(
    scores: Logits, size: int, words: list[list[int]], before: list[int], generated: list[int]
) -> None:
    start = [VOCABULARY - 1, *before]
    text = [*start, *generated]
    ngrams = transformers.NoRepeatNGramLogitsProcessor(size)
    found = ruled(NoRepeatNgram(size, start), scores, generated)
    np.testing.assert_array_equal(found, processed(ngrams, scores, text))
    bad = transformers.NoBadWordsLogitsProcessor(words, eos_token_id=VOCABULARY - 1)
    found = ruled(BadWords(words, start), scores, generated)
    np.testing.assert_array_equal(found, processed(bad, scores, text))


def test_a_bad_word_of_no_tokens_rules_nothing_out() -> None:
    assert list(BadWords([[], [3]]).banned([1, 2])) == [3]
    assert list(BadWords([[]]).banned([])) == []


@given(scores=logits(), end=st.integers(0, VOCABULARY - 1), length=st.integers(0, 20), generated=texts)
def test_not_before_is_the_least_length_of_transformers(
    scores: Logits, end: int, length: int, generated: list[int]
) -> None:
    processor = transformers.MinLengthLogitsProcessor(length, end, device="cpu")
    found = ruled(NotBefore(end, length), scores, generated)
    np.testing.assert_array_equal(found, processed(processor, scores, generated))


@pytest.mark.parametrize("size", [0, -1])
def test_a_run_of_no_tokens_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least one token, not {size}"):
        NoRepeatNgram(size)
