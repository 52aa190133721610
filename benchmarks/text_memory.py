"""Memory while a long text file is translated.

    python benchmarks/text_memory.py SENTENCES [--megabytes 5] [--bundle translate-en-pt-int8] [--plot PNG]

SENTENCES is a text file, repeated until it is as long as asked. `heedful translate --file` translates it in a process
of its own, whose resident memory (VmRSS of Linux) is read ten times a second; pages of mapped files are included. Rows
are tenths of the time it took: the mean and the most of each. That no line is lost is checked. --plot needs matplotlib:
pip install matplotlib.
"""

import re
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

from rivals.measure import conditions, head, parser, row

PAUSE = 0.1
PARTS = 10

Sample = tuple[float, float]
"""Seconds since the start, MiB."""


def repeated(sentences: Path, size: int, path: Path) -> int:
    """Write the lines of `sentences` to `path`, again and again, until they are `size` bytes; how many there are."""
    lines = sentences.read_bytes().splitlines(keepends=True)
    with path.open("wb") as file:
        for count, line in enumerate(cycle(lines), 1):
            file.write(line)
            if file.tell() >= size:
                return count
    raise AssertionError


def resident(process: int) -> float | None:
    """MiB that the process holds; None once it is over."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except ProcessLookupError:
        return None
    return int(found[1]) / 1024 if found else None


def watched(command: list[str]) -> list[Sample]:
    """The memory of `command` while it runs."""
    samples = []
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if (held := resident(process.pid)) is not None:
                samples.append((time.perf_counter() - start, held))
            time.sleep(PAUSE)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return samples


def draw(samples: list[Sample], about: str, path: str) -> None:
    """A plot of the memory over the time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, cell = pyplot.subplots(figsize=(8, 3), layout="constrained")
    cell.plot(*zip(*samples, strict=True), linewidth=1)
    cell.set(xlabel="s", ylabel="resident MiB", title=about)
    cell.set_ylim(0)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table and draw the plot."""
    arguments_of = parser(__doc__, runs=0)
    arguments_of.add_argument("sentences", type=Path)
    arguments_of.add_argument("--megabytes", type=float, default=5)
    arguments_of.add_argument("--bundle", default="translate-en-pt-int8")
    arguments_of.add_argument("--plot")
    a = arguments_of.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.txt", Path(folder) / "target.txt"
        lines = repeated(a.sentences, round(a.megabytes * 1_000_000), source)
        tool = str(Path(sys.executable).with_name("heedful"))
        options = ["--model", a.bundle, "--threads", str(a.threads), "--output", str(target)]
        samples = watched([tool, "translate", "--file", str(source), *options])
        written = target.read_bytes().count(b"\n")
        if written != lines:
            raise SystemExit(f"{lines} lines went in, {written} came out")
    about = f"{lines} lines, {a.megabytes:g} MB, {a.bundle}, {a.threads} threads"
    print(conditions(about), end="\n\n")
    print(head("seconds", "mean MiB", "most MiB"))
    end = samples[-1][0]
    for part in range(PARTS):
        held = [held for at, held in samples if part <= at * PARTS / end <= part + 1]
        print(row(f"{end * (part + 1) / PARTS:.0f}", f"{sum(held) / len(held):.0f}", f"{max(held):.0f}"))
    if a.plot:
        draw(samples, about, a.plot)


if __name__ == "__main__":
    main()
