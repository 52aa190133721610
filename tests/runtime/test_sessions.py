"""Graphs are opened once, whoever asks first, and ahead of their use where they are sure to be needed."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from heedful.runtime import load, open_bundle
from heedful.runtime.engine import sessions as opening
from heedful.runtime.engine.device import Device, open_session
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.errors import BundleError

CPU = Device("cpu")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the graphs that are opened, in order."""
    names: list[str] = []

    def noted(path: Path, device: Device, threads: int = 0) -> ort.InferenceSession:
        names.append(path.stem)
        return open_session(path, device, threads)

    monkeypatch.setattr(opening, "open_session", noted)
    return names


def test_a_graph_is_opened_once_for_all_who_ask(seeded_bundle: Path, opened: list[str]) -> None:
    sessions = Sessions(open_bundle(seeded_bundle), CPU, 1)
    together = threading.Barrier(4)

    def ask(_: int) -> ort.InferenceSession:
        together.wait()
        return sessions.open("decoder")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len(set(map(id, found))) == 1
    assert opened == ["decoder"]
    assert "logits" in [output.name for output in found[0].get_outputs()]


def test_those_on_one_thread_are_others(seeded_bundle: Path, opened: list[str]) -> None:
    sessions = Sessions(open_bundle(seeded_bundle), CPU, 2)
    narrow = sessions.on(1)
    assert narrow.open("decoder") is not sessions.open("decoder")
    assert [each.open("decoder").get_session_options().intra_op_num_threads for each in (narrow, sessions)] == [1, 2]


def test_a_failure_is_told_to_whoever_needs_the_graph_and_tried_again(
    seeded_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise MemoryError("no room")

    sessions = Sessions(open_bundle(seeded_bundle), CPU, 1)
    with monkeypatch.context() as patch:
        patch.setattr(opening, "open_session", full)
        sessions.open_ahead("encoder")
        with pytest.raises(MemoryError, match="no room"):
            sessions.open("encoder")
    assert sessions.open("encoder").get_inputs()[0].name == "waveform"


def test_a_graph_that_the_bundle_lacks(seeded_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"has no shortlist\.onnx"):
        Sessions(open_bundle(seeded_bundle), CPU).open_ahead("shortlist")


def test_a_beam_search_has_a_decoder_of_its_own(seeded_int8: Path, opened: list[str]) -> None:
    for beams, graph in ((1, "decoder"), (2, "beams")):
        opened.clear()
        transcribe = load(seeded_int8, "cpu", threads=1)
        found = transcribe(np.zeros(8000, np.float32), sample_rate=16_000, language="en", beams=beams, batch=2)
        assert found.duration == 0.5
        assert sorted(opened) == sorted(["encoder", graph])


def test_loading_opens_what_the_first_recording_needs(seeded_bundle: Path, opened: list[str]) -> None:
    transcribe = load(seeded_bundle, "cpu")
    transcribe.model.sessions.open("encoder")
    assert sorted(opened) == ["decoder", "encoder"]


FORKED = """
import os, signal, sys, time
import numpy as np
from heedful.runtime import DeviceError, load
from heedful.runtime.engine import sessions

transcribe = load(sys.argv[1], "cpu", threads=2)
sessions.open_session = lambda *arguments: time.sleep(2)
made = transcribe.model.sessions
made.open_ahead("aligner")  # pending while the process is forked
if not (child := os.fork()):
    signal.alarm(20)
    for use in (
        lambda: made.open("aligner"),
        lambda: made.on(1),
        lambda: transcribe(np.zeros(8000, np.float32), sample_rate=16_000, language="en"),
    ):
        try:
            use()
        except DeviceError as error:
            print(error, flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1], made.open("aligner"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
def test_a_forked_process_is_told_to_load_its_own(seeded_bundle: Path) -> None:
    """It would wait for ever for what only threads of the other process can do."""
    done = subprocess.run([sys.executable, "-c", FORKED, seeded_bundle], capture_output=True, text=True, timeout=120)
    *errors, last = done.stdout.splitlines()
    assert (len(errors), last) == (3, "0 None"), done.stderr
    assert all("loaded before the process was forked" in error for error in errors)
