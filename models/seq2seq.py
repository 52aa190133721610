"""Text in, text out: an encoder and a decoder of tokens (Vaswani et al. 2017, arXiv 1706.03762).

Marian, BART, mBART, Pegasus, M2M-100, NLLB, T5 and the recurrent students of Firefox Translations are all this model
with other numbers; export/ has a table for each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heedful.models.attention import visible
from heedful.models.cache import KeyValue
from heedful.models.text import StackConfig, TokenDecoder, TokenEncoder


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The two stacks, and whether they share one table of embeddings."""

    encoder: StackConfig
    decoder: StackConfig
    shared_embedding: bool = True


class Seq2Seq(nn.Module):
    """Source and target tokens in, logits out. The encoder's output reaches the decoder only as keys and values."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TokenEncoder(config.encoder)
        self.decoder = TokenDecoder(config.decoder)
        if config.shared_embedding:
            self.encoder.tokens = self.decoder.tokens

    @property
    def frames(self) -> int:
        """Length of the memory; 0: as long as the source."""
        return 0

    def encode(self, source: Tensor, lengths: Tensor) -> list[KeyValue]:
        """source (b, n), of which the first lengths (b,) are real, int -> keys and values (b, h, n, d) a layer."""
        return self.decoder.remember(self.encoder(source, lengths))

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """source (b, k), lengths (b,), target (b, n), int64 -> logits (b, n, vocabulary): training and reference."""
        count = target.shape[1]
        positions = torch.arange(count, device=target.device)[None]
        mask = visible(count, count, causal=True, device=target.device)
        memory_mask = visible(1, source.shape[1], lengths=lengths, device=source.device)
        hidden, _, _ = self.decoder(target, positions, mask, self.encode(source, lengths), memory_mask)
        return self.decoder.logits(hidden)
