"""A captioner's bundle opened: its graphs, how it wants its pictures, and what its texts begin and end with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.model import Model
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.image.pixels import Framing, Picture, PictureSource, read_picture
from heedful.runtime.text.tokens import TextTokens


class CaptionModel(Model):
    """What one bundle knows of pictures, beside its graphs."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__(sessions)
        image = self.bundle.manifest["image"]
        self.tokens = TextTokens(self.bundle)
        resize = image["framing"]["resize"]
        self.framing = Framing(**image["framing"] | {"resize": resize if isinstance(resize, int) else tuple(resize)})
        self.rows, self.columns = image["grid"]
        self.extra_tokens: int = image["extra_tokens"]
        self.start: list[int] = image["start"]
        self.end: int = image["end"]
        self.search: dict[str, Any] = image["search"]

    def read(self, source: PictureSource, *, keep_upright: bool = False) -> Picture:
        """The picture as the model reads it. Raises InputError for one that cannot be read."""
        return read_picture(source, self.framing, keep_upright=keep_upright)

    def encode(self, decoder: Decoder, pixels: Mapping[int, NDArray[np.uint8]]) -> None:
        """Write what the decoder attends to for each row's `pixels` (height, width, 3).

        One picture at a time, so that none depends on the others.
        """
        for row, picture in pixels.items():
            binding = self.encoder.io_binding()
            binding.bind_cpu_input("pixels", picture[None])
            decoder.buffers.bind_memory(binding, row, output=True)
            self.encoder.run_with_iobinding(binding)

    def heatmaps(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Attention (heads, n, frames) of n tokens -> (n, rows, columns): the mean of the heads, to the image only."""
        mean: NDArray[np.float32] = weights.mean(0)[:, self.extra_tokens :]
        return mean.reshape(-1, self.rows, self.columns)
