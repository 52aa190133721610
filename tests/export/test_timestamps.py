"""What the graph leaves of logits by Whisper's rules, beside the rules on the host, a sort and sums in float64."""

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

from heedful.export.integer import quantize_rows
from heedful.export.timestamps import rank_speech
from heedful.runtime.engine.rules import Suppress
from heedful.runtime.speech.timestamps import NoTimestamps, TimestampRule

WIDTH = 5
Floats = NDArray[np.float32]


def decoder(
    weight: Floats, speech: dict[str, Any], *, integers: bool = False, row_by_row: bool = False
) -> ort.InferenceSession:
    """Hidden states (m, WIDTH) to logits, by a product of `integers` or of floats."""
    proto = helper.make_graph(
        [helper.make_node("Gemm", ["hidden", "weight"], ["logits"], transB=1)],
        "decoder",
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["m", WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["m", len(weight)])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", 24)]
    model = ir.serde.deserialize_model(helper.make_model(proto, opset_imports=opsets, ir_version=10))
    if integers:
        quantize_rows(model)
    rank_speech(model, speech, row_by_row)
    made = ir.serde.serialize_model(model)
    onnx.checker.check_model(made)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])


def log_sum(logits: NDArray[Any]) -> float:
    wide = logits.astype(np.float64)
    return float(np.log(np.exp(wide - wide.max()).sum()) + wide.max())


@settings(max_examples=150)
@given(data=st.data())
def test_what_is_left_is_what_the_rules_leave(data: st.DataObject) -> None:
    text, specials, marks = (data.draw(st.integers(*sizes)) for sizes in ((1, 400), (0, 9), (1, 200)))
    end, stop = text, text + 1 + specials
    vocabulary = stop + 1 + marks
    suppress = sorted(data.draw(st.sets(st.integers(0, stop).filter(lambda token: token != end), max_size=text // 2)))
    tokens = {"end": end, "no_timestamps": stop, "first_timestamp": stop + 1}
    rows, row_by_row = data.draw(st.integers(1, 4) | st.integers(9, 12)), data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    weight = rng.standard_normal((vocabulary, WIDTH), np.float32) * data.draw(st.sampled_from([0.1, 1, 4]))
    # timestamps alone may outweigh the text, and may not
    weight[stop + 1 :, 0] += data.draw(st.sampled_from([-6, 0, 6]))
    hidden = np.concatenate([np.ones((rows, 1), np.float32), rng.standard_normal((rows, WIDTH - 1), np.float32)], 1)
    written = st.lists(st.integers(0, text - 1) | st.integers(stop + 1, vocabulary - 1), min_size=1, max_size=5)
    texts = [data.draw(written) for _ in range(rows)]
    stamps: TimestampRule | NoTimestamps = (
        TimestampRule(end, stop, 10) if data.draw(st.booleans()) else NoTimestamps(stop, vocabulary)
    )
    best = data.draw(st.integers(1, min(12, end)))

    session = decoder(weight, {"tokens": tokens, "suppress": suppress}, row_by_row=row_by_row)
    feed = {"hidden": hidden, "best": np.array([0]), "rule": np.array([stamps.of(text) for text in texts])}
    logits, total = session.run(["logits", "total"], feed)
    names = ["best_logits", "best_tokens", "total", "allowed"]
    found = session.run(names, feed | {"best": np.array([best])})
    np.testing.assert_allclose(logits, hidden @ weight.T, rtol=1e-4, atol=1e-4)
    for i, generated in enumerate(texts):
        left = logits[i].copy()
        for rule in (Suppress(suppress), stamps):
            for ruled_out in rule(left, generated):
                left[ruled_out] = -np.inf
        order = np.argsort(-left.astype(np.float64), kind="stable")[:best]
        order = order[np.isfinite(left[order])]
        np.testing.assert_array_equal(found[0][i][: len(order)], left[order])
        np.testing.assert_array_equal(found[1][i][: len(order)], order)
        assert np.isneginf(found[0][i][len(order) :]).all()
        np.testing.assert_allclose([found[2][i], total[i]], log_sum(logits[i]), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[3][i], log_sum(left), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_sums_of_large_logits_do_not_overflow(shift: float) -> None:
    weight = np.random.default_rng(0).standard_normal((900, WIDTH), np.float32)
    weight[:, 0] = shift
    session = decoder(weight, {"tokens": {"end": 600, "no_timestamps": 610, "first_timestamp": 611}, "suppress": [7]})
    hidden = np.random.default_rng(1).standard_normal((2, WIDTH), np.float32)
    hidden[:, 0] = 1
    feed = {"hidden": hidden, "best": np.array([3]), "rule": np.array([[0, 800], [1, 800]])}
    logits = session.run(["logits"], feed | {"best": np.array([0])})[0]
    total, allowed = session.run(["total", "allowed"], feed)
    np.testing.assert_allclose(total, [log_sum(row) for row in logits], rtol=1e-6)
    assert np.isfinite(allowed).all()
    assert (allowed < total).all()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Though few are ranked together and many one by one."""
    rng = np.random.default_rng(2)
    speech = {"tokens": {"end": 600, "no_timestamps": 610, "first_timestamp": 611}, "suppress": [7, 300]}
    session = decoder(rng.standard_normal((900, WIDTH), np.float32), speech, integers=True, row_by_row=True)
    hidden = rng.standard_normal((17, WIDTH), np.float32)
    rules = np.array([(i % 2, 611 + 9 * i) for i in range(17)])

    def run(rows: slice) -> list[NDArray[Any]]:
        names = ["best_logits", "best_tokens", "total", "allowed"]
        return list(session.run(names, {"hidden": hidden[rows], "rule": rules[rows], "best": np.array([4])}))

    alone = [run(slice(i, i + 1)) for i in range(17)]
    for count in range(1, 18):
        for many, *ones in zip(run(slice(count)), *alone[:count], strict=True):
            np.testing.assert_array_equal(many, np.concatenate(ones))
