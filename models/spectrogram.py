"""Log-mel spectrogram of Whisper as a module, so that it can be part of the exported graph."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heedful.models.filterbank import mel_filterbank


class LogMel(nn.Module):
    """Waveform to log-mel spectrogram: Hann window, power spectrum, Slaney mel filters, log10, clipped and scaled.

    The Fourier transform is the last step of a fast one (Cooley and Tukey 1965) over matrix products: of N samples, the
    even and the odd ones are transformed apart, with half of the frequencies each; of what comes out, the sum is
    frequency k and the difference has the size of frequency N/2 - k. At 400 samples a frame that is faster in
    onnxruntime than its STFT operator and runs on every execution provider. `frame` is a multiple of 4, `hop` even.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, mels: int, *, sample_rate: int = 16_000, frame: int = 400, hop: int = 160) -> None:
        super().__init__()
        self.frame, self.hop = frame, hop
        frequencies = frame // 2 + 1
        low = frame // 4 + 1
        samples = torch.arange(frame, dtype=torch.float64)
        # frame index times frequency is taken modulo the frame first: exact integers keep the basis exact
        angles = 2 * math.pi / frame * (samples[:, None] * torch.arange(low) % frame)
        window = torch.hann_window(frame, dtype=torch.float64)[:, None]
        basis = torch.cat([window * angles.cos(), window * angles.sin()], 1)
        self.register_buffer("basis", torch.stack([basis[::2], basis[1::2]]).float(), False)
        filters = mel_filterbank(frequencies, mels, sample_rate)
        # the frequency in the middle is in both halves
        self.register_buffer("filters", torch.cat([filters[:low], filters[low:].flip(0)]), False)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform (b, samples), float32 in [-1, 1], samples a multiple of the hop -> (b, mels, samples / hop).

        Frame t is centred on sample t * hop, the ends of the waveform mirrored.
        """
        count = waveform.shape[1] // self.hop
        half, spans = self.frame // 2, -(-self.frame // self.hop)
        # whole hops, of which a frame spans a few
        padded = F.pad(waveform, (half, (spans - 1) * self.hop - half), mode="reflect")
        blocks = padded.unflatten(1, (-1, 2)).mT.unflatten(2, (-1, self.hop // 2))  # (b, 2, blocks, hop / 2)
        widths = [min(self.hop, self.frame - i * self.hop) // 2 for i in range(spans)]
        frames = torch.cat([blocks[:, :, i : i + count, :width] for i, width in enumerate(widths)], dim=3)
        even, odd = (frames @ self.basis).unbind(1)
        power = torch.cat([self._power(even + odd), self._power(even - odd)[..., :-1]], dim=2)
        mel = power @ self.filters
        log = mel.clamp(min=1e-10).log10()
        floor = log.amax(dim=(1, 2), keepdim=True) - 8
        return ((torch.maximum(log, floor) + 4) / 4).mT

    @staticmethod
    def _power(spectrum: Tensor) -> Tensor:
        """Real and imaginary parts side by side (..., 2 k) -> sums of their squares (..., k)."""
        real, imaginary = spectrum.square().chunk(2, dim=-1)
        return real + imaginary
