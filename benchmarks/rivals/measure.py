"""How sides are compared: the same machine, one run of a script, turn and turn about."""

import argparse
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import jiwer
from whisper_normalizer.english import EnglishTextNormalizer

Answer = dict[str, Any]

# OpenMP's threads go on spinning for a while after their work, on the cores of whoever comes next
_PAUSE = 0.5


def parser(doc: str | None, runs: int = 5) -> argparse.ArgumentParser:
    """A parser with the arguments of every comparison; `runs` as a rule, 0 where there is no more than one."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=2)
    if runs:
        made.add_argument("--runs", type=int, default=runs, help="timed runs of each side; the median counts")
    return made


def alternate(sides: Mapping[str, Callable[[], Answer]], runs: int) -> dict[str, list[Answer]]:
    """The answers of each side to `runs` runs by turns, after one of each that does not count."""
    answers: dict[str, list[Answer]] = {name: [] for name in sides}
    for _ in range(runs + 1):
        for name, side in sides.items():
            time.sleep(_PAUSE)
            answers[name].append(side())
    return {name: found[1:] for name, found in answers.items()}


def typical(answers: list[Answer], what: str = "seconds") -> float:
    """The median of `what` in the answers."""
    return float(median(answer[what] for answer in answers))


def spread(*sides: list[Answer]) -> str:
    """Largest less smallest time over the median, in percent, of the side where it is most: was the machine busy?"""
    times = [[answer["seconds"] for answer in answers] for answers in sides]
    return f"{max((max(each) - min(each)) / median(each) for each in times) * 100:.0f}"


def words_differ(ours: str, theirs: str) -> str:
    """Word error rate in percent of one text against the other: shows that both did the same work."""
    normalize = EnglishTextNormalizer()
    return f"{100 * jiwer.wer(normalize(theirs), normalize(ours)):.1f}"


def conditions(*about: str) -> str:
    """The line above a table: the machine, and what else must be known of the figures."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    machine = f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"
    return "; ".join([machine, f"heedful {version('heedful')}", *about])


def row(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def head(*names: str) -> str:
    """The first two rows of a Markdown table."""
    return row(*names) + "\n|" + "---|" * len(names)
