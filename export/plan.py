"""Which weights are quantized how: for each graph of a bundle, patterns of their names and methods, in order.

Each method stands where it measured fastest (docs/experiments.md).
"""

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from heedful.export.integer import Scales, quantize_known, quantize_rows, quantize_tables
from heedful.export.integer_attention import quantize_attention
from heedful.export.integer_memory import attend_in_integers, quantize_remembered, restore_memory
from heedful.export.quantize import quantize_blockwise, quantize_dynamic
from heedful.export.separate import separate

Method = Callable[[ir.Model, str], None]
Plan = Mapping[str, Sequence[tuple[str, Method]]]

BEAMS = "beams"
"""The graph that is the decoder once more, for beam search, where another method is faster for several rows."""
GREEDY = "greedy"
"""The graph that is all steps of greedy search for one text."""

# A speech encoder reads one input at a time: its rows need not be alike to the last bit, and one scale for all of them
# is faster. What comes out of a GELU has outliers, and one scale for all of that doubles the error of the encoder. What
# the first layer rounds grows on its way through the others, to half of all the error: its values and what is made of
# their mixture stay in float32, and its feed-forward block has a scale a row.
SPEECH: Plan = {
    "encoder": [
        ("", quantize_attention),
        ("", separate),
        (r"feed_forward\.output|encoder\.layers\.0\.feed_forward", quantize_rows),
        (r"^(?!.*encoder\.layers\.0\.attention\.(query_key_value\.weight\.2|output)).*layers\.", quantize_dynamic),
        ("", quantize_remembered),
    ],
    "decoder": [("", quantize_blockwise), ("", attend_in_integers)],
    # a block's scale costs a row as much as the block's product: from five rows on, a scale a row is faster
    BEAMS: [("", quantize_rows), ("", attend_in_integers)],
    "aligner": [("", quantize_blockwise), ("", restore_memory)],
}
# many short inputs side by side; convolutions are not quantized
TEXT: Plan = {
    graph: [("", quantize_rows), (r"tokens\.weight$", quantize_tables)]
    for graph in ("encoder", "decoder", "aligner", GREEDY)
}
IMAGE = TEXT


def quantize(steps: Sequence[tuple[str, Method]], model: ir.Model, known: Mapping[str, Scales]) -> None:
    """Quantize `model`, a graph, in place: the weights whose scales are `known` with them, the others by `steps`."""
    quantize_known(model, known)
    for pattern, method in steps:
        method(model, pattern)
