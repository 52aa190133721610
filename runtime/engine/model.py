"""A bundle opened: its graphs and sizes, whatever the modality."""

import copy
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.rows import Shape
from heedful.runtime.engine.sessions import Sessions


class Model:
    """Sessions and sizes of one bundle; safe to use from several threads, each with a decoder of its own."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.bundle = sessions.bundle
        self.device = sessions.device
        self.shape = Shape(**self.bundle.manifest["decoder"])

    def on_one_thread(self) -> Self:
        """The same model with sessions of its own, whose graphs run on the thread of the caller."""
        other = copy.copy(self)
        other.sessions = self.sessions.on(1)
        return other

    @property
    def encoder(self) -> ort.InferenceSession:
        """The session of the encoder."""
        return self.sessions.open("encoder")

    @property
    def decoders(self) -> dict[str, Callable[[int], Decoder]]:
        """What makes a decoder with buffers for so many inputs, by the name of the graph that it runs."""
        return {"decoder": self.decoder}

    def decoder(self, rows: int) -> Decoder:
        """A decoder with buffers for `rows` inputs side by side."""
        return Decoder(self.sessions.open("decoder"), self.shape, self.device, rows)

    def align(
        self, decoder: Decoder, row: int, header: Sequence[int], text: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Attention (heads, len(text) + 1, frames) while each of the `text` tokens and the end were predicted after
        `header`, and the probability (len(text),) of each text token among text tokens.
        """
        tokens = np.asarray([[*header, *text]], np.int64)
        session = self.sessions.open("aligner")
        binding = session.io_binding()
        binding.bind_cpu_input("tokens", tokens)
        frames = decoder.buffers.frames[row]
        if decoder.measures:
            binding.bind_cpu_input("frames", np.asarray([frames], np.int64))
        decoder.buffers.bind_memory(binding, row, output=False)
        for output in ("weights", "logprobs"):
            binding.bind_output(output, "cpu")
        session.run_with_iobinding(binding)
        weights, logprobs = binding.copy_outputs_to_cpu()
        first = len(header) - 1
        return weights[0, :, first:, :frames], np.exp(logprobs[0, first:])
