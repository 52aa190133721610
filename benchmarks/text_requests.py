"""Translations asked for by eight threads at once against the same eight one after another, on one loaded model.

    python benchmarks/text_requests.py SOURCE FOLDER [--model translate-en-pt]

The first eight lines of SOURCE through the student MODEL-int8, and eight lines of 20 tokens through the model of the
shape of opus-mt, 40 new tokens each: greedy and with four hypotheses. FOLDER is where rivals/opus.py makes that model,
if it is not there. Both ways take turns; seconds are medians until the last request is answered.
"""

from functools import partial
from pathlib import Path
from typing import Any

from rivals.at_once import COLUMNS, REQUESTS, compared
from rivals.measure import conditions, head, parser, row
from rivals.opus import BUNDLE, NEW, TOKENS
from rivals.opus import lines as made_up
from rivals.shaped import exported

from heedful.runtime import load

SEARCHES = {"greedy": 1, "beam 4": 4}


def translate(translator: Any, text: str, **options: Any) -> str:
    """The translation of `text`."""
    return str(translator(text, **options).text)


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("source", type=Path)
    arguments_of.add_argument("folder", type=Path)
    arguments_of.add_argument("--model", default="translate-en-pt")
    arguments = arguments_of.parse_args()
    lines = arguments.source.read_text(encoding="utf-8").splitlines()[:REQUESTS]
    if len(lines) < REQUESTS:
        raise SystemExit(f"{arguments.source} has {len(lines)} lines: at least {REQUESTS} are needed")
    exported(arguments.folder)
    works: dict[str, tuple[list[str], dict[str, Any]]] = {
        f"{arguments.model}-int8": (lines, {}),
        BUNDLE: (made_up(REQUESTS, TOKENS), {"min_length": NEW, "max_length": NEW}),
    }
    print(conditions(f"{arguments.threads} threads", f"median of {arguments.runs} alternating runs"), end="\n\n")
    print(head("model", "search", *COLUMNS))
    for name, (requests, options) in works.items():
        translator = load(name, "cpu", threads=arguments.threads)
        for search, beams in SEARCHES.items():
            ask = partial(translate, translator, beams=beams, **options)
            print(row(name, search, *compared(ask, requests, arguments.runs)), flush=True)


if __name__ == "__main__":
    main()
