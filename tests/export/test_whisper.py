"""What a Whisper checkpoint says beside its weights: special tokens, suppressed tokens, alignment heads."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models

from heedful.export.checkpoint import Checkpoint, open_checkpoint
from heedful.export.whisper import alignment_heads, describe, load, special_tokens, suppressed
from heedful.models.whisper import WhisperConfig
from heedful.runtime.errors import CheckpointError

hf: Any = transformers
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
           "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")  # fmt: skip
Tokenizers = Callable[..., Tokenizer]


def made_up(config: dict[str, Any], generation: dict[str, Any] | None = None) -> Checkpoint:
    return Checkpoint(Path(), "made up", "huggingface", config, generation or {}, {}, {}, Path("tokenizer.json"), None)


def test_suppressed_tokens_of_a_checkpoint_without_generation_config(whisper_tokenizer: Tokenizers) -> None:
    stated = hf.WhisperConfig(suppress_tokens=[7, 5, -1], begin_suppress_tokens=[9]).to_dict()
    tokens = special_tokens(made_up({}), whisper_tokenizer(100, ["en", "de"]), 51865)
    theirs = hf.GenerationConfig.from_model_config(hf.WhisperConfig(**stated))
    expected = suppressed(made_up({}, theirs.to_dict()), tokens)
    assert suppressed(made_up(stated), tokens) == expected
    assert (expected["suppress"][:2], expected["suppress_first"]) == ([5, 7], [9, 100])
    assert suppressed(made_up(stated, {"suppress_tokens": [6]}), tokens)["suppress"][0] == 6


# Published ids: of the vocabularies of 51,864 (English only), 51,865 (99 languages) and 51,866 (Cantonese added).
VOCABULARIES = {
    51864: {"end": 50256, "start": 50257, "translate": 50357, "transcribe": 50358, "language_model": 50359,
            "previous": 50360, "no_speech": 50361, "no_timestamps": 50362, "first_timestamp": 50363},
    51865: {"end": 50257, "start": 50258, "translate": 50358, "transcribe": 50359, "language_model": 50360,
            "previous": 50361, "no_speech": 50362, "no_timestamps": 50363, "first_timestamp": 50364},
    51866: {"end": 50257, "start": 50258, "translate": 50359, "transcribe": 50360, "language_model": 50361,
            "previous": 50362, "no_speech": 50363, "no_timestamps": 50364, "first_timestamp": 50365},
}  # fmt: skip


@pytest.mark.parametrize("no_speech", ["<|nospeech|>", "<|nocaptions|>"])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_special_tokens_of_the_published_vocabularies(
    vocabulary: int, no_speech: str, whisper_tokenizer: Tokenizers
) -> None:
    languages = list(hf.models.whisper.tokenization_whisper.LANGUAGES)[: 100 if vocabulary == 51866 else 99]
    words = whisper_tokenizer(50256 if vocabulary == 51864 else 50257, languages, no_speech)
    found = special_tokens(made_up({}), words, vocabulary)
    first = found["start"] + 1
    multilingual = vocabulary > 51864
    expected = {code: first + i for i, code in enumerate(languages)} if multilingual else {}
    assert found == VOCABULARIES[vocabulary] | {"languages": expected}


def test_what_the_checkpoint_says_of_its_languages_goes_first(whisper_tokenizer: Tokenizers) -> None:
    words = whisper_tokenizer(100, ["en", "de"])
    assert special_tokens(made_up({}, {"is_multilingual": False}), words, 51865)["languages"] == {}
    assert special_tokens(made_up({}, {"is_multilingual": True}), words, 120)["languages"] == {"en": 102, "de": 103}


@pytest.mark.parametrize("lacking", SPECIAL)
def test_a_tokenizer_of_something_else(lacking: str, whisper_tokenizer: Tokenizers) -> None:
    vocabulary = whisper_tokenizer(100, ["en"]).get_vocab()
    del vocabulary[lacking]
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json has no token {re.escape(lacking)}"):
        special_tokens(made_up({}), Tokenizer(models.WordLevel(vocabulary, "word0")), 51865)


def sizes(layers: int) -> WhisperConfig:
    return WhisperConfig(120, 32, 2, layers, 4, 2, 40, 56)


@pytest.mark.parametrize(("layers", "followed"), [(1, [0]), (2, [1]), (3, [1, 2]), (4, [2, 3])])
def test_without_named_alignment_heads_those_of_the_upper_layers(layers: int, followed: list[int]) -> None:
    expected = [(layer, head) for layer in followed for head in (0, 1)]
    assert alignment_heads(made_up({}), sizes(layers)) == expected
    assert alignment_heads(made_up({}, {"alignment_heads": None}), sizes(layers)) == expected


@pytest.mark.parametrize("head", [[2, 0], [0, 2], [-1, 0]])
def test_alignment_heads_that_the_model_does_not_have(head: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """A distilled model can name those of its teacher."""
    found = alignment_heads(made_up({}, {"alignment_heads": [[1, 1], head]}), sizes(2))
    assert found == alignment_heads(made_up({}), sizes(2)) == [(1, 0), (1, 1)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "alignment_heads names heads that a decoder of 2 layers with 2 heads does not have" in caplog.text


@pytest.mark.network
def test_whisper_tiny_en(tiny_en_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_en_checkpoint)
    description = describe(
        checkpoint, load(checkpoint), {"tokenizer.json": Tokenizer.from_file(str(checkpoint.tokenizer))}
    )
    assert description["tokens"] == VOCABULARIES[51864] | {"languages": {}}
    assert description["alignment_heads"][0] == (1, 0)
    assert len(description["alignment_heads"]) == 8
    assert {1, 2, 7, 50257, 50361} < set(description["suppress"])
    assert description["suppress_first"] == [220, 50256]
