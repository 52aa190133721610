"""Speed of our bundles beside transformers (eager torch) and optimum (onnxruntime) on the same weights and windows.

    python benchmarks/speech_transformers.py AUDIO --rival-python PYTHON [--model whisper-tiny.en]

The first two windows of 30 s of AUDIO, one after another, features included: greedy, the same limit on tokens, English.
Without timestamps, so that each engine reads each window exactly once: with them ours would go on where the last
segment ends, which is what transcribing needs and `generate` leaves to its caller. The engines stay loaded, each in a
process of its own, and take turns; seconds are medians. PYTHON has optimum-onnx 0.1 and transformers 4.57 installed;
the bundles MODEL-fp32 and MODEL-int8 and the checkpoint MODEL must be there. The model in Hugging Face's layout is
written to --folder, once.
"""

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rivals import Rival
from rivals.measure import alternate, conditions, head, parser, row, spread, typical, words_differ
from rivals.to_huggingface import write

from heedful.runtime.home import locate
from heedful.runtime.speech.audio import SAMPLE_RATE, read_audio

RIVALS = {
    "transformers float32": ("run_transformers.py", "float32"),
    "optimum float32": ("run_optimum.py", "float32"),
    "optimum int8": ("run_optimum.py", "int8"),
}
PRECISIONS = ("fp32", "int8")
WINDOW = 30 * SAMPLE_RATE
# half of the positions: our limit, and the original's
MOST_TOKENS = 224


def cut(audio: str, folder: Path) -> list[str]:
    """The first two windows of `audio` as .npy files."""
    samples = np.concatenate(list(read_audio(locate(audio, "samples"))))[: 2 * WINDOW]
    paths = []
    for start in range(0, len(samples), WINDOW):
        paths.append(str(folder / f"{start}.npy"))
        np.save(paths[-1], samples[start : start + WINDOW])
    return paths


def heedful(model: str, windows: list[str], threads: int) -> dict[str, Any]:
    """The request to run_heedful.py."""
    options = {"language": "en", "beams": 1, "temperatures": [0.0], "timestamps": False}
    return {"model": model, "threads": threads, "windows": windows, "options": options}


def huggingface(folder: Path, name: str, precision: str, windows: list[str], threads: int) -> dict[str, Any]:
    """The request to a rival; `name` of a model says whether it must be told the language."""
    options: dict[str, Any] = {"num_beams": 1, "max_new_tokens": MOST_TOKENS, "return_timestamps": False}
    if not name.endswith(".en"):
        options |= {"language": "en", "task": "transcribe"}
    model = str(folder.resolve())
    return {"model": model, "precision": precision, "threads": threads, "windows": windows, "options": options}


def measured(model: str, folder: Path, python: str, audio: str, threads: int, runs: int) -> Iterator[str]:
    """The lines of the table."""
    processes = {script: Rival(python, script) for script in dict.fromkeys(script for script, _ in RIVALS.values())}
    ours = Rival(sys.executable, "run_heedful.py")
    engines = [process.engine for process in processes.values()]
    yield conditions(*engines, f"{threads} threads", f"median of {runs} alternating runs") + "\n"
    with tempfile.TemporaryDirectory() as temporary:
        windows = cut(audio, Path(temporary))
        sides = {name: partial(ours, **heedful(f"{model}-{name}", windows, threads)) for name in PRECISIONS}
        for name, (script, precision) in RIVALS.items():
            request = huggingface(folder, model, precision, windows, threads)
            sides[name] = partial(processes[script], **request)
        answers = alternate(sides, runs)
    for process in (ours, *processes.values()):
        process.close()
    yield head("model", "rival", "rival s", "heedful", "heedful s", "ratio", "words that differ %", "spread %")
    for name, precision in product(RIVALS, PRECISIONS):
        pair = answers[name], answers[precision]
        theirs, mine = (typical(side) for side in pair)
        differ = words_differ(answers[precision][0]["text"], answers[name][0]["text"])
        figures = precision, f"{mine:.2f}", f"{theirs / mine:.2f}", differ, spread(*pair)
        yield row(model, name, f"{theirs:.2f}", *figures)


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("audio")
    arguments_of.add_argument("--rival-python", required=True)
    arguments_of.add_argument("--model", default="whisper-tiny.en")
    arguments_of.add_argument("--folder", type=Path, help="build/rivals/MODEL unless given")
    a = arguments_of.parse_args()
    folder = a.folder or Path("build/rivals") / a.model
    if not folder.exists():
        write(a.model, folder)
    for line in measured(a.model, folder, a.rival_python, a.audio, a.threads, a.runs):
        print(line, flush=True)


if __name__ == "__main__":
    main()
