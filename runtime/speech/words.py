"""Word times from cross-attention: the path that dynamic time warping finds through where each token looked.

Source: the reference implementation of Radford et al. 2022, arXiv 2212.04356; dynamic time warping after Sakoe & Chiba
1978. Times here are in seconds from the start of a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_MEDIAN_WIDTH = 7
_SENTENCE_ENDS = set(".。!！?？")  # noqa: RUF001
_OPENING = set("\"'“¿([{-")
_CLOSING = set("\"'.。,，!！?？:：”)]}、")  # noqa: RUF001
_LONGEST_MEDIAN = 0.7


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word, the number of its tokens, its time span and the mean probability of its tokens."""

    text: str
    tokens: int
    start: float
    end: float
    probability: float


def alignment_cost(weights: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """Cost (tokens, frames) of a token at a frame, from attention `weights` (heads, tokens, all frames).

    Weights beyond `frames`, the padding of the window, are left out; the others are standardised over the tokens,
    smoothed over time and averaged over the heads.
    """
    near = weights[:, :, :frames]
    near = near / np.maximum(near.sum(axis=2, keepdims=True), 1e-12)
    deviation = np.maximum(near.std(axis=1, keepdims=True), 1e-12)
    cost: NDArray[np.float32] = -_median_filter((near - near.mean(axis=1, keepdims=True)) / deviation).mean(axis=0)
    return cost


def _median_filter(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median over `_MEDIAN_WIDTH` neighbours along the last axis, the ends mirrored."""
    half = _MEDIAN_WIDTH // 2
    if x.shape[-1] <= half:
        return x
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN_WIDTH, axis=-1)
    filtered: NDArray[np.float32] = np.partition(windows, half, axis=-1)[..., half]
    return filtered


def warp(cost: NDArray[np.float32]) -> NDArray[np.int64]:
    """The frame at which each row of `cost` (rows, frames) begins, on the cheapest monotone path through it.

    Runs along the diagonals, whose cells do not depend on one another, so each is one vector operation.
    """
    rows, frames = cost.shape
    total = np.full((rows + 1, frames + 1), np.inf)
    total[0, 0] = 0
    move = np.zeros((rows + 1, frames + 1), np.int8)
    for diagonal in range(2, rows + frames + 1):
        i = np.arange(max(1, diagonal - frames), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        before = np.stack([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]])
        best = before.argmin(axis=0)
        total[i, j] = cost[i - 1, j - 1] + np.take_along_axis(before, best[None], 0)[0]
        move[i, j] = best
    starts = np.zeros(rows, np.int64)
    i, j = rows, frames
    while i > 0 and j > 0:
        starts[i - 1] = j - 1
        step = move[i, j]
        i, j = (i - 1 if step < 2 else i), (j - 1 if step != 1 else j)
    return starts


def time_words(
    words: Sequence[tuple[str, Sequence[int]]],
    weights: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    frames: int,
    frame: float,
) -> list[TimedWord]:
    """`words`, each with its tokens, in time.

    weights (heads, tokens + 1, all frames): where each token and the end token looked while it was predicted;
    probabilities (tokens,); `frames` of `frame` seconds each are real.
    """
    if not words:
        return []
    starts = warp(alignment_cost(weights, frames)) * frame
    bounds = np.cumsum([0, *(len(tokens) for _, tokens in words)])
    timed = [
        TimedWord(text, len(tokens), float(starts[a]), float(starts[b]), float(probabilities[a:b].mean()))
        for (text, tokens), a, b in zip(words, bounds[:-1], bounds[1:], strict=True)
    ]
    return _with_punctuation(_shortened(timed))


def typical(words: Sequence[TimedWord]) -> float:
    """Median length of a word in seconds, at most 0.7."""
    lengths = [word.end - word.start for word in words if word.end > word.start]
    return min(_LONGEST_MEDIAN, float(np.median(lengths))) if lengths else 0.0


def _shortened(words: list[TimedWord]) -> list[TimedWord]:
    """A pause beside the end of a sentence is given to no word: there, none is longer than twice the typical one."""
    longest = 2 * typical(words)
    shortened = words[:1]
    for before, word in pairwise(words):
        if word.end - word.start > longest > 0:
            if word.text.strip() in _SENTENCE_ENDS:
                word = replace(word, end=word.start + longest)
            elif before.text.strip() in _SENTENCE_ENDS:
                word = replace(word, start=word.end - longest)
        shortened.append(word)
    return shortened


def _with_punctuation(words: list[TimedWord]) -> list[TimedWord]:
    """Opening marks joined to the word after them, closing ones to the word before; times stay the word's own."""
    joined: list[TimedWord] = []
    opening: TimedWord | None = None
    for word in words:
        mark, spaced = word.text.strip(), word.text.startswith(" ")
        if opening is not None:
            word = replace(word, text=opening.text + word.text, tokens=opening.tokens + word.tokens)
            opening = None
        if mark in _OPENING and spaced:
            opening = word
            continue
        if joined and mark in _CLOSING and not word.text.startswith(" "):
            last = joined[-1]
            joined[-1] = replace(last, text=last.text + word.text, tokens=last.tokens + word.tokens)
        else:
            joined.append(word)
    return [*joined, opening] if opening is not None else joined


def after_pause(words: list[TimedWord], silence: float, longest: float) -> list[TimedWord]:
    """`words` of a segment after `silence` seconds of pause: the first two must not reach back into it.

    A word is at most `longest` seconds there; its end is trusted, not its start.
    """
    if not words or silence <= 2 * longest or longest <= 0:
        return words
    words = list(words)
    long = words[0].end - words[0].start > longest
    if len(words) > 1 and words[1].end - words[0].start > 2 * longest:
        long = True
        if words[1].end - words[1].start > longest:
            boundary = max(words[1].end / 2, words[1].end - longest)
            words[:2] = replace(words[0], end=boundary), replace(words[1], start=boundary)
    if long:
        words[0] = replace(words[0], start=max(0.0, words[0].end - longest, words[0].start))
    return words
