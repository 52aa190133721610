"""An encoder whose channels were made more alike, beside the same encoder before."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from heedful.export.smooth import smooth
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
