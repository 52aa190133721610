"""Where graphs run: the execution provider, chosen or refused out loud, and the options of a session."""

import contextlib
import ctypes
import io
import logging
import os
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import onnxruntime as ort

from heedful.runtime.engine.cores import limit
from heedful.runtime.errors import DeviceError, InputError

log = logging.getLogger("heedful")

DeviceName = Literal["auto", "cpu", "cuda"]
_CUDA_PROVIDER = "CUDAExecutionProvider"

RUN = ort.RunOptions()
"""The default, said aloud: where nothing is said, onnxruntime's Python raises an error in every run, and catches it."""
RUN.add_run_config_entry("gpu_graph_id", "0")


@dataclass(frozen=True, slots=True)
class Device:
    """What runs the graphs: `name` is cpu or cuda."""

    name: Literal["cpu", "cuda"]

    @property
    def providers(self) -> list[str]:
        return [_CUDA_PROVIDER, "CPUExecutionProvider"] if self.name == "cuda" else ["CPUExecutionProvider"]


def choose_device(name: str) -> Device:
    """The device called `name`. `auto` takes CUDA where it works, else the CPU, and logs which.

    Raises DeviceError when `cuda` is asked for and something is missing, InputError for any other name.
    """
    if name not in get_args(DeviceName):
        raise InputError(f"unknown device {name!r}: choose one of {', '.join(get_args(DeviceName))}")
    if name == "cpu":
        return Device("cpu")
    with _LOOKING:
        lacking = _lacking_for_cuda()
    if lacking is None:
        log.info("device: cuda")
        return Device("cuda")
    if name == "cuda":
        raise DeviceError(f"device 'cuda' was asked for, but {lacking}")
    log.info("device: cpu (%s)", lacking)
    return Device("cpu")


# what two threads redirect at once may stay redirected
_LOOKING = threading.Lock()


def _lacking_for_cuda() -> str | None:
    """What CUDA lacks here and how to get it; None when nothing does.

    onnxruntime falls back to the CPU in silence, so the driver and the provider's library are tried first.
    """
    if _CUDA_PROVIDER not in ort.get_available_providers():
        return "this onnxruntime was built without CUDA: pip install 'heedful[cuda]' on Linux or Windows, x86-64"
    if not _gpu_count():
        return "no NVIDIA GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES"
    # it prints what it cannot find, which the next lines find out for themselves
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    prefix, suffix = ("", ".dll") if os.name == "nt" else ("lib", ".so")
    folder = Path(ort.__file__).parent / "capi"
    try:
        for part in ("shared", "cuda"):
            ctypes.CDLL(str(folder / f"{prefix}onnxruntime_providers_{part}{suffix}"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"a library of CUDA is missing ({error}): pip install 'heedful[cuda]'"
    return None


def _gpu_count() -> int:
    """The number of GPUs that the NVIDIA driver shows to this process."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def session_options(threads: int = 0) -> ort.SessionOptions:
    """How graphs are run: `threads` inside an operator, 0 for one per core that this process may use."""
    options = ort.SessionOptions()
    # left alone, onnxruntime has a thread tied to each physical core, which is best where all may be used; but it sees
    # no limit, and more threads than cores to run on wait for one another
    options.intra_op_num_threads = threads or limit()
    # shapes change from step to step: a plan of memory for each would be kept and seldom used again
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    # idle threads look out for work for so long, not for a millisecond, in which whoever else needs the core would wait
    options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    with _REGISTERING:
        _share_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


# a second arena would take the place of the first, and graphs are opened in threads
_REGISTERING = threading.Lock()


@cache
def _share_memory() -> None:
    """Give this process one arena for what graphs compute in between; left alone, each session keeps one of its own."""
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(where, ort.OrtArenaCfg({"max_mem": 0}))


def open_session(path: Path, device: Device, threads: int = 0) -> ort.InferenceSession:
    """A session for the graph at `path`; `threads` inside an operator, 0 for one per core.

    Raises DeviceError when the device's provider was not taken up, which onnxruntime itself would pass over.
    """
    # on the CPU an addition and a normalisation in one node take six times as long as in two (docs/experiments.md)
    disabled = ["SkipLayerNormFusion"] if device.name == "cpu" else []
    options = session_options(threads)
    session = ort.InferenceSession(str(path), options, providers=device.providers, disabled_optimizers=disabled)
    if device.providers[0] not in session.get_providers():
        raise DeviceError(
            f"device '{device.name}' was asked for, but onnxruntime could not load {device.providers[0]}: "
            "its libraries are missing or of another version; pip install 'heedful[cuda]' brings them"
        )
    _give_back()
    return session


def _give_back() -> None:
    """Give the system back what was freed: opening a graph makes copies of weights that glibc would otherwise keep."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        # None is the program itself, which not every system's loader takes
        ctypes.CDLL(None).malloc_trim(0)
