"""Logits in two goes: beside float64, and whatever shares the batch."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from heedful.export.quantize import quantize_blockwise
from heedful.export.refine import Blocks, in_4_bits
from heedful.export.timestamps import rank_speech
from heedful.runtime.speech.timestamps import TimestampRule

WIDTH, END, VOCABULARY = 64, 650, 900
BOUND = 640  # whole blocks before the end token
TOKENS = {"end": END, "no_timestamps": 660, "first_timestamp": 661}
NEVER = [3, 7, 200, 655]
Floats = NDArray[np.float32]


def decoder(weight: Floats) -> ort.InferenceSession:
    """Hidden states (m, WIDTH) to logits, by a matrix that lookups share."""
    proto = helper.make_graph(
        [
            helper.make_node("Gather", ["weight", "tokens"], ["embedding"]),
            helper.make_node("Gemm", ["hidden", "weight"], ["logits"], transB=1),
        ],
        "decoder",
        [
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["m", WIDTH]),
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["m", 1]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["m", len(weight)]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["m", 1, WIDTH]),
        ],
        [numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", 24)]
    model = ir.serde.deserialize_model(helper.make_model(proto, opset_imports=opsets, ir_version=10))
    quantize_blockwise(model)
    rank_speech(model, {"tokens": TOKENS, "suppress": NEVER})
    made = ir.serde.serialize_model(model)
    assert {"coarse.codes", "behind.codes"} <= {each.name for each in made.graph.initializer}
    onnx.checker.check_model(made)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])


def run(session: ort.InferenceSession, hidden: Floats, rules: list[tuple[int, int]], best: int) -> list[NDArray[Any]]:
    """The best logits, their tokens, the sum and, if `best` is 0, all logits instead."""
    tokens = np.zeros((len(hidden), 1), np.int64)
    feed = {"hidden": hidden, "tokens": tokens, "rule": np.array(rules), "best": np.array([best])}
    return list(session.run(["best_logits", "best_tokens", "total", "logits"], feed))


def log_sum(values: NDArray[Any]) -> float:
    return float(np.log(np.exp(values - values.max()).sum()) + values.max())


def rows_of(session: ort.InferenceSession) -> NDArray[np.float64]:
    """The embedding as lookups find it."""
    tokens = np.arange(VOCABULARY)[:, None]
    feed = {"hidden": np.zeros((VOCABULARY, WIDTH), np.float32), "tokens": tokens, "best": np.array([1])}
    found = session.run(["embedding"], feed | {"rule": np.zeros((VOCABULARY, 2), np.int64)})[0]
    return np.asarray(found[:, 0], np.float64)


def ruled(rule: TimestampRule, logits: Floats, text: list[int], more: float = 0) -> Floats:
    """Logits less what may not come, were all timestamps' `more`."""
    left = logits.copy()
    left[NEVER] = -np.inf
    weighed = left.copy()
    weighed[661:] += more
    for ruled_out in rule(weighed, text):
        left[ruled_out] = -np.inf
    return left


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), shift=st.sampled_from([-3.0, 0.0, 3.0]))
@example(seed=1227, rows=8, shift=-3.0)  # with a row whose timestamps weigh 0.01 more than its text
def test_the_best_is_that_of_float64(seed: int, rows: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((VOCABULARY, WIDTH), np.float32) * 0.3
    hidden = rng.standard_normal((rows, WIDTH), np.float32)
    # timestamps alone may outweigh the text, and may not
    hidden[:, 0], weight[661:, 0] = 1, shift
    session = decoder(weight)
    texts = [[[5], [5, 700], [661, 5]][i] for i in rng.integers(3, size=rows)]
    rule = TimestampRule(END, 660, 10)
    logits, tokens, total, _ = run(session, hidden, [rule.of(text) for text in texts], 1)
    assert tokens.shape == logits.shape == (rows, 1)
    exact = hidden.astype(np.float64) @ rows_of(session).T
    for i, text in enumerate(texts):
        left, more, less = (ruled(rule, exact[i].astype(np.float32), text, change) for change in (0, 0.1, -0.1))
        if not np.array_equal(more, less):
            continue  # 8 bits may decide either way whether timestamps outweigh the text
        kept = np.isfinite(left)
        found, best = int(tokens[i, 0]), int(left.argmax())
        assert kept[found]
        # what is computed in 8 bits may take another's place, what is looked at again may not
        np.testing.assert_allclose(left[found], left[best], atol=0.1)
        if found < BOUND:
            np.testing.assert_allclose(logits[i], exact[i, found], rtol=1e-5, atol=1e-5)
            assert best >= BOUND or found == best
        np.testing.assert_allclose(total[i], log_sum(left[kept].astype(np.float64)), atol=0.1)


def test_all_logits_have_the_likeliest_as_they_are() -> None:
    rng = np.random.default_rng(0)
    session = decoder(rng.standard_normal((VOCABULARY, WIDTH), np.float32) * 0.3)
    hidden = rng.standard_normal((4, WIDTH), np.float32)
    none, _, total, logits = run(session, hidden, [(0, 661)] * 4, 0)
    exact = hidden.astype(np.float64) @ rows_of(session).T
    assert none.size == 0
    for i in range(4):
        likeliest = np.argsort(-exact[i, :BOUND])[:16]
        np.testing.assert_allclose(logits[i, likeliest], exact[i, likeliest], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(logits[i, BOUND:], exact[i, BOUND:], atol=0.1)
        assert np.abs(logits[i, :BOUND] - exact[i, :BOUND]).std() < 0.1 * exact[i, :BOUND].std()
        np.testing.assert_allclose(total[i], log_sum(logits[i].astype(np.float64)), rtol=1e-5)


@pytest.mark.parametrize("best", [0, 1, 5])
def test_a_row_does_not_depend_on_its_neighbours(best: int) -> None:
    rng = np.random.default_rng(1)
    session = decoder(rng.standard_normal((VOCABULARY, WIDTH), np.float32))
    hidden = rng.standard_normal((17, WIDTH), np.float32)
    rules = [(i % 2, 661 + i) for i in range(17)]
    alone = [run(session, hidden[i : i + 1], rules[i : i + 1], best) for i in range(17)]
    for count in range(1, 18):
        together = run(session, hidden[:count], rules[:count], best)
        for i in range(count):
            for many, one in zip(together, alone[i], strict=True):
                np.testing.assert_array_equal(many[i : i + 1], one)


@given(seed=st.integers(0, 10**6), blocks=st.integers(1, 4), zeros=st.booleans())
def test_4_bits_lose_less_than_rounding_to_the_largest(seed: int, blocks: int, zeros: bool) -> None:
    rng = np.random.default_rng(seed)
    codes = np.clip(rng.standard_normal((100, blocks, 64)) * 40 + 128, 1, 255).astype(np.uint8)
    if zeros:
        codes[0] = 128
    scales = rng.uniform(0.5, 1, (100, blocks)).astype(np.float32)
    numbers = (codes.astype(np.float64) - 128) * scales[..., None]
    packed, units = in_4_bits(Blocks(codes, scales))
    # one unit for two of the blocks, if their number is even
    numbers = numbers.reshape(100, -1, 64 if blocks % 2 else 128)
    halves = np.empty(numbers.shape)
    halves[..., ::2], halves[..., 1::2] = packed & 15, packed >> 4
    error = (halves - 8) * units[..., None].astype(np.float64) - numbers
    unit = np.abs(numbers).max(-1, keepdims=True) / 7
    plain = np.rint(numbers / np.where(unit == 0, 1, unit)) * unit - numbers
    assert (error**2).sum() < 0.95 * (plain**2).sum()
    assert not zeros or not error[0].any()
