"""Peak memory of our int8 bundle beside faster-whisper in int8 on the same weights and recording.

    python benchmarks/speech_memory.py AUDIO --rival-python PYTHON [--models whisper-base]

A fresh process for every figure: it loads the model, transcribes AUDIO once, and says the most resident memory it has
held (VmHWM of Linux), pages of mapped files included. Median of alternating runs. faster-whisper quantizes the
checkpoint's float16 weights while it loads them. English, temperature 0, no text of earlier windows in the prompt.
PYTHON has faster-whisper 1.2.1 installed; the bundles MODEL-int8 and checkpoints MODEL must be there.
"""

import sys
from contextlib import closing
from functools import partial
from typing import Any

from rivals import Rival, engine_of
from rivals.measure import alternate, conditions, head, parser, row, typical
from rivals.task import SEARCHES, Task

from heedful.runtime.home import locate


def fresh(python: str, script: str, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a process that does nothing else."""
    with closing(Rival(python, script)) as process:
        return process(**request)


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__, runs=3)
    arguments_of.add_argument("audio")
    arguments_of.add_argument("--rival-python", required=True)
    arguments_of.add_argument("--models", nargs="+", default=["whisper-base"])
    arguments = arguments_of.parse_args()
    audio = str(locate(arguments.audio, "samples"))
    rival = engine_of(arguments.rival_python, "run_faster_whisper.py")
    print(conditions(rival, f"{arguments.threads} threads", f"median of {arguments.runs} alternating runs"), end="\n\n")
    print(head("model", "search", "heedful int8 MiB", "faster-whisper int8 MiB", "ratio"))
    for model in arguments.models:
        for search, beams in SEARCHES.items():
            task = Task(model, audio, beams, threads=arguments.threads)
            sides = {
                "heedful": partial(fresh, sys.executable, "run_heedful.py", task.heedful()),
                "rival": partial(fresh, arguments.rival_python, "run_faster_whisper.py", task.faster_whisper()),
            }
            ours, theirs = (typical(each, "peak") for each in alternate(sides, arguments.runs).values())
            print(row(model, search, f"{ours:.0f}", f"{theirs:.0f}", f"{theirs / ours:.2f}"), flush=True)


if __name__ == "__main__":
    main()
