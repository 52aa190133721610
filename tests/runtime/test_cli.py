"""The command line as a person uses it."""

import json
import os
import pty
import subprocess
import sys
import threading
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pysubs2
import pytest
import srt

HEEDFUL = Path(sys.executable).with_name("heedful")


def heedful(*arguments: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([HEEDFUL, *map(str, arguments)], capture_output=True, input=stdin)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "noise.wav"
    samples = np.random.default_rng(0).normal(0, 3000, 16_000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return path


def test_inspect_and_home(seeded_bundle: Path, heedful_home: Path) -> None:
    assert heedful("home").stdout.decode().strip() == str(heedful_home)
    shown = heedful("inspect", seeded_bundle)
    assert shown.returncode == 0
    assert b"tokens identical to PyTorch" in shown.stdout
    assert json.loads(heedful("inspect", seeded_bundle, "--json").stdout)["family"] == "whisper"


def test_several_files_to_a_folder_and_bad_ones_between(seeded_bundle: Path, recording: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp3"
    bad.write_text("no audio")
    out = tmp_path / "out"
    options = ("--language", "en", "--temperature", 0, "--beams", 1, "--format", "json", "--output-dir", out)
    second, third = (recording.with_name(name) for name in ("second.wav", "third.wav"))
    for copy in (second, third):
        copy.write_bytes(recording.read_bytes())
    (out / "second.json").mkdir(parents=True)
    done = heedful("transcribe", recording, bad, second, third, "--model", seeded_bundle, *options)
    assert done.returncode == 1
    errors = done.stderr.decode().splitlines()
    assert len(errors) == 2
    assert "bad.mp3" in errors[0]
    assert errors[1] == f"heedful: error: {out / 'second.json'} is a folder: name a file"
    assert sorted(path.name for path in out.iterdir()) == ["noise.json", "second.json", "third.json"]
    assert json.loads((out / "noise.json").read_text())["duration"] == 1.0


def test_inputs_that_are_no_files_are_an_error_each(seeded_bundle: Path, recording: Path, tmp_path: Path) -> None:
    address, long = "https://example.org/talk.mp3", "a" * 300
    options = ("--model", seeded_bundle, "--language", "en", "--temperature", 0, "--beams", 1, "--format", "json")
    done = heedful("transcribe", address, long, f"{long}/b.wav", recording, *options)
    assert done.returncode == 1
    assert json.loads(done.stdout)["duration"] == 1.0
    assert done.stderr.decode().splitlines() == [
        f"heedful: error: {address}: an address; download it first and pass the file or its bytes",
        *[
            f"heedful: error: '{name}': file name too long; name an audio file that can be read"
            for name in (long, f"{long}/b.wav")
        ],
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("transcribe",), 2, "audio"),
        (("transcribe", "{recording}", "--format", "docx"), 2, "docx"),
        (("transcribe", "{recording}", "--model", "no-such-bundle"), 1, "no bundle 'no-such-bundle'"),
        (("transcribe", "{recording}", "--model", "{bundle}", "--beams", "0"), 1, "beams"),
        (("transcribe", "{recording}", "--model", "{bundle}", "--language", "tlh"), 1, "unknown language 'tlh'"),
        (("transcribe", "missing.wav", "--model", "{bundle}"), 1, "missing.wav"),
        (("transcribe", "a.wav", "b.wav", "--format", "srt", "--model", "{bundle}"), 1, "--output-dir"),
        (("transcribe", "x/a.wav", "y/a.mp3", "--output-dir", "o", "--model", "{bundle}"), 1, "both be written"),
        (("fetch", "whisper-enormous"), 1, "whisper-tiny.en"),
        (("export", "no-such-checkpoint", "bundle"), 1, "no checkpoint 'no-such-checkpoint'"),
        (("inspect", "no-such-bundle"), 1, "no-such-bundle"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: tuple[str, ...], status: int, message: str, recording: Path, seeded_bundle: Path
) -> None:
    done = heedful(*(argument.format(recording=recording, bundle=seeded_bundle) for argument in arguments))
    assert done.returncode == status
    assert done.stdout == b""
    assert message in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize("explain", [False, True], ids=["text", "drawing"])
def test_a_named_pipe_is_read_once_where_a_terminal_shows_the_progress(
    seeded_bundle: Path, recording: Path, tmp_path: Path, explain: bool
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(recording.read_bytes()), daemon=True)
    writer.start()
    drawing = tmp_path / "drawing.png"
    options = ("-l", "en", "--temperature", 0, "--beams", 1, *(("--explain", drawing) if explain else ()))
    command = [str(each) for each in (HEEDFUL, "transcribe", pipe, "-f", "json", "-m", seeded_bundle, *options)]
    terminal, stderr = pty.openpty()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, timeout=60)
    os.close(stderr)
    os.close(terminal)
    assert done.returncode == 0
    assert json.loads(done.stdout)["duration"] == 1.0
    assert drawing.exists() == explain


@pytest.mark.network
def test_real_subtitles_load_elsewhere(tiny_en_bundle: Callable[[str], Path], two_cities: Path) -> None:
    options = ("--model", tiny_en_bundle("int8"), "--beams", 1, "--format", "srt")
    done = heedful("transcribe", "-", *options, stdin=two_cities.read_bytes())
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    cues = list(srt.parse(text))
    assert len(cues) == len(pysubs2.SSAFile.from_string(text)) > 3
    assert "best of times" in cues[0].content
    assert [cue.index for cue in cues] == list(range(1, len(cues) + 1))


def test_bench_prints_a_row_for_every_number_of_requests(seeded_bundle: Path, recording: Path) -> None:
    done = heedful("bench", seeded_bundle, recording, "--at-once", 1, "--at-once", 3, "--repeat", 2, "-l", "en")
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.decode().splitlines()[4:]]
    assert [row[0] for row in rows] == ["1", "3"]
    for _, speed, _, middle, late, first, peak in rows:
        # a second of audio a request: latency is at least what the speed says, and the first token comes before it
        assert 0 < 1 / float(speed) <= float(late) + 0.01
        assert float(first) <= float(middle) <= float(late)
        assert float(peak) > 20
    assert heedful("bench", seeded_bundle, recording, "--repeat", 0).returncode == 1
