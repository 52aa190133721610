"""Layers of attention, beside torch's own layer, and beside themselves without a cache or at other positions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from heedful.models.attention import CrossAttention, ScoreName, SelfAttention, visible
from heedful.models.cache import KeyValue, scatter_slots, write
from heedful.models.positions import Rotary


@pytest.mark.parametrize("bias", [True, False])
def test_layers_are_those_of_torch(bias: bool) -> None:
    """nn.MultiheadAttention lays out its joint projection, its heads and its output as these layers do."""
    torch.manual_seed(0)
    x, memory = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    reference = nn.MultiheadAttention(24, 3, bias=bias, batch_first=True)
    for parameter in reference.parameters():
        nn.init.normal_(parameter)
    joint = {name.removeprefix("in_proj_"): p for name, p in reference.named_parameters() if "in_proj" in name}
    output = {f"output.{name}": p for name, p in reference.out_proj.named_parameters()}

    itself = SelfAttention(24, 3, bias=bias)
    itself.load_state_dict({f"query_key_value.{name}": p for name, p in joint.items()} | output)
    attended, _ = itself(x, visible(5, 5, causal=True), need_weights=True)
    hidden = ~visible(5, 5, causal=True)[0, 0]
    expected, weights = reference(x, x, x, attn_mask=hidden, average_attn_weights=False)
    assert_close(attended.output, expected, rtol=1e-4, atol=1e-4)
    assert_close(attended.weights, weights, rtol=1e-4, atol=1e-4)

    cross = CrossAttention(24, 3, bias=bias)
    split = {"query": slice(24), "key_value": slice(24, None)}
    cross.load_state_dict({f"{part}.{n}": p[rows] for part, rows in split.items() for n, p in joint.items()} | output)
    crossed = cross(x, cross.remember(memory), need_weights=True)
    expected, weights = reference(x, memory, memory, average_attn_weights=False)
    assert_close(crossed.output, expected, rtol=1e-4, atol=1e-4)
    assert_close(crossed.weights, weights, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rotary", [None, Rotary(4)], ids=["no positions", "rotary"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", ["dot", "additive"])
@torch.no_grad()
def test_every_step_with_a_cache_is_a_prefix_without(name: ScoreName, kv_heads: int, rotary: Rotary | None) -> None:
    """The second input has a head start of two tokens, so the two write at different slots."""
    torch.manual_seed(1)
    layer = SelfAttention(16, 4, kv_heads=kv_heads, head_dim=6, score=name, rotary=rotary)
    x, slots = torch.randn(2, 7, 16), 8
    _, head_start = layer(x[1:, :2], visible(2, 2, causal=True))
    cache = KeyValue(*(torch.randn(2, kv_heads, slots, 6) for _ in range(2)))
    for kept, early in zip(cache, head_start, strict=True):
        kept[1, :, :2] = early[0]
    for step in range(5):
        at = torch.tensor([step, step + 2])
        attended, cache = layer(
            x[[0, 1], at][:, None],
            visible(1, slots, lengths=at + 1),
            positions=at[:, None],
            cache=cache,
            at=at,
            need_weights=True,
        )
        for i, last in enumerate(at.tolist()):
            prefix = x[i : i + 1, : last + 1]
            expected, present = layer(prefix, visible(last + 1, last + 1, causal=True), need_weights=True)
            assert_close(attended.output[i, 0], expected.output[0, -1], rtol=1e-4, atol=1e-5)
            assert_close(attended.weights[i, :, 0, : last + 1], expected.weights[0, :, -1], rtol=1e-4, atol=1e-5)
            for ours, theirs in zip(cache, present, strict=True):
                assert_close(ours[i, :, : last + 1], theirs[0], rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(1, 6), data=st.data())
def test_writing_replaces_the_slots_written_and_no_others(seed: int, slots: int, data: st.DataObject) -> None:
    torch.manual_seed(seed)
    count = data.draw(st.integers(1, slots))
    at = data.draw(st.lists(st.integers(0, slots - count), min_size=1, max_size=3))
    past = KeyValue(*torch.randn(2, len(at), 2, slots, 3))
    new = KeyValue(*torch.randn(2, len(at), 2, count, 3))
    before = [kept.clone() for kept in past]
    for found, old, kept, fresh in zip(write(past, new, torch.tensor(at)), before, past, new, strict=True):
        assert torch.equal(kept, old)
        for i, first in enumerate(at):
            old[i, :, first : first + count] = fresh[i]
        assert torch.equal(found, old)


def test_writing_is_an_operator_that_can_be_traced() -> None:
    torch.library.opcheck(scatter_slots, (torch.zeros(2, 1, 4, 3), torch.ones(2, 1, 2, 3), torch.tensor([1, 0])))


def rotary_output(positions: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """What a layer makes of five random inputs at `positions` (1, 5)."""
    torch.manual_seed(seed)
    layer, x = SelfAttention(8, 2, rotary=Rotary(4)), torch.randn(1, 5, 8)
    output: torch.Tensor = layer(x, positions=positions)[0].output
    return output


@given(
    positions=st.lists(st.integers(0, 50), min_size=5, max_size=5),
    shift=st.integers(0, 1000),
    seed=st.integers(0, 2**32 - 1),
)
def test_rotary_attention_knows_distances(positions: list[int], shift: int, seed: int) -> None:
    at = torch.tensor([positions])
    assert_close(rotary_output(at + shift, seed), rotary_output(at, seed), rtol=1e-3, atol=1e-3)


def test_rotary_attention_knows_more_than_content() -> None:
    counted = rotary_output(torch.arange(5)[None])
    assert (rotary_output(torch.arange(0, 10, 2)[None]) - counted).abs().max() > 0.01
    assert (rotary_output(torch.zeros(1, 5, dtype=torch.int64)) - counted).abs().max() > 0.01
