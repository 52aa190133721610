"""The model in PyTorch behind the engine's own interface: what an export is compared with."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from heedful.models.cache import KeyValue, State
from heedful.models.text import TokenDecoder
from heedful.runtime.engine.decoder import All, Feed


class EagerDecoder:
    """Steps each row alone, without padding: the plain meaning of `heedful.runtime.engine.decoder.Decoder`.

    `memory` is what the model's `encode` gave for a batch; row r attends to its entry r, as far as `lengths[r]` if
    given.
    """

    def __init__(self, decoder: TokenDecoder, memory: list[KeyValue], lengths: Sequence[int] | None = None) -> None:
        self.decoder = decoder
        self.memory = memory
        self.lengths = lengths
        self.caches: dict[int, list[KeyValue | State]] = {}
        self.spare = 64  # any number will do: slots that nobody sees change no more than last bits

    def release(self, row: int) -> None:
        self.caches.pop(row, None)

    @torch.no_grad()
    def step(self, feeds: Mapping[int, Feed]) -> dict[int, All]:
        return {row: self._step(row, feed) for row, feed in feeds.items()}

    def _step(self, row: int, feed: Feed) -> All:
        end = None if self.lengths is None else self.lengths[row]
        memory = [KeyValue(*(part[row : row + 1, :, :end] for part in layer)) for layer in self.memory]
        past = self._room(row, feed)
        tokens, positions = torch.as_tensor(feed.tokens)[None], torch.as_tensor(feed.positions)[None]
        mask, at = torch.as_tensor(feed.mask)[None, None], torch.tensor([feed.at])
        hidden, self.caches[row], _ = self.decoder(tokens, positions, mask, memory, cache=past, at=at)
        logits = self.decoder.logits(hidden[0, torch.as_tensor(feed.select)])
        return All(logits.numpy(), logits.logsumexp(dim=-1).numpy())

    def _room(self, row: int, feed: Feed) -> list[KeyValue | State]:
        """The caches of `row`, of exactly as many slots as `feed` needs."""
        slots = feed.mask.shape[1]
        kept = slice(None) if feed.kept is None else feed.kept

        def widen(past: Tensor) -> Tensor:
            return F.pad(past[:, :, kept], (0, 0, 0, slots - past[:, :, kept].shape[2]))

        past = self.caches[row] if feed.at else self.decoder.empty(1, 0)
        return [type(layer)(*map(widen, layer)) for layer in past]
