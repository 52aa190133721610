"""Speed of our int8 bundles beside faster-whisper's int8 and float32 on the same weights and recordings.

    python benchmarks/speech_speed.py AUDIO [--long LONG] --rival-python PYTHON [--models whisper-tiny.en whisper-base]

Both engines stay loaded, each in a process of its own, and take turns; seconds are medians, from the file to the last
segment. English, temperature 0, no text of earlier windows in the prompt. AUDIO window after window, no voice activity
detector; LONG by eight windows side by side (faster-whisper's BatchedInferencePipeline), cut by each engine's own
detector, timestamps on. The ratio, and the words that differ, are against the faster of faster-whisper's two types.
PYTHON has faster-whisper 1.2.1 installed; the bundles MODEL-int8 and checkpoints MODEL must be there.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rivals import Rival
from rivals.measure import alternate, conditions, head, parser, row, spread, typical, words_differ
from rivals.task import SEARCHES, Task

from heedful.runtime.home import locate

COMPUTE_TYPES = ("int8", "float32")


def compare(task: Task, ours: Rival, theirs: Rival, runs: int) -> Iterator[object]:
    """The figures of one row."""
    sides = {"heedful": partial(ours, **task.heedful())}
    sides |= {each: partial(theirs, **task.faster_whisper(each)) for each in COMPUTE_TYPES}
    answers = alternate(sides, runs)
    seconds = {name: typical(found) for name, found in answers.items()}
    yield from (f"{each:.2f}" for each in seconds.values())
    faster = min(COMPUTE_TYPES, key=seconds.__getitem__)
    yield f"{seconds[faster] / seconds['heedful']:.2f}"
    yield words_differ(answers["heedful"][0]["text"], answers[faster][0]["text"])
    yield spread(*answers.values())


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("audio")
    arguments_of.add_argument("--long", help="a recording of several minutes")
    arguments_of.add_argument("--rival-python", required=True)
    arguments_of.add_argument("--models", nargs="+", default=["whisper-tiny.en", "whisper-base"])
    arguments = arguments_of.parse_args()
    # a recording and how many windows of it side by side
    recordings = [(arguments.audio, 0), *([(arguments.long, 8)] if arguments.long else [])]
    ours, theirs = Rival(sys.executable, "run_heedful.py"), Rival(arguments.rival_python, "run_faster_whisper.py")
    about = theirs.engine, f"{arguments.threads} threads", f"median of {arguments.runs} alternating runs"
    print(conditions(*about), end="\n\n")
    rivals = [f"faster-whisper {each} s" for each in COMPUTE_TYPES]
    columns = ["recording", "batch", "model", "search", "heedful int8 s", *rivals]
    print(head(*columns, "ratio", "words that differ %", "spread %"))
    for recording, batch in recordings:
        audio = str(locate(recording, "samples"))
        for model in arguments.models:
            for search, beams in SEARCHES.items():
                task = Task(model, audio, beams, batch, arguments.threads)
                figures = compare(task, ours, theirs, arguments.runs)
                print(row(Path(audio).name, batch or 1, model, search, *figures), flush=True)
    for each in (ours, theirs):
        each.close()


if __name__ == "__main__":
    main()
