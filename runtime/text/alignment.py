"""From the attention between tokens to links between words."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heedful.runtime.text.model import TextModel
from heedful.runtime.text.results import Alignment

# a word links to what it looked at at least this much of what it looked at most
_SHARE = 0.5


def words_of(text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[str], NDArray[np.intp]]:
    """The words of `text`, divided by white space, and for each token's span the word it is in, -1 for none."""
    starts, words = [], []
    position = 0
    for word in text.split():
        position = text.index(word, position)
        starts.append(position)
        words.append(word)
        position += len(word)
    where = []
    for start, end in spans:
        # a token may bring the space before its word
        inked = start + len(text[start:end]) - len(text[start:end].lstrip())
        where.append(int(np.searchsorted(starts, inked, side="right")) - 1 if inked < end else -1)
    return words, np.asarray(where, np.intp)


def link(
    model: TextModel, prompt: str, source: str, text: str, tokens: Sequence[int], weights: NDArray[np.float32]
) -> Alignment:
    """Links between the words of `source`, read after `prompt`, and those of `text`, from `weights` (len(tokens), n)
    between the `tokens` of the text and the n that were read.

    A word's weights are the means of its tokens'.
    """
    source_words, source_index = words_of(source, model.tokens.read_spans(prompt, source))
    target_words, target_index = words_of(text, model.tokens.written_spans(tokens))
    summed = np.zeros((len(target_words), len(source_words)), np.float32)
    counts = np.zeros(len(target_words), np.float32)
    for token, word in enumerate(target_index):
        if word < 0:
            continue
        counts[word] += 1
        for other, column in enumerate(source_index):
            if column >= 0:
                summed[word, column] += weights[token, other]
    means = (summed / np.maximum(counts, 1)[:, None]).astype(np.float32)
    links = tuple(
        tuple(np.flatnonzero(row >= _SHARE * row.max()).tolist()) if row.size and row.max() > 0 else () for row in means
    )
    return Alignment(tuple(source_words), tuple(target_words), means, links)
