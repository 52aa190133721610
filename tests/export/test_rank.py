"""The best logits as the graph hands them over, beside a sort and a sum in float64."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from heedful.export.rank import rank_logits

Floats = NDArray[np.float32]
RANKED = ["best_logits", "best_tokens", "total"]
WIDTH = 4


def decoder(weight: Floats, *, stated: bool = True) -> ir.Model:
    """Selected hidden states (m, WIDTH) to logits over a vocabulary whose size may be stated; a cache beside them."""
    nodes = [
        helper.make_node("Gemm", ["hidden", "weight"], ["logits"], transB=1),
        helper.make_node("Identity", ["past"], ["present"]),
    ]
    proto = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", WIDTH]) for name in ("hidden", "past")],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["m", len(weight) if stated else "v"]),
            helper.make_tensor_value_info("present", TensorProto.FLOAT, ["m", WIDTH]),
        ],
        [numpy_helper.from_array(weight, "weight")],
    )
    return ir.serde.deserialize_model(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    )


def opened(model: ir.Model) -> ort.InferenceSession:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


def ranked(session: ort.InferenceSession, hidden: Floats, best: int) -> list[NDArray[Any]]:
    """What is said of the best, and the logits themselves, each by a run that was asked for nothing else; both say what
    their sum is.
    """
    some, everything = (
        session.run([*RANKED, "logits"], {"hidden": hidden, "past": hidden, "best": np.array([count])})
        for count in (best, 0)
    )
    assert [each.size for each in (some[3], *everything[:2])] == [0] * 3
    np.testing.assert_allclose(everything[2], some[2], rtol=1e-6, atol=1e-6)
    return [*some[:3], everything[3]]


def check(found: list[NDArray[Any]], best: int) -> None:
    values, tokens, total, logits = found
    check_sum(total, logits)
    # the lower token comes first of two that are alike
    order = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :best]
    np.testing.assert_array_equal(tokens, order)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, order, 1))
    assert [str(each.dtype) for each in (values, tokens, total)] == ["float32", "int64", "float32"]


def check_sum(total: NDArray[Any], logits: NDArray[Any]) -> None:
    top = logits.max(axis=1).astype(np.float64)
    expected = np.log(np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)) + top
    np.testing.assert_allclose(total, expected, rtol=1e-6, atol=1e-6)


# primes, powers of two, and such as a real vocabulary
sizes = st.integers(1, 400) | st.sampled_from([512, 640, 997, 1024, 2000, 3200, 32_000])


@settings(max_examples=80)
@given(
    vocabulary=sizes, rows=st.integers(1, 17), row_by_row=st.booleans(),
    share=st.floats(0, 1), seed=st.integers(0, 10**6),
    levels=st.sampled_from([0, 1, 3, 50]), stated=st.booleans(),
)  # fmt: skip
def test_ranked_is_sorted(
    vocabulary: int, rows: int, row_by_row: bool, share: float, seed: int, levels: int, stated: bool
) -> None:
    """Any number of the best, of logits that are all different or have few `levels`."""
    rng = np.random.default_rng(seed)
    hidden, weight = (rng.standard_normal((count, WIDTH), np.float32) for count in (rows, vocabulary))
    if levels:
        weight, hidden = rng.integers(levels, size=weight.shape).astype(np.float32), np.ones_like(hidden)
    model = decoder(weight, stated=stated)
    rank_logits(model, row_by_row=row_by_row)
    best = max(1, round(share * vocabulary))
    found = ranked(opened(model), hidden, best)
    np.testing.assert_allclose(found[-1], hidden @ weight.T, rtol=1e-4, atol=1e-5)
    check(found, best)


@pytest.mark.parametrize("vocabulary", [1, 7, 64, 320, 641])
def test_any_number_of_the_best_by_one_graph(vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    model = decoder(rng.standard_normal((vocabulary, WIDTH), np.float32))
    rank_logits(model)
    session = opened(model)
    for best in range(1, vocabulary + 1):
        check(ranked(session, rng.standard_normal((1 + best % 5, WIDTH), np.float32), best), best)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_sums_of_large_logits_do_not_overflow(shift: float) -> None:
    weight = np.random.default_rng(0).standard_normal((640, WIDTH), np.float32)
    weight[:, 0] = shift
    model = decoder(weight)
    rank_logits(model)
    check(ranked(opened(model), np.eye(2, WIDTH, dtype=np.float32)[::-1] + np.eye(1, WIDTH, dtype=np.float32), 5), 5)


@pytest.mark.parametrize("allowed", [1, 4, 300])
def test_tokens_that_are_ruled_out_come_last_and_count_for_nothing(allowed: int) -> None:
    rng = np.random.default_rng(allowed)
    weight = np.full((640, WIDTH), -np.inf, np.float32)
    left = rng.choice(640, allowed, replace=False)
    weight[left] = rng.standard_normal((allowed, WIDTH), np.float32)
    model = decoder(weight)
    rank_logits(model)
    found = ranked(opened(model), rng.uniform(0.1, 1, (3, WIDTH)).astype(np.float32), allowed)
    check(found, allowed)
    assert [sorted(row) for row in found[1].tolist()] == [sorted(left.tolist())] * 3


def test_what_else_the_decoder_has_stays() -> None:
    model = decoder(np.ones((9, WIDTH), np.float32))
    rank_logits(model)
    assert [value.name for value in model.graph.inputs] == ["hidden", "past", "best"]
    assert [value.name for value in model.graph.outputs] == ["logits", "present", *RANKED]
    session, past = opened(model), np.random.default_rng(0).standard_normal((2, WIDTH), np.float32)
    feed = {"hidden": np.zeros((2, WIDTH), np.float32), "past": past, "best": np.array([3])}
    np.testing.assert_array_equal(session.run(["present"], feed)[0], past)
