"""Where graphs run: CUDA or the CPU, and in words what CUDA lacks. Drivers and libraries are played by stand-ins."""

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from heedful.runtime import DeviceError, InputError, load
from heedful.runtime.engine import device as devices
from heedful.runtime.engine.device import Device, choose_device, open_session

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
DRIVERS = {"libcuda.so.1", "nvcuda.dll"}


class Driver:
    """NVIDIA's driver, as far as it is asked: whether it starts, and how many GPUs it shows."""

    def __init__(self, gpus: int, failure: int = 0) -> None:
        self.gpus = gpus
        self.failure = failure

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.failure

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return 0


Library = Callable[[str], object]


def absent(name: str) -> object:
    raise OSError(f"{Path(name).name}: cannot open shared object file")


def machine(driver: Driver | None = None, missing: str = "") -> Library:
    """Libraries of a machine with that `driver`, of which those with `missing` in their name do not load."""

    def library(name: str) -> object:
        if name in DRIVERS:
            return driver or absent(name)
        return absent("libcublasLt.so.12") if missing and missing in Path(name).name else object()

    return library


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine look like another."""

    def become(library: Library, providers: tuple[str, ...] = (CUDA, CPU)) -> None:
        monkeypatch.setattr(ort, "get_available_providers", lambda: list(providers))
        # it prints whatever it cannot find
        monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcublasLt.so.12"))
        monkeypatch.setattr(ctypes, "CDLL", lambda name, mode=0: library(name))

    return become


LACKING: dict[str, tuple[Library, tuple[str, ...], str]] = {
    "the provider": (machine(Driver(1)), (CPU,), r"built without CUDA: pip install 'heedful\[cuda\]'"),
    "the driver": (machine(), (CUDA, CPU), "no NVIDIA GPU is visible: check nvidia-smi"),
    "a driver that starts": (machine(Driver(1, failure=100)), (CUDA, CPU), "no NVIDIA GPU is visible"),
    "a GPU": (machine(Driver(0)), (CUDA, CPU), "no NVIDIA GPU is visible: .* CUDA_VISIBLE_DEVICES"),
    "a library": (machine(Driver(1), "providers_cuda"), (CUDA, CPU), r"libcublasLt\.so\.12.*pip install"),
}


@pytest.mark.parametrize(("library", "providers", "reason"), LACKING.values(), ids=LACKING)
def test_what_cuda_lacks_is_said(
    pretend: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    library: Library,
    providers: tuple[str, ...],
    reason: str,
) -> None:
    pretend(library, providers)
    with pytest.raises(DeviceError, match=f"^device 'cuda' was asked for, but .*{reason}") as refused:
        choose_device("cuda")
    assert caplog.records == []
    lacking = str(refused.value).removeprefix("device 'cuda' was asked for, but ")
    with caplog.at_level(logging.INFO, "heedful"):
        assert choose_device("auto").name == "cpu"
    assert caplog.record_tuples == [("heedful", logging.INFO, f"device: cpu ({lacking})")]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_cuda_is_taken_where_nothing_lacks(
    pretend: Callable[..., None], caplog: pytest.LogCaptureFixture, name: str, gpus: int
) -> None:
    pretend(machine(Driver(gpus)))
    with caplog.at_level(logging.INFO, "heedful"):
        chosen = choose_device(name)
    assert chosen.providers == [CUDA, CPU]
    assert [record.getMessage() for record in caplog.records] == ["device: cuda"]


def test_output_goes_where_it_went_after_two_looked_for_cuda_at_once(
    pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What onnxruntime prints is caught in place of all that the process prints."""
    pretend(machine(Driver(1)))
    before, other, entered = sys.stdout, threading.Event(), []

    def preload() -> None:
        entered.append(sys.stdout)
        if len(entered) == 1:
            other.wait(0.5)
        else:
            # the second to come is the last to go
            other.set()
            looking[0].join(0.5)

    monkeypatch.setattr(ort, "preload_dlls", preload)
    looking = [threading.Thread(target=choose_device, args=("cuda",)) for _ in range(2)]
    for thread in looking:
        thread.start()
    for thread in looking:
        thread.join()
    after = sys.stdout
    sys.stdout = before
    assert len(entered) == 2
    assert after is before


def test_the_cpu_is_taken_without_a_look_around(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "_lacking_for_cuda", lambda: pytest.fail("nobody asked for CUDA"))
    with caplog.at_level(logging.INFO, "heedful"):
        assert choose_device("cpu").providers == [CPU]
    assert caplog.records == []


def test_a_transcriber_falls_back_aloud(
    pretend: Callable[..., None], caplog: pytest.LogCaptureFixture, seeded_bundle: Path
) -> None:
    pretend(machine())
    with caplog.at_level(logging.INFO, "heedful"):
        transcriber = load(seeded_bundle)
    assert transcriber.device == "cpu"
    assert "device: cpu (no NVIDIA GPU is visible" in caplog.text
    with pytest.raises(DeviceError, match="no NVIDIA GPU is visible"):
        load(seeded_bundle, "cuda")


@pytest.mark.parametrize("name", ["tpu", "CUDA", "cuda:1", "gpu", ""])
def test_an_unknown_device_is_named(seeded_bundle: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"unknown device '{name}': choose one of auto, cpu, cuda"):
        load(seeded_bundle, name)  # type: ignore[arg-type]


def test_a_provider_that_is_not_taken_up_is_no_silent_cpu(seeded_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime itself does when its provider does not load: it goes on with the CPU."""
    opened = ort.InferenceSession
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda path, options, providers, **more: opened(path, options, providers=[providers[-1]]),
    )
    with pytest.raises(DeviceError, match=r"'cuda' was asked for.* could not load CUDAExecutionProvider.*pip install"):
        open_session(seeded_bundle / "encoder.onnx", Device("cuda"))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_session_has_its_threads_and_its_provider(
    seeded_bundle: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(devices, "limit", lambda: 0)
    session = open_session(seeded_bundle / "encoder.onnx", Device("cpu"), threads)
    assert session.get_providers() == [CPU]
    assert session.get_session_options().intra_op_num_threads == threads


@pytest.mark.parametrize(("threads", "expected"), [(0, 2), (1, 1), (3, 3)])
def test_a_session_left_to_choose_keeps_to_the_cores_of_its_process(
    monkeypatch: pytest.MonkeyPatch, threads: int, expected: int
) -> None:
    """onnxruntime counts those of the machine, and ties threads to them."""
    monkeypatch.setattr(devices, "limit", lambda: 2)
    assert devices.session_options(threads).intra_op_num_threads == expected


def test_graphs_that_run_in_turns_share_their_memory(tmp_path: Path, resident: Callable[[], int]) -> None:
    size = 1 << 24
    inputs = [helper.make_tensor_value_info("count", TensorProto.INT64, [1])]
    outputs = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1])]
    nodes = [
        helper.make_node("ConstantOfShape", ["count"], ["zeros"]),
        helper.make_node("Cos", ["zeros"], ["ones"]),
        helper.make_node("ReduceSum", ["ones"], ["sum"]),
    ]
    graph = helper.make_graph(nodes, "large", inputs, outputs)
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    first, second = (open_session(path, Device("cpu"), threads) for threads in (2, 1))
    given = {"count": np.array([size])}

    assert first.run(None, given)[0] == size
    before = resident()
    assert second.run(None, given)[0] == size
    assert resident() - before < size  # where it took twice four times as much by itself


def test_graphs_opened_at_once_share_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second arena would take the place of the first: graphs opened before would have one of their own."""
    registered = []
    with monkeypatch.context() as patch:

        def register(*_: object) -> None:
            time.sleep(0.05)  # time enough for the other thread to come
            registered.append(1)

        patch.setattr(ort, "create_and_register_allocator", register)
        devices._share_memory.cache_clear()
        opening = [threading.Thread(target=devices.session_options, args=(2,)) for _ in range(4)]
        for thread in opening:
            thread.start()
        for thread in opening:
            thread.join()
    # what was registered was nothing
    devices._share_memory.cache_clear()
    assert registered == [1]
