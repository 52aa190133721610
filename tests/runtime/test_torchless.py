"""Where PyTorch is not installed, a recording is transcribed all the same."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.network
def test_a_recording_is_transcribed_without_torch(
    torchless_python: Path, tiny_en_bundle: Callable[[str], Path], two_cities: Path
) -> None:
    absent = subprocess.run([torchless_python, "-c", "import torch"], capture_output=True)
    assert b"ModuleNotFoundError" in absent.stderr
    command = torchless_python.with_name("heedful")
    bundle = tiny_en_bundle("int8")
    done = subprocess.run([command, "transcribe", two_cities, "--model", bundle], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "best of times" in text
    assert "superlative degree of comparison" in text
