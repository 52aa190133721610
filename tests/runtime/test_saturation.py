"""The check that 8-bit products do not overflow on this CPU."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from heedful.runtime import load
from heedful.runtime.engine import saturation

K, N = 64, 16
FILE = Path(saturation.__file__).with_name("saturation.onnx")


def recipe() -> onnx.ModelProto:
    """Both kinds of 8-bit product of a row of ones with a matrix whose every weight is the largest."""
    constants: dict[str, NDArray[Any]] = {
        "dynamic": np.full((K, N), 127, np.int8),
        "dynamic_scale": np.full(N, 1 / 127, np.float32),
        "blockwise": np.full((N, 1, K), 255, np.uint8),
        "blockwise_scale": np.full((N, 1), 1 / 127, np.float32),
    }
    attributes: dict[str, Any] = {"K": K, "N": N, "bits": 8, "block_size": K, "accuracy_level": 4}
    nodes = [
        helper.make_node("DynamicQuantizeMatMul", ["x", "dynamic", "dynamic_scale"], ["a"], domain="com.microsoft"),
        helper.make_node(
            "MatMulNBits", ["x", "blockwise", "blockwise_scale"], ["b"], domain="com.microsoft", **attributes
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", K])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", N]) for name in "ab"],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="heedful")


def test_the_graph_is_that_of_the_recipe() -> None:
    assert onnx.load(FILE) == recipe()


def test_its_products_are_exact_or_it_warns(caplog: pytest.LogCaptureFixture) -> None:
    """With 16-bit sums of pairs, as on x86 without VNNI, 127 * 255 + 127 * 255 would become 32,767."""
    found = saturation.largest_products()
    fine = bool(np.allclose(found, K, rtol=1e-2))
    with caplog.at_level(logging.WARNING, "heedful"):
        saturation.warn_if_saturating()
    assert ("export at another precision" in caplog.text) == (not fine)


def test_saturated_products_are_told(
    seeded_int8: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saturation, "largest_products", lambda: np.array([K, K * 32_767 / (2 * 127 * 255)]))
    load(seeded_int8, "cpu")
    assert "export at another precision" in caplog.text


def test_other_precisions_are_not_checked(
    seeded_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saturation, "largest_products", lambda: np.zeros(2))
    load(seeded_bundle, "cpu")
    assert "precision" not in caplog.text
