"""What is learnt of a batch of photos, and what has been learnt so far."""

from pathlib import Path

import torch
from data import UNKNOWN, Rows, count_words, pack, read_photos
from lite0 import upper
from regularize import forget, see
from score import Cider, bleu, sentence_bleu
from search import beam_search, sample, suppress
from settings import Settings
from torch import Tensor
from torch.nn import functional as F

from heedful.models.captioner import Captioner


def encode(model: Captioner, source: Tensor) -> Tensor:
    """Activations (b, 112, 14, 14) or image tokens (b, 49, 1280) -> the encoder's output (b, 49, width)."""
    return model.encoder.read(upper(model.encoder.network, source) if source.dim() == 4 else source)


def read(model: Captioner, rows: Rows, tokens: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
    """Logits (m, vocabulary) after each of the m real tokens; `tokens` (b, n) stand in place of those of `rows`."""
    decoder = model.decoder
    # weights are asked for because attention in plain steps trains faster on a CPU
    hidden, _, _ = decoder(
        tokens, rows.positions, rows.mask, decoder.remember(memory), seen, need_weights=model.training
    )
    return decoder.logits(hidden[rows.owners >= 0])


class Lessons:
    """The photos of both splits, numbered through, train first; captions as ids; scores."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self.train, self.val = read_photos(folder, "train"), read_photos(folder, "val")
        self.words = count_words(self.train, settings.least_count)
        ids = {word: i for i, word in enumerate(self.words)}
        self.ids = [
            [[ids.get(word, UNKNOWN) for word in caption[: settings.longest]] for caption in photo.captions]
            for photo in self.train + self.val
        ]
        self.lengths = torch.tensor([sum(map(len, captions)) for captions in self.ids[: len(self.train)]])
        self.cider = Cider([photo.captions for photo in self.val])
        # the end counts as a word here, or captions that stop in the middle would lose nothing
        self.praise = Cider([[(*words, "") for words in photo.captions] for photo in self.train])
        self.worths: list[float] = []

    def imitate(self, model: Captioner, source: Tensor, chosen: list[int]) -> Tensor:
        """Cross-entropy of people's captions of the photos `chosen`."""
        settings = self.settings
        rows = pack([self.ids[i] for i in chosen])
        memory = encode(model, source)
        seen = see(*memory.shape[:2], settings.hidden_tokens * model.training)
        tokens = forget(rows.tokens, UNKNOWN, settings.unknown_words * model.training)
        logits = read(model, rows, tokens, memory, seen)
        return F.cross_entropy(
            logits, rows.targets[rows.owners >= 0], label_smoothing=settings.smoothing * model.training
        )

    def reward(self, model: Captioner, source: Tensor, chosen: list[int]) -> Tensor:
        """Self-critical: the log probability of sampled captions times how much better than the photo's other samples
        each of them is.
        """
        settings, decoder = self.settings, model.decoder
        model.eval()  # captions must be as likely as when they were drawn, so no dropout
        memory = encode(model, source)
        seen = see(*memory.shape[:2], settings.hidden_tokens)
        captions = sample(
            decoder,
            decoder.remember(memory.detach()),
            seen,
            settings.samples,
            settings.longest_sample,
            settings.temperature,
        )
        worth = torch.tensor([[self.worth(i, ids) for ids in drawn] for i, drawn in zip(chosen, captions, strict=True)])
        self.worths.append(worth.mean().item())
        advantage = (worth - worth.mean(1, keepdim=True)) * settings.samples / (settings.samples - 1)
        rows = pack(captions)
        real = rows.owners >= 0
        # suppressed as when drawn, or what bad captions lose would go to tokens that never lose anything
        logits = suppress(read(model, rows, rows.tokens, memory, seen) / settings.temperature)
        logs = logits.log_softmax(-1)
        found = logs.gather(1, rows.targets[real][:, None])[:, 0]
        return -(found * advantage.gather(1, rows.owners.clamp(min=0))[real]).mean()

    def worth(self, photo: int, ids: list[int]) -> float:
        """What a caption of a photo is rewarded with."""
        words = [self.words[i] for i in ids]
        found = sentence_bleu(words, self.train[photo].captions)
        return self.praise.score(photo, [*words, ""]) + self.settings.bleu_reward * found

    @torch.no_grad()
    def validate(self, model: Captioner, source: Tensor) -> dict[str, float]:
        """Loss, CIDEr, BLEU-4 and mean length on the photos for validation; source (photos, 1, ...)."""
        settings = self.settings
        model.eval()
        losses, words = [], []
        for start in range(0, len(source), 100):
            batch = source[start : start + 100, 0].float()
            chosen = range(len(self.train) + start, len(self.train) + start + len(batch))
            losses.append(self.imitate(model, batch, list(chosen)).item())
            memory = model.decoder.remember(encode(model, batch))
            found = beam_search(model.decoder, memory, settings.beams, settings.max_length, settings.length_penalty)
            words += [[self.words[i] for i in ids] for ids in found]
        return {
            "loss": sum(losses) / len(losses),
            "cider": 100 * self.cider.mean(words),
            "bleu": 100 * bleu(words, [photo.captions for photo in self.val]),
            "length": sum(map(len, words)) / len(words),
        }
