"""Everything about the recipe that was chosen, and the model it describes."""

from dataclasses import dataclass

from torch import nn

from heedful.models.captioner import Captioner, CaptionerConfig
from heedful.models.efficientnet import ConvTransformerConfig
from heedful.models.text import StackConfig
from heedful.models.transformer import LayerConfig


@dataclass(frozen=True)
class Stage:
    """Epochs of one kind. `rate` is the decoder's, `encoder_rate` that of the unfrozen end of the encoder; both warm up
    for so many steps and fall to the share `floor`. `rewarded`: captions are the model's own, not people's.
    """

    name: str
    epochs: int
    rate: float
    encoder_rate: float = 0.0
    warmup: int = 100
    floor: float = 0.01
    rewarded: bool = False


@dataclass(frozen=True)
class Settings:
    """Sizes of the model, what is done to the data, and how it is trained, rewarded and searched."""

    stages: tuple[Stage, ...] = (
        Stage("decoder", 8, 1e-3, warmup=150),
        Stage("encoder", 3, 3e-4, encoder_rate=2e-4),
        Stage("reward", 4, 1e-4, warmup=20, floor=0.1, rewarded=True),
    )
    seed: int = 0

    size: int = 224
    mean: float = 127 / 255
    std: float = 128 / 255
    width: int = 320
    heads: int = 5
    inner: int = 1280
    encoder_layers: int = 0
    decoder_layers: int = 3
    positions: int = 24
    least_count: int = 4

    longest: int = 20
    views: int = 4
    plain_views: int = 2  # the first of them, which are not cropped, for stages that leave the encoder as it is
    smallest_crop: float = 0.75

    batch: int = 64
    dropout: float = 0.2
    hidden_tokens: float = 0.1
    unknown_words: float = 0.05
    smoothing: float = 0.1
    decay: float = 0.05
    average: float = 0.99
    clip: float = 1.0

    samples: int = 5
    longest_sample: int = 16
    temperature: float = 0.7
    bleu_reward: float = 0.5

    beams: int = 3
    length_penalty: float = 0.5
    max_length: int = 22


def build(settings: Settings, vocabulary: int) -> Captioner:
    """The model, the weights of its Transformer drawn."""
    layer = LayerConfig(settings.width, settings.heads, settings.inner)
    encoder = ConvTransformerConfig((settings.size, settings.size), settings.encoder_layers, layer)
    decoder = StackConfig(
        vocabulary,
        settings.decoder_layers,
        layer,
        "learned",
        settings.positions,
        final_norm=True,
        output_bias=True,
    )
    model = Captioner(CaptionerConfig(encoder, decoder, (settings.mean,) * 3, (settings.std,) * 3))
    for module in (*model.decoder.modules(), model.encoder.projection, *model.encoder.layers.modules()):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
    nn.init.normal_(model.encoder.positions, std=0.05)
    return model
