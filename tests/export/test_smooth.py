"""An encoder whose channels were made more alike, beside the same encoder before."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from heedful.export.integer import set_scales
from heedful.export.smooth import smooth, smooth_logits
from heedful.models.seq2seq import Seq2Seq, Seq2SeqConfig
from heedful.models.text import StackConfig, TokenDecoder
from heedful.models.transformer import EncoderLayer, LayerConfig

KINDS: list[dict[str, Any]] = [{}, {"norm": "rms", "bias": False, "gated": True, "activation": "silu"}]


def layer(**kinds: Any) -> EncoderLayer:
    """A layer, a few channels of whose normalisations are a hundred times as large as the others."""
    torch.manual_seed(0)
    made = EncoderLayer(LayerConfig(32, 4, 64, **kinds)).eval()
    for norm in (made.attention_norm, made.feed_forward_norm):
        weight, bias = norm.weight, norm.bias if "norm" not in kinds else None
        assert isinstance(weight, torch.Tensor)
        nn.init.uniform_(weight, 0.01, 0.02)
        weight.data[:3] *= 100
        if isinstance(bias, torch.Tensor):
            bias.data.normal_().mul_(weight.data)
    return made


@pytest.mark.parametrize("kinds", KINDS)
@torch.no_grad()
def test_results_stay(kinds: dict[str, Any]) -> None:
    before = layer(**kinds).double()
    after = copy.deepcopy(before)
    smooth(after)
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    torch.testing.assert_close(after(x), before(x), rtol=1e-9, atol=1e-9)


def rounded(x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """x with 8 bits and one scale, or one along `axis`."""
    largest = x.abs().max() if axis is None else x.abs().amax(axis, keepdim=True)
    return (x / largest * 127).round() * largest / 127


@pytest.mark.parametrize("kinds", KINDS)
@torch.no_grad()
def test_rounding_costs_less(kinds: dict[str, Any]) -> None:
    """One scale for what a map reads, one for each of its columns."""
    errors = []
    before = layer(**kinds)
    after = copy.deepcopy(before)
    smooth(after)
    x = torch.randn(1, 50, 32)
    for each in (before, after):
        read, weight = each.attention_norm(x), each.attention.query_key_value.weight
        exact = read @ weight.T
        errors.append(float((rounded(read, None) @ rounded(weight, 1).T - exact).norm() / exact.norm()))
    assert errors[1] < 0.7 * errors[0]


@torch.no_grad()
def test_what_others_read_too_is_left_alone() -> None:
    """After a block a normalisation's result is also added to what the next one gives."""
    before = layer(norm_first=False)
    after = copy.deepcopy(before)
    smooth(after)
    for mine, own in zip(after.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, own)


def test_what_has_a_scale_already_is_left_alone() -> None:
    """A scale that the checkpoint states is of the numbers as they are; those without one are made more alike."""
    before = layer()
    linear = before.attention.query_key_value
    units = torch.randint(-127, 128, linear.weight.shape).float()
    columns = torch.rand(len(units)) + 0.5
    linear.weight.data = units * columns[:, None]
    set_scales(linear, 0.1, columns)
    after = copy.deepcopy(before)
    smooth(after)
    for found, expected in ((after.attention, before.attention), (after.attention_norm, before.attention_norm)):
        for mine, own in zip(found.parameters(), expected.parameters(), strict=True):
            assert torch.equal(mine, own)
    assert not torch.equal(after.feed_forward.inner.weight, before.feed_forward.inner.weight)


@torch.no_grad()
def test_a_channel_that_is_always_zero_is_no_trouble() -> None:
    model = layer()
    for zero in model.attention_norm.parameters():
        zero[5] = 0
    model.feed_forward.inner.weight[:, 7] = 0
    before = copy.deepcopy(model)
    smooth(model)
    x = torch.randn(1, 4, 32)
    torch.testing.assert_close(model(x), before(x), rtol=1e-4, atol=1e-5)


STACK = StackConfig(
    vocabulary=300, layers=1, layer=LayerConfig(32, 4, 64), positions="learned", max_positions=20, final_norm=True
)


def decoder(**kinds: Any) -> TokenDecoder:
    """A decoder whose embedding has a large mean in a channel and whose norm has channels of unlike size."""
    torch.manual_seed(1)
    made = TokenDecoder(replace(STACK, **kinds)).eval()
    made.tokens.weight.data.mul_(0.02)[:, 3] += 0.5
    if isinstance(made.norm, nn.LayerNorm):
        made.norm.weight.data.uniform_(1, 2)[5] = 40
        made.norm.bias.data.normal_()
    return made


@pytest.mark.parametrize("scale", [1.0, 32**0.5])
@torch.no_grad()
def test_logits_change_by_one_number_and_embeddings_not_at_all(scale: float) -> None:
    before = decoder(embedding_scale=scale).double()
    after = copy.deepcopy(before)
    smooth_logits(after)
    tokens, positions = torch.randint(300, (2, 7)), torch.arange(7)[None]
    torch.testing.assert_close(after.embed(tokens, positions), before.embed(tokens, positions), rtol=1e-9, atol=1e-9)
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    found, expected = (each.logits(each.norm(x)).double() for each in (after, before))
    difference = found - expected
    assert difference.abs().max() > 1
    torch.testing.assert_close(difference, difference.mean(-1, keepdim=True).expand_as(difference), rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_encoder_of_the_same_embedding_reads_what_it_read() -> None:
    """Each with positions and a scale of its own."""
    torch.manual_seed(2)
    before = Seq2Seq(Seq2SeqConfig(replace(STACK, embedding_scale=3.0), STACK)).eval().double()
    before.decoder.tokens.weight[:, 3] += 5
    after = copy.deepcopy(before)
    smooth_logits(after)
    assert after.encoder.tokens is after.decoder.tokens
    assert not torch.equal(after.decoder.tokens.weight, before.decoder.tokens.weight)
    source, target, lengths = torch.randint(300, (2, 9)), torch.randint(300, (2, 7)), torch.tensor([9, 4])
    found, expected = (each.encoder(source, lengths) for each in (after, before))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    found, expected = (each(source, lengths, target).log_softmax(-1) for each in (after, before))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_an_embedding_that_an_encoder_cannot_make_up_for_is_left_alone() -> None:
    before = Seq2Seq(Seq2SeqConfig(replace(STACK, positions="sinusoidal"), STACK))
    after = copy.deepcopy(before)
    smooth_logits(after)
    for mine, own in zip(after.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, own)


@torch.no_grad()
def test_rounding_costs_logits_less() -> None:
    """One scale for each hidden state, one for each row of the embedding, which is looked up in the same integers."""
    before = decoder()
    after = copy.deepcopy(before)
    smooth_logits(after)
    x, tokens, positions = torch.randn(50, 32), torch.arange(300)[None], torch.zeros(1, 1, dtype=torch.int64)
    embeddings = before.embed(tokens, positions)
    errors = []
    for each in (before, after):
        read, table = each.norm(x), each.tokens.weight
        exact = read @ table.T
        error = rounded(read, 1) @ rounded(table, 1).T - exact
        errors.append(float((error - error.mean(1, keepdim=True)).norm()))
        table.copy_(rounded(table, 1))
        errors.append(float((each.embed(tokens, positions) - embeddings).norm()))
    assert errors[2] < 0.5 * errors[0]
    assert errors[3] < errors[1]


@pytest.mark.parametrize(
    "kinds", [{"tied": False}, {"final_norm": False}, {"positions": "sinusoidal"}, {"zero_start": True},
              {"output_transform": True}]
)  # fmt: skip
@torch.no_grad()
def test_decoders_of_other_kinds_are_left_alone(kinds: dict[str, Any]) -> None:
    before = decoder(**kinds)
    after = copy.deepcopy(before)
    smooth_logits(after)
    assert after.spread is None
    for mine, own in zip(after.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, own)
