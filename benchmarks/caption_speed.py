"""Speed of captioners of the sizes that people use beside transformers and optimum, same weights and photos.

    python benchmarks/caption_speed.py PHOTOS --rival-python PYTHON [--folder build/captioners]

PHOTOS is a folder. From files to texts, 20 tokens each whatever the model says: the first four photos one after
another, and the first eight in one batch. Every engine reads and resizes the files itself. transformers, eager in
PyTorch, and optimum, in onnxruntime, compute in float32, and take turns with our int8 and fp32; seconds are of one
photo. optimum has no export of BLIP as a captioner, hence n/a. `tokens alike` are those of our fp32 that are
transformers', too.

PYTHON has optimum-onnx 0.1 and transformers 4.57 installed. The models, of seeded weights (rivals/captioners.py), and
their bundles are made in --folder, if they are not there.
"""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

from rivals import Rival, engine_of
from rivals.measure import alternate, conditions, head, parser, row, spread, typical

from heedful.export.bundle import export

LENGTH = 20
PRECISIONS = ("int8", "fp32")
RIVALS = {"transformers": ("blip-base", "vit-gpt2"), "optimum": ("vit-gpt2",)}
# how many photos by the batch: one at a time is slow, and fewer of them say as much
PHOTOS = {1: 4, 8: 8}
SEARCHES = {"greedy": 1, "beam 3": 3}


def make(model: str, folder: Path, python: str) -> Path:
    """The folder of `model`; its bundles lie beside it."""
    path = folder / model
    if not path.exists():
        script = Path(__file__).parent / "rivals" / "captioners.py"
        subprocess.run([python, str(script), model, str(path)], check=True)
    for precision in PRECISIONS:
        if not (bundle := folder / f"{model}-{precision}").exists():
            export(path, bundle, precision)
    return path


def alike(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The share of tokens that are the same, in percent."""
    pairs = list(zip(chain(*ours["tokens"]), chain(*theirs["tokens"]), strict=True))
    return f"{100 * sum(one == other for one, other in pairs) / len(pairs):.0f}"


def measured(path: Path, photos: list[str], python: str, threads: int, runs: int) -> Iterator[str]:
    """The rows of one model."""
    ours = Rival(sys.executable, "run_heedful_caption.py")
    rivals = {name: Rival(python, f"run_{name}_caption.py") for name, models in RIVALS.items() if path.name in models}
    for batch, (search, beams) in product(PHOTOS, SEARCHES.items()):
        chosen = photos[: PHOTOS[batch]]
        request = {"photos": chosen, "batch": batch, "beams": beams, "length": LENGTH, "threads": threads}
        sides = {each: partial(ours, model=f"{path}-{each}", **request) for each in PRECISIONS}
        sides |= {name: partial(rival, model=str(path), **request) for name, rival in rivals.items()}
        answers = alternate(sides, runs)
        seconds = {name: typical(found) / len(chosen) for name, found in answers.items()}
        times = [f"{seconds[name]:.3f}" if name in seconds else "n/a" for name in (*PRECISIONS, *RIVALS)]
        ratios = [
            f"{seconds[name] / seconds[own]:.2f}" if name in seconds else "n/a"
            for name, own in product(RIVALS, PRECISIONS)
        ]
        same = alike(answers["fp32"][0], answers["transformers"][0])
        yield row(path.name, batch, search, *times, *ratios, same, spread(*answers.values()))
    for each in (ours, *rivals.values()):
        each.close()


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("photos", type=Path)
    arguments_of.add_argument("--rival-python", required=True)
    arguments_of.add_argument("--folder", type=Path, default=Path("build/captioners"))
    arguments_of.add_argument("--models", nargs="+", default=RIVALS["transformers"], choices=RIVALS["transformers"])
    a = arguments_of.parse_args()
    photos = [str(path.absolute()) for path in sorted(a.photos.iterdir())[: max(PHOTOS.values())]]
    folders = [make(model, a.folder.absolute(), a.rival_python) for model in a.models]
    engines = [engine_of(a.rival_python, f"run_{name}_caption.py") for name in RIVALS]
    print(conditions(*engines, f"{a.threads} threads", f"median of {a.runs} alternating runs"), end="\n\n")
    names = [*(f"heedful {each} s" for each in PRECISIONS), *(f"{name} s" for name in RIVALS)]
    ratios = [f"{name} / {own}" for name, own in product(RIVALS, PRECISIONS)]
    print(head("model", "batch", "search", *names, *ratios, "tokens alike %", "spread %"))
    for folder in folders:
        for line in measured(folder, photos, a.rival_python, a.threads, a.runs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
