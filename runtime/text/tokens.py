"""Between text and token ids."""

from collections.abc import Sequence
from itertools import pairwise

from tokenizers import Tokenizer

from heedful.runtime.bundle import Bundle


class TextTokens:
    """The tokenizers of a bundle: one for what is read, and one, often the same, for what is written."""

    def __init__(self, bundle: Bundle) -> None:
        self._source = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
        # a special token's name in a text is only text; the file does not say so
        self._source.encode_special_tokens = True
        two = "target.json" in bundle.manifest["files"]
        self._target = Tokenizer.from_file(str(bundle.file("target.json"))) if two else self._source

    def encode(self, text: str) -> list[int]:
        # one by one: a batch, even of one, wakes the library's own threads, which then look for more for a while
        ids: list[int] = self._source.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._target.decode(list(tokens), skip_special_tokens=True))

    def read_spans(self, prompt: str, text: str) -> list[tuple[int, int]]:
        """Where in `text` each token of `prompt` + `text` stands: first and last character, the last left out. Empty
        for a token of the prompt alone.
        """
        # not measured in what the tokens decode to: the tokenizer may have read the text in another form
        offsets = self._source.encode(prompt + text, add_special_tokens=False).offsets
        skipped = len(prompt)
        return [(max(start - skipped, 0), max(end - skipped, 0)) for start, end in offsets]

    def written_spans(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Where in the text of the written `tokens` each stands: first and last character, the last left out."""
        ends = [len(self.text(tokens[:i])) for i in range(len(tokens) + 1)]
        return list(pairwise(ends))
