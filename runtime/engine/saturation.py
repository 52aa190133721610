"""Whether this CPU multiplies 8-bit numbers exactly.

x86 without VNNI adds products of 8-bit numbers in pairs of 16 bits, which two large ones overflow: the sum is cut off,
and the model quietly does worse.
"""

import logging
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

log = logging.getLogger("heedful")

_GRAPH = Path(__file__).with_name("saturation.onnx")
_INPUTS = 64


def largest_products() -> NDArray[np.float32]:
    """Sums of 64 products of the largest 8-bit numbers that stand for 1, by both kernels: all 64.0 when exact."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(_GRAPH), options, providers=["CPUExecutionProvider"])
    return np.concatenate(session.run(None, {"x": np.ones((4, _INPUTS), np.float32)}))


def warn_if_saturating() -> None:
    """Log a warning when 8-bit products overflow here."""
    if not np.allclose(largest_products(), _INPUTS, rtol=1e-2):
        log.warning(
            "int8 overflows on this CPU, which has no VNNI: expect worse results, or export at another precision"
        )
