"""The simpler simple recurrent unit: a decoder's memory of its own text that costs the same at any length.

Source: Kim et al. 2019, "From Research to Production and Back: Ludicrously Fast Neural Machine Translation" (WNGT),
after Lei et al. 2018, arXiv 1709.02755.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heedful.models.attention import Attended
from heedful.models.cache import State, write


class SSRU(nn.Module):
    """state = f * state before + (1 - f) * W x, forget gate f = sigmoid(W_f x + b_f); the output is relu(state).

    Takes the place of `SelfAttention` in a decoder layer. The state of every token is kept in the token's slot, so that
    any number of hypotheses can go on from any of them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # gate and input from one matrix product; the input's half of the bias is zero in every published model
        self.gate_input = nn.Linear(width, 2 * width)

    def empty(self, inputs: int, slots: int) -> State:
        """A cache of zeros for so many inputs, of the weights' dtype."""
        weight = self.gate_input.weight
        return State(torch.zeros(inputs, 1, slots, weight.shape[1], dtype=weight.dtype))

    def forward(
        self, x: Tensor, mask: Tensor, *, cache: State | None = None, at: Tensor | None = None
    ) -> tuple[Attended, State]:
        """x (b, n, width) -> output (b, n, width), and the states (b, 1, slots, width).

        Without a cache the n tokens follow one another. With one they are written to slots `at` (b,) and on, and each
        continues the last token before them that `mask` (b, 1, n, slots), bool, lets it see: to read a text of several
        tokens into a cache, feed it one by one. Without `at` the cache has one slot, which the one new token continues
        and takes.
        """
        gate, new = self.gate_input(x).chunk(2, dim=-1)
        if cache is None:
            # log(sigmoid), which ONNX has no operator for: the logarithm of a sigmoid of -90 would be infinite
            states = unroll(-F.softplus(-gate), (-gate).sigmoid() * new)
            return Attended(states.relu(), None), State(states[:, None])
        before = cache.state.squeeze(1) if at is None else parent_states(cache, mask, at)
        # f * before + (1 - f) * new
        states = new + gate.sigmoid() * (before - new)
        present = State(states[:, None])
        return Attended(states.relu(), None), present if at is None else write(cache, present, at)


def unroll(log_forget: Tensor, new: Tensor) -> Tensor:
    """The states (b, n, width) of n tokens that follow one another from a zero state on, as one sum for each.

    Token j counts in state i as far as the gates between leave it: exp(sum of log_forget over j + 1 ... i). Takes
    memory for b * n * n * width numbers.
    """
    # long sums, of which the differences count; those towards later tokens are not used, and must not overflow
    passed = log_forget.float().cumsum(1)
    left = (passed[:, :, None] - passed[:, None]).clamp(max=0).exp().to(new.dtype)
    order = torch.arange(new.shape[1], device=new.device)
    earlier = (order[:, None] >= order)[None, :, :, None]
    return torch.where(earlier, left * new[:, None], 0.0).sum(2)


def parent_states(cache: State, mask: Tensor, at: Tensor) -> Tensor:
    """The state (b, n, width) in the last slot before `at` that each of n tokens sees; zero where it sees none."""
    slots = torch.arange(cache.state.shape[2], device=at.device)
    before = mask.squeeze(1) & (slots < at[:, None])[:, None]
    # counted from 1, so that 0 says there is none
    last = torch.where(before, slots + 1, 0).amax(dim=-1)
    index = (last - 1).clamp(min=0)[..., None].expand(-1, -1, cache.state.shape[3])
    return cache.state.squeeze(1).gather(1, index) * (last > 0)[..., None]
