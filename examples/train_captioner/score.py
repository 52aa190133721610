"""CIDEr-D and BLEU of captions; equal to pycocoevalcap's `Cider` and `Bleu` on the same words.

Vedantam et al. 2015, arXiv 1411.5726 (CIDEr); Papineni et al. 2002 (BLEU); Lin and Och 2004 (smoothed for a sentence).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

ORDER, SIGMA = 4, 6.0
ORDERS = range(1, ORDER + 1)

Words = Sequence[str]
Grams = Counter[tuple[str, ...]]


def count(words: Words, order: int) -> Grams:
    """The n-grams of one order."""
    return Counter(zip(*(words[i:] for i in range(order)), strict=False))


class Vector(NamedTuple):
    """A caption as weighted n-grams of each order, their norms, and the caption's length."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int


class Cider:
    """CIDEr-D against fixed references, n-grams weighted by how few photos' references have them; 100 is 1."""

    def __init__(self, references: Sequence[Sequence[Words]]) -> None:
        seen: Grams = Counter()
        for captions in references:
            seen.update(set(chain.from_iterable(count(words, n) for words in captions for n in ORDERS)))
        total = math.log(len(references))
        self.rarity = defaultdict(lambda: total, {gram: total - math.log(photos) for gram, photos in seen.items()})
        self.references = [[self.weigh(words) for words in captions] for captions in references]

    def weigh(self, words: Words) -> Vector:
        rarity = self.rarity
        weights = [
            {
                gram: times * (rarity[gram] if gram in rarity else rarity.default_factory())
                for gram, times in grams.items()
            }
            for grams in (count(words, n) for n in ORDERS)
        ]
        return Vector(weights, [math.hypot(*found.values()) for found in weights], max(len(words) - 1, 0))

    def score(self, photo: int, words: Words) -> float:
        """The mean over references and orders, times ten."""
        candidate, references = self.weigh(words), self.references[photo]
        return 10 * sum(compare(candidate, reference) for reference in references) / len(references) / ORDER

    def mean(self, candidates: Sequence[Words]) -> float:
        """Of one caption a photo."""
        return sum(self.score(i, words) for i, words in enumerate(candidates)) / len(candidates)


def compare(candidate: Vector, reference: Vector) -> float:
    """Cosines of clipped vectors, summed over orders, less where lengths differ."""
    total = 0.0
    for ours, theirs, norm, other in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        if norm and other:
            shared = ours.keys() & theirs.keys()
            total += sum(min(ours[gram], theirs[gram]) * theirs[gram] for gram in shared) / (norm * other)
    return total * math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))


class Matches(NamedTuple):
    """What BLEU is computed of: n-grams found in a reference, n-grams in all, and lengths."""

    right: list[int]
    total: list[int]
    length: int
    reference: int


def match(words: Words, references: Sequence[Words]) -> Matches:
    """Clipped counts, and the reference length closest to the candidate's."""
    right, total = [], []
    for n in ORDERS:
        grams, most = count(words, n), Counter[tuple[str, ...]]()
        for reference in references:
            most |= count(reference, n)
        right.append((grams & most).total())
        total.append(grams.total())
    closest = min((abs(len(reference) - len(words)), len(reference)) for reference in references)[1]
    return Matches(right, total, len(words), closest)


def combine(right: Sequence[float], total: Sequence[float], length: int, reference: float) -> float:
    """The geometric mean of precisions times the brevity penalty."""
    if not all(right):
        return 0.0
    precision = math.exp(sum(math.log(r / t) for r, t in zip(right, total, strict=True)) / ORDER)
    return precision * math.exp(min(0.0, 1 - reference / length))


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """BLEU-4 of a corpus, 100 being 1."""
    found = [match(*pair) for pair in zip(candidates, references, strict=True)]
    right, total = ([sum(counts) for counts in zip(*(m[i] for m in found), strict=True)] for i in (0, 1))
    return combine(right, total, sum(m.length for m in found), sum(m.reference for m in found))


def sentence_bleu(words: Words, references: Sequence[Words]) -> float:
    """BLEU-4 of one caption, one added to the counts of bigrams and longer; brief is what is shorter than the mean of
    the references, for the closest one would let all captions be as short as their shortest reference.
    """
    if not words:
        return 0.0
    right, total, length, _ = match(words, references)
    mean = sum(map(len, references)) / len(references)
    return combine([right[0], *(n + 1 for n in right[1:])], [total[0], *(n + 1 for n in total[1:])], length, mean)
