"""The other end of a rival's process: a line of JSON that says the engine, then an answer a line to each request."""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any


def serve(package: str, prepare: Callable[[dict[str, Any]], Callable[[], dict[str, Any]]]) -> None:
    """Answer requests until there are no more. `prepare` does what is not timed, such as opening a model, and returns
    what is. Each answer also says `seconds`, how long the timed part took, and `peak`, the most memory in MiB that this
    process has held so far. A request with `calls` runs the timed part so often, of which the median counts, with
    `pause` seconds before each. The engine is the installed `package`.
    """
    # whatever a library prints must not end up between the answers
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps({"engine": f"{package} {version(package)}"}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        timed = prepare(request)
        seconds = []
        for _ in range(request.get("calls", 1)):
            time.sleep(request.get("pause", 0))
            begin = time.perf_counter()
            answer = timed()
            seconds.append(time.perf_counter() - begin)
        print(json.dumps({**answer, "seconds": median(seconds), "peak": peak()}), file=answers, flush=True)


def peak() -> float:
    """The most memory in MiB that this process has held: resident pages, those of mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
