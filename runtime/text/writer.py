"""Texts in, texts out: sentences of any number of texts read and written side by side, in constant memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain
from typing import Any

from heedful.runtime.engine.generate import Job
from heedful.runtime.engine.lanes import Lanes, LanesByDecoder, Place
from heedful.runtime.engine.requests import Requests
from heedful.runtime.engine.search import Hypothesis
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.errors import InputError
from heedful.runtime.text.alignment import link
from heedful.runtime.text.greedy import Greedy
from heedful.runtime.text.model import TextModel
from heedful.runtime.text.options import TextOptions
from heedful.runtime.text.request import Request, Task
from heedful.runtime.text.results import Sentence, Written
from heedful.runtime.workers import workers

# characters of a text that may be a sentence
_SENTENCE = 1000
# requests with different options that are remembered
_REMEMBERED = 64
# hypotheses of a large model that are decoded with all cores together
_FEW = 8


class Writer:
    """Translates or summarises with one bundle. Safe to call from several threads, whose texts are decoded together.

    Each core has a lane of its own, a decoder that steps the rows of many sentences together; a few sentences of a
    large model have all cores.
    """

    splits = True

    def __init__(self, sessions: Sessions, *, rows: int, queue: int) -> None:
        self.model = TextModel(sessions)
        few = _FEW if self.model.is_large else 0
        self._lanes = LanesByDecoder(self.model, rows=rows, few=few)
        self._greedy = Greedy(self.model) if self.model.has_greedy else None
        self.lanes(False)
        self._requests = Requests(queue)
        # typed: 1 is not True, though they are equal
        self._remembered = lru_cache(_REMEMBERED, typed=True)(partial(_asked, self.model, self.splits))

    @property
    def device(self) -> str:
        """cpu or cuda: where it runs."""
        return self.model.device.name

    def lanes(self, short: bool) -> Lanes[TextModel]:
        """The lanes whose decoders keep to the shortlist or do not."""
        return self._lanes[TextModel.short_decoder if short else TextModel.decoder]

    def __call__(self, text: str | Sequence[str], **options: Any) -> Written | list[Written]:
        """What is written about `text`, or about each of several texts.

        `options` are those of `TextOptions`. Raises InputError for a text or options that cannot be used.
        """
        with self._requests.request():
            return self._answer(text, options)

    def _answer(self, text: str | Sequence[str], options: dict[str, Any]) -> Written | list[Written]:
        if isinstance(text, str):
            return self._one(self._request(options), text)
        if isinstance(text, bytes) or not isinstance(text, Iterable):
            raise InputError(f"a text must be a str, or a list of them, not {type(text).__name__}")
        texts = [_text(each) for each in text]
        if len(texts) == 1:
            return [self._one(self._request(options), texts[0])]
        return list(self._stream(self._request(options), iter(texts)))

    def submit(self, text: str | Sequence[str], **options: Any) -> "Future[Written | list[Written]]":
        """The same, begun in the background: for asyncio, `await asyncio.wrap_future(translate.submit(...))`.

        Requests beyond the queue wait until others are over.
        """
        return self._requests.submit(lambda: self._answer(text, options))

    def stream(self, texts: Iterable[str], **options: Any) -> Iterator[Written]:
        """What is written about each of `texts`, in order, the option `ahead` characters of them read at a time.

        An error of `texts`, or InputError for what is no str, is raised once all that came before is written.
        """
        return self._admitted(self._request(options), iter(texts))

    def _admitted(self, request: Request, texts: Iterator[str]) -> Iterator[Written]:
        with self._requests.request():
            yield from self._stream(request, texts)

    def _request(self, options: dict[str, Any]) -> Request:
        """What `options` ask for; who asks the same again does not wait for it to be found out again."""
        try:
            return self._remembered(**options)
        except TypeError:  # a value that is not hashable is not valid either, and is told why
            return _asked(self.model, self.splits, **options)

    def _stream(self, request: Request, texts: Iterator[str]) -> Iterator[Written]:
        lanes = self.lanes(request.short)
        # its threads start when there is more than one group
        with workers(lanes.threads, "heedful-lane") as pool:
            for window in _windows(texts, request.options.ahead):
                tasks = [request.tasks(text) for text in window]
                if len(tasks) == 1 and self._is_written_alone(request, lanes, tasks[0]):
                    yield _joined(tasks[0])
                    continue
                pieces = [task for each in tasks for task in each if task.piece.text]
                # all threads have something to do
                most = min(request.options.batch, lanes.most, -(-len(pieces) // lanes.threads) or 1)
                run = partial(self._run, request, lanes, min(len(pieces), lanes.threads * most))
                groups = _groups(pieces, most)
                if len(groups) > 1:
                    # the longest first: what is left for the end is short
                    list(pool.map(run, groups))
                elif groups:
                    run(groups[0])
                yield from map(_joined, tasks)

    def _one(self, request: Request, text: str) -> Written:
        """What is written about `text`, with as little around a single sentence as can be."""
        lanes = self.lanes(request.short)
        if self._greedy is not None and request.is_plain and len(text) <= _SENTENCE:
            tasks = request.tasks(text)
            if self._is_written_alone(request, lanes, tasks):
                return _joined(tasks)
        (written,) = self._stream(request, iter([text]))
        return written

    def _is_written_alone(self, request: Request, lanes: Lanes[TextModel], tasks: Sequence[Task]) -> bool:
        """Write about `tasks`, a text, in one run of a graph, if the bundle can, nothing else is asked for, it is a
        sentence, and nobody else is here.
        """
        pieces = [task for task in tasks if task.piece.text]
        if self._greedy is None or not request.is_plain or lanes.load or len(pieces) != 1:
            return False
        source = request.framing.source(pieces[0].tokens)
        best = self._greedy.write(source, request.framing.start[0], request.length(source), short=request.short)
        if best is not None:
            pieces[0].sentence = self._sentence(pieces[0], best)
        return best is not None

    def _sentence(self, task: Task, best: Hypothesis) -> Sentence:
        return Sentence(task.piece.text, self.model.tokens.text(best.tokens), best.avg_logprob, best.tokens)

    def _run(self, request: Request, lanes: Lanes[TextModel], company: int, tasks: Sequence[Task]) -> None:
        """Read and write the pieces of `tasks`, some of `company` at a time, all in one lane."""
        with lanes.place(len(tasks), width=request.settings["beams"], company=company) as place:
            try:
                self._write(request, place, tasks)
            finally:
                place.batcher.decoder.buffers.forget(place.rows)

    def _write(self, request: Request, place: Place[TextModel], tasks: Sequence[Task]) -> None:
        sources = {row: request.framing.source(task.tokens) for row, task in zip(place.rows, tasks, strict=True)}
        for (row, best), task in zip(self._best(request, place, sources).items(), tasks, strict=True):
            task.sentence = self._sentence(task, best)
            if request.options.alignment:
                task.sentence = self._aligned(request, place, row, task, task.sentence)

    def _best(
        self, request: Request, place: Place[TextModel], sources: Mapping[int, Sequence[int]]
    ) -> dict[int, Hypothesis]:
        """The best that is found about the source tokens of each row."""
        jobs = [Job(row, request.framing.start, request.search(source)) for row, source in sources.items()]
        place.batcher.generate(jobs, partial(place.model.encode, place.batcher.decoder, sources))
        return {job.row: job.search.results()[0] for job in jobs}

    def _aligned(self, request: Request, place: Place[TextModel], row: int, task: Task, sentence: Sentence) -> Sentence:
        start, batcher = request.framing.start, place.batcher
        weights, _ = batcher.call(lambda: place.model.align(batcher.decoder, row, start, sentence.tokens))
        before = len(request.framing.before)
        mean = weights.mean(0)[: len(sentence.tokens), before : before + len(task.tokens)]
        found = link(self.model, request.prompt, sentence.source, sentence.text, sentence.tokens, mean)
        return replace(sentence, alignment=found)


def _asked(model: TextModel, splits: bool, /, **options: Any) -> Request:
    return Request(model, TextOptions.of(**options), split=splits)


def _text(given: object) -> str:
    if not isinstance(given, str):
        raise InputError(f"a text must be a str, not {type(given).__name__}")
    return given


def _windows(texts: Iterator[str], ahead: int) -> Iterator[list[str]]:
    """`texts` in lists, each of `ahead` characters together or one text that is longer; the last may be empty."""
    window: list[str] = []
    size = 0
    try:
        for text in texts:
            window.append(_text(text))
            size += len(text) + 1
            if size >= ahead:
                yield window
                window, size = [], 0
    except Exception:
        # what was read before is written before
        yield window
        raise
    yield window


def _groups(tasks: Sequence[Task], batch: int) -> list[list[Task]]:
    """`tasks` in groups of at most `batch`, those of like length together, the longest first."""
    ordered = sorted(tasks, key=lambda task: -len(task.tokens))
    return [ordered[i : i + batch] for i in range(0, len(ordered), batch)]


def _joined(tasks: Sequence[Task]) -> Written:
    """The text of all pieces, put together as their sources were."""
    sentences = [task.sentence for task in tasks if task.sentence is not None]
    text = "".join(
        chain.from_iterable((task.sentence.text if task.sentence else "", task.piece.tail) for task in tasks)
    )
    return Written(text, tuple(sentences))


class Translator(Writer):
    """Texts in another language, sentence by sentence."""


class Summarizer(Writer):
    """The gist of texts, each read as a whole as far as the model can."""

    splits = False
