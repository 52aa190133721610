"""How many cores a process may use: what its affinity and the quota of its container leave of the machine's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from heedful.runtime.engine import cores as counting
from heedful.runtime.engine.cores import cores, limit

QUOTA, PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 cores, all of which may be used; the folder of its control groups, which is empty."""
    monkeypatch.setattr(counting, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({"cpu.max": ""}, 64),
        ({"cpu.max": "200000 0\n"}, 64),
        ({QUOTA: "-1\n", PERIOD: "100000\n"}, 64),
        ({QUOTA: "150000\n", PERIOD: "50000\n"}, 3),
        ({QUOTA: "150000\n"}, 64),
    ],
    ids=str,
)
def test_a_quota_is_so_many_cores(machine: Path, files: dict[str, str], expected: int) -> None:
    (machine / "cpu").mkdir()
    for name, content in files.items():
        (machine / name).write_text(content)
    assert cores() == expected
    assert limit() == (expected if expected < 64 else 0)


@pytest.mark.parametrize(("quota", "expected"), [("max", 3), ("200000", 2), ("800000", 3)])
def test_affinity_and_quota_both_hold(
    machine: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 7, 9})
    (machine / "cpu.max").write_text(f"{quota} 100000")
    assert cores() == limit() == expected


def test_where_there_is_no_affinity_all_cores_may_be_used(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert (cores(), limit()) == (64, 0)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert (cores(), limit()) == (1, 0)


TIED = """
import os
from heedful.runtime.engine.cores import cores, limit
from heedful.runtime.engine.device import session_options

os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
print(cores(), limit(), session_options().intra_op_num_threads, session_options(3).intra_op_num_threads)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be tied to cores here")
@pytest.mark.skipif(os.cpu_count() == 1, reason="there is but one core")
def test_a_process_tied_to_one_core() -> None:
    done = subprocess.run([sys.executable, "-c", TIED], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["1", "1", "1", "3"], "")
