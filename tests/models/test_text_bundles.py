"""What checkpoints of text models may hold and say, and what a bundle makes of it: tensors, errors, rounding."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from torch.testing import assert_close

from heedful.export.bundle import export
from heedful.export.checkpoint import open_checkpoint
from heedful.export.families import find_family
from heedful.models.seq2seq import Seq2Seq
from heedful.runtime.bundle import open_bundle
from heedful.runtime.engine.decoder import Feed
from heedful.runtime.engine.device import choose_device
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.errors import CheckpointError
from heedful.runtime.text.model import TextModel

hf: Any = transformers

BART = {
    "vocab_size": 90, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "scale_embedding": True, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {
    "vocab_size": 90, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0
}  # fmt: skip
TWO = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 60}
MODELS: dict[str, Callable[[], Any]] = {
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)),
    "mbart": lambda: hf.MBartForConditionalGeneration(hf.MBartConfig(**BART)),
    "pegasus": lambda: hf.PegasusForConditionalGeneration(hf.PegasusConfig(**BART)),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**BART)),
    "marian, two vocabularies": lambda: hf.MarianMTModel(hf.MarianConfig(**BART | TWO)),
    "m2m_100": lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**BART)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
}


@torch.no_grad()
def written(name: str, folder: Path) -> Any:
    """A model of random weights, whose checkpoint is in `folder`."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for key, parameter in model.named_parameters():
        if "embed_positions" not in key or name in {"bart", "mbart"}:  # in others they are computed
            parameter.normal_(0, 0.2)
        if "norm" in key and key.endswith("weight"):
            parameter += 1
    model.save_pretrained(folder)
    return model


def opened(folder: Path) -> Seq2Seq:
    checkpoint = open_checkpoint(folder)
    model: Seq2Seq = find_family(checkpoint).load(checkpoint)
    return model.requires_grad_(False)


SOURCE, TARGET = (torch.randint(3, 60, (2, n), generator=torch.Generator().manual_seed(n)) for n in (9, 7))


def check_logits(theirs: Any, ours: Seq2Seq) -> None:
    with torch.no_grad():
        expected = theirs(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    assert expected.std() > 0.1
    assert_close(ours(SOURCE, torch.tensor([9, 9]), TARGET), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_one_tensor_under_the_name_that_safetensors_keeps(name: str, tmp_path: Path) -> None:
    """Of several names of the embedding that is the first: most often the output's."""
    model = written(name, tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    kept = [key for key in load_file(tmp_path / "model.safetensors") if key.startswith(("lm_head", "decoder.embed"))]
    assert kept == ["decoder.embed_tokens.weight" if name == "t5" else "lm_head.weight"]
    check_logits(model, opened(tmp_path))


def without_embedding(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(("shared.weight", "tokens.weight"))}
    save_file(kept | {"lm_head.weight": torch.ones(90, 32)}, folder / "model.safetensors")


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_an_output_of_its_own_is_not_the_embedding(name: str, tmp_path: Path) -> None:
    written(name, tmp_path)
    without_embedding(tmp_path)
    assert torch.equal(opened(tmp_path).decoder.tokens.weight, torch.ones(90, 32))
    edit(tmp_path / "config.json", "tie_word_embeddings", False)
    with pytest.raises(CheckpointError, match=r"the checkpoint lacks \w+\.tokens\.weight"):
        opened(tmp_path)


def edit(path: Path, key: str, value: Any = None) -> None:
    """Sets what the JSON file `path` says under `key`; without a `value` it says nothing there."""
    said = {name: each for name, each in json.loads(path.read_text()).items() if name != key}
    path.write_text(json.dumps(said if value is None else said | {key: value}))


LACKING = [
    *[
        (name, key)
        for name in ("bart", "marian", "pegasus", "t5")
        for key in ("eos_token_id", "decoder_start_token_id")
    ],
    *[(name, "eos_token_id") for name in ("mbart", "m2m_100")],
    ("bart", "bos_token_id"),
]


@pytest.mark.parametrize("null", [False, True], ids=["missing", "null"])
@pytest.mark.parametrize(("name", "key"), LACKING)
def test_a_token_that_no_configuration_states_is_named(name: str, key: str, null: bool, tmp_path: Path) -> None:
    written(name, tmp_path)
    for file in ("config.json", "generation_config.json"):
        edit(tmp_path / file, key)
        if null:
            said = json.loads((tmp_path / file).read_text())
            (tmp_path / file).write_text(json.dumps(said | {key: None}))
    checkpoint = open_checkpoint(tmp_path)
    family = find_family(checkpoint)
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name}: config\.json lacks '{key}'"):
        family.describe(checkpoint, family.load(checkpoint), {})


@dataclass(frozen=True)
class Rounded:
    """An mBART in transformers and its int8 bundle, opened."""

    theirs: Any
    bundle: TextModel


@pytest.fixture(scope="module")
def mbart(tmp_path_factory: pytest.TempPathFactory) -> Rounded:
    folder, pieces = tmp_path_factory.mktemp("mbart"), io.BytesIO()
    lines = ["the rain fell on the old town all day", "a cat sat on a mat", "we read books in the evening by the fire"]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 4), model_writer=pieces, minloglevel=2, vocab_size=48, hard_vocab_limit=False,
        unk_id=0, bos_id=1, eos_id=2,
    )  # fmt: skip
    theirs = written("mbart", folder)
    with torch.no_grad():  # channels as unlike as those of trained models
        theirs.model.shared.weight[:, ::3] += 0.5
        theirs.model.decoder.layer_norm.weight[:8] *= 10
    theirs.save_pretrained(folder)
    (folder / "sentencepiece.bpe.model").write_bytes(pieces.getvalue())
    bundle = open_bundle(export(folder, folder / "bundle", "int8"))
    return Rounded(theirs, TextModel(Sessions(bundle, choose_device("cpu"), 1)))


def test_an_encoder_that_shares_a_smoothed_embedding_reads_what_it_should(mbart: Rounded) -> None:
    """Rounding costs some hundredths of the logits; embeddings of another size would cost all of them."""
    decoder = mbart.bundle.decoder(2)
    mbart.bundle.encode(decoder, dict(enumerate(SOURCE.tolist())))
    mask = np.tri(7, dtype=np.bool_)
    feeds = {row: Feed(tokens, range(7), 0, mask, range(7)) for row, tokens in enumerate(TARGET.tolist())}
    logits = [scores.logits for scores in decoder.step(feeds).values()]
    with torch.no_grad():
        expected = mbart.theirs(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    found, expected = (centred(each) for each in (torch.tensor(np.stack(logits)), expected))
    assert (found - expected).norm() < 0.15 * expected.norm()


def centred(logits: Tensor) -> Tensor:
    """Less what all tokens have in common, on which no probability depends."""
    return logits - logits.mean(-1, keepdim=True)
