"""What checkpoints of captioners may say and what a bundle makes of it: errors, warnings, and how to search."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model

from heedful.export.checkpoint import open_checkpoint
from heedful.export.families import find_family
from heedful.export.generation import search
from heedful.export.image import draw
from heedful.runtime.errors import CheckpointError

hf: Any = transformers

VISION = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
BERT = {
    "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8,
    "max_position_embeddings": 128, "vocab_size": 20,
}  # fmt: skip
GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 128}
ENDS = {"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 0}


def paired(encoder: Any, decoder: Any) -> Any:
    return hf.VisionEncoderDecoderModel(
        hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder(**VISION), decoder)
    )


CROSSED = {"is_decoder": True, "add_cross_attention": True}
MODELS: dict[str, Callable[[], Any]] = {
    "blip": lambda: hf.BlipForConditionalGeneration(
        hf.BlipConfig(
            text_config=BERT | {"bos_token_id": 3, "sep_token_id": 4, "pad_token_id": 0}, vision_config=VISION
        )
    ),
    "git": lambda: hf.GitForCausalLM(hf.GitConfig(**BERT, **ENDS, vision_config=VISION)),
    "vit, bert": lambda: paired(hf.ViTConfig, hf.BertConfig(**BERT, **ENDS, **CROSSED)),
    "vit, gpt2": lambda: paired(hf.ViTConfig, hf.GPT2Config(**GPT2, **ENDS, **CROSSED)),
}
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}


def written(name: str, folder: Path) -> Path:
    """`folder`, with a checkpoint of random weights."""
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def edit(path: Path, *keys: str, value: Any = None) -> None:
    """Sets what the JSON file `path` says under `keys`; without a `value` it says nothing there."""
    said = json.loads(path.read_text())
    *above, last = keys
    place = said
    for key in above:
        place = place[key]
    if value is None:
        place.pop(last, None)
    else:
        place[last] = value
    path.write_text(json.dumps(said))


def described(folder: Path) -> dict[str, Any]:
    """What a bundle of the checkpoint would say of its pictures and captions."""
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint)
    found: dict[str, Any] = family.describe(checkpoint, family.load(checkpoint), {})
    return found


@pytest.mark.parametrize("name", MODELS)
def test_these_are_checkpoints(name: str, tmp_path: Path) -> None:
    """Else the errors below would show little."""
    found = described(written(name, tmp_path))
    assert (found["start"], found["end"]) == ([3], 4)
    assert (found["grid"], found["extra_tokens"]) == ((2, 2), 1)


LACKING = [
    ("blip", ("vision_config",), "vision_config"),
    ("blip", ("text_config",), "text_config"),
    ("git", ("vision_config",), "vision_config"),
    ("git", ("max_position_embeddings",), "max_position_embeddings"),
    ("git", ("eos_token_id",), "eos_token_id"),
    ("vit, bert", ("encoder",), "encoder"),
    ("vit, bert", ("decoder",), "decoder"),
    ("vit, bert", ("encoder", "hidden_size"), "hidden_size"),
    ("vit, bert", ("encoder", "image_size"), "image_size"),
    ("vit, bert", ("encoder", "patch_size"), "patch_size"),
    ("vit, bert", ("decoder", "vocab_size"), "vocab_size"),
    ("vit, bert", ("encoder", "model_type"), r"encoder '\?': known are vit, deit"),
    ("vit, gpt2", ("decoder", "n_head"), "n_head"),
    ("vit, gpt2", ("decoder", "activation_function"), "activation_function"),
]


@pytest.mark.parametrize(("name", "keys", "message"), LACKING, ids=[f"{name}: {keys[-1]}" for name, keys, _ in LACKING])
def test_what_a_configuration_lacks_is_named(name: str, keys: tuple[str, ...], message: str, tmp_path: Path) -> None:
    edit(written(name, tmp_path) / "config.json", *keys)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=message):
        described(tmp_path)


SIZES = [*VISION, "hidden_act"]
DEFAULTS = [
    *[("blip", "text_config", key) for key in (*BERT, "hidden_act")],
    *[(name, "vision_config", key) for name in ("blip", "git") for key in SIZES],
]


@pytest.mark.parametrize(("name", "part", "key"), DEFAULTS, ids=[" ".join(each) for each in DEFAULTS])
def test_a_size_that_is_the_default_may_be_left_out(name: str, part: str, key: str, tmp_path: Path) -> None:
    """As some versions of transformers leave it out; this one writes it."""
    wide = {"hidden_size": 24}  # which any number of heads here divides
    sizes = {"text_config": BERT | wide, "vision_config": VISION | wide}
    sizes[part].pop(key, None)
    if name == "blip":
        model = hf.BlipForConditionalGeneration(hf.BlipConfig(**sizes))
    else:
        model = hf.GitForCausalLM(hf.GitConfig(**sizes["text_config"], **ENDS, vision_config=sizes["vision_config"]))
    model.save_pretrained(tmp_path)
    side = model.config.vision_config.image_size
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"size": side}))
    checkpoint = open_checkpoint(tmp_path)
    stated = find_family(checkpoint).load(checkpoint).config
    edit(tmp_path / "config.json", part, key)
    checkpoint = open_checkpoint(tmp_path)
    assert key not in checkpoint.config[part]
    assert find_family(checkpoint).load(checkpoint).config == stated


def test_blip_has_tokens_of_its_own_where_the_configuration_says_none(tmp_path: Path) -> None:
    """Some versions of transformers write only what differs from the defaults."""
    config = written("blip", tmp_path) / "config.json"
    edit(config, "text_config", "bos_token_id")
    edit(config, "text_config", "sep_token_id")
    (tmp_path / "generation_config.json").unlink()
    read = hf.BlipConfig.from_pretrained(tmp_path).text_config
    found = described(tmp_path)
    assert (found["start"], found["end"]) == ([read.bos_token_id], read.sep_token_id)


@pytest.mark.parametrize(
    ("name", "keys", "value", "message"),
    [
        ("vit, bert", ("encoder", "model_type"), "swin", "encoder 'swin': known are vit, deit"),
        (
            "vit, bert",
            ("decoder", "model_type"),
            "roberta",
            "decoder 'roberta': known are blip, bert, git, gpt2",
        ),
        ("vit, bert", ("encoder", "num_channels"), 1, "no three channels"),
        ("vit, bert", ("encoder", "image_size"), [16, 24], "not square"),
        ("blip", ("vision_config", "patch_size"), [8, 4], "not square"),
        ("vit, bert", ("encoder", "image_size"), 24, "pictures of .16, 16., but the model reads .24, 24."),
        ("vit, bert", ("encoder", "hidden_act"), "mish", "the activation 'mish': known are gelu"),
        ("vit, bert", ("decoder", "position_embedding_type"), "relative_key", "relative positions in BERT"),
        ("vit, gpt2", ("decoder", "scale_attn_by_inverse_layer_idx"), True, "scaled by layer"),
        ("vit, gpt2", ("decoder", "scale_attn_weights"), False, "scaled by layer"),
        ("vit, gpt2", ("decoder", "n_layer"), 2, "the checkpoint lacks decoder.layers.1"),
        ("vit, bert", ("decoder", "num_hidden_layers"), 2, "no place for .* such as decoder.bert.encoder.layer.2"),
        ("vit, bert", ("decoder", "vocab_size"), 21, "has shape .20,.*, but the configuration asks for .21,"),
        ("git", ("model_type",), "gitt", "is of gitt; Heedful exports"),
    ],
)
def test_what_is_not_known_is_named(name: str, keys: tuple[str, ...], value: Any, message: str, tmp_path: Path) -> None:
    edit(written(name, tmp_path) / "config.json", *keys, value=value)
    with pytest.raises(CheckpointError, match=message):
        described(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    file = written("blip", tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["vision_model.embeddings.class_embedding"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"the checkpoint lacks encoder\.extra"):
        described(tmp_path)


def test_one_tensor_under_the_name_that_safetensors_keeps(tmp_path: Path) -> None:
    """Of the names of GPT-2's embedding that is the output's."""
    file = written("vit, gpt2", tmp_path) / "model.safetensors"
    save_model(hf.VisionEncoderDecoderModel.from_pretrained(tmp_path), str(tmp_path / "kept"))
    assert not any(name.endswith("wte.weight") for name in load_file(tmp_path / "kept"))
    tensors = load_file(file)
    tensors["decoder.lm_head.weight"] = tensors.pop("decoder.transformer.wte.weight")
    save_file(tensors, file, {"format": "pt"})
    read = hf.VisionEncoderDecoderModel.from_pretrained(tmp_path).decoder
    checkpoint = open_checkpoint(tmp_path)
    ours = find_family(checkpoint).load(checkpoint)
    assert ours.config.decoder.tied
    assert torch.equal(ours.decoder.tokens.weight, read.get_input_embeddings().weight)
    edit(tmp_path / "config.json", "decoder", "tie_word_embeddings", value=False)
    with pytest.raises(CheckpointError, match=r"the checkpoint lacks decoder\.tokens\.weight"):
        described(tmp_path)


@pytest.mark.parametrize("name", ["blip", "git", "vit, gpt2"])
def test_pickled_weights_are_not_opened(name: str, tmp_path: Path) -> None:
    file = written(name, tmp_path) / "model.safetensors"
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"are pickled \(pytorch_model\.bin\): a pickle can run code"):
        described(tmp_path)


@pytest.mark.parametrize(
    ("said", "longest"),
    [
        ({}, 64),
        ({"max_length": 20}, 20),
        ({"max_length": 500}, 128),
        ({"max_new_tokens": 30}, 31),
        ({"max_new_tokens": 100}, 101),
        ({"max_length": 20, "max_new_tokens": 30}, 31),
    ],
    ids=str,
)
def test_captions_are_as_long_as_the_checkpoint_lets_them(said: dict[str, int], longest: int, tmp_path: Path) -> None:
    """As in transformers `max_new_tokens` goes before `max_length`, which counts the start; there are 128 positions."""
    written("vit, bert", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert described(tmp_path)["search"]["max_length"] == longest


def test_the_start_and_the_end_are_the_first_that_is_stated(tmp_path: Path) -> None:
    """In generation_config.json, then at the top of config.json, then for the decoder."""
    config, generation = written("vit, bert", tmp_path) / "config.json", tmp_path / "generation_config.json"
    generation.write_text("{}")
    found = partial(described, tmp_path)
    assert (found()["start"], found()["end"]) == ([3], 4)
    edit(config, "eos_token_id", value=7)
    edit(config, "decoder", "decoder_start_token_id", value=8)
    assert (found()["start"], found()["end"]) == ([8], 7)
    generation.write_text(json.dumps({"eos_token_id": [9, 10], "decoder_start_token_id": 11}))
    assert (found()["start"], found()["end"]) == ([11], 9)


def test_heads_of_the_upper_half_are_shown(tmp_path: Path) -> None:
    assert described(written("vit, bert", tmp_path))["alignment_heads"] == [(1, 0), (1, 1), (2, 0), (2, 1)]


IGNORED = {
    "do_sample": True,
    "diversity_penalty": 0.5,
    "encoder_no_repeat_ngram_size": 2,
    "exponential_decay_length_penalty": [5, 1.1],
    "sequence_bias": [[[5], 2.0]],
    "penalty_alpha": 0.6,
    "guidance_scale": 2.0,
}


@pytest.mark.parametrize("name", IGNORED)
def test_settings_that_are_not_followed_are_said(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written("git", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({name: IGNORED[name]}))
    with caplog.at_level(logging.WARNING, "heedful"):
        described(tmp_path)
    said = f"the checkpoint asks for {name}={IGNORED[name]}, which is not followed"
    assert [record.getMessage() for record in caplog.records if record.name == "heedful"] == [said]


def test_settings_that_change_nothing_are_not_said(caplog: pytest.LogCaptureFixture) -> None:
    """Those that transformers writes for every model."""
    with caplog.at_level(logging.WARNING, "heedful"):
        search(hf.GenerationConfig().to_dict() | {"repetition_penalty": 1.0, "do_sample": False}, 1, 20)
        search(dict.fromkeys(IGNORED), 1, 20)
    assert not caplog.records


def test_the_check_of_an_export_draws_the_same_pictures_each_time() -> None:
    """Else an export would pass or fail by chance."""
    first, again = (np.asarray(draw("#86b6e0", "#3f7d3a", "#e8c14d")) for _ in range(2))
    np.testing.assert_array_equal(first, again)
