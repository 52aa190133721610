"""Without PyTorch: the wheel has all it needs, a recording is transcribed, exporting says what is missing."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HEAVY = ("torch", "torchaudio", "transformers", "onnx", "onnxscript")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """`command`, run where no folder of the repository can be imported from."""
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(command[0]).parent)


@pytest.mark.network
def test_the_wheel_has_all_it_needs(torchless_python: Path) -> None:
    for name in HEAVY:
        missing = run(torchless_python, "-c", f"import {name}")
        assert f"ModuleNotFoundError: No module named '{name}'" in missing.stderr
    check = run(torchless_python, "-m", "pip", "check")
    assert check.returncode == 0, check.stdout
    imported = run(torchless_python, "-W", "error", "-c", "import heedful.export.cli")
    assert imported.returncode == 0, imported.stderr
    usage = run(torchless_python.with_name("heedful"), "--help")
    assert usage.returncode == 0, usage.stderr
    assert {"transcribe", "fetch", "export"} <= set(usage.stdout.split())


@pytest.mark.network
def test_an_export_says_what_is_missing(torchless_python: Path, seeded_checkpoint: Path, tmp_path: Path) -> None:
    done = run(torchless_python.with_name("heedful"), "export", seeded_checkpoint, tmp_path / "bundle")
    assert done.returncode == 1
    assert "pip install 'heedful[export]'" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.network
def test_a_recording_is_transcribed(
    torchless_python: Path, tiny_en_bundle: Callable[[str], Path], two_cities: Path
) -> None:
    bundle = tiny_en_bundle("int8")
    done = run(torchless_python.with_name("heedful"), "transcribe", two_cities, "--model", bundle)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "best of times" in text
    assert "superlative degree of comparison" in text
