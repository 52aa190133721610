"""A Whisper bundle opened: its graphs behind four verbs, encode, decode, detect and align."""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.decoder import Decoder, Shape
from heedful.runtime.engine.device import Device, open_session
from heedful.runtime.engine.generate import Job
from heedful.runtime.engine.saturation import warn_if_saturating
from heedful.runtime.engine.search import Limits, Sample
from heedful.runtime.speech.tokens import SpeechTokens


class SpeechModel:
    """Sessions, tokens and sizes of one bundle; safe to use from several threads, each with a decoder of its own."""

    def __init__(self, bundle: Bundle, device: Device, threads: int = 0) -> None:
        manifest = bundle.manifest
        speech = manifest["speech"]
        self.bundle = bundle
        self.device = device
        self.threads = threads
        self.shape = Shape(**manifest["decoder"])
        self.samples: int = speech["audio"]["samples"]
        self.rate: int = speech["audio"]["sample_rate"]
        self.frame: float = speech["audio"]["frame"]
        self.suppress: list[int] = speech["suppress"]
        self.suppress_first: list[int] = speech["suppress_first"]
        tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
        self.tokens = SpeechTokens(tokenizer, speech["tokens"], self.shape.positions)
        if manifest["precision"] == "int8" and device.name == "cpu":
            warn_if_saturating()
        self._encoder = open_session(bundle.file("encoder.onnx"), device, threads)
        self._decoder = open_session(bundle.file("decoder.onnx"), device, threads)
        self._aligner: ort.InferenceSession | None = None
        self._lock = threading.Lock()

    def decoder(self, rows: int) -> Decoder:
        """A decoder with buffers for `rows` windows side by side."""
        return Decoder(self._decoder, self.shape, self.device, rows)

    def encode(self, decoder: Decoder, waveforms: Mapping[int, NDArray[np.float32]]) -> None:
        """Write what the decoder attends to for each row's waveform, (samples,) float32, at most a window long.

        One window at a time: activations are quantized with one scale for all of them, so in a batch each window's
        result would depend on the others.
        """
        for row, waveform in waveforms.items():
            padded = np.zeros((1, self.samples), np.float32)
            padded[0, : len(waveform)] = waveform
            binding = self._encoder.io_binding()
            binding.bind_cpu_input("waveform", padded)
            decoder.bind_memory(binding, row, output=True)
            self._encoder.run_with_iobinding(binding)

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

    def align(
        self, decoder: Decoder, row: int, header: Sequence[int], text: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Attention (heads, len(text) + 1, frames) while each of the `text` tokens and the end were predicted after
        `header`, and the probability (len(text),) of each text token among text tokens.
        """
        tokens = np.asarray([[*header, *text]], np.int64)
        session = self._alignment_session()
        binding = session.io_binding()
        binding.bind_cpu_input("tokens", tokens)
        decoder.bind_memory(binding, row, output=False)
        for output in ("weights", "logprobs"):
            binding.bind_output(output, "cpu")
        session.run_with_iobinding(binding)
        weights, logprobs = binding.copy_outputs_to_cpu()
        first = len(header) - 1
        return weights[0, :, first:], np.exp(logprobs[0, first:])

    def _alignment_session(self) -> ort.InferenceSession:
        """Opened when first needed: it maps the decoder's weights a second time."""
        with self._lock:
            if self._aligner is None:
                self._aligner = open_session(self.bundle.file("aligner.onnx"), self.device, self.threads)
            return self._aligner
