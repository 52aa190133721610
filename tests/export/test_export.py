"""Exporting a small checkpoint that transformers saved: what lies in the bundle, and that a failure leaves nothing."""

import shutil
from pathlib import Path

import pytest

from heedful.export import certificate
from heedful.export.bundle import Precision, export
from heedful.export.certificate import Tolerance
from heedful.runtime.bundle import open_bundle
from heedful.runtime.errors import CheckpointError, ExportError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def test_a_bundle_states_what_it_is(seeded_bundle: Path) -> None:
    manifest = open_bundle(seeded_bundle).manifest
    assert (manifest["task"], manifest["family"], manifest["precision"]) == ("transcribe", "whisper", "fp32")
    exact = manifest["certificate"]["exact"]
    assert exact["passed"]
    assert exact["compared_with"] == "PyTorch"
    assert all(len(exact[name]) >= 3 for name in ("batch_sizes", "prompt_lengths", "beam_widths"))
    assert all(0 <= figures["rms"] < 1e-4 for figures in manifest["certificate"]["differences"].values())


def test_weights_are_stored_once(seeded_bundle: Path) -> None:
    manifest = open_bundle(seeded_bundle).manifest
    weights = manifest["files"]["weights.bin"]["bytes"]
    front_end = 4 * (400 * 402 + 201 * 80)
    # tensors begin at pages of 4096 bytes: a small model has much padding, of at most a page a tensor
    assert weights <= 4 * manifest["parameters"] + front_end + 4096 * 120


def test_the_saved_graphs_name_no_path(seeded_bundle: Path) -> None:
    for graph in seeded_bundle.glob("*.onnx"):
        content = graph.read_bytes()
        assert b".py" not in content
        assert str(Path.cwd()).encode() not in content


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_other_precisions_are_smaller(
    precision: Precision, seeded_checkpoint: Path, seeded_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # random weights lose more in 8 bits than trained ones
    monkeypatch.setitem(certificate.TOLERANCES, precision, Tolerance(rms=1.0, agreement=0.0, same_tokens=False))
    bundle = export(seeded_checkpoint, tmp_path / "small", precision)
    assert open_bundle(bundle).manifest["precision"] == precision
    assert (bundle / "weights.bin").stat().st_size < (seeded_bundle / "weights.bin").stat().st_size


def test_a_failed_check_writes_nothing(
    seeded_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(certificate.TOLERANCES, "fp32", Tolerance(rms=0.0, agreement=1.0, same_tokens=True))
    with pytest.raises(ExportError, match="differ from the PyTorch model"):
        export(seeded_checkpoint, tmp_path / "folder" / "bundle")
    assert list((tmp_path / "folder").iterdir()) == []


def test_an_existing_bundle_stays(seeded_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ExportError, match="there already"):
        export(seeded_checkpoint, tmp_path / "bundle")


def test_an_unknown_precision_is_named(seeded_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unknown precision 'int3'"):
        export(seeded_checkpoint, tmp_path / "bundle", "int3")  # type: ignore[arg-type]


def test_another_family_is_refused(seeded_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(seeded_checkpoint, other)
    config = other / "config.json"
    config.write_text(config.read_text().replace('"model_type": "whisper"', '"model_type": "bert"'))
    with pytest.raises(CheckpointError, match="bert"):
        export(other, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
