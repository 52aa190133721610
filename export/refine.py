"""Logits in two goes: all of them in 4 bits, and the likeliest once more in 8.

Of what a greedy step reads, the embedding is most. The few tokens that may come next are found in half the bytes, and
their logits, from rows of 8 bits and hidden states as they are, are nearer to those of float32 than a product in 8 bits
throughout. The others have a part in the sum of probabilities only.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from heedful.export.constants import MICROSOFT, Nodes, constant
from heedful.export.quantize import look_up
from heedful.export.rank import Ranked, in_order, top, total_of

# tokens that are looked at again; the likeliest of all was never behind the fourth (docs/quality.md)
_AGAIN = 32
# size of a block, if rows can be cut into such: a step takes a fifteenth less than with one of 64
_WIDE = 128
# units that a block's largest number may be, of which the one with the least error is taken
_REACH = np.array([1, 0.95, 0.9, 0.85], np.float32) / -8


class Blocks(NamedTuple):
    """A matrix (n, k) as `quantize_blockwise` stores it: `codes` (n, k / size, size), and what a unit of each block
    stands for, `scales` (n, k / size).
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]


@dataclass(frozen=True)
class Refined:
    """Logits of m hidden states: `coarse` (m, bound) in 4 bits, `behind` those of all other tokens in 8; and what they
    are made from, `hidden` (m, k), the embedding's blocks and what a unit of each stands for.
    """

    bound: int
    coarse: ir.Value
    behind: ir.Value
    hidden: ir.Value
    blocks: ir.Value
    scales: ir.Value

    def text(self, nodes: Nodes, barred: ir.Value, best: ir.Value) -> Ranked:
        """What `rank` says of the first `bound` tokens less those that are `barred` by minus infinity, though of all
        that are looked at again, whatever `best` is.
        """
        ruled = nodes("Add", self.coarse, barred)
        ruled.shape, ruled.type = self.coarse.shape, self.coarse.type
        refined, logits, tokens = self._refine(nodes, ruled)
        return Ranked(logits, tokens, total_of(nodes, refined, logits, tokens))

    def rest(self, nodes: Nodes) -> ir.Value:
        """The logits of the others."""
        return self.behind

    def of(self, nodes: Nodes, tokens: ir.Value, count: int) -> ir.Value:
        """The logits of `count` of the first tokens."""
        return nodes("Gather", self.coarse, tokens, axis=1)

    def whole(self, nodes: Nodes) -> ir.Value:
        """All logits (m, vocabulary)."""
        return nodes("Concat", self._refine(nodes, self.coarse)[0], self.behind, axis=1)

    def _refine(self, nodes: Nodes, coarse: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """`coarse` with the largest computed anew, and those, in falling order, with their tokens."""
        last, again = nodes.integers(-1), nodes.integers(min(_AGAIN, self.bound))
        _, likeliest = top(nodes, coarse, again)
        rows = look_up(nodes, self.blocks, self.scales, likeliest)
        exact = nodes("Squeeze", nodes("MatMul", rows, nodes("Unsqueeze", self.hidden, last)), last)
        logits, order = in_order(nodes, exact, again)
        tokens = nodes("GatherElements", likeliest, order, axis=1)
        return nodes("ScatterElements", coarse, likeliest, exact, axis=1), logits, tokens


def refine_logits(model: ir.Model, logits: ir.Value, bound: int) -> Refined:
    """Have the decoder `model`, quantized by `quantize_blockwise`, compute the parts of `logits`, in place."""
    product = logits.producer()
    assert product is not None
    assert logits.shape is not None
    hidden, blocks, scales = product.inputs[:3]
    assert hidden is not None
    assert blocks is not None
    assert scales is not None
    known = Blocks(*(value.const_value.numpy() for value in (blocks, scales) if value.const_value is not None))
    first, others = (Blocks(known.codes[part], known.scales[part]) for part in (slice(bound), slice(bound, None)))
    nodes = Nodes(model)
    coarse = _one_by_one(nodes, hidden, "coarse", in_4_bits(first))
    behind = _multiply(nodes, hidden, "behind", others, 8)
    for value, count in ((coarse, bound), (behind, len(others.codes))):
        value.type, value.shape = logits.type, ir.Shape([logits.shape[0], count])
    model.graph.extend(nodes.made)
    return Refined(bound, coarse, behind, hidden, blocks, scales)


def _one_by_one(nodes: Nodes, rows: ir.Value, name: str, matrix: Blocks) -> ir.Value:
    """The product of each row by itself with a matrix of 4 bits: the kernel adds up two rows at a time in another
    order, so that a row would depend on whether it has a neighbour, and several take it hardly less time.
    """
    within, apart = Nodes(nodes.model), nodes.integers(1)
    row = ir.Value(name=f"{name}.row", shape=ir.Shape([1, None]), type=ir.TensorType(ir.DataType.FLOAT))
    body = within.body(name, [row], [_multiply(within, row, name, matrix, 4)])
    scan = ir.node("Scan", [nodes("Unsqueeze", rows, apart)], {"body": body, "num_scan_inputs": 1})
    nodes.made.append(scan)
    return nodes("Squeeze", scan.outputs[0], apart)


def _multiply(nodes: Nodes, rows: ir.Value, name: str, matrix: Blocks, bits: int) -> ir.Value:
    weights = [constant(nodes.model, f"{name}.{part}", array) for part, array in matrix._asdict().items()]
    count, blocks, size = len(matrix.codes), matrix.codes.shape[1], 8 // bits * matrix.codes.shape[2]
    sizes = {"K": blocks * size, "N": count, "block_size": size}
    return nodes("MatMulNBits", rows, *weights, domain=MICROSOFT, bits=bits, accuracy_level=4, **sizes)


def in_4_bits(blocks: Blocks) -> Blocks:
    """Blocks of 8 bits in half the bytes, two numbers in each, the first in its lower half, and the new units, each of
    a larger block if rows can be cut into such.

    A unit may be negative, so that the largest number is the one that has eight of them.
    """
    numbers = (blocks.codes.astype(np.float32) - 128) * blocks.scales[:, :, None]
    if numbers[0].size % _WIDE == 0:
        numbers = numbers.reshape(len(numbers), -1, _WIDE)
    largest = np.take_along_axis(numbers, np.abs(numbers).argmax(-1)[..., None], -1)
    best, unit = np.zeros_like(numbers), np.ones_like(largest)
    least = np.full_like(largest, np.inf)
    for reach in _REACH:
        tried = np.where(largest == 0, 1, largest * reach)
        rounded = np.clip(np.rint(numbers / tried), -8, 7)
        error = ((rounded * tried - numbers) ** 2).sum(-1, keepdims=True)
        less = error < least
        best, unit, least = (np.where(less, *pair) for pair in ((rounded, best), (tried, unit), (error, least)))
    halves = (best + 8).astype(np.uint8)
    return Blocks((halves[..., ::2] | halves[..., 1::2] << 4).astype(np.uint8), unit[..., 0].astype(np.float32))
