"""Log-mel spectrogram of Whisper as a module, so that it can be part of the exported graph."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heedful.models.filterbank import mel_filterbank


class LogMel(nn.Module):
    """Waveform to log-mel spectrogram: Hann window, power spectrum, Slaney mel filters, log10, clipped and scaled.

    The Fourier transform is a matrix product with a fixed basis: at 400 samples a frame that is faster in onnxruntime
    than its STFT operator and runs on every execution provider.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, mels: int, *, sample_rate: int = 16_000, frame: int = 400, hop: int = 160) -> None:
        super().__init__()
        self.frame, self.hop = frame, hop
        self.frequencies = frame // 2 + 1
        samples = torch.arange(frame, dtype=torch.float64)
        # frame index times frequency is taken modulo the frame first: exact integers keep the basis exact
        angles = 2 * math.pi / frame * (samples[:, None] * torch.arange(self.frequencies) % frame)
        window = torch.hann_window(frame, dtype=torch.float64)[:, None]
        self.register_buffer("basis", torch.cat([window * angles.cos(), window * angles.sin()], 1).float(), False)
        self.register_buffer("filters", mel_filterbank(self.frequencies, mels, sample_rate), False)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform (b, samples), float32 in [-1, 1], samples a multiple of the hop -> (b, mels, samples / hop).

        Frame t is centred on sample t * hop, the ends of the waveform mirrored.
        """
        count = waveform.shape[1] // self.hop
        half = self.frame // 2
        padded = F.pad(waveform, (half, half), mode="reflect")
        # frames overlap by more than a hop: each is put together from the blocks of one hop that it spans
        spans = -(-self.frame // self.hop)
        blocks = padded[:, : (count + spans - 1) * self.hop].unflatten(1, (-1, self.hop))
        frames = torch.cat([blocks[:, i : i + count] for i in range(spans)], dim=2)[:, :, : self.frame]
        real, imaginary = (frames @ self.basis).chunk(2, dim=2)
        mel = (real.square() + imaginary.square()) @ self.filters
        log = mel.clamp(min=1e-10).log10()
        floor = log.amax(dim=(1, 2), keepdim=True) - 8
        return ((torch.maximum(log, floor) + 4) / 4).mT
