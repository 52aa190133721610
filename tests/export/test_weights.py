"""Whisper checkpoints: a model of transformers, stored by it and in CTranslate2's format, and what is read of both."""

import copy
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

from heedful.export.checkpoint import Checkpoint, open_checkpoint
from heedful.export.weights import load_weights
from heedful.export.whisper import describe, load, read_config, recognises
from heedful.export.whisper_names import NAMES
from heedful.models.filterbank import mel_filterbank
from heedful.models.whisper import Whisper, WhisperConfig
from heedful.runtime.errors import CheckpointError

hf: Any = transformers
Tensors = dict[str, Tensor]

SIZES: dict[str, Any] = {
    "vocab_size": 120, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 56, "num_mel_bins": 80,
    "max_source_positions": 50, "max_target_positions": 24, "pad_token_id": 3, "bos_token_id": 3, "eos_token_id": 3,
    "decoder_start_token_id": 4,
}  # fmt: skip
# as the converter of CTranslate2 4.8.5 writes them
FLAGS = {
    "activation": 3, "alibi": 0, "alibi_use_positive_positions": 0, "pre_norm": 1, "scale_alibi": 0,
    "scale_embeddings": 0, "start_from_zero_embedding": 0,
}  # fmt: skip


def write_ctranslate2(path: Path, variables: dict[str, Any], aliases: dict[str, str]) -> None:
    """The format's version 6: names, shapes and bytes one after the other, then the aliases."""
    kinds = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    parts = [struct.pack("<I", 6), string("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, value in variables.items():
        array = np.asarray(value)
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        parts += [string(name), shape, struct.pack("<BI", kinds[array.dtype.name], array.nbytes), array.tobytes()]
    parts += [struct.pack("<I", len(aliases)), *(string(alias) + string(name) for alias, name in aliases.items())]
    path.write_bytes(b"".join(parts))


def converted(state: Tensors) -> dict[str, Any]:
    """The variables that CTranslate2's converter makes of transformers' tensors: joint projections, zero key biases."""

    def linear(target: str, *sources: str) -> Iterator[tuple[str, Any]]:
        weights = [state[f"{source}.weight"] for source in sources]
        biases = [state.get(f"{source}.bias", torch.zeros(len(w))) for source, w in zip(sources, weights, strict=True)]
        yield f"{target}/weight", torch.cat(weights).numpy()
        yield f"{target}/bias", torch.cat(biases).numpy()

    def norm(target: str, source: str) -> Iterator[tuple[str, Any]]:
        yield f"{target}/layer_norm/gamma", state[f"{source}.weight"].numpy()
        yield f"{target}/layer_norm/beta", state[f"{source}.bias"].numpy()

    def side(name: str, layers: int, heads: int) -> Iterator[tuple[str, Any]]:
        yield f"{name}/num_heads", np.int16(heads)
        yield f"{name}/position_encodings/encodings", state[f"model.{name}.embed_positions.weight"].numpy()
        yield from norm(name, f"model.{name}.layer_norm")
        for i in range(layers):
            layer, source = f"{name}/layer_{i}", f"model.{name}.layers.{i}"
            yield from norm(f"{layer}/self_attention", f"{source}.self_attn_layer_norm")
            yield from linear(f"{layer}/self_attention/linear_0", *(f"{source}.self_attn.{p}_proj" for p in "qkv"))
            yield from linear(f"{layer}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            yield from norm(f"{layer}/ffn", f"{source}.final_layer_norm")
            yield from linear(f"{layer}/ffn/linear_0", f"{source}.fc1")
            yield from linear(f"{layer}/ffn/linear_1", f"{source}.fc2")
            if name == "decoder":
                yield from norm(f"{layer}/attention", f"{source}.encoder_attn_layer_norm")
                yield from linear(f"{layer}/attention/linear_0", f"{source}.encoder_attn.q_proj")
                yield from linear(f"{layer}/attention/linear_1", *(f"{source}.encoder_attn.{p}_proj" for p in "kv"))
                yield from linear(f"{layer}/attention/linear_2", f"{source}.encoder_attn.out_proj")

    variables = dict(side("encoder", SIZES["encoder_layers"], SIZES["encoder_attention_heads"]))
    variables |= side("decoder", SIZES["decoder_layers"], SIZES["decoder_attention_heads"])
    variables |= linear("encoder/conv1", "model.encoder.conv1")
    variables |= linear("encoder/conv2", "model.encoder.conv2")
    variables["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"].numpy()
    variables |= {f"decoder/{name}": np.int8(value) for name, value in FLAGS.items()}
    return variables | {"decoder/alignment_heads": np.int16(1), "decoder/alignment_layer": np.int16(-1)}


@pytest.fixture(scope="module")
def theirs() -> Any:
    mel_filterbank(201, 80, 16_000)  # transformers imports torchaudio, which loads everywhere only after this
    torch.manual_seed(0)
    theirs = hf.WhisperForConditionalGeneration(hf.WhisperConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    stated = {"alignment_heads": [[0, 1]], "suppress_tokens": [7, 5, -1], "begin_suppress_tokens": [9]}
    for name, value in stated.items():
        setattr(theirs.generation_config, name, value)
    return theirs


@pytest.fixture(scope="module", params=["float32", "float16"])
def folders(
    theirs: Any,
    whisper_tokenizer: Callable[..., Tokenizer],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The model in both formats, its weights in either precision."""
    model = copy.deepcopy(theirs).to(getattr(torch, request.param))
    root = tmp_path_factory.mktemp(request.param)
    folders = {name: root / name for name in ("huggingface", "ctranslate2")}
    model.save_pretrained(folders["huggingface"])
    folders["ctranslate2"].mkdir()
    alias = {"decoder/projection/weight": "decoder/embeddings/weight"}
    write_ctranslate2(folders["ctranslate2"] / "model.bin", converted(model.state_dict()), alias)
    config = {"alignment_heads": [[0, 1]], "suppress_ids": [5, 7], "suppress_ids_begin": [9]}
    (folders["ctranslate2"] / "config.json").write_text(json.dumps(config))
    for folder in folders.values():
        whisper_tokenizer(100, ["en", "de"]).save(str(folder / "tokenizer.json"))
    return folders


def test_both_formats_give_the_same_model(theirs: Any, folders: dict[str, Path]) -> None:
    first, second = (open_checkpoint(folders[name]) for name in ("huggingface", "ctranslate2"))
    assert (first.format, second.format) == ("huggingface", "ctranslate2")
    assert recognises(first)
    assert recognises(second)
    assert read_config(first) == read_config(second)
    one, other = load(first), load(second)
    assert not one.training
    assert [name for name, _ in one.named_parameters()] == [name for name, _ in other.named_parameters()]
    for name, parameter in one.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, other.get_parameter(name)), name
    assert sum(map(torch.numel, one.parameters())) == sum(map(torch.numel, theirs.parameters())) + joint_key_biases()


@pytest.mark.parametrize("name", ["huggingface", "ctranslate2"])
def test_an_output_that_is_not_the_embedding_is_refused(theirs: Any, tmp_path: Path, name: str) -> None:
    """transformers makes the logits with it, though published Whispers have it once."""
    untied = copy.deepcopy(theirs)
    own = torch.nn.Parameter(torch.randn_like(untied.proj_out.weight))
    untied.proj_out.weight, untied.config.tie_word_embeddings = own, False
    if name == "huggingface":
        untied.save_pretrained(tmp_path)
        assert torch.equal(type(untied).from_pretrained(tmp_path).proj_out.weight, own)
    else:
        variables = converted(untied.state_dict()) | {"decoder/projection/weight": own.detach().numpy()}
        write_ctranslate2(tmp_path / "model.bin", variables, {})
    with pytest.raises(CheckpointError, match=r"proj\w+.weight is not .*embed"):
        load(open_checkpoint(tmp_path))


def joint_key_biases() -> int:
    """Whisper's keys have no bias; in a joint projection theirs is zero."""
    attentions = SIZES["encoder_layers"] + 2 * SIZES["decoder_layers"]
    return int(attentions * SIZES["d_model"])


def test_joint_projections_are_query_key_and_value_one_below_the_other(theirs: Any, ours: Whisper) -> None:
    load_weights(ours, theirs.state_dict(), NAMES["huggingface"])
    attention = theirs.model.encoder.layers[1].self_attn
    fused = ours.get_submodule("encoder.layers.1.attention.query_key_value")
    parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert torch.equal(fused.get_parameter("weight"), torch.cat(parts))
    biases = [attention.q_proj.bias, torch.zeros(SIZES["d_model"]), attention.v_proj.bias]
    assert torch.equal(fused.get_parameter("bias"), torch.cat(biases))


def made_up(config: dict[str, Any], generation: dict[str, Any] | None = None, **changed: Any) -> Checkpoint:
    plain = Checkpoint(Path(), "made up", "huggingface", config, generation or {}, {}, {}, Path("tokenizer.json"), None)
    return replace(plain, **changed)


def from_ctranslate2(variables: dict[str, Any]) -> Checkpoint:
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in variables.items()}
    return made_up({}, format="ctranslate2", tensors=tensors)


@pytest.fixture(scope="module")
def ours() -> Whisper:
    """A model to load weights into, whatever it holds."""
    return Whisper(read_config(made_up(SIZES)))


@pytest.fixture(scope="module")
def state(theirs: Any) -> Tensors:
    tensors: Tensors = theirs.state_dict()
    del tensors["proj_out.weight"]  # the token embedding again
    return tensors


def is_one_of_several_biases(name: str) -> bool:
    """Whether its joint projection is left with another bias: keys have none, and a memory is keys and values."""
    return name.endswith(("self_attn.q_proj.bias", "self_attn.v_proj.bias"))


def test_any_tensor_less_is_an_error(ours: Whisper, state: Tensors) -> None:
    for name in state:
        if not is_one_of_several_biases(name):
            with pytest.raises(CheckpointError, match="the checkpoint lacks"):
                load_weights(ours, {key: tensor for key, tensor in state.items() if key != name}, NAMES["huggingface"])


def test_a_bias_less_in_a_joint_projection_is_zero(ours: Whisper, state: Tensors) -> None:
    width = SIZES["d_model"]
    lacking = {
        key: tensor for key, tensor in state.items() if not key.endswith("decoder.layers.0.self_attn.q_proj.bias")
    }
    assert len(lacking) == len(state) - 1
    load_weights(ours, lacking, NAMES["huggingface"])
    bias = ours.get_parameter("decoder.layers.0.attention.query_key_value.bias")
    assert torch.equal(bias[: 2 * width], torch.zeros(2 * width))
    assert torch.equal(bias[2 * width :], state["model.decoder.layers.0.self_attn.v_proj.bias"])


@pytest.mark.parametrize("dim", [0, 1])
def test_a_tensor_of_another_shape_is_an_error_that_names_it(ours: Whisper, state: Tensors, dim: int) -> None:
    for name, tensor in state.items():
        if tensor.ndim > dim:
            longer = torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim)
            with pytest.raises(CheckpointError, match=f"{re.escape(name)}.*shape"):
                load_weights(ours, state | {name: longer}, NAMES["huggingface"])


@pytest.mark.parametrize(
    "name", ["model.decoder.layers.0.adapter.weight", "model.decoder.layers.1.fc1.weight", "extra"]
)
def test_a_tensor_too_many_is_an_error_that_names_it(ours: Whisper, state: Tensors, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"no place for 1 tensors.*{re.escape(name)}"):
        load_weights(ours, state | {name: torch.ones(2, 2)}, NAMES["huggingface"])


CHANGES = {
    "fewer layers": {"decoder_layers": 0},
    "more layers": {"encoder_layers": 3},
    "wider": {"d_model": 64},
    "more words": {"vocab_size": 121},
    "more mels": {"num_mel_bins": 128},
    "heads that do not divide the width": {"decoder_attention_heads": 5},
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_a_configuration_of_another_model(state: Tensors, changed: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match=r"lacks|shape|no place"):
        load(made_up(SIZES | changed, tensors=state))


# As published in config.json of openai/whisper-large-v3 and of distil-whisper/distil-small.en.
LARGE_V3 = {
    "vocab_size": 51866, "d_model": 1280, "encoder_layers": 32, "decoder_layers": 32, "encoder_attention_heads": 20,
    "decoder_attention_heads": 20, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120, "num_mel_bins": 128,
    "max_source_positions": 1500, "max_target_positions": 448,
}  # fmt: skip
DISTIL_SMALL_EN = {
    "vocab_size": 51864, "d_model": 768, "encoder_layers": 12, "decoder_layers": 4, "encoder_attention_heads": 12,
    "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "num_mel_bins": 80,
    "max_source_positions": 1500, "max_target_positions": 448,
}  # fmt: skip


def test_sizes_are_read_from_the_configuration() -> None:
    large = WhisperConfig(51866, 1280, 32, 32, 20, 20, 5120, 5120, mels=128)
    assert read_config(made_up(LARGE_V3)) == large
    assert large.samples == 30 * 16_000
    distil = WhisperConfig(51864, 768, 12, 4, 12, 12, 3072, 3072)
    assert read_config(made_up(DISTIL_SMALL_EN | {"activation_function": "gelu", "scale_embedding": False})) == distil


@pytest.mark.parametrize("lacking", LARGE_V3)
def test_a_configuration_that_lacks_a_size(lacking: str) -> None:
    with pytest.raises(CheckpointError, match=rf"made up: config\.json lacks '{lacking}'"):
        read_config(made_up({name: size for name, size in LARGE_V3.items() if name != lacking}))


@pytest.mark.parametrize("variant", [{"activation_function": "relu"}, {"scale_embedding": True}])
def test_a_configuration_of_a_variant(variant: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="variant"):
        read_config(made_up(LARGE_V3 | variant))


@pytest.mark.parametrize(
    "lacking", ["decoder/num_heads", "encoder/num_heads", "encoder/position_encodings/encodings",
                "decoder/layer_0/ffn/linear_0/weight"]
)  # fmt: skip
def test_a_ctranslate2_model_that_lacks_what_tells_its_sizes(theirs: Any, lacking: str) -> None:
    whole = from_ctranslate2(converted(theirs.state_dict()))
    assert read_config(whole).decoder_layers == 1
    del whole.tensors[lacking]
    with pytest.raises(CheckpointError, match=lacking):
        load(whole)


@pytest.mark.parametrize("flag", ["activation", "alibi", "pre_norm", "scale_embeddings", "start_from_zero_embedding"])
def test_a_ctranslate2_model_of_another_architecture(theirs: Any, flag: str) -> None:
    other = converted(theirs.state_dict()) | {f"decoder/{flag}": np.int8(1 - FLAGS[flag])}
    with pytest.raises(CheckpointError, match=rf"states decoder/{flag} = .*another architecture"):
        load(from_ctranslate2(other))


def test_only_whisper_is_recognised() -> None:
    assert not recognises(made_up({"model_type": "marian"}))
    assert not recognises(made_up({}))
    assert not recognises(
        made_up({"model_type": "whisper"}, format="ctranslate2", tensors={"encoder/x": torch.ones(1)})
    )


def test_both_formats_are_described_alike(folders: dict[str, Path]) -> None:
    described = {}
    for name, folder in folders.items():
        checkpoint = open_checkpoint(folder)
        words = Tokenizer.from_file(str(checkpoint.tokenizer))
        # a vocabulary of 120 says nothing: what generation_config.json states goes first
        stated = replace(checkpoint, generation={"is_multilingual": True} | checkpoint.generation)
        described[name] = describe(stated, load(checkpoint), {"tokenizer.json": words})
    assert described["huggingface"] == described["ctranslate2"]
    assert described["huggingface"] == {
        "audio": {"sample_rate": 16_000, "samples": 50 * 320, "frame": 0.02},
        "tokens": {
            "end": 100, "start": 101, "languages": {"en": 102, "de": 103}, "translate": 104, "transcribe": 105,
            "language_model": 106, "previous": 107, "no_speech": 108, "no_timestamps": 109, "first_timestamp": 110,
        },
        "suppress": [5, 7, 101, 104, 105, 106, 107, 108],
        "suppress_first": [9, 100],
        "alignment_heads": [(0, 1)],
    }  # fmt: skip


@pytest.mark.network
def test_whisper_tiny_en(tiny_en_checkpoint: Path) -> None:
    # the published count is 37,184,256, the encoder's positions and the zero biases of 12 attentions' keys left out
    count = sum(map(torch.numel, load(open_checkpoint(tiny_en_checkpoint)).parameters()))
    assert count == 37_184_256 + 1500 * 384 + 12 * 384
