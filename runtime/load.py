"""From the name of a bundle to the object that does its task."""

import os

from heedful.runtime.bundle import open_bundle
from heedful.runtime.engine.device import DeviceName, choose_device
from heedful.runtime.errors import BundleError, InputError
from heedful.runtime.speech.transcriber import Transcriber

# memory of rows that are never used is not claimed
ROWS, QUEUE = 16, 64
# which object does a bundle's task
_TASKS = {"transcribe": Transcriber}


def load(
    bundle: str | os.PathLike[str],
    device: DeviceName = "auto",
    *,
    threads: int = 0,
    rows: int = ROWS,
    queue: int = QUEUE,
) -> Transcriber:
    """Open `bundle`, a folder or the name of one in the bundle folder, on `device`.

    `auto` takes CUDA where it works, else the CPU; the result's `device` says which. `threads` run inside one operator,
    0 for one per core. Memory is bounded by `rows`, the inputs that are decoded side by side, and `queue`, the requests
    that may be under way at once: beyond it BusyError is raised.

    Raises BundleError for a bundle that cannot be trusted or read, DeviceError for a device that is not to be had,
    InputError for an argument that makes no sense.
    """
    for name, value in (("rows", rows), ("queue", queue)):
        if not 1 <= value <= 1024:
            raise InputError(f"{name} must be a whole number from 1 to 1024, not {value!r}")
    opened = open_bundle(bundle)
    task = opened.manifest["task"]
    if task not in _TASKS:
        raise BundleError(f"{opened.path} is for the task {task!r}, which this Heedful does not know: upgrade heedful")
    return _TASKS[task](opened, choose_device(device), threads=threads, rows=rows, queue=queue)
