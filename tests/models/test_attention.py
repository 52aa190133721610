"""Attention, beside a loop over single queries in float64, torch's own attention, and onnxruntime."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from heedful.models.attention import AdditiveScore, DotProductScore, ScoreName, visible

Array = NDArray[np.float64]
SCORES: tuple[ScoreName, ...] = ("dot", "additive")


def build(score: ScoreName, heads: int, width: int) -> nn.Module:
    return AdditiveScore(heads, width) if score == "additive" else DotProductScore()


def score_by_hand(score: nn.Module, head: int, query: Array, key: Array) -> float:
    if isinstance(score, AdditiveScore):
        query_weight, key_weight, energy = (p[head].detach().double().numpy() for p in score.parameters())
        return float(energy @ np.tanh(query @ query_weight + key @ key_weight))
    return float(query @ key) / float(np.sqrt(len(query)))


def attend_by_hand(score: nn.Module, *tensors: Tensor, mask: Tensor | None = None) -> tuple[Array, Array]:
    """Outputs (b, h, q, e) and weights (b, h, q, k), one query at a time."""
    query, key, value = (tensor.double().numpy() for tensor in tensors)
    repeats = query.shape[1] // key.shape[1]
    output = np.empty((*query.shape[:3], value.shape[3]))
    weights = np.empty((*query.shape[:3], key.shape[2]))
    for at in np.ndindex(query.shape[:3]):
        i, head, _ = at
        scores = np.array([score_by_hand(score, head, query[at], one) for one in key[i, head // repeats]])
        if mask is not None:
            seen = mask.expand(weights.shape)[at].numpy()
            scores = np.where(seen, scores, -np.inf) if seen.dtype == bool else scores + seen
        weights[at] = np.exp(scores) / np.exp(scores).sum()
        output[at] = weights[at] @ value[i, head // repeats]
    return output, weights


def same(actual: Tensor, expected: Array) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def inputs(kv_heads: int, keys: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Two inputs of 4 heads, 3 queries of 6 channels, and values of 7."""
    torch.manual_seed(kv_heads)
    return torch.randn(2, 4, 3, 6), torch.randn(2, kv_heads, keys, 6), torch.randn(2, kv_heads, keys, 7)


def by_head() -> Tensor:
    return (torch.rand(2, 4, 3, 5) < 0.5) | (torch.arange(5) == 2)


MASKS: dict[str, Callable[[], Tensor | None]] = {
    "none": lambda: None,
    "causal": lambda: visible(3, 5, causal=True),
    "ragged": lambda: visible(3, 5, lengths=torch.tensor([2, 5])),
    "causal and ragged": lambda: visible(3, 5, causal=True, lengths=torch.tensor([5, 1])),
    "by head": by_head,
    "bias": lambda: torch.randn(1, 4, 3, 5),
    "bias that hides": lambda: torch.randn(2, 1, 3, 5).masked_fill(~by_head()[:, :1], float("-inf")),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", SCORES)
def test_output_and_weights_are_those_of_a_loop(
    name: ScoreName, kv_heads: int, mask: Callable[[], Tensor | None]
) -> None:
    query, key, value = inputs(kv_heads)
    score, seen = build(name, 4, 6), mask()
    output, weights = attend_by_hand(score, query, key, value, mask=seen)
    attended = score(query, key, value, seen, need_weights=True)
    same(attended.output, output)
    same(attended.weights, weights)
    plain = score(query, key, value, seen)
    same(plain.output, output)
    assert plain.weights is None


@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_asking_for_weights_gives_the_output_of_torch(scale: float | None, dtype: torch.dtype) -> None:
    query, key, value = (tensor.to(dtype) for tensor in inputs(2))
    mask = visible(3, 5, causal=True)
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)
    attended = DotProductScore(scale)(query, key, value, mask, need_weights=True)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    assert_close(attended.output, expected, rtol=tolerance, atol=tolerance)
    assert attended.weights is not None
    assert_close(attended.weights.float().sum(-1), torch.ones(2, 4, 3), rtol=tolerance, atol=tolerance)


@given(
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    causal=st.booleans(),
    lengths=st.lists(st.integers(0, 6), max_size=3),
)
def test_visible_keys(queries: int, keys: int, causal: bool, lengths: list[int]) -> None:
    mask = visible(queries, keys, causal=causal, lengths=torch.tensor(lengths) if lengths else None)
    real = lengths or [keys]
    assert (mask.dtype, mask.shape) == (torch.bool, (len(real), 1, queries, keys))
    for i, _, query, key in np.ndindex(*mask.shape):
        later = causal and key - query > keys - queries
        assert mask[i, 0, query, key].item() == (key < real[i] and not later)


@dataclass
class Case:
    """A score function and what it is given."""

    score: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor


@st.composite
def cases(draw: st.DrawFn, keys: st.SearchStrategy[int] = st.integers(1, 7)) -> Case:  # noqa: B008
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    b, g, repeats, q, d, e = (draw(st.integers(1, 3)) for _ in range(6))
    k = draw(keys)
    score = build(draw(st.sampled_from(SCORES)), g * repeats, d)
    return Case(score, torch.randn(b, g * repeats, q, d), torch.randn(b, g, k, d), torch.randn(b, g, k, e))


@given(case=cases(), need_weights=st.booleans())
def test_the_order_of_keys_does_not_matter(case: Case, need_weights: bool) -> None:
    order = torch.randperm(case.key.shape[2])
    mask = torch.rand(case.query.shape[2], len(order)) < 0.7
    mask[:, 0] = True
    first = case.score(case.query, case.key, case.value, mask, need_weights)
    again = case.score(case.query, case.key[:, :, order], case.value[:, :, order], mask[:, order], need_weights)
    assert_close(again.output, first.output, rtol=1e-4, atol=1e-5)
    if need_weights:
        assert_close(again.weights, first.weights[..., order], rtol=1e-4, atol=1e-5)


@given(
    case=cases(st.integers(2, 7)), at=st.integers(0, 6), what=st.floats(-(2**60), 2**60, width=32), need=st.booleans()
)
def test_a_masked_key_is_not_there(case: Case, at: int, what: float, need: bool) -> None:
    others = torch.arange(case.key.shape[2]) != at % case.key.shape[2]
    without = case.score(case.query, case.key[:, :, others], case.value[:, :, others])
    case.key[:, :, ~others] = case.value[:, :, ~others] = what
    masked = case.score(case.query, case.key, case.value, others.expand(case.query.shape[2], -1), need)
    assert_close(masked.output, without.output, rtol=1e-4, atol=1e-5)
    if need:
        assert not masked.weights[..., ~others].any()


@given(case=cases(st.just(1)), need_weights=st.booleans())
def test_one_key_gives_its_value(case: Case, need_weights: bool) -> None:
    attended = case.score(case.query, case.key, case.value, None, need_weights)
    repeats = case.query.shape[1] // case.key.shape[1]
    for head in range(case.query.shape[1]):
        assert_close(attended.output[:, head], case.value[:, head // repeats].expand_as(attended.output[:, head]))


@given(case=cases())
def test_weights_of_a_query_sum_to_one(case: Case) -> None:
    weights = case.score(case.query, case.key, case.value, None, need_weights=True).weights
    assert (weights >= 0).all()
    assert_close(weights.sum(-1), torch.ones(case.query.shape[:3]))


def test_gradients_of_the_additive_score_are_slopes() -> None:
    query, key, value = inputs(4)
    score, wanted = AdditiveScore(4, 6, hidden=3), torch.randn(2, 4, 3, 7)
    parameters = list(score.parameters())
    slopes = torch.autograd.grad((score(query, key, value).output * wanted).sum(), parameters)
    for parameter, slope in zip(parameters, slopes, strict=True):
        for at in [(0,) * parameter.ndim, (-1,) * parameter.ndim]:
            sums = []
            for step in (1e-2, -1e-2):
                with torch.no_grad():
                    before = parameter[at].clone()
                    parameter[at] += step
                    sums.append((attend_by_hand(score, query, key, value)[0] * wanted.numpy()).sum())
                    parameter[at] = before
            assert slope[at].item() == pytest.approx((sums[0] - sums[1]) / 2e-2, rel=1e-2, abs=1e-3)


def test_the_additive_score_learns_to_look_up() -> None:
    """Each query asks for the value of the key nearest to it."""
    torch.manual_seed(0)
    key = F.one_hot(torch.arange(4)).float()[None, None]
    value = torch.tensor([[1.0], [-2.0], [3.0], [-4.0]])[None, None]
    score = AdditiveScore(1, 4, hidden=16)
    optimizer = torch.optim.Adam(score.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        loss = F.mse_loss(score(key, key, value).output, value)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3
    assert losses[-1] < 0.01


class Output(nn.Module):
    def __init__(self, score: nn.Module) -> None:
        super().__init__()
        self.score = score

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        output: Tensor = self.score(query, key, value, mask).output
        return output


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export's own
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("name", SCORES)
def test_onnxruntime_computes_the_same(name: ScoreName, kv_heads: int) -> None:
    module = Output(build(name, 4, 6)).eval()
    free = torch.export.Dim.DYNAMIC
    sizes = ({0: free, 2: free}, {0: free, 2: free}, {0: free, 2: free}, {2: free, 3: free})
    with torch.no_grad():
        example = (*inputs(kv_heads), visible(3, 5, causal=True))
        program = torch.onnx.export(module, example, dynamic_shapes=sizes, dynamo=True, opset_version=24, verbose=False)
    assert program is not None
    if name == "dot":
        assert [node.op_type for node in program.model.graph] == ["Attention"]
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    other = (*inputs(kv_heads, keys=9), visible(3, 9, causal=True))
    names = [node.name for node in session.get_inputs()]
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, other, strict=True)})
    assert_close(torch.as_tensor(found), module(*other), rtol=1e-4, atol=1e-5)
