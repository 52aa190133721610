"""How many cores there are for this process, which may be fewer than the machine has."""

import contextlib
import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
# microseconds of all cores together, and the period in which they may be used, in versions 2 and 1 of control groups
_QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))


def cores() -> int:
    """The cores that this process may use, at least 1: those that its affinity names, or the fewer whose time the quota
    of its container adds up to, rounded up.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in _QUOTAS:
        # where there is no quota there is no such file, or a word or a negative number in it
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int(word) for file in files for word in (_CGROUP / file).read_text().split())
            if quota > 0 and period > 0:
                allowed = min(allowed, math.ceil(quota / period))
    return allowed


def limit() -> int:
    """`cores()` where something keeps this process from some of the machine's, else 0."""
    found = cores()
    return found if found < (os.cpu_count() or 1) else 0
