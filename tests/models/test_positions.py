"""Positions, beside their formulas in float64 and the same schemes in transformers."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from heedful.models.positions import Learned, RelativeBias, Rotary, Sinusoidal, sinusoids


@pytest.mark.parametrize(("length", "width", "slowest"), [(1500, 384, 10_000.0), (50, 6, 100.0), (9, 2, 10_000.0)])
def test_sinusoids_are_their_formula(length: int, width: int, slowest: float) -> None:
    expected = np.empty((length, width))
    for position, i in np.ndindex(length, width // 2):
        angle = position / slowest ** (i / max(width // 2 - 1, 1))
        expected[position, i], expected[position, width // 2 + i] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(sinusoids(length, width, slowest).numpy(), expected, atol=2e-7 * length)


def test_sinusoids_are_those_of_transformers() -> None:
    from transformers.models.whisper import modeling_whisper

    assert_close(sinusoids(1500, 384), modeling_whisper.sinusoids(1500, 384), rtol=0, atol=1e-6)


def test_tables_are_looked_up_by_position() -> None:
    positions = torch.tensor([[3, 0, 3], [8, 1, 2]])
    fixed, learned = Sinusoidal(9, 4), Learned(9, 4)
    for found, table in ((fixed(positions), sinusoids(9, 4)), (learned(positions), learned.weight)):
        assert found.shape == (2, 3, 4)
        for at in np.ndindex(2, 3):
            assert torch.equal(found[at], table[positions[at]])
    assert not fixed.state_dict()
    assert [tuple(parameter.shape) for parameter in learned.parameters()] == [(9, 4)]


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("dim", [2, 16])
def test_rotary_is_that_of_llama(dim: int, base: float) -> None:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    torch.manual_seed(0)
    rope: Any = {"rope_type": "default", "rope_theta": base}
    config = LlamaConfig(hidden_size=4 * dim, num_attention_heads=4, rope_parameters=rope)
    query, key, positions = torch.randn(2, 4, 5, dim), torch.randn(2, 2, 5, dim), torch.randint(0, 2000, (2, 5))
    cos, sin = LlamaRotaryEmbedding(config)(query, positions)
    for x, expected in zip((query, key), apply_rotary_pos_emb(query, key, cos, sin), strict=True):
        assert_close(Rotary(dim, base)(x, positions), expected, rtol=1e-4, atol=1e-4)


@st.composite
def turned(draw: st.DrawFn) -> tuple[Rotary, Tensor, Tensor]:
    """A rotary embedding and two vectors (1, 1, 1, d), some of them wider than what it turns."""
    dim = 2 * draw(st.integers(1, 4))
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    x, y = torch.randn(2, 1, 1, 1, dim + draw(st.integers(0, 4)))
    return Rotary(dim), x, y


positions = st.integers(0, 1000)


@given(turned=turned(), at=positions)
def test_rotary_turns_pairs_and_leaves_the_rest(turned: tuple[Rotary, Tensor, Tensor], at: int) -> None:
    rotary, x, _ = turned
    there = rotary(x, torch.tensor([[at]]))
    half = rotary.dim // 2
    before, after = (torch.complex(v[..., :half], v[..., half : rotary.dim]) for v in (x, there))
    for i, (old, new) in enumerate(zip(before.flatten().tolist(), after.flatten().tolist(), strict=True)):
        assert new == pytest.approx(old * np.exp(1j * at * 10_000 ** (-2 * i / rotary.dim)), abs=1e-3)
    assert torch.equal(there[..., rotary.dim :], x[..., rotary.dim :])


@given(turned=turned(), query=positions, key=positions, shift=positions)
def test_rotary_scores_depend_on_distance_only(
    turned: tuple[Rotary, Tensor, Tensor], query: int, key: int, shift: int
) -> None:
    rotary, x, y = turned
    near, far = (
        (rotary(x, torch.tensor([[query + by]])) * rotary(y, torch.tensor([[key + by]]))).sum() for by in (0, shift)
    )
    assert_close(far, near, rtol=1e-3, atol=2e-3)


def test_rotary_refuses_half_a_pair() -> None:
    with pytest.raises(ValueError, match="must be even, not 5"):
        Rotary(5)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 50), (8, 20), (64, 1000)])
def test_relative_buckets_are_those_of_t5(buckets: int, max_distance: int, bidirectional: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-2 * max_distance, 2 * max_distance + 1)
    bucket = RelativeBias(2, buckets, max_distance, bidirectional).bucket(distance)
    theirs: Any = T5Attention
    expected = theirs._relative_position_bucket(distance, bidirectional, buckets, max_distance)
    assert bucket.dtype == torch.int64
    assert torch.equal(bucket, expected)
    assert set(bucket.tolist()) == set(range(buckets)) - ({buckets // 2} if bidirectional else set())


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("past", [0, 7])
def test_relative_bias_is_that_of_t5(decoder: bool, past: int) -> None:
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    torch.manual_seed(0)
    config = T5Config(d_model=12, d_kv=4, num_heads=3, is_decoder=decoder)
    theirs: Any = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    ours = RelativeBias(3, bidirectional=not decoder)
    ours.bias.load_state_dict(theirs.relative_attention_bias.state_dict())
    bias = ours(torch.arange(past, past + 200)[None], torch.arange(210)[None])
    assert bias.shape == (1, 3, 200, 210)
    assert_close(bias, theirs.compute_bias(200, 210, past_seen_tokens=past))


def test_relative_bias_takes_positions_of_its_own_for_each_input() -> None:
    torch.manual_seed(0)
    bias = RelativeBias(2)
    query, key = torch.randint(0, 300, (3, 4)), torch.randint(0, 300, (3, 5))
    found = bias(query, key)
    for i, head, row, column in np.ndindex(3, 2, 4, 5):
        bucket = bias.bucket(key[i, column] - query[i, row])
        assert found[i, head, row, column] == bias.bias.weight[bucket, head]
