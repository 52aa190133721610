"""How seconds and peak memory grow with the batch, with the length of the recording and with the beams.

    python benchmarks/speech_scaling.py AUDIO LONG [--model whisper-tiny.en] [--precision int8] [--plot PNG]

A fresh process for every row: it transcribes AUDIO once, untimed, then the row's recording --runs times; seconds are
the median, memory the most the process has held (VmHWM of Linux). Batches on LONG; lengths on LONG repeated, at batch
8; both greedy and cut by the voice activity detector. Beams on AUDIO, window after window. English, temperature 0.
The bundle MODEL-PRECISION must be there. --plot needs matplotlib, which nothing else here does: pip install matplotlib.
"""

import sys
import tempfile
import wave
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rivals import Rival
from rivals.measure import conditions, head, parser, row, typical
from rivals.task import Task

from heedful.runtime.home import locate
from heedful.runtime.speech.audio import SAMPLE_RATE, read_audio

BATCHES = (1, 2, 4, 8, 16)
LENGTHS = (30, 120, 600, 3600)
BEAMS = (1, 2, 4, 5, 8)


@dataclass(frozen=True)
class Point:
    """What was measured: `series` at `value`, on `length` seconds of audio."""

    series: str
    value: int
    length: float
    seconds: float
    mebibytes: float


def repeated(samples: np.ndarray[tuple[int], np.dtype[np.float32]], seconds: int, folder: Path) -> str:
    """A file of `seconds` of `samples`, from their beginning again as often as needed."""
    path = folder / f"{seconds}.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.resize(samples, seconds * SAMPLE_RATE) * 32767).astype("<i2").tobytes())
    return str(path)


def measured(task: Task, warm: str, precision: str, runs: int) -> tuple[float, float]:
    """Seconds and MiB of `task` in a fresh process, after the recording `warm`."""
    with closing(Rival(sys.executable, "run_heedful.py")) as process:
        process(**replace(task, audio=warm).heedful(precision))
        answers = [process(**task.heedful(precision)) for _ in range(runs)]
    return typical(answers), typical(answers, "peak")


def tasks(model: str, audio: str, long: str, threads: int, folder: Path) -> Iterator[tuple[str, int, float, Task]]:
    """Series, value, seconds of audio and task of every row."""
    samples = np.concatenate(list(read_audio(long)))
    whole = len(samples) / SAMPLE_RATE
    for batch in BATCHES:
        yield "batch", batch, whole, Task(model, long, 1, batch, threads)
    for seconds in LENGTHS:
        yield "seconds of audio", seconds, seconds, Task(model, repeated(samples, seconds, folder), 1, 8, threads)
    short = sum(len(chunk) for chunk in read_audio(audio)) / SAMPLE_RATE
    for beams in BEAMS:
        yield "beams", beams, short, Task(model, audio, beams, 0, threads)


def draw(points: list[Point], path: str) -> None:
    """A plot of each series: seconds above, memory below."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    series: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        series[point.series].append(point)
    figure, axes = pyplot.subplots(2, len(series), figsize=(4 * len(series), 6), squeeze=False, layout="constrained")
    for column, (name, found) in enumerate(series.items()):
        values = [point.value for point in found]
        for cell, what, label in zip(axes[:, column], ("seconds", "mebibytes"), ("s", "peak MiB"), strict=True):
            cell.plot(values, [getattr(point, what) for point in found], marker="o")
            cell.set(xlabel=name, ylabel=label)
            if name == "seconds of audio":
                cell.set_xscale("log")
            if name == "seconds of audio" and what == "seconds":
                cell.set_yscale("log")
            else:
                cell.set_ylim(0)
            cell.set_xticks(values, [str(value) for value in values])
            cell.minorticks_off()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table and draw the plot."""
    arguments_of = parser(__doc__, runs=3)
    arguments_of.add_argument("audio")
    arguments_of.add_argument("long")
    arguments_of.add_argument("--model", default="whisper-tiny.en")
    arguments_of.add_argument("--precision", default="int8", choices=["int8", "fp32"])
    arguments_of.add_argument("--plot")
    arguments = arguments_of.parse_args()
    audio, long = (str(locate(each, "samples")) for each in (arguments.audio, arguments.long))
    about = f"{arguments.model} {arguments.precision}", f"{arguments.threads} threads", f"median of {arguments.runs}"
    print(conditions(*about), end="\n\n")
    print(head("series", "value", "audio s", "seconds", "times real time", "peak MiB"))
    points = []
    with tempfile.TemporaryDirectory() as folder:
        for series, value, length, task in tasks(arguments.model, audio, long, arguments.threads, Path(folder)):
            point = Point(series, value, length, *measured(task, audio, arguments.precision, arguments.runs))
            points.append(point)
            figures = f"{point.seconds:.2f}", f"{length / point.seconds:.0f}", f"{point.mebibytes:.0f}"
            print(row(series, value, f"{length:.0f}", *figures), flush=True)
    if arguments.plot:
        draw(points, arguments.plot)


if __name__ == "__main__":
    main()
