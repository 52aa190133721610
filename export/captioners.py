"""The families of captioners: BLIP, vision-encoder-decoder models (ViT-GPT2, TrOCR), GIT, and our own."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from heedful.export.checkpoint import Checkpoint
from heedful.export.generation import token
from heedful.export.image import ImageFamily
from heedful.export.parts import DECODERS, ENCODERS, Part
from heedful.export.pictures import Pictures, read_pictures
from heedful.export.tied import is_tied, with_embedding
from heedful.export.weights import NameTable, load_weights
from heedful.models.captioner import Captioner, CaptionerConfig
from heedful.models.efficientnet import ConvTransformerConfig
from heedful.models.text import StackConfig
from heedful.models.transformer import LayerConfig
from heedful.runtime.errors import CheckpointError

Json = Mapping[str, Any]

# tensors that are stored in another shape than ours
_SHAPES: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    # a convolution as wide as its stride is a linear map of each patch
    (r".*\.patch_embedding(s\.projection)?\.weight", lambda weight: weight.permute(0, 2, 3, 1).flatten(1)),
    (r".*\.(cls_token|distillation_token|class_embedding|position_embeddings?)", lambda x: x.reshape(-1, x.shape[-1])),
    # GPT-2 has its matrices the other way round
    (r".*\.transformer\.h\..*\.(c_attn|c_proj|c_fc|q_attn)\.weight", lambda weight: weight.T),
)


def prepared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` in our shapes, the embedding of BERT's first token type, which all tokens have, added to positions."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        for pattern, shape in _SHAPES:
            if re.fullmatch(pattern, name):
                found[name] = shape(tensor)
        if name.endswith("cls.predictions.decoder.bias"):
            # where both are there, this is the one that is used
            found[name.replace("decoder.bias", "bias")] = tensor
        if name.endswith("token_type_embeddings.weight"):
            positions = name.replace("token_type", "position")
            found[positions] = tensors[positions].float() + tensor[0].float()
    return found


@dataclass(frozen=True)
class Layout:
    """Where Hugging Face keeps the two stacks of a captioner: the prefixes of their names, their keys in config.json,
    and what kinds they are where the configuration does not say; the modules of the bridge between them; the class of
    image processor where no file names one; what the tokens that begin and end a caption are called; and the
    `defaults` of both configurations, which some versions of transformers leave out.
    """

    name: str
    encoder: str
    encoder_key: str
    decoder: str
    decoder_key: str | None
    kinds: tuple[str, str] | None = None
    bridge: tuple[str, ...] = ()
    processor: str = "ViT"
    start: str = "bos_token_id"
    end: str = "eos_token_id"
    defaults: tuple[Json, Json] = ({}, {})

    @property
    def family(self) -> ImageFamily:
        return ImageFamily(self.name, self.recognises, self.load, self.pictures, self.ends)

    def recognises(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.format == "huggingface" and checkpoint.config.get("model_type") == self.name

    def stacks(self, config: Json) -> tuple[Json, Json]:
        """What config.json says of the encoder and of the decoder."""
        encoder, decoder = config[self.encoder_key], config if self.decoder_key is None else config[self.decoder_key]
        return {**self.defaults[0], **encoder}, {**self.defaults[1], **decoder}

    def parts(self, config: Json) -> tuple[Part, Part]:
        kinds = self.kinds or tuple(stack.get("model_type", "?") for stack in self.stacks(config))
        for kind, known, side in zip(kinds, (ENCODERS, DECODERS), ("encoder", "decoder"), strict=True):
            if kind not in known:
                raise CheckpointError(f"config.json asks for the {side} {kind!r}: known are {', '.join(known)}")
        return ENCODERS[kinds[0]], DECODERS[kinds[1]]

    def load(self, checkpoint: Checkpoint) -> Captioner:
        try:
            parts = self.parts(checkpoint.config)
            _, below = self.stacks(checkpoint.config)
            tensors = with_embedding(prepared(checkpoint.tensors), below, *self.matrices(parts[1]))
            config = self.configure(checkpoint, parts, tensors)
        except KeyError as error:
            raise CheckpointError(f"{checkpoint.source}: config.json lacks {error}") from error
        model = Captioner(config)
        load_weights(model, tensors, self.names(parts))
        return model.eval()

    def configure(
        self, checkpoint: Checkpoint, parts: tuple[Part, Part], tensors: Mapping[str, Tensor]
    ) -> CaptionerConfig:
        above, below = self.stacks(checkpoint.config)
        bridged = bool(self.bridge) and f"{self.bridge[0]}.weight" in tensors
        encoder = parts[0].configure(above)
        width = None if bridged else encoder.width
        decoder = parts[1].configure(below, tied=is_tied(tensors, *self.matrices(parts[1])), memory_width=width)
        pictures = self.pictures(checkpoint)
        eps = above.get("layer_norm_eps", 1e-5) if len(self.bridge) > 1 else None
        return CaptionerConfig(encoder, decoder, pictures.mean, pictures.std, bridged, eps)

    def matrices(self, part: Part) -> tuple[str, str]:
        """The names of the matrix of logits and of the embedding."""
        output, embedding = (part.modules[name][0] for name in ("decoder.output", "decoder.tokens"))
        return f"{self.decoder}{output}.weight", f"{self.decoder}{embedding}.weight"

    def names(self, parts: tuple[Part, Part]) -> NameTable:
        modules: dict[str, list[str]] = {
            ours: [theirs] for ours, theirs in zip(("bridge", "bridge_norm"), self.bridge, strict=False)
        }
        parameters: dict[str, list[str]] = {}
        ignored: list[str] = [r"git\.img_temporal_embedding\..*"]
        for part, prefix in zip(parts, (self.encoder, self.decoder), strict=True):
            modules |= {ours: [prefix + name for name in theirs] for ours, theirs in part.modules.items()}
            parameters |= {ours: [prefix + name for name in theirs] for ours, theirs in part.parameters.items()}
            ignored += [re.escape(prefix) + pattern for pattern in part.ignored]
        return NameTable(modules, parameters, ignored, [*parts[0].optional, *parts[1].optional])

    def pictures(self, checkpoint: Checkpoint) -> Pictures:
        size = self.stacks(checkpoint.config)[0]["image_size"]
        return read_pictures(checkpoint, self.processor, (size, size))

    def ends(self, checkpoint: Checkpoint) -> tuple[Any, Any]:
        """The tokens that a caption begins and ends with: the first of the places that state one."""
        _, decoder = self.stacks(checkpoint.config)
        places = [checkpoint.generation, checkpoint.config, decoder] if self.kinds is None else [decoder]

        def find(*names: str) -> Any:
            for name in names:
                for place in places:
                    if place.get(name) is not None:
                        return place[name]
            raise CheckpointError(f"{checkpoint.source}: no configuration states {' or '.join(names)}")

        return find("decoder_start_token_id", self.start), find(self.end)


_BASE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu",
}  # fmt: skip
_BLIP_VISION = _BASE | {"image_size": 384, "patch_size": 16}
_BLIP_TEXT = _BASE | {
    "num_attention_heads": 8, "vocab_size": 30_524, "max_position_embeddings": 512,
    "bos_token_id": 30_522, "sep_token_id": 102,
}  # fmt: skip
_GIT_VISION = _BASE | {"image_size": 224, "patch_size": 16, "hidden_act": "quick_gelu"}
LAYOUTS = (
    Layout(
        "blip", "vision_model.", "vision_config", "text_decoder.", "text_config", ("blip", "blip"), processor="Blip",
        end="sep_token_id", defaults=(_BLIP_VISION, _BLIP_TEXT),
    ),
    Layout(
        "git", "git.image_encoder.vision_model.", "vision_config", "", None, ("clip", "git"),
        tuple(f"git.visual_projection.visual_projection.{i}" for i in range(2)), processor="CLIP",
        defaults=(_GIT_VISION, {}),
    ),
    Layout("vision-encoder-decoder", "encoder.", "encoder", "decoder.", "decoder", bridge=("enc_to_dec_proj",)),
)  # fmt: skip


def _own_pictures(checkpoint: Checkpoint) -> Pictures:
    return read_pictures(checkpoint, "ViT", (checkpoint.config["image_size"],) * 2)


def _own_config(checkpoint: Checkpoint) -> CaptionerConfig:
    config, side = checkpoint.config, (checkpoint.config["image_size"],) * 2
    pictures = _own_pictures(checkpoint)
    layer = LayerConfig(config["width"], config["heads"], config["inner"])
    decoder = StackConfig(
        config["vocab_size"],
        config["decoder_layers"],
        layer,
        "learned",
        config["max_position_embeddings"],
        final_norm=True,
        output_bias=True,
    )
    encoder = ConvTransformerConfig(side, config["encoder_layers"], layer)
    return CaptionerConfig(encoder, decoder, pictures.mean, pictures.std)


def _load_own(checkpoint: Checkpoint) -> Captioner:
    """Weights under the names of our own modules."""
    try:
        model = Captioner(_own_config(checkpoint))
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.source}: config.json lacks {error}") from error
    table = NameTable({}, {})
    keys = {table.numbers.sub("{}", name) for name, _ in model.named_parameters()}
    load_weights(model, checkpoint.tensors, NameTable({}, {key: key for key in keys}))
    return model.eval()


def _own_ends(checkpoint: Checkpoint) -> tuple[int, int]:
    try:
        return token(checkpoint.generation, "decoder_start_token_id"), token(checkpoint.generation, "eos_token_id")
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.source}: generation_config.json lacks {error}") from error


OWN = ImageFamily(
    "captioner",
    lambda checkpoint: checkpoint.format == "huggingface" and checkpoint.config.get("model_type") == "captioner",
    _load_own,
    _own_pictures,
    _own_ends,
)


def families() -> Iterator[ImageFamily]:
    """All of them."""
    yield OWN
    yield from (layout.family for layout in LAYOUTS)
