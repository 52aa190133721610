"""Seconds from starting a process to its first transcript, ours beside faster-whisper's, both in int8.

    python benchmarks/speech_start.py AUDIO --rival-python PYTHON [--models whisper-tiny.en]

Imports, loading and one greedy transcription of AUDIO, in a fresh process each time; median of alternating runs, the
first of each side left out, since it also reads the disk. Beside it the part that is the transcription. faster-whisper
quantizes the checkpoint's float16 weights while it loads them. English, temperature 0. PYTHON has faster-whisper 1.2.1
installed; the bundles MODEL-int8 and checkpoints MODEL must be there.
"""

import sys
import time
from functools import partial
from typing import Any

from rivals import Rival, engine_of
from rivals.measure import alternate, conditions, head, parser, row, spread, typical
from rivals.task import Task

from heedful.runtime.home import locate


def started(python: str, script: str, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a fresh process, its `seconds` from the start of the process on, `work` those of the task alone."""
    begin = time.perf_counter()
    process = Rival(python, script)
    answer = process(**request)
    seconds = time.perf_counter() - begin
    process.close()
    return {**answer, "work": answer["seconds"], "seconds": seconds}


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("audio")
    arguments_of.add_argument("--rival-python", required=True)
    arguments_of.add_argument("--models", nargs="+", default=["whisper-tiny.en"])
    arguments = arguments_of.parse_args()
    audio = str(locate(arguments.audio, "samples"))
    rival = engine_of(arguments.rival_python, "run_faster_whisper.py")
    print(conditions(rival, f"{arguments.threads} threads", f"median of {arguments.runs} alternating runs"), end="\n\n")
    sides = ("heedful int8", "faster-whisper int8")
    columns = [f"{side} {what}" for side in sides for what in ("s", "without transcription s")]
    print(head("model", *columns, "ratio", "ratio without transcription", "spread %"))
    for model in arguments.models:
        task = Task(model, audio, threads=arguments.threads)
        starts = [
            partial(started, sys.executable, "run_heedful.py", task.heedful()),
            partial(started, arguments.rival_python, "run_faster_whisper.py", task.faster_whisper()),
        ]
        answers = alternate(dict(zip(sides, starts, strict=True)), arguments.runs)
        whole = [typical(each) for each in answers.values()]
        loading = [total - typical(each, "work") for total, each in zip(whole, answers.values(), strict=True)]
        times = [f"{seconds:.2f}" for pair in zip(whole, loading, strict=True) for seconds in pair]
        ratios = [f"{theirs / ours:.2f}" for ours, theirs in (whole, loading)]
        print(row(model, *times, *ratios, spread(*answers.values())), flush=True)


if __name__ == "__main__":
    main()
