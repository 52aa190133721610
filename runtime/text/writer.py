"""Texts in, texts out: sentences of any number of texts read and written side by side, in constant memory."""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from heedful.runtime.engine.generate import Job
from heedful.runtime.engine.lanes import Lanes, LanesByDecoder, Place
from heedful.runtime.engine.search import Limits, Search
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.engine.settings import build_rules, build_search
from heedful.runtime.errors import InputError
from heedful.runtime.text.alignment import link
from heedful.runtime.text.lines import clean
from heedful.runtime.text.model import Framing, TextModel
from heedful.runtime.text.options import TextOptions
from heedful.runtime.text.results import Sentence, Written
from heedful.runtime.text.split import Piece, split_sentences, split_to_fit
from heedful.runtime.workers import workers

# characters of text that are read ahead, so that sentences of one length can be put together
_AHEAD = 1 << 18
# hypotheses of a large model that are decoded with all cores together
_FEW = 8
# a line and what ends it; the last may have no end
_LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|$)")


@dataclass(slots=True)
class _Task:
    """A piece of a text to be read: its tokens, framing left out, and what was written once it was."""

    piece: Piece
    tokens: list[int]
    sentence: Sentence | None = None


class Request:
    """One call: what its options mean for the model."""

    def __init__(self, model: TextModel, options: TextOptions, *, split: bool) -> None:
        self.model = model
        self.options = options
        self.split = split if options.split is None else options.split
        source, target = model.languages_for(options.source, options.target)
        self.language = source or "en"
        self.framing: Framing = model.framing(source, target)
        self.settings = options.search(model.search)
        self.prompt = options.prompt or ""
        self.short = options.shortlist
        if self.short and not model.has_shortlist:
            raise InputError(f"{model.bundle.path} has no shortlist: leave shortlist out")
        self.prompt_length = len(model.tokens.encode(self.prompt))
        self.rules = build_rules(self.settings, self.framing.start, model.end)
        self.room = model.positions - len(self.framing.source([]))
        if self.room < 2 + self.prompt_length:
            raise InputError(f"the prompt {self.prompt[:40]!r} leaves no room for a text: this model reads {self.room}")

    def tasks(self, text: str) -> list[_Task]:
        """The pieces of `text`, each short enough to be read at once."""
        tasks = []
        for piece in self._pieces(text):
            tokens = self._encode(piece.text)
            if len(tokens) <= self.room:
                tasks.append(_Task(piece, tokens))
                continue
            for part in split_to_fit(piece.text, lambda part: len(self._encode(part)) <= self.room):
                tasks.append(_Task(part, self._encode(part.text)))
            tasks[-1].piece = replace(tasks[-1].piece, tail=tasks[-1].piece.tail + piece.tail)
        return tasks

    def _pieces(self, text: str) -> Iterator[Piece]:
        if not self.split:
            yield from _whole(clean(text))
            return
        for line, end in _LINE.findall(text):
            *pieces, last = split_sentences(clean(line), self.language) or [Piece("", "")]
            yield from pieces
            yield replace(last, tail=last.tail + end)

    def _encode(self, text: str) -> list[int]:
        return self.model.tokens.encode(self.prompt + text)

    def search(self, source: Sequence[int]) -> Search:
        """The search for what to write about `source` tokens."""
        settings = self.settings
        length = settings["max_length"] - len(self.framing.start)
        if settings["length_factor"] is not None:
            length = min(length, round(settings["length_factor"] * len(source)))
        limits = Limits(
            self.model.end,
            max(length, 1),
            self.rules,
            before=self.framing.forced,
            forced_end=settings["forced_end"],
        )
        return build_search(settings, limits)


def _whole(text: str) -> list[Piece]:
    """`text` in one piece; white space before it is the tail of an empty one."""
    stripped = text.strip()
    start = text.index(stripped)
    return [Piece("", text[:start]), Piece(stripped, text[start + len(stripped) :])]


class Writer:
    """Translates or summarises with one bundle. Safe to call from several threads, whose texts are decoded together.

    Each core has a lane of its own, a decoder that steps the rows of many sentences together; a few sentences of a
    large model have all cores.
    """

    splits = True

    def __init__(self, sessions: Sessions, *, rows: int, queue: int) -> None:
        self.model = TextModel(sessions)
        few = _FEW if self.model.is_large else 0
        self._lanes = LanesByDecoder(self.model, rows=rows, queue=queue, few=few)
        self.lanes(False)
        self._callers = ThreadPoolExecutor(queue, "heedful-request")

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
        if isinstance(text, str):
            (written,) = self.stream([text], **options)
            return written
        if isinstance(text, bytes) or not isinstance(text, Iterable):
            raise InputError(f"a text must be a str, or a list of them, not {type(text).__name__}")
        return list(self.stream(text, **options))

    def submit(self, text: str | Sequence[str], **options: Any) -> "Future[Written | list[Written]]":
        """The same, begun in the background: for asyncio, `await asyncio.wrap_future(translate.submit(...))`."""
        return self._callers.submit(self, text, **options)

    def stream(self, texts: Iterable[str], *, ahead: int = _AHEAD, **options: Any) -> Iterator[Written]:
        """What is written about each of `texts`, in order; `ahead` characters of them are read at a time."""
        request = Request(self.model, TextOptions.of(**options), split=self.splits)
        return self._stream(request, iter(texts), ahead)

    def _stream(self, request: Request, texts: Iterator[str], ahead: int) -> Iterator[Written]:
        lanes = self.lanes(request.short)
        # its threads start when there is more than one group
        with lanes.request(), workers(lanes.threads, "heedful-lane") as pool:
            while window := list(_window(texts, ahead)):
                tasks = [request.tasks(text) for text in window]
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

    def _run(self, request: Request, lanes: Lanes[TextModel], company: int, tasks: Sequence[_Task]) -> None:
        """Read and write the pieces of `tasks`, some of `company` at a time, all in one lane."""
        with lanes.place(len(tasks), width=request.settings["beams"], company=company) as place:
            self._write(request, place, tasks)
            place.batcher.decoder.buffers.forget(place.rows)

    def _write(self, request: Request, place: Place[TextModel], tasks: Sequence[_Task]) -> None:
        rows, batcher = place.rows, place.batcher
        sources = [request.framing.source(task.tokens) for task in tasks]
        jobs = [
            Job(row, request.framing.start, request.search(source)) for row, source in zip(rows, sources, strict=True)
        ]
        batcher.generate(jobs, lambda: place.model.encode(batcher.decoder, dict(zip(rows, sources, strict=True))))
        for task, job in zip(tasks, jobs, strict=True):
            best = job.search.results()[0]
            text = self.model.tokens.text(best.tokens)
            task.sentence = Sentence(task.piece.text, text, best.avg_logprob, best.tokens)
            if request.options.alignment:
                task.sentence = self._aligned(request, place, job.row, task, task.sentence)

    def _aligned(
        self, request: Request, place: Place[TextModel], row: int, task: _Task, sentence: Sentence
    ) -> Sentence:
        start, batcher = request.framing.start, place.batcher
        weights, _ = batcher.call(lambda: place.model.align(batcher.decoder, row, start, sentence.tokens))
        before = len(request.framing.before)
        mean = weights.mean(0)[: len(sentence.tokens), before : before + len(task.tokens)]
        # the prompt is no part of the text
        prompt = request.prompt_length
        found = link(
            self.model,
            sentence.source,
            task.tokens[prompt:],
            sentence.text,
            sentence.tokens,
            np.ascontiguousarray(mean[:, prompt:]),
        )
        return replace(sentence, alignment=found)


def _window(texts: Iterator[str], ahead: int) -> Iterator[str]:
    """The next texts, of `ahead` characters together or one that is longer."""
    size = 0
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"a text must be a str, not {type(text).__name__}")
        yield text
        size += len(text) + 1
        if size >= ahead:
            return


def _groups(tasks: Sequence[_Task], batch: int) -> list[list[_Task]]:
    """`tasks` in groups of at most `batch`, those of like length together, the longest first."""
    ordered = sorted(tasks, key=lambda task: -len(task.tokens))
    return [ordered[i : i + batch] for i in range(0, len(ordered), batch)]


def _joined(tasks: Sequence[_Task]) -> Written:
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
