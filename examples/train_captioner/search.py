"""Writing captions with the model's own caches: sampled ones to learn from, and beam search to validate with."""

from collections.abc import Sequence

import torch
from data import END, PAD, START, UNKNOWN
from torch import Tensor

from heedful.models.cache import KeyValue
from heedful.models.text import TokenDecoder

SUPPRESSED = (PAD, START, UNKNOWN)


def spread(memory: Sequence[KeyValue], times: int) -> list[KeyValue]:
    """What is remembered of each photo, `times` times in a row."""
    return [KeyValue(*(x.repeat_interleave(times, 0) for x in layer)) for layer in memory]


def suppress(logits: Tensor) -> Tensor:
    """(..., vocabulary), those tokens at -inf that are no part of a caption."""
    return logits.index_fill(-1, torch.tensor(SUPPRESSED), -torch.inf)


class Writer:
    """Reads one token a caption at a time, at most `slots`."""

    def __init__(self, decoder: TokenDecoder, memory: Sequence[KeyValue], slots: int) -> None:
        self.decoder, self.memory, self.slots, self.at = decoder, memory, slots, 0
        self.caches = decoder.empty(len(memory[0].key), slots)

    def read(self, tokens: Tensor) -> Tensor:
        """tokens (rows,) -> logits (rows, vocabulary) of the next one."""
        at = torch.full_like(tokens, self.at)
        mask = (torch.arange(self.slots) <= self.at)[None, None, None]
        hidden, self.caches, _ = self.decoder(tokens[:, None], at[:, None], mask, self.memory, None, self.caches, at)
        self.at += 1
        return self.decoder.logits(hidden[:, 0])

    def reorder(self, rows: Tensor) -> None:
        """Row i goes on from what row rows[i] has read."""
        self.caches = [KeyValue(*(x[rows] for x in layer)) for layer in self.caches]


@torch.no_grad()
def sample(
    decoder: TokenDecoder, memory: Sequence[KeyValue], seen: Tensor, count: int, length: int, temperature: float
) -> list[list[list[int]]]:
    """`count` captions a photo of at most `length` words, drawn; `seen` (b, 1, 1, k): the image tokens seen.

    The captions of a photo share a row: at each step their next tokens follow each other, and each sees its own.
    """
    caption, slot = torch.arange(count)[:, None], torch.arange(count * length)
    caches = [KeyValue(*(x.to(memory[0].key.dtype) for x in layer)) for layer in decoder.empty(len(seen), len(slot))]
    tokens = torch.full((len(seen), count), START)
    written = []
    for step in range(length):
        mask = (slot % count == caption) & (slot < (step + 1) * count)
        at = torch.full((len(seen),), step * count)
        hidden, caches, _ = decoder(tokens, torch.full((1, count), step), mask[None, None], memory, seen, caches, at)
        tokens = draw(suppress(decoder.logits(hidden) / temperature).softmax(-1)).masked_fill(tokens == END, END)
        written.append(tokens)
        if (tokens == END).all():
            break
    return [[cut(row) for row in rows] for rows in torch.stack(written, -1).tolist()]


def draw(chances: Tensor) -> Tensor:
    """(..., n) -> the index of one of n, by where a random number falls; many times faster than `multinomial`."""
    heights = chances.cumsum(-1)
    level = torch.rand(*chances.shape[:-1], 1) * heights[..., -1:]
    return torch.searchsorted(heights, level, right=True)[..., 0].clamp(max=chances.shape[-1] - 1)


def cut(row: list[int]) -> list[int]:
    """The tokens before the end."""
    return row[: row.index(END)] if END in row else row


@torch.no_grad()
def beam_search(
    decoder: TokenDecoder, memory: Sequence[KeyValue], beams: int, length: int, penalty: float
) -> list[list[int]]:
    """The best caption of each photo by the sum of log probabilities / tokens^penalty, its end counted, as
    transformers searches with early_stopping=False.
    """
    photos = len(memory[0].key)
    writer = Writer(decoder, spread(memory, beams), length)
    first = torch.arange(photos)[:, None] * beams
    tokens = torch.full((photos, beams), START)
    scores = torch.zeros(photos, beams).index_fill(1, torch.arange(1, beams), -torch.inf)
    written = torch.full((photos, beams, length), END)
    done, final = written.clone(), torch.full((photos, beams), -torch.inf)
    unfinished = torch.ones(photos, 1, dtype=torch.bool)
    for step in range(length):
        logs = suppress(writer.read(tokens.flatten()).log_softmax(-1))
        words = logs.shape[1]
        best, index = (scores[:, :, None] + logs.view(photos, beams, words)).flatten(1).topk(2 * beams)
        source, token = index // words, index % words
        paths = written.gather(1, source[:, :, None].expand(-1, -1, length))
        paths[:, :, step] = token
        norm = (step + 1) ** penalty
        ends = (token == END) | (step == length - 1)
        ranked = torch.arange(2 * beams) < beams
        ended = torch.where(ends & ranked & unfinished, best / norm, -torch.inf)
        final, chosen = torch.cat([final, ended], 1).topk(beams)
        done = torch.cat([done, paths], 1).gather(1, chosen[:, :, None].expand(-1, -1, length))
        scores, chosen = best.masked_fill(token == END, -torch.inf).topk(beams)
        # a photo is done when what may still come is no better than the worst of what it has
        unfinished = unfinished & (final[:, -1:] < scores[:, :1] / norm)
        if not unfinished.any():
            break
        tokens = token.gather(1, chosen)
        written = paths.gather(1, chosen[:, :, None].expand(-1, -1, length))
        writer.reorder((first + source.gather(1, chosen)).flatten())
    return [cut(row) for row in done[:, 0].tolist()]
