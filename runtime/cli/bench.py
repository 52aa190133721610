"""`heedful bench`: how fast a bundle is on this machine, with one request at a time and with several at once."""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from heedful.runtime.engine.device import DeviceName
from heedful.runtime.errors import InputError
from heedful.runtime.home import sample
from heedful.runtime.image.captioner import Captioner
from heedful.runtime.load import QUEUE, load
from heedful.runtime.speech.transcriber import Transcriber
from heedful.runtime.speech.transcription import collect
from heedful.runtime.text.lines import read_lines
from heedful.runtime.text.writer import Summarizer, Translator, Writer


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(bench)


@dataclass(frozen=True, slots=True)
class Timing:
    """One request: how much `work` it was, in the unit of its task, seconds to the answer and to the first token, if
    that is known, and the tokens of the answer.
    """

    work: float
    latency: float
    first_token: float | None
    tokens: int


Request = Callable[[Any, str, dict[str, Any]], Timing]


def _speech(transcriber: Transcriber, source: str, options: dict[str, Any]) -> Timing:
    begin = time.perf_counter()
    transcription = transcriber.stream(source, **options, temperatures=(0.0,))
    transcript = collect(transcription)
    end = time.perf_counter()
    first = end if transcription.first_token is None else transcription.first_token
    tokens = sum(len(segment.tokens) for segment in transcript.segments)
    return Timing(transcript.duration, end - begin, first - begin, tokens)


def _text(writer: Writer, source: str, options: dict[str, Any]) -> Timing:
    with open(source, "rb") as file:
        lines = list(read_lines(file, source))
    begin = time.perf_counter()
    written = list(writer.stream(lines, **options))
    return Timing(len(lines), time.perf_counter() - begin, None, sum(len(each.tokens) for each in written))


def _image(captioner: Captioner, source: str, options: dict[str, Any]) -> Timing:
    begin = time.perf_counter()
    caption = next(captioner.stream([source], **options))
    return Timing(1, time.perf_counter() - begin, None, len(caption.tokens))


# what a request is of each kind of bundle, and the unit of its work
WORKS: dict[type, tuple[Request, str]] = {
    Transcriber: (_speech, "seconds of audio"),
    Translator: (_text, "lines"),
    Summarizer: (_text, "lines"),
    Captioner: (_image, "pictures"),
}


def bench(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder or name.")],
    inputs: Annotated[list[str], typer.Argument(help="Recordings, text files or pictures; each is one request.")],
    at_once: Annotated[list[int] | None, typer.Option(help="Requests at a time; repeat the option. [1, 4, 8]")] = None,
    beams: Annotated[int, typer.Option(help="Width of the beam search; 1 is greedy.")] = 1,
    language: Annotated[str | None, typer.Option("--language", "-l", help="Of speech; detected if left out.")] = None,
    repeat: Annotated[int, typer.Option(help="Times that every number of requests is run; medians are shown.")] = 3,
    device: Annotated[DeviceName, typer.Option(help="auto takes CUDA where it works.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads inside an operator; 0: one per core.")] = 0,
) -> None:
    """Measure a bundle: work and tokens a second, latency and memory, as a Markdown table."""
    numbers = at_once or [1, 4, 8]
    if repeat < 1 or min(numbers) < 1:
        raise InputError("--repeat and --at-once must be 1 or more")
    rows, queue = max(16, *numbers), max(QUEUE, *numbers)
    runner = load(bundle, device, threads=threads, rows=rows, queue=queue)
    request, unit = WORKS[type(runner)]
    sources = [sample(name) for name in inputs]
    options: dict[str, Any] = {"beams": beams}
    if language is not None:
        options["language"] = language
    request(runner, sources[0], options)  # the first is slower: memory is claimed, weights are read
    typer.echo(f"{bundle} on {runner.device}, {threads or 'all'} threads, {beams} beams, medians of {repeat}\n")
    typer.echo(
        f"| requests at once | {unit} a second | tokens/s | latency p50, s | p95 | first token p50, s | peak, MiB |"
    )
    typer.echo("|---|---|---|---|---|---|---|")
    for number in numbers:
        runs = [run(lambda source: request(runner, source, options), sources, number) for _ in range(repeat)]
        typer.echo(row(number, runs))


def run(request: Callable[[str], Timing], sources: Sequence[str], number: int) -> tuple[float, list[Timing]]:
    """Seconds for all, and each request: every source, and as many more of them as keep `number` under way."""
    count = -(-max(number, len(sources)) // len(sources)) * len(sources)
    begin = time.perf_counter()
    with ThreadPoolExecutor(number) as pool:
        timings = list(pool.map(lambda i: request(sources[i % len(sources)]), range(count)))
    return time.perf_counter() - begin, timings


def row(number: int, runs: Sequence[tuple[float, list[Timing]]]) -> str:
    """A line of the table."""
    speed = np.median([sum(one.work for one in timings) / seconds for seconds, timings in runs])
    rate = np.median([sum(one.tokens for one in timings) / seconds for seconds, timings in runs])
    every = [one for _, timings in runs for one in timings]
    middle, late = np.percentile([one.latency for one in every], [50, 95])
    firsts = [one.first_token for one in every if one.first_token is not None]
    first = f"{np.median(firsts):.2f}" if firsts else "unknown"
    peak = peak_memory()
    cells = [f"{number}", f"{speed:.3g}", f"{rate:.0f}", f"{middle:.3g}", f"{late:.3g}", first]
    return "| " + " | ".join([*cells, "unknown" if peak is None else f"{peak:.0f}"]) + " |"


def peak_memory() -> float | None:
    """Most memory this process has held so far, in MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    # in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
