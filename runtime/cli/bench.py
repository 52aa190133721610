"""`heedful bench`: how fast a bundle is on this machine, with one request at a time and with several at once."""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from heedful.runtime.engine.device import DeviceName
from heedful.runtime.errors import InputError
from heedful.runtime.home import sample
from heedful.runtime.load import QUEUE, TASKS, load
from heedful.runtime.speech.transcriber import Transcriber
from heedful.runtime.speech.transcription import collect


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(bench)


@dataclass(frozen=True, slots=True)
class Timing:
    """One request: seconds of audio and to the answer and the first token, and the tokens of the answer."""

    audio: float
    latency: float
    first_token: float
    tokens: int


def bench(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder or name.")],
    inputs: Annotated[list[str], typer.Argument(help="Recordings or names of samples; each is one request.")],
    at_once: Annotated[list[int] | None, typer.Option(help="Requests at a time; repeat the option. [1, 4, 8]")] = None,
    beams: Annotated[int, typer.Option(help="Width of the beam search; 1 is greedy.")] = 1,
    language: Annotated[str | None, typer.Option("--language", "-l", help="Detected if left out.")] = None,
    repeat: Annotated[int, typer.Option(help="Times that every number of requests is run; medians are shown.")] = 3,
    device: Annotated[DeviceName, typer.Option(help="auto takes CUDA where it works.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads inside an operator; 0: one per core.")] = 0,
) -> None:
    """Measure a bundle: real-time factor, tokens a second, latency and memory, as a Markdown table."""
    numbers = at_once or [1, 4, 8]
    if repeat < 1 or min(numbers) < 1:
        raise InputError("--repeat and --at-once must be 1 or more")
    rows, queue = max(TASKS["transcribe"].rows, *numbers), max(QUEUE, *numbers)
    transcriber = load(bundle, device, threads=threads, rows=rows, queue=queue)
    if not isinstance(transcriber, Transcriber):
        raise InputError(f"{bundle} does not transcribe: heedful bench measures speech")
    sources = [sample(name) for name in inputs]
    options: dict[str, Any] = {"beams": beams, "language": language, "temperatures": (0.0,)}
    request(transcriber, sources[0], options)  # the first is slower: memory is claimed, weights are read
    typer.echo(f"{bundle} on {transcriber.device}, {threads or 'all'} threads, {beams} beams, medians of {repeat}\n")
    typer.echo(
        "| requests at once | real-time factor | tokens/s | latency p50, s | p95 | first token p50, s | peak, MiB |"
    )
    typer.echo("|---|---|---|---|---|---|---|")
    for number in numbers:
        typer.echo(row(number, [run(transcriber, sources, options, number) for _ in range(repeat)]))


def request(transcriber: Transcriber, source: Path, options: dict[str, Any]) -> Timing:
    """Transcribe `source`, with the time taken."""
    begin = time.perf_counter()
    transcription = transcriber.stream(source, **options)
    transcript = collect(transcription)
    end = time.perf_counter()
    first = end if transcription.first_token is None else transcription.first_token
    tokens = sum(len(segment.tokens) for segment in transcript.segments)
    return Timing(transcript.duration, end - begin, first - begin, tokens)


def run(
    transcriber: Transcriber, sources: Sequence[Path], options: dict[str, Any], number: int
) -> tuple[float, list[Timing]]:
    """Seconds for all, and each request: every source, and as many more of them as keep `number` under way."""
    count = -(-max(number, len(sources)) // len(sources)) * len(sources)
    begin = time.perf_counter()
    with ThreadPoolExecutor(number) as pool:
        timings = list(pool.map(lambda i: request(transcriber, sources[i % len(sources)], options), range(count)))
    return time.perf_counter() - begin, timings


def row(number: int, runs: Sequence[tuple[float, list[Timing]]]) -> str:
    """A line of the table."""
    factor = np.median([seconds / sum(one.audio for one in timings) for seconds, timings in runs])
    rate = np.median([sum(one.tokens for one in timings) / seconds for seconds, timings in runs])
    every = [one for _, timings in runs for one in timings]
    middle, late = np.percentile([one.latency for one in every], [50, 95])
    first = np.median([one.first_token for one in every])
    peak = peak_memory()
    cells = [f"{number}", f"{factor:.4f}", f"{rate:.0f}", f"{middle:.2f}", f"{late:.2f}", f"{first:.2f}"]
    return "| " + " | ".join([*cells, "unknown" if peak is None else f"{peak:.0f}"]) + " |"


def peak_memory() -> float | None:
    """Most memory this process has held so far, in MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    # in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
