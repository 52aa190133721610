"""Pictures in, captions out."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from heedful.runtime.engine.batcher import Batcher
from heedful.runtime.engine.cores import cores
from heedful.runtime.engine.generate import Job
from heedful.runtime.engine.requests import Requests
from heedful.runtime.engine.search import Hypothesis, Limits, Search
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.engine.settings import build_rules, build_search
from heedful.runtime.errors import InputError
from heedful.runtime.image.model import CaptionModel
from heedful.runtime.image.options import CaptionOptions
from heedful.runtime.image.pixels import Picture, PictureSource
from heedful.runtime.image.results import Candidate, Caption, CaptionWord
from heedful.runtime.text.alignment import words_of
from heedful.runtime.workers import workers


class _Request:
    """One call: what its options mean for the model."""

    def __init__(self, model: CaptionModel, options: CaptionOptions) -> None:
        self.options = options
        self.prompt = model.tokens.encode(options.prompt or "")
        start = [*model.start, *self.prompt]
        settings = options.search(model.search)
        # as many captions as are asked for come out of as many beams
        self.settings = settings | {"beams": max(settings["beams"], options.count)}
        length = min(settings["max_length"], model.shape.positions) - len(start)
        if length < 1:
            raise InputError(
                f"the prompt {options.prompt!r} has {len(self.prompt)} tokens, which leaves no room for a caption of "
                f"at most {settings['max_length']}: shorten it, or raise max_length"
            )
        self.start = start
        rules = build_rules(settings, start, model.end)
        self.limits = Limits(model.end, length, rules, forced_end=settings["forced_end"])

    def search(self) -> Search:
        """The search for one caption."""
        return build_search(self.settings, self.limits)


class Captioner:
    """Captions pictures with one bundle. Safe to call from several threads, whose pictures are decoded together."""

    def __init__(self, sessions: Sessions, *, rows: int, queue: int) -> None:
        self.model = CaptionModel(sessions)
        self._batcher = Batcher(self.model.decoder(rows))
        self._requests = Requests(queue)
        self._readers = sessions.threads or cores()

    @property
    def device(self) -> str:
        """cpu or cuda: where it runs."""
        return self.model.device.name

    def __call__(self, image: PictureSource | Sequence[PictureSource], **options: Any) -> Caption | list[Caption]:
        """What is in `image`, a path, bytes, an open file, a PIL image or an array, or in each of a list of them.

        `options` are those of `CaptionOptions`. Raises InputError for a picture or options that cannot be used.
        """
        with self._requests.request():
            return self._answer(image, options)

    def _answer(
        self, image: PictureSource | Sequence[PictureSource], options: dict[str, Any]
    ) -> Caption | list[Caption]:
        several = isinstance(image, list | tuple)
        images: Sequence[PictureSource] = image if several else [image]  # type: ignore[assignment, list-item]
        # a loop in Python would be in the traceback of an error, and keep those who read pictures waiting for more
        captions = list(map(_raised, self._attempts(self._request(options), iter(images))))
        return captions if several else captions[0]

    def submit(
        self, image: PictureSource | Sequence[PictureSource], **options: Any
    ) -> "Future[Caption | list[Caption]]":
        """The same, begun in the background: for asyncio, `await asyncio.wrap_future(caption.submit(...))`.

        Requests beyond the queue wait until others are over.
        """
        return self._requests.submit(lambda: self._answer(image, options))

    def stream(self, images: Iterable[PictureSource], **options: Any) -> Iterator[Caption]:
        """What is in each of `images`, in order, read as they are needed; the first that cannot be read ends it."""
        return map(_raised, self.attempts(images, **options))

    def attempts(self, images: Iterable[PictureSource], **options: Any) -> Iterator[Caption | InputError]:
        """What is in each of `images`, in order, or the error of one that cannot be read."""
        return self._admitted(self._request(options), iter(images))

    def _request(self, options: dict[str, Any]) -> _Request:
        return _Request(self.model, CaptionOptions.of(**options))

    def _admitted(self, request: _Request, images: Iterator[PictureSource]) -> Iterator[Caption | InputError]:
        with self._requests.request():
            yield from self._attempts(request, images)

    def _attempts(self, request: _Request, images: Iterator[PictureSource]) -> Iterator[Caption | InputError]:
        with workers(self._readers, "heedful-reader") as pool:
            waiting: deque[list[Future[Picture]]] = deque()
            # whole pictures, which only drawings need, would be most of the memory
            read = partial(self.model.read, keep_upright=request.options.heatmaps)
            while batch := list(islice(images, request.options.batch)):
                waiting.append([pool.submit(read, image) for image in batch])
                # one batch is being read while another is captioned
                if len(waiting) > 1:
                    yield from self._batch(request, waiting.popleft())
            for last in waiting:
                yield from self._batch(request, last)

    def _batch(self, request: _Request, reading: Sequence["Future[Picture]"]) -> list[Caption | InputError]:
        found: list[Picture | InputError] = [_outcome(each) for each in reading]
        pictures = [each for each in found if isinstance(each, Picture)]
        rows = self._batcher.decoder.rows
        parts = (pictures[i : i + rows] for i in range(0, len(pictures), rows))
        captions = iter([caption for part in parts for caption in self._write(request, part)])
        return [each if isinstance(each, InputError) else next(captions) for each in found]

    def _write(self, request: _Request, pictures: Sequence[Picture]) -> list[Caption]:
        batcher = self._batcher
        with batcher.rows(len(pictures)) as rows:
            pixels = {row: picture.pixels for row, picture in zip(rows, pictures, strict=True)}
            jobs = [Job(row, request.start, request.search()) for row in rows]
            batcher.generate(jobs, lambda: self.model.encode(batcher.decoder, pixels))
            return [self._caption(request, job, picture) for job, picture in zip(jobs, pictures, strict=True)]

    def _caption(self, request: _Request, job: Job, picture: Picture) -> Caption:
        found = job.search.results()[: request.options.count]
        best = found[0]
        words = self._words(request, job.row, best) if request.options.heatmaps else ()
        candidates = tuple(Candidate(self._text(request, each.tokens), _score(each)) for each in found)
        text, score = candidates[0].text, candidates[0].score
        return Caption(text, score, best.tokens, candidates, words, picture.region, picture.upright)

    def _text(self, request: _Request, tokens: Sequence[int]) -> str:
        return self.model.tokens.text([*request.prompt, *tokens]).strip()

    def _words(self, request: _Request, row: int, best: Hypothesis) -> tuple[CaptionWord, ...]:
        """The words of the caption, the prompt's among them, with where each looked."""
        model, decoder = self.model, self._batcher.decoder
        tokens = [*request.prompt, *best.tokens]
        weights, probabilities = self._batcher.call(lambda: model.align(decoder, row, model.start, tokens))
        maps = model.heatmaps(weights[:, : len(tokens)])
        text = model.tokens.text(tokens)
        words, where = words_of(text, model.tokens.written_spans(tokens))
        found = []
        for i, word in enumerate(words):
            its = np.flatnonzero(where == i)
            # a word's probability is that of all its tokens, its map the mean of theirs
            probability = float(np.prod(probabilities[its], dtype=np.float64))
            found.append(CaptionWord(word, probability, maps[its].mean(0) if len(its) else np.zeros_like(maps[0])))
        return tuple(found)


def _score(found: Hypothesis) -> float:
    """Mean log-probability of a token."""
    return found.logprob / (len(found.tokens) + found.ended)


def _outcome(reading: "Future[Picture]") -> Picture | InputError:
    try:
        return reading.result()
    except InputError as error:
        return error


def _raised(outcome: Caption | InputError) -> Caption:
    if isinstance(outcome, InputError):
        raise outcome
    return outcome
