"""From the name of a bundle to the object that does its task."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from heedful.runtime.bundle import open_bundle
from heedful.runtime.engine.device import DeviceName, choose_device
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.errors import BundleError
from heedful.runtime.options import check_whole

QUEUE = 64


@dataclass(frozen=True)
class _Task:
    """What does a bundle's task, imported when it is needed, and how many inputs it decodes side by side unless told.

    Memory of rows that are never used is not claimed. Graphs that the first input needs for certain are opened `ahead`,
    while Python goes on with imports and the tokenizer.
    """

    module: str
    name: str
    rows: int
    ahead: tuple[str, ...] = ()

    @property
    def runner(self) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(import_module(f"heedful.runtime.{self.module}"), self.name)
        return found


TASKS = {
    "transcribe": _Task("speech.transcriber", "Transcriber", 16, ahead=("encoder",)),
    "translate": _Task("text.writer", "Translator", 64),
    "summarize": _Task("text.writer", "Summarizer", 64),
    "caption": _Task("image.captioner", "Captioner", 16, ahead=("encoder",)),
}


def load(
    bundle: str | os.PathLike[str],
    device: DeviceName = "auto",
    *,
    threads: int = 0,
    rows: int | None = None,
    queue: int = QUEUE,
) -> Any:
    """Open `bundle`, a folder or the name of one in the bundle folder, on `device`.

    What comes back is a `Transcriber`, `Translator`, `Summarizer` or `Captioner`, as the bundle's task is. `auto` takes
    CUDA where it works, else the CPU; the result's `device` says which. `threads` are used, 0 for one per core that
    this process may use. Memory is bounded by `rows`, the inputs that are decoded side by side, None for what suits the
    task, and `queue`, the requests that may be under way at once: beyond it BusyError is raised.

    Raises BundleError for a bundle that cannot be trusted or read, DeviceError for a device that is not to be had,
    InputError for an argument that makes no sense.
    """
    check_whole("threads", threads, 0, 1024)
    check_whole("queue", queue, 1, 1024)
    if rows is not None:
        check_whole("rows", rows, 1, 1024)
    opened = open_bundle(bundle, remembered=True)
    task = opened.manifest["task"]
    if task not in TASKS:
        raise BundleError(f"{opened.path} is for the task {task!r}, which this Heedful does not know: upgrade heedful")
    chosen = TASKS[task]
    sessions = Sessions(opened, choose_device(device), threads)
    for graph in chosen.ahead:
        sessions.open_ahead(graph)
    return chosen.runner(sessions, rows=rows or chosen.rows, queue=queue)
