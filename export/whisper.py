"""The Whisper family: its sizes, and what the runtime must know of it."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, pre_tokenizers
from torch import Tensor

from heedful.export.checkpoint import Checkpoint
from heedful.export.family import Family, Subject
from heedful.export.graphs import Graph, Reading, build_graphs
from heedful.export.plan import SPEECH
from heedful.export.tied import is_tied
from heedful.export.timestamps import rank_speech
from heedful.export.weights import load_weights
from heedful.export.whisper_names import MATRICES, NAMES
from heedful.models.whisper import Whisper, WhisperConfig
from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.device import choose_device
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.errors import CheckpointError
from heedful.runtime.speech.audio import SAMPLE_RATE, read_audio
from heedful.runtime.speech.model import VOCABULARY, SpeechModel

FIXTURE = Path(__file__).with_name("fixture.flac")
_logger = logging.getLogger("heedful")

# CTranslate2's flags as every Whisper has them; activation 3 is the exact GELU, and what refines ALiBi matters with it
_FLAGS = {"pre_norm": 1, "activation": 3, "alibi": 0, "scale_embeddings": 0, "start_from_zero_embedding": 0}


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether `checkpoint` is a Whisper model."""
    if checkpoint.format == "huggingface":
        return checkpoint.config.get("model_type") == "whisper"
    return "encoder/conv1/weight" in checkpoint.tensors and "decoder/embeddings/weight" in checkpoint.tensors


def read_config(checkpoint: Checkpoint) -> WhisperConfig:
    """Sizes from config.json, or, in CTranslate2's format, from the shapes of the tensors."""
    if checkpoint.format == "huggingface":
        c = checkpoint.config
        if c.get("activation_function", "gelu") != "gelu" or c.get("scale_embedding"):
            raise CheckpointError(f"{checkpoint.source}: config.json asks for a variant that no published Whisper has")
        try:
            return WhisperConfig(
                vocabulary=c["vocab_size"],
                width=c["d_model"],
                encoder_layers=c["encoder_layers"],
                decoder_layers=c["decoder_layers"],
                encoder_heads=c["encoder_attention_heads"],
                decoder_heads=c["decoder_attention_heads"],
                encoder_inner=c["encoder_ffn_dim"],
                decoder_inner=c["decoder_ffn_dim"],
                mels=c["num_mel_bins"],
                audio_positions=c["max_source_positions"],
                text_positions=c["max_target_positions"],
            )
        except KeyError as error:
            raise CheckpointError(f"{checkpoint.source}: config.json lacks {error}") from error
    _check_flags(checkpoint)
    try:
        return _config_from_shapes(checkpoint.tensors)
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.source}: model.bin lacks {error}: is it whole?") from error


def _check_flags(checkpoint: Checkpoint) -> None:
    for name, tensor in checkpoint.tensors.items():
        wanted = _FLAGS.get(name.removeprefix("encoder/").removeprefix("decoder/"))
        if wanted is not None and tensor.flatten().tolist() != [wanted]:
            raise CheckpointError(
                f"{checkpoint.source}: model.bin states {name} = {tensor.tolist()}, in every Whisper {wanted}: "
                "it is of another architecture; convert a Whisper model"
            )


def _config_from_shapes(tensors: dict[str, Tensor]) -> WhisperConfig:
    layers = {
        side: len({name.split("/")[1] for name in tensors if name.startswith(f"{side}/layer_")} - {"layer_norm"})
        for side in ("encoder", "decoder")
    }
    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    return WhisperConfig(
        vocabulary=vocabulary,
        width=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_heads=int(tensors["encoder/num_heads"]),
        decoder_heads=int(tensors["decoder/num_heads"]),
        encoder_inner=tensors["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_inner=tensors["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        mels=tensors["encoder/conv1/weight"].shape[1],
        audio_positions=tensors["encoder/position_encodings/encodings"].shape[0],
        text_positions=tensors["decoder/position_encodings/encodings"].shape[0],
    )


def load(checkpoint: Checkpoint) -> Whisper:
    """The model with the weights of `checkpoint`, float32."""
    model = Whisper(read_config(checkpoint))
    output, embedding = MATRICES[checkpoint.format]
    if not is_tied(checkpoint.tensors, output, embedding):
        raise CheckpointError(
            f"{checkpoint.source}: {output} is not {embedding}, while every published Whisper makes its logits with "
            "its embedding; give a checkpoint that was trained so"
        )
    load_weights(model, checkpoint.tensors, NAMES[checkpoint.format])
    return model.eval()


def alignment_heads(checkpoint: Checkpoint, config: WhisperConfig) -> list[tuple[int, int]]:
    """(layer, head) of the cross-attention heads that follow the audio: those the checkpoint names, else all heads of
    the upper half of the decoder.
    """
    named = checkpoint.generation.get("alignment_heads") or checkpoint.config.get("alignment_heads") or []
    heads = [(int(layer), int(head)) for layer, head in named]
    upper = range(config.decoder_layers // 2, config.decoder_layers)
    default = [(layer, head) for layer in upper for head in range(config.decoder_heads)]
    if not all(0 <= layer < config.decoder_layers and 0 <= head < config.decoder_heads for layer, head in heads):
        # a distilled model may keep the configuration of its teacher
        _logger.warning(
            "alignment_heads names heads that a decoder of %d layers with %d heads does not have, so words are aligned "
            "by all heads of the upper half of its layers",
            config.decoder_layers,
            config.decoder_heads,
        )
        return default
    return heads or default


def special_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer, vocabulary: int) -> dict[str, Any]:
    """Ids of the tokens that steer Whisper. Timestamps follow `<|notimestamps|>`, 20 ms apart, whether or not the
    tokenizer lists them; a vocabulary of 51,865 or more is multilingual.
    """

    def identify(*names: str) -> int:
        found = next((i for name in names if (i := tokenizer.token_to_id(name)) is not None), None)
        if found is None:
            raise CheckpointError(f"{checkpoint.tokenizer} has no token {names[0]}: it is not Whisper's tokenizer")
        return found

    start, translate = identify("<|startoftranscript|>"), identify("<|translate|>")
    languages = {}
    for token in range(start + 1, translate):
        if match := re.fullmatch(r"<\|([a-z]{2,3})\|>", tokenizer.id_to_token(token) or ""):
            languages[match[1]] = token
    no_timestamps = identify("<|notimestamps|>")
    multilingual = checkpoint.generation.get("is_multilingual", vocabulary >= 51865)
    return {
        "end": identify("<|endoftext|>"),
        "start": start,
        "languages": languages if multilingual else {},
        "transcribe": identify("<|transcribe|>"),
        "translate": translate,
        "language_model": identify("<|startoflm|>"),
        "previous": identify("<|startofprev|>"),
        "no_speech": identify("<|nospeech|>", "<|nocaptions|>"),
        "no_timestamps": no_timestamps,
        "first_timestamp": no_timestamps + 1,
    }


def suppressed(checkpoint: Checkpoint, tokens: dict[str, Any]) -> dict[str, list[int]]:
    """Tokens never generated, and those never generated first: as the checkpoint says, and the special ones."""
    # an older checkpoint without generation_config.json says it in config.json, one of CTranslate2 in its own words
    stated = checkpoint.config | checkpoint.generation
    never = stated.get("suppress_tokens") or stated.get("suppress_ids") or []
    first = stated.get("begin_suppress_tokens") or stated.get("suppress_ids_begin") or []
    specials = [
        tokens[name] for name in ("start", "transcribe", "translate", "language_model", "previous", "no_speech")
    ]
    return {
        "suppress": sorted({*never, *specials} - {-1}),
        "suppress_first": sorted({*first, tokens["end"]}),
    }


def describe(checkpoint: Checkpoint, model: Whisper, tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
    """The part of bundle.json that only this family has."""
    config = model.config
    tokens = special_tokens(checkpoint, tokenizers["tokenizer.json"], config.vocabulary)
    return {
        "audio": {"sample_rate": 16_000, "samples": config.samples, "frame": 0.02},
        "tokens": tokens,
        **suppressed(checkpoint, tokens),
        "alignment_heads": alignment_heads(checkpoint, config),
    }


def reading(description: dict[str, Any]) -> Reading:
    """What the aligner shows; text tokens lie below the end token."""
    return Reading(description["alignment_heads"], description["tokens"]["end"])


def graphs(model: Whisper, description: dict[str, Any]) -> list[Graph]:
    """The graphs to trace."""
    waveform = {"waveform": torch.zeros(2, model.config.samples)}
    return build_graphs(model, waveform, {"waveform": {0: "b"}}, reading(description))


def tokenizers(checkpoint: Checkpoint) -> dict[str, Tokenizer]:
    """The tokenizer, with the decoder that its byte-level splitting calls for: some files leave it out."""
    path = checkpoint.tokenizer
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no tokenizer.json; make one with "
            f'`transformers.AutoTokenizer.from_pretrained("{path.parent}").save_pretrained("{path.parent}")`'
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if tokenizer.decoder is None and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer.decoder = decoders.ByteLevel()
    return {"tokenizer.json": tokenizer}


def vocabulary(tokenizers: dict[str, Tokenizer]) -> dict[str, str]:
    """The token of each id in a file of its own, which is read in a fraction of the time that the tokenizer takes."""
    tokenizer = tokenizers["tokenizer.json"]
    tokens = [tokenizer.id_to_token(i) or "" for i in range(max(tokenizer.get_vocab().values()) + 1)]
    return {VOCABULARY: json.dumps(tokens)}


def fixture_windows(count: int, samples: int) -> list[NDArray[np.float32]]:
    """`count` different waveforms (at most `samples`,): the fixture from a second further on each time."""
    speech = np.concatenate(list(read_audio(FIXTURE)))
    return [speech[i * SAMPLE_RATE :][:samples] for i in range(count)]


def subject(model: Whisper, bundle: Bundle) -> Subject:
    """The bundle beside its model, on eight seconds of speech."""
    opened = SpeechModel(Sessions(bundle, choose_device("cpu")))
    windows = fixture_windows(4, opened.samples)
    padded = np.stack([np.pad(window, (0, opened.samples - len(window))) for window in windows])
    with torch.no_grad():
        memory = model.encode(torch.from_numpy(padded))
    special = opened.tokens.special
    words = opened.tokens.encode("and so it goes on and on")
    return Subject(
        model=model,
        opened=opened,
        inputs=windows,
        memory=memory,
        lengths=None,
        prompts=[[*[special.previous, *words][: length - 1], special.start] for length in (1, 2, 6)],
        header=[special.start, special.no_timestamps],
        end=special.end,
        reading=reading(bundle.manifest["speech"]),
    )


FAMILY = Family(
    name="whisper",
    task="transcribe",
    section="speech",
    plan=SPEECH,
    recognises=recognises,
    load=load,
    tokenizers=tokenizers,
    describe=describe,
    graphs=graphs,
    subject=subject,
    texts=vocabulary,
    rank=rank_speech,
)
