"""A Whisper bundle opened: its graphs behind four verbs, encode, decode, detect and align."""

import json
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.generate import Job
from heedful.runtime.engine.model import Model
from heedful.runtime.engine.search import Limits, Sample
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.speech.tokens import SpeechTokens

VOCABULARY = "vocabulary.json"
"""The bundle's file with the token of each id, as the tokenizer has it."""


class SpeechModel(Model):
    """What one bundle knows of speech, beside its graphs."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__(sessions)
        speech = self.bundle.manifest["speech"]
        self.samples: int = speech["audio"]["samples"]
        self.rate: int = speech["audio"]["sample_rate"]
        self.frame: float = speech["audio"]["frame"]
        self.suppress: list[int] = speech["suppress"]
        self.suppress_first: list[int] = speech["suppress_first"]
        self.tokens = SpeechTokens(
            lambda: Tokenizer.from_file(str(self.bundle.file("tokenizer.json"))),
            speech["tokens"],
            self.shape.positions,
            self._vocabulary(),
        )

    def _vocabulary(self) -> list[str] | None:
        """The token of each id, which bundles of earlier versions leave to the tokenizer."""
        if VOCABULARY not in self.bundle.manifest["files"]:
            return None
        tokens: list[str] = json.loads(self.bundle.file(VOCABULARY).read_text(encoding="utf-8"))
        return tokens

    @property
    def decoders(self) -> dict[str, Callable[[int], Decoder]]:
        return super().decoders | ({"beams": self.beam_decoder} if self.has_beams else {})

    @property
    def has_beams(self) -> bool:
        """Whether the bundle has a decoder of its own for beam search."""
        return "beams.onnx" in self.bundle.manifest["files"]

    def beam_decoder(self, rows: int) -> Decoder:
        """A decoder that is faster for several hypotheses, though not the same to the last bit."""
        return Decoder(self.sessions.open("beams"), self.shape, self.device, rows)

    def encode(self, decoder: Decoder, waveforms: Mapping[int, NDArray[np.float32]]) -> None:
        """Write what the decoder attends to for each row's waveform, (samples,) float32, at most a window long.

        One window at a time: activations are quantized with one scale for all of them, so in a batch each window's
        result would depend on the others.
        """
        for row, waveform in waveforms.items():
            padded = np.zeros((1, self.samples), np.float32)
            padded[0, : len(waveform)] = waveform
            binding = self.encoder.io_binding()
            binding.bind_cpu_input("waveform", padded)
            decoder.buffers.bind_memory(binding, row, output=True)
            self.encoder.run_with_iobinding(binding)

    def language_job(self, row: int) -> Job:
        """Reads which language the window in `row` is in: see `language_odds`."""
        special = self.tokens.special
        return Job(row, [special.start], Sample(Limits(special.end, 1)), watch=[0])

    def language_odds(self, job: Job) -> dict[str, float]:
        """Probability of each language, after `job` was run; they add up to 1."""
        assert job.prompt_logits is not None
        languages = self.tokens.special.languages
        scores = job.prompt_logits[0, list(languages.values())].astype(np.float64)
        odds = np.exp(scores - scores.max())
        return dict(zip(languages, (odds / odds.sum()).tolist(), strict=True))
