"""Logits in two goes: all of them in 4 bits, and the likeliest once more in 8.

Of what a greedy step reads, the embedding is most. The few tokens that may come next are found in half the bytes, and
their logits, from rows of 8 bits and hidden states as they are, are nearer to those of float32 than a product in 8 bits
throughout. The others have a part in the sum of probabilities only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from heedful.export.constants import MICROSOFT, Nodes, constant
from heedful.export.quantize import look_up
from heedful.export.rank import in_order, top, total_of

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

    def rows(self, chosen: slice | Sequence[int]) -> "Blocks":
        """Some of its rows."""
        return Blocks(self.codes[chosen], self.scales[chosen])


class Likeliest(NamedTuple):
    """Of the text tokens that may come: the likeliest one's `logit` (m, 1), the `token` (m, 1) that it is, and `total`
    (m, 1), log(sum(exp(logits))) of them all.
    """

    logit: ir.Value
    token: ir.Value
    total: ir.Value


@dataclass(frozen=True)
class Refined:
    """Logits of m hidden states, those of tokens that `never` come at minus infinity: `coarse` (m, bound) in 4 bits,
    and `behind` those of all other tokens in 8; and what they are made from, `hidden` (m, k) and the `embedding`.
    """

    bound: int
    never: Sequence[int]
    coarse: ir.Value
    behind: ir.Value
    hidden: ir.Value
    embedding: tuple[ir.Value, ir.Value]
    blocks: Blocks

    def likeliest(self, nodes: Nodes) -> Likeliest:
        """What there is to say of the first `bound` tokens."""
        logits, tokens, refined = self._refine(nodes)
        logit, place = in_order(nodes, logits, nodes.integers(1))
        token = nodes("GatherElements", tokens, place, axis=1)
        return Likeliest(logit, token, total_of(nodes, refined, logit, token))

    def everything(self, nodes: Nodes) -> ir.Value:
        """All logits (m, vocabulary), also of tokens that never come."""
        logits = nodes("Concat", self._refine(nodes)[-1], self.behind, axis=1)
        barred = _multiply(nodes, self.hidden, "barred", self.blocks.rows(self.never), 8)
        tokens = constant(nodes.model, "barred.tokens", np.asarray([self.never], np.int64))
        return nodes("ScatterElements", logits, nodes("Expand", tokens, nodes("Shape", barred)), barred, axis=1)

    def _refine(self, nodes: Nodes) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The likeliest few computed anew, which tokens they are, and `coarse` with them."""
        last = nodes.integers(-1)
        count = min(_AGAIN, self.bound - sum(token < self.bound for token in self.never))
        _, tokens = top(nodes, self.coarse, nodes.integers(count))
        rows = look_up(nodes, *self.embedding, tokens)
        exact = nodes("Squeeze", nodes("MatMul", rows, nodes("Unsqueeze", self.hidden, last)), last)
        return exact, tokens, nodes("ScatterElements", self.coarse, tokens, exact, axis=1)


def refine_logits(model: ir.Model, logits: ir.Value, bound: int, never: Sequence[int]) -> Refined:
    """Have the decoder `model`, quantized by `quantize_blockwise`, compute the parts of `logits`, in place."""
    product = logits.producer()
    assert product is not None
    assert logits.shape is not None
    hidden, codes, scales = product.inputs[:3]
    assert hidden is not None
    assert codes is not None
    assert scales is not None
    known = Blocks(*(value.const_value.numpy() for value in (codes, scales) if value.const_value is not None))
    barred = bars(never, len(known.codes))
    nodes = Nodes(model)
    coarse = _one_by_one(nodes, hidden, "coarse", in_4_bits(known.rows(slice(bound))), barred[:bound])
    behind = _multiply(nodes, hidden, "behind", known.rows(slice(bound, None)), 8, barred[bound:])
    for value, count in ((coarse, bound), (behind, len(barred) - bound)):
        value.type, value.shape = logits.type, ir.Shape([logits.shape[0], count])
    model.graph.extend(nodes.made)
    return Refined(bound, never, coarse, behind, hidden, (codes, scales), known)


def bars(never: Sequence[int], count: int) -> NDArray[np.float32]:
    """What bars tokens that `never` come from (m, count) logits, if it is added: minus infinity, for others nothing."""
    barred = np.zeros(count, np.float32)
    barred[list(never)] = -np.inf
    return barred


def _one_by_one(nodes: Nodes, rows: ir.Value, name: str, matrix: Blocks, bias: NDArray[np.float32]) -> ir.Value:
    """The product of each row by itself with a matrix of 4 bits: the kernel adds up two rows at a time in another
    order, so that the last bits of a row's score would depend on whether it has a neighbour.
    """
    within, apart = Nodes(nodes.model), nodes.integers(1)
    row = ir.Value(name=f"{name}.row", shape=ir.Shape([1, None]), type=ir.TensorType(ir.DataType.FLOAT))
    body = within.body(name, [row], [_multiply(within, row, name, matrix, 4, bias)])
    scan = ir.node("Scan", [nodes("Unsqueeze", rows, apart)], {"body": body, "num_scan_inputs": 1})
    nodes.made.append(scan)
    return nodes("Squeeze", scan.outputs[0], apart)


def _multiply(
    nodes: Nodes, rows: ir.Value, name: str, matrix: Blocks, bits: int, bias: NDArray[np.float32] | None = None
) -> ir.Value:
    weights: list[ir.Value | None] = [
        constant(nodes.model, f"{name}.{part}", array) for part, array in matrix._asdict().items()
    ]
    if bias is not None:
        weights += [None, None, constant(nodes.model, f"{name}.bias", bias)]
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
