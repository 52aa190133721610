"""The model in PyTorch behind the engine's own interface: what an export is compared with."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heedful.models.cache import KeyValue
from heedful.models.whisper import Whisper
from heedful.runtime.engine.decoder import Feed


class EagerDecoder:
    """Steps each row alone, without padding: the plain meaning of `heedful.runtime.engine.decoder.Decoder`.

    `memory` is what `Whisper.encode` gave for a batch; row r attends to its entry r.
    """

    def __init__(self, model: Whisper, memory: list[KeyValue]) -> None:
        self.model = model
        self.memory = memory
        self.caches: dict[int, list[KeyValue]] = {}

    def release(self, row: int) -> None:
        self.caches.pop(row, None)

    @torch.no_grad()
    def step(self, feeds: Mapping[int, Feed]) -> dict[int, NDArray[np.float32]]:
        return {row: self._step(row, feed) for row, feed in feeds.items()}

    def _step(self, row: int, feed: Feed) -> NDArray[np.float32]:
        memory = [KeyValue(key[row : row + 1], value[row : row + 1]) for key, value in self.memory]
        past = self._room(row, feed, memory)
        tokens, positions = torch.as_tensor(feed.tokens)[None], torch.as_tensor(feed.positions)[None]
        mask = torch.as_tensor(feed.mask)[None, None]
        hidden, self.caches[row], _ = self.model.decoder(tokens, positions, mask, memory, past, torch.tensor([feed.at]))
        logits: NDArray[np.float32] = self.model.decoder.logits(hidden[0, torch.as_tensor(feed.select)]).numpy()
        return logits

    def _room(self, row: int, feed: Feed, memory: list[KeyValue]) -> list[KeyValue]:
        """The caches of `row`, of exactly as many slots as `feed` needs."""
        slots = feed.mask.shape[1]

        def widen(past: Tensor) -> Tensor:
            return torch.nn.functional.pad(past, (0, 0, 0, slots - past.shape[2]))

        past = self.caches[row] if feed.at else [KeyValue(k[:, :, :0], v[:, :, :0]) for k, v in memory]
        if feed.kept is not None:
            past = [KeyValue(key[:, :, feed.kept], value[:, :, feed.kept]) for key, value in past]
        return [KeyValue(widen(key), widen(value)) for key, value in past]
