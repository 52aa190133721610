"""The stacks of text models where hypotheses share a cache, and what only some of their positions do."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from heedful.export.eager import EagerDecoder
from heedful.models.positions import RelativeBias
from heedful.models.seq2seq import Seq2Seq, Seq2SeqConfig
from heedful.models.text import Positions, StackConfig
from heedful.models.transformer import LayerConfig
from heedful.runtime.engine.decoder import Feed
from heedful.runtime.engine.slots import Slots

VOCABULARY, START = 30, 4
# buckets and a largest distance so small that texts reach into all of them
ENCODER = StackConfig(VOCABULARY, 1, LayerConfig(16, 2, 24), "relative", 64, buckets=8, max_distance=9)
DECODER = replace(ENCODER, layers=2, final_norm=True)


def seeded(decoder: StackConfig) -> Seq2Seq:
    torch.manual_seed(0)
    model = Seq2Seq(Seq2SeqConfig(ENCODER, decoder, shared_embedding=decoder.tied)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.4)
    return model


@pytest.fixture(scope="module", params=get_args(Positions))
def model(request: pytest.FixtureRequest) -> Seq2Seq:
    return seeded(replace(DECODER, positions=request.param, position_offset=2))


SOURCE = torch.randint(VOCABULARY, (1, 7), generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([7])


def alone(model: Seq2Seq, text: list[int]) -> Tensor:
    logits: Tensor = model(SOURCE, LENGTHS, torch.tensor([text]))[0]
    return logits


@settings(max_examples=15)
@given(data=st.data())
def test_slots_of_other_hypotheses_between_its_own_change_nothing(model: Seq2Seq, data: st.DataObject) -> None:
    """Hypotheses fork, go on and are dropped; each one's logits are those of its text alone, whatever slots it has."""
    decoder, slots = EagerDecoder(model.decoder, model.encode(SOURCE, LENGTHS)), Slots()
    prompt = data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4), label="prompt")
    count = len(prompt)
    feed = Feed(prompt, range(count), 0, slots.prefill(count), range(count))
    assert_close(torch.as_tensor(decoder.step({0: feed})[0].logits), alone(model, prompt), rtol=1e-4, atol=1e-4)
    texts = [prompt]
    for _ in range(data.draw(st.integers(1, 10), label="steps")):
        parents = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4), label="parents")
        tokens = data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=len(parents), max_size=len(parents)))
        texts = [[*texts[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        at, positions = slots.used, [len(texts[0]) - 1] * len(texts)
        feed = Feed(tokens, positions, at, slots.step(parents), range(len(texts)))
        expected = torch.stack([alone(model, text)[-1] for text in texts])
        assert_close(torch.as_tensor(decoder.step({0: feed})[0].logits), expected, rtol=1e-4, atol=1e-4)


def test_order_matters(model: Seq2Seq) -> None:
    """Else the comparison above would show little."""
    first, second = alone(model, [START, 5, 6, 7])[-1], alone(model, [START, 6, 5, 7])[-1]
    assert (first - second).abs().max() > 0.01


def test_the_encoder_sees_no_padding() -> None:
    """Nor does padding count where positions are relative."""
    model = seeded(DECODER)
    lengths = torch.tensor([7, 3])
    tokens = torch.cat([SOURCE, SOURCE.flip(1)])
    padded = model.encoder(F.pad(tokens, (0, 5)), lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = model.encoder(tokens[row : row + 1, :length], torch.tensor([length]))[0]
        assert_close(padded[row, :length], expected, rtol=1e-4, atol=1e-5)


PLAIN = replace(DECODER, positions="sinusoidal", tied=False)


@pytest.fixture(scope="module")
def blind() -> Seq2Seq:
    """Its decoder does not look at the first token."""
    return seeded(replace(PLAIN, zero_start=True))


def test_a_zero_start_is_that_of_an_embedding_of_zeros(blind: Seq2Seq) -> None:
    plain = seeded(PLAIN)
    assert not torch.equal(alone(plain, [START, 5, 6]), alone(blind, [START, 5, 6]))
    plain.decoder.tokens.weight[START] = 0
    assert torch.equal(alone(plain, [START, 5, 6]), alone(blind, [START, 5, 6]))


def test_whatever_the_first_token_is(blind: Seq2Seq) -> None:
    for token in range(VOCABULARY):
        assert torch.equal(alone(blind, [token, 5, 6]), alone(blind, [START, 5, 6]))


def test_but_later_ones_are_looked_at(blind: Seq2Seq) -> None:
    """Even the token that began."""
    again, other = (alone(blind, [START, token, 6]) for token in (START, 5))
    assert torch.equal(again[0], other[0])
    assert (again[1:] - other[1:]).abs().amax(1).min() > 0.01


def test_in_the_cache_as_well(blind: Seq2Seq) -> None:
    decoder, slots = EagerDecoder(blind.decoder, blind.encode(SOURCE, LENGTHS)), Slots()
    decoder.step({0: Feed([START], [0], 0, slots.prefill(1), [0])})
    feed = Feed([5, 7], [1, 1], 1, slots.step([0, 0]), range(2))
    expected = torch.stack([alone(blind, [9, token])[-1] for token in (5, 7)])
    assert_close(torch.as_tensor(decoder.step({0: feed})[0].logits), expected, rtol=1e-4, atol=1e-5)


def test_and_of_a_source_all_are(blind: Seq2Seq) -> None:
    first, second = (blind.encoder(torch.tensor([[token, 5, 6]]), torch.tensor([3])) for token in (START, 9))
    assert (first - second).abs().amax(-1).min() > 0.001


@given(data=st.data(), bidirectional=st.booleans())
def test_relative_bias_with_keys_of_its_own_for_each_query(data: st.DataObject, bidirectional: bool) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    inputs, queries, keys = (data.draw(st.integers(1, 4)) for _ in range(3))
    bias = RelativeBias(2, 8, 20, bidirectional).requires_grad_(False)
    query, key = torch.randint(0, 60, (inputs, queries)), torch.randint(0, 60, (inputs, queries, keys))
    found = bias(query, key)
    assert found.shape == (inputs, 2, queries, keys)
    for i in range(queries):
        assert torch.equal(found[:, :, i : i + 1], bias(query[:, i : i + 1], key[:, i]))
