"""What checkpoints of text models may hold and say, and what a bundle makes of it: tensors, errors, rounding."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentencepiece import SentencePieceTrainer
from torch import Tensor

from heedful.export.bundle import export
from heedful.runtime.bundle import open_bundle
from heedful.runtime.engine.decoder import Feed
from heedful.runtime.engine.device import choose_device
from heedful.runtime.engine.sessions import Sessions
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


SOURCE, TARGET = (torch.randint(3, 60, (2, n), generator=torch.Generator().manual_seed(n)) for n in (9, 7))


@dataclass(frozen=True)
class Rounded:
    """An mBART in transformers and its int8 bundle, opened."""

    theirs: Any
    bundle: TextModel


@pytest.fixture(scope="module")
def mbart(tmp_path_factory: pytest.TempPathFactory) -> Rounded:
    folder, pieces = tmp_path_factory.mktemp("mbart"), io.BytesIO()
    lines = ["the rain fell on the old town all day", "a cat sat on a mat", "we read books in the evening by the fire"]
    ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 4), model_writer=pieces, minloglevel=2, vocab_size=48, hard_vocab_limit=False,
        **ids,
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
