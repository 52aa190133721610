"""Speed of a Transformer of the shape of opus-mt beside CTranslate2, optimum and transformers, same weights.

    python benchmarks/text_transformer.py FOLDER --ctranslate2-python PYTHON --optimum-python PYTHON

FOLDER is where rivals/opus.py makes the model, if it is not there; its bundle `opus-shaped-int8` is exported if it is
not there. 32 lines of 20 tokens, 40 new tokens each, whatever the model says. CTranslate2 computes in int8, as we do,
and has the better of two ways to spend its threads; optimum and transformers compute in float32. Engines take turns.
"""

import sys
from functools import partial
from pathlib import Path

from rivals import Rival
from rivals.measure import alternate, conditions, head, parser, row, spread, typical
from rivals.opus import BUNDLE, NEW, TOKENS
from rivals.opus import lines as made_up
from rivals.shaped import exported
from rivals.task import Translation

LINES = 32


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("folder")
    arguments_of.add_argument("--ctranslate2-python", required=True)
    arguments_of.add_argument("--optimum-python", required=True)
    arguments = arguments_of.parse_args()
    folder = Path(arguments.folder).absolute()
    exported(folder)
    ours = Rival(sys.executable, "run_heedful_text.py")
    ctranslate2 = Rival(arguments.ctranslate2_python, "run_ctranslate2_text.py")
    others = {name: Rival(arguments.optimum_python, f"run_{name}_text.py") for name in ("transformers", "optimum")}
    rivals = (ctranslate2, *others.values())
    engines = ", ".join(rival.engine for rival in rivals)
    print(
        conditions(engines, f"{arguments.threads} threads", f"median of {arguments.runs} alternating runs"), end="\n\n"
    )
    names = [
        "batch",
        "beams",
        "heedful tokens/s",
        "times ctranslate2",
        *(f"times {name}" for name in others),
        "spread %",
    ]
    print(head(*names))
    for batch in (1, 32):
        # one at a time is slow: fewer of them say as much
        texts = made_up(LINES, TOKENS)[: 4 if batch == 1 else LINES]
        for beams in (1, 4):
            own = Translation(BUNDLE, texts, batch, beams, arguments.threads, NEW)
            theirs = Translation(str(folder), texts, batch, beams, arguments.threads, NEW)
            sides = {"heedful": partial(ours, **own.request(options={}))}
            for workers in (1, arguments.threads):
                request = theirs.request(precision="int8", workers=workers)
                sides[f"ctranslate2 {workers}"] = partial(ctranslate2, **request)
            for name, rival in others.items():
                sides[name] = partial(rival, **theirs.request(precision="float32"))
            answers = alternate(sides, arguments.runs)
            seconds = {name: typical(found) for name, found in answers.items()}
            seconds["ctranslate2"] = min(value for name, value in seconds.items() if name.startswith("ctranslate2"))
            ratios = [f"{seconds[name] / seconds['heedful']:.2f}" for name in ("ctranslate2", *others)]
            rate = f"{len(texts) * NEW / seconds['heedful']:.0f}"
            print(row(batch, beams, rate, *ratios, spread(*answers.values())), flush=True)
    for each in (ours, *rivals):
        each.close()


if __name__ == "__main__":
    main()
