"""An encoder whose channels were made more alike, beside the same encoder before."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from heedful.export.smooth import smooth
from heedful.models.transformer import EncoderLayer, LayerConfig

KINDS: list[dict[str, Any]] = [{}, {"norm": "rms", "bias": False, "gated": True, "activation": "silu"}]


def layers(**kinds: Any) -> nn.Sequential:
    """Two layers, a few channels of whose normalisations are a hundred times as large as the others."""
    torch.manual_seed(0)
    made = nn.Sequential(*(EncoderLayer(LayerConfig(32, 4, 64, **kinds)) for _ in range(2))).eval()
    for layer in made:
        for norm in (layer.attention_norm, layer.feed_forward_norm):
            nn.init.uniform_(norm.weight, 0.01, 0.02)
            norm.weight.data[:3] *= 100
            if getattr(norm, "bias", None) is not None:
                norm.bias.data.normal_().mul_(norm.weight.data)
    return made


@pytest.mark.parametrize("kinds", KINDS)
@torch.no_grad()
def test_results_stay(kinds: dict[str, Any]) -> None:
    before = layers(**kinds).double()
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
    before = layers(**kinds)
    after = copy.deepcopy(before)
    smooth(after)
    x = torch.randn(1, 50, 32)
    for layer in (before[0], after[0]):
        read, weight = layer.attention_norm(x), layer.attention.query_key_value.weight
        exact = read @ weight.T
        errors.append(float((rounded(read, None) @ rounded(weight, 1).T - exact).norm() / exact.norm()))
    assert errors[1] < 0.7 * errors[0]


@torch.no_grad()
def test_what_others_read_too_is_left_alone() -> None:
    """After a block a normalisation's result is also added to what the next one gives."""
    before = layers(norm_first=False)
    after = copy.deepcopy(before)
    smooth(after)
    for mine, own in zip(after.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, own)


@torch.no_grad()
def test_a_channel_that_is_always_zero_is_no_trouble() -> None:
    model = layers()
    model[0].attention_norm.weight[5] = 0
    model[0].attention_norm.bias[5] = 0
    model[1].feed_forward.inner.weight[:, 7] = 0
    before = copy.deepcopy(model)
    smooth(model)
    x = torch.randn(1, 4, 32)
    torch.testing.assert_close(model(x), before(x), rtol=1e-4, atol=1e-5)
