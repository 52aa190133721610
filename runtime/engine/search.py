"""Which tokens to go on with: sampling (greedy at temperature 0) and beam search. Logits in, hypotheses out.

A search knows nothing of models, caches or batches: it sees the logits of its live hypotheses and answers with the
hypotheses to go on with, each as the index of its parent and its new token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from heedful.runtime.engine.decoder import All, Best, Scores, Wanted
from heedful.runtime.engine.rules import Ban, Logits, RepetitionPenalty, Rule, Ruling


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Generated `tokens`, end token left out; `logprob`, the sum over the tokens, end token included, of their natural
    log-probability among the tokens that the rules allowed, or, where only the best were looked at, among all; `score`,
    by which the search ranks; `ended` by itself, not by the limit of length.
    """

    tokens: tuple[int, ...]
    logprob: float
    score: float
    ended: bool

    @property
    def avg_logprob(self) -> float:
        """Mean over the tokens, the end token counted."""
        return self.logprob / (len(self.tokens) + 1)


class Step(NamedTuple):
    """The hypotheses that live on: the index of each one's parent among those before, and its new token."""

    parents: list[int]
    tokens: list[int]


class Search(Protocol):
    """A way to choose tokens for one input."""

    @property
    def wanted(self) -> Wanted:
        """What must be known of the tokens that may follow each live hypothesis to choose from them next."""

    def advance(self, scores: Scores) -> Step | None:
        """Choose after what is known of the token that follows each live hypothesis, whose logits are changed in place;
        None: the search is over.
        """

    def results(self) -> list[Hypothesis]:
        """The hypotheses found, best first."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a hypothesis ends, and what it may hold: the `end` token, `length` tokens at most, and `rules`.

    Where rules leave no token, as they can where only some may come at all, it ends as it does at the limit of length.
    `before` tokens of the prompt count as the hypothesis's own where lengths are compared. With `forced_end` the last
    token that `length` allows is the end token, whatever its probability. `ruling` is all `rules` together as a graph
    can apply them, once there is a token.
    """

    end: int
    length: int
    rules: Sequence[Rule] = ()
    before: int = 0
    forced_end: bool = False
    ruling: Ruling | None = None

    def wanted(self, best: int, texts: Sequence[Sequence[int]]) -> Wanted:
        """How many of the best tokens to ask for so that `best` are left of each of `texts`; all of them where rules
        look at logits.
        """
        if self.ruling is not None:
            return Wanted(best, [self.ruling.of(text) for text in texts]) if all(texts) else Wanted()
        if not self.rules:
            return Wanted(best)
        bans = [rule for rule in self.rules if isinstance(rule, Ban)]
        if len(bans) < len(self.rules):
            return Wanted()
        return Wanted(best + max((sum(len(ban.banned(text)) for ban in bans) for text in texts), default=0))

    @property
    def penalised(self) -> bool:
        """Whether a rule changes probabilities, beside those that rule tokens out."""
        return any(isinstance(rule, RepetitionPenalty) for rule in self.rules)

    def apply(self, logits: Logits, generated: Sequence[int], total: float) -> float:
        """Have the rules rule on `logits` (vocabulary,), in place; log(sum(exp(logits))) afterwards, given the `total`
        before: minus infinity where they leave nothing.

        Few are ruled out as a rule, so their part is taken away from the whole; where it is the greater part, the rest
        is summed up.
        """
        lost = 0.0
        for rule in self.rules:
            for tokens in rule(logits, generated):
                lost += float(np.exp(logits[tokens] - total).sum())
                logits[tokens] = -np.inf
        if self.penalised or lost > _MOST_LOST:
            return float(log_sum_exp(logits)) if logits.max() > -np.inf else -math.inf
        return total + math.log1p(-lost)

    def banned(self, generated: Sequence[int]) -> set[int]:
        """The tokens that the rules rule out before they see any logits, if no graph has applied them."""
        if not self.rules or self.ruling is not None:
            return set()
        return {token for rule in self.rules if isinstance(rule, Ban) for token in rule.banned(generated)}


# of the probability, up to which the rest is known as exactly as by a sum of its own
_MOST_LOST = 0.5


def log_sum_exp(logits: Logits) -> NDArray[np.float32]:
    """log(sum(exp(logits))) over the last axis, float32, safe against overflow."""
    top = logits.max(axis=-1, keepdims=True)
    total: NDArray[np.float32] = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    return total


_BLOCK = 64


def top(logits: Logits, offsets: Logits, count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest of logits (m, n) + offsets (m, 1), flattened, largest first.

    The `count` largest lie in the `count` blocks with the largest maxima, so only those are sorted: several times
    faster than a partition of a whole vocabulary. A block is every n-th value of a row, for maxima that vectorise.
    """
    rows, width = logits.shape
    stride = width // _BLOCK
    candidates: NDArray[np.intp]
    if rows * stride > 4 * count:
        whole = stride * _BLOCK
        maxima = logits[:, :whole].reshape(rows, _BLOCK, stride).max(axis=1) + offsets
        level = -np.partition(-maxima, count - 1, axis=None)[count - 1]
        row, place = (maxima >= level).nonzero()
        near = (row * width + place)[:, None] + np.arange(0, whole, stride)
        rest = np.arange(rows)[:, None] * width + np.arange(whole, width)
        candidates = np.concatenate([near.ravel(), rest.ravel()])
    else:
        candidates = np.arange(logits.size)
    values = logits.ravel()[candidates] + offsets.ravel()[candidates // width]
    if len(candidates) > 2 * count:
        near_top = values >= -np.partition(-values, count - 1)[count - 1]
        candidates, values = candidates[near_top], values[near_top]
    # the index breaks ties, so that the result depends on the values alone
    order = np.lexsort((candidates, -values))
    return candidates[order[:count]]


@dataclass(slots=True)
class _Live:
    """A hypothesis that may go on."""

    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    score: float = 0.0


class Sample:
    """`count` independent samples at `temperature`; at temperature 0, greedy search.

    Samples are drawn from the softmax of the logits over the temperature by `rng`, whose seed fixes the result. Ranked
    by mean log-probability.
    """

    def __init__(
        self, limits: Limits, *, temperature: float = 0.0, count: int = 1, rng: np.random.Generator | None = None
    ) -> None:
        self.limits = limits
        self.temperature = temperature
        # greedy search needs none, and to make one takes as long as to choose several tokens
        self.rng = np.random.default_rng(0) if rng is None and temperature else rng
        self.live = [_Live() for _ in range(count)]
        self.rows = [0] * count  # all start from the one row of logits after the prompt
        self.finished: list[Hypothesis] = []

    @property
    def wanted(self) -> Wanted:
        return Wanted() if self.temperature else self.limits.wanted(1, [one.tokens for one in self.live])

    def _choose(self, logits: Logits) -> int:
        if self.rng is None or self.temperature == 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self.temperature
        cumulative = np.exp(scaled - scaled.max()).cumsum()
        return int(cumulative.searchsorted(self.rng.random() * cumulative[-1], side="right"))

    def _next(self, scores: Scores, row: int, tokens: list[int]) -> tuple[int, float] | None:
        """A token to go on with after `tokens`, and its log-probability; None if no token is left."""
        if isinstance(scores, Best):
            banned, allowed = self.limits.banned(tokens), scores.allowed[row]
            for logit, token in zip(scores.logits[row], scores.tokens[row], strict=True):
                if token not in banned:
                    # those that a shortlist does not allow come last
                    return (token, logit - allowed) if logit > -math.inf else None
            return None
        # samples go on from one row at first, and each has its own rules
        logits = scores.logits[row].copy() if len(self.live) > len(scores.logits) else scores.logits[row]
        total = self.limits.apply(logits, tokens, float(scores.total[row]))
        if total == -math.inf:
            return None
        token = self._choose(logits)
        return token, float(logits[token]) - total

    def advance(self, scores: Scores) -> Step | None:
        survivors: list[_Live] = []
        parents, tokens = [], []
        for row, one in zip(self.rows, self.live, strict=True):
            if self.limits.forced_end and len(one.tokens) + 1 >= self.limits.length:
                self._finish(one, ended=True)
                continue
            following = self._next(scores, row, one.tokens)
            if following is None:
                self._finish(one, ended=False)
                continue
            token, logprob = following
            one.logprob += logprob
            if token == self.limits.end:
                self._finish(one, ended=True)
                continue
            one.tokens.append(token)
            if len(one.tokens) >= self.limits.length:
                self._finish(one, ended=False)
                continue
            survivors.append(one)
            parents.append(row)
            tokens.append(token)
        self.live, self.rows = survivors, list(range(len(survivors)))
        return Step(parents, tokens) if survivors else None

    def _finish(self, one: _Live, *, ended: bool) -> None:
        score = one.logprob / (len(one.tokens) + 1)
        self.finished.append(Hypothesis(tuple(one.tokens), one.logprob, score, ended))

    def results(self) -> list[Hypothesis]:
        return sorted(self.finished, key=lambda one: -one.score)


class Beam:
    """Beam search over `width` hypotheses.

    A hypothesis is ranked by the sum of its log-probabilities, over all tokens whether or not a rule allows them,
    divided by its length (end token counted) to the power of `length_penalty`. With `patience` p the search stops as
    soon as round(p * width) hypotheses have ended (Kasai et al. 2022, arXiv 2204.05424); with None when the best live
    one, at its present length, ranks below the worst of `width` ended ones; with infinity when it would do so even at
    the greatest length. These are the searches of transformers with early_stopping True (p = 1), False and "never". A
    repetition penalty is of log-probabilities, as there.
    """

    def __init__(
        self, limits: Limits, *, width: int, length_penalty: float = 1.0, patience: float | None = None
    ) -> None:
        self.limits = limits
        self.width = width
        self.length_penalty = length_penalty
        self.patience = patience
        # whether the number of ended hypotheses alone decides when the search is over
        self._counts = patience is not None and math.isfinite(patience)
        self._enough = max(1, round(width * patience)) if patience is not None and self._counts else width
        self.live = [_Live()]
        self.finished: list[Hypothesis] = []

    @property
    def wanted(self) -> Wanted:
        return self.limits.wanted(2 * self.width, [one.tokens for one in self.live])

    def _candidates(self, scores: Scores) -> list[tuple[float, float, int, int]]:
        """The 2 * width best continuations: score, log-probability, parent, token."""
        if self.limits.forced_end and self._length() >= self.limits.length:
            found = [(one.score, one.logprob, parent, self.limits.end) for parent, one in enumerate(self.live)]
        else:
            found = self._best(scores) if isinstance(scores, Best) else self._all(scores)
        return sorted(found, key=lambda candidate: -candidate[0])[: 2 * self.width]

    def _best(self, best: Best) -> list[tuple[float, float, int, int]]:
        """Candidates among the best tokens of each hypothesis."""
        found = []
        for parent, (one, logits, tokens, total, allowed) in enumerate(zip(self.live, *best, strict=True)):
            banned = self.limits.banned(one.tokens)
            for logit, token in zip(logits, tokens, strict=True):
                if token not in banned:
                    found.append((one.score + logit - total, one.logprob + logit - allowed, parent, token))
        return found

    def _all(self, scores: All) -> list[tuple[float, float, int, int]]:
        """Candidates among all tokens."""
        logits, totals = scores
        if self.limits.penalised:
            logits -= totals[:, None]
            totals = np.zeros_like(totals)
        allowed = [
            self.limits.apply(row, one.tokens, total)
            for row, one, total in zip(logits, self.live, totals.tolist(), strict=True)
        ]
        offsets = np.array([one.score for one in self.live]) - totals
        best = top(logits, offsets[:, None].astype(np.float32), 2 * self.width)
        found = []
        for parent, token in zip(*(part.tolist() for part in divmod(best, logits.shape[1])), strict=True):
            logit = float(logits[parent, token])
            total = float(totals[parent]) if self.limits.penalised else allowed[parent]
            logprob = self.live[parent].logprob + logit - total
            found.append((float(offsets[parent]) + logit, logprob, parent, token))
        return found

    def _length(self) -> int:
        """Tokens of a hypothesis, the next one included."""
        return len(self.live[0].tokens) + 1

    def _ranked(self, score: float, length: int) -> float:
        return score / math.pow(length + self.limits.before, self.length_penalty)

    def advance(self, scores: Scores) -> Step | None:
        live: list[_Live] = []
        step = Step([], [])
        length = self._length()
        for rank, (score, logprob, parent, token) in enumerate(self._candidates(scores)):
            ended = token == self.limits.end
            if ended or length >= self.limits.length:
                # those ranked below `width` are there only so that `width` hypotheses can live on
                if rank < self.width and np.isfinite(score):
                    tokens = (*self.live[parent].tokens, *(() if ended else (token,)))
                    self.finished.append(Hypothesis(tokens, logprob, self._ranked(score, length), ended))
            elif len(live) < self.width and np.isfinite(score):
                live.append(_Live([*self.live[parent].tokens, token], logprob, score))
                step.parents.append(parent)
                step.tokens.append(token)
        if not live and not self.finished:
            # rules left no token to any
            self.finished = [
                Hypothesis(tuple(one.tokens), one.logprob, self._ranked(one.score, length), False) for one in self.live
            ]
        self.finished = self.results()[: max(self.width, self._enough)]
        self.live = live
        return step if live and not self._over(length) else None

    def _over(self, length: int) -> bool:
        if len(self.finished) < self._enough:
            return False
        if self._counts:
            return True
        # log-probabilities are negative: it is the longest that may rank highest, if length counts at all
        longest = self.patience is not None and self.length_penalty > 0
        reach = self._ranked(self.live[0].score, self.limits.length if longest else length)
        return reach <= self.finished[self.width - 1].score

    def results(self) -> list[Hypothesis]:
        return sorted(self.finished, key=lambda one: -one.score)
