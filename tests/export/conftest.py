"""What tests of exporting share: tokenizers of made-up Whispers."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models


@pytest.fixture(scope="session")
def whisper_tokenizer() -> Callable[..., Tokenizer]:
    """Makes one of `text` words, then special tokens in the order of Whisper's vocabularies."""

    def make(text: int, languages: list[str], no_speech: str = "<|nospeech|>") -> Tokenizer:
        steering = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", no_speech)
        made = Tokenizer(models.WordLevel({f"word{i}": i for i in range(text)}, "word0"))
        spoken = (f"<|{each}|>" for each in languages)
        made.add_special_tokens(["<|endoftext|>", "<|startoftranscript|>", *spoken, *steering, "<|notimestamps|>"])
        return made

    return make
