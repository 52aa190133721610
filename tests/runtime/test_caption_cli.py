"""`heedful caption` as a person and a pipeline use it, and the drawings that `--explain` leaves."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from heedful.runtime import Captioner, load

HEEDFUL = Path(sys.executable).with_name("heedful")
MANY = 40


class Done(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Done]


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(patches).resize((40, 30), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, so that names in outputs are short: three pictures in it, and one in two folders below."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a.png", "b.bmp", "c, d.png", "album/a.png", "album/old/é.webp")):
        draw(tmp_path / name, seed)
    return tmp_path


@pytest.fixture
def caption(seeded_captioner: Path, here: Path) -> Command:
    def run(*arguments: object, stdin: bytes = b"") -> Done:
        options = ("--model", seeded_captioner, "--threads", 1)
        command = [*map(str, (HEEDFUL, "caption", *options, *arguments))]
        done = subprocess.run(command, capture_output=True, input=stdin)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="module")
def captioner(seeded_captioner: Path) -> Captioner:
    found: Captioner = load(seeded_captioner, "cpu", threads=1)
    return found


Texts = Callable[..., dict[str, list[str]]]


@pytest.fixture
def texts(captioner: Captioner) -> Texts:
    """What the library says of pictures, by their names."""

    def write(names: Sequence[str], **options: object) -> dict[str, list[str]]:
        return {
            name: [each.text for each in caption.candidates]
            for name, caption in zip(names, captioner.stream(names, **options), strict=True)
        }

    return write


def as_text(found: dict[str, list[str]]) -> str:
    return "".join(f"{name}\t{each}\n" for name, captions in found.items() for each in captions)


NAMES = ["b.bmp", "a.png", "c, d.png"]


def test_one_picture_prints_its_caption_and_several_their_names_too(caption: Command, texts: Texts) -> None:
    expected = texts(NAMES)
    assert len({*map(tuple, expected.values())}) == 3
    assert caption("a.png") == (0, f"{expected['a.png'][0]}\n", "")
    assert caption(*NAMES) == (0, as_text(expected), "")


def test_options_are_those_of_the_library(caption: Command, texts: Texts) -> None:
    expected = texts(["a.png"], prompt="a photo of", beams=4, count=3)["a.png"]
    assert len(expected) == 3
    done = caption("a.png", "--prompt", "a photo of", "--beams", 4, "--num-captions", 3, "--batch", 1)
    assert done == (0, "".join(f"{each}\n" for each in expected), "")


def test_json_is_an_object_a_line(caption: Command, texts: Texts) -> None:
    for count in (1, 2):
        expected = texts(NAMES, count=count)
        done = caption(*NAMES, "--format", "json", "--num-captions", count)
        assert (done.status, done.err) == (0, "")
        for line, name in zip(done.out.splitlines(), NAMES, strict=True):
            record = json.loads(line)
            assert (record["image"], record["text"]) == (name, expected[name][0])
            assert -9 < record["score"] < 0
            several = record.get("captions", [record])
            assert [each["text"] for each in several] == expected[name]
            assert several[0]["score"] == record["score"]


def test_csv_has_a_row_for_each_caption(caption: Command, texts: Texts) -> None:
    expected = texts(NAMES, count=2)
    done = caption(*NAMES, "-f", "csv", "--num-captions", 2)
    rows = list(csv.DictReader(io.StringIO(done.out, newline="")))
    assert [(row["image"], row["text"]) for row in rows] == [(name, each) for name in NAMES for each in expected[name]]
    assert all(-9 < float(row["score"]) < 0 for row in rows)


def test_a_picture_comes_from_standard_input(caption: Command, texts: Texts, here: Path) -> None:
    expected = texts(["a.png", "b.bmp"])
    data = (here / "a.png").read_bytes()
    assert caption("-", stdin=data) == (0, f"{expected['a.png'][0]}\n", "")
    both = caption("-", "b.bmp", "--explain", "drawn", stdin=data)
    assert both == (0, as_text({"-": expected["a.png"], "b.bmp": expected["b.bmp"]}), "")
    assert sorted(path.name for path in (here / "drawn").iterdir()) == ["b.bmp.png", "stdin.png"]


def test_pictures_from_standard_input_are_added_one_after_another(caption: Command, texts: Texts, here: Path) -> None:
    expected = texts(["a.png", "b.bmp"])
    for name in expected:
        assert caption("-", "--output", "out", stdin=(here / name).read_bytes()) == (0, "", "")
    assert (here / "out").read_text() == "".join(f"-\t{each}\n" for (each,) in expected.values())


def test_an_error_in_standard_input_is_told_as_such(caption: Command) -> None:
    done = caption("-")
    assert (done.status, done.out) == (1, "")
    assert re.fullmatch("heedful: error: <?(stdin|standard input)>?: empty\n", done.err)


def test_a_folder_is_captioned_with_all_below_it(caption: Command, texts: Texts, here: Path) -> None:
    """What is broken is said and left out; what is no picture or hidden is not looked at."""
    (here / "broken.png").write_bytes((here / "a.png").read_bytes()[:50])
    draw(here / "SHOUTED.PNG", 9)
    (here / ".hidden.png").write_bytes(b"")
    (here / "album" / "notes.txt").write_text("a.png is of 1989")
    (here / "album" / "empty").mkdir()
    expected = texts(["./SHOUTED.PNG", "./a.png", "./b.bmp", "./c, d.png", "./album/a.png", "./album/old/é.webp"])
    done = caption("--recursive", ".", "--batch", 2)
    assert (done.status, done.out) == (1, as_text(expected))
    assert done.err.startswith("heedful: error: broken.png: ")
    assert done.err.count("\n") == 1
    alone = caption("-r", "album/old", "-r", "album")
    names = ["album/old/é.webp", "album/a.png", "album/old/é.webp"]
    assert [line.split("\t")[0] for line in alone.out.splitlines()] in (names, names[:2])


def test_a_folder_s_files_of_other_kinds_are_not_looked_at(caption: Command, here: Path) -> None:
    """Pillow writes some kinds that it cannot read, and knows some that it needs other programs for."""
    for ending in ["pdf", "mp3", "html", "mpg", "mpeg", "h5", "hdf", "grib", "bufr", "wmf", "emf", "ps", "eps"]:
        (here / "album" / f"other.{ending}").write_text("not a picture")
    kept = [
        f"album/old/{seed}.{ending}" for seed, ending in enumerate(["gif", "jpg", "jpeg", "png", "tga", "tif", "tiff"])
    ]
    for seed, name in enumerate(kept):
        draw(here / name, seed)
    done = caption("-r", "album")
    assert (done.status, done.err) == (0, "")
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["album/a.png", *kept, "album/old/é.webp"]


def test_a_second_run_does_what_is_missing(caption: Command, texts: Texts, here: Path) -> None:
    out = here / "new" / "captions.txt"
    names = [*NAMES, "broken.png"]
    (here / "broken.png").write_bytes(b"soon a picture")
    assert caption("a.png", "--output", out) == (0, "", "")
    assert out.read_text() == as_text(texts(["a.png"]))
    second = caption(*names, "--output", out)
    assert (second.status, second.out) == (1, "")
    assert second.err.startswith(f"heedful: 1 of 4 are in {out} already\nheedful: error: broken.png: ")
    assert out.read_text() == as_text(texts(["a.png", "b.bmp", "c, d.png"]))
    draw(here / "broken.png", 8)
    assert caption(*names, "-o", out) == (0, "", f"heedful: 3 of 4 are in {out} already\n")
    whole = out.read_text()
    assert whole == as_text(texts(["a.png", "b.bmp", "c, d.png", "broken.png"]))
    assert caption(*names, "-o", out) == (0, "", f"heedful: 4 of 4 are in {out} already\n")
    assert out.read_text() == whole


def test_a_killed_run_goes_on_where_it_was(caption: Command, texts: Texts, seeded_captioner: Path, here: Path) -> None:
    """A pipe among the pictures, which nobody writes to, holds the first run up until it is killed."""
    names = [f"many/{i:02}.png" for i in range(MANY)]
    for i, name in enumerate(names):
        draw(here / name, i)
    stuck = here / names[MANY // 2]
    stuck.unlink()
    os.mkfifo(stuck)
    options = ("--recursive", "many", "--output", "out.csv", "--format", "csv")
    out = here / "out.csv"
    command = [*map(str, (HEEDFUL, "caption", "--model", seeded_captioner, "--threads", 1, *options))]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        patience = time.monotonic() + 120
        while not out.exists() or out.read_bytes().count(b"\n") < 10:
            assert first.poll() is None
            assert time.monotonic() < patience
            time.sleep(0.05)
        first.kill()
    assert first.returncode == -signal.SIGKILL
    stuck.unlink()
    draw(stuck, MANY // 2)
    done = caption(*options)
    assert (done.status, done.out) == (0, "")
    assert "of 40 are in out.csv already" in done.err
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = texts(names)
    assert [(row["image"], row["text"]) for row in rows] == [(name, expected[name][0]) for name in names]


def test_a_name_that_is_not_utf_8_is_kept(caption: Command, here: Path) -> None:
    (here / "a.png").rename(here / os.fsdecode(b"caf\xe9.png"))
    for _ in range(2):
        done = caption("-r", ".", "--output", "out")
        assert (done.status, done.out) == (0, "")
        assert "Traceback" not in done.err
        assert (here / "out").read_bytes().count(b"caf\xe9.png\t") == 1
        assert (here / "out").read_bytes().count(b"\n") == 5


def test_a_name_that_would_break_a_line_is_an_error_of_its_own(caption: Command, texts: Texts, here: Path) -> None:
    draw(here / "b\tc\n.png", 9)
    for said in ("", "heedful: 2 of 3 are in out already\n"):
        done = caption("a.png", "b\tc\n.png", "c, d.png", "--output", "out")
        assert (done.status, done.out) == (1, "")
        assert re.fullmatch(rf"{said}heedful: error: 'b\\tc\\n\.png': a name with .*\n", done.err)
        assert (here / "out").read_text() == as_text(texts(["a.png", "c, d.png"]))


def test_inputs_that_are_no_files_are_an_error_each(caption: Command, texts: Texts) -> None:
    address, long = "https://example.org/cat.jpg", "a" * 300
    done = caption(address, long, f"{long}/b.png", "a.png")
    assert (done.status, done.out) == (1, as_text(texts(["a.png"])))
    first, *others = done.err.splitlines()
    assert first == f"heedful: error: {address}: an address; download it first and pass the file or its bytes"
    assert [line.split(": ")[2:] for line in others] == [
        [name, "File name too long; pass the path of a picture that can be read"] for name in (long, f"{long}/b.png")
    ]


def test_a_picture_named_twice_is_there_once(caption: Command, here: Path) -> None:
    assert caption("a.png", "b.bmp", "a.png", "--output", "out").status == 0
    assert [line.split("\t")[0] for line in (here / "out").read_text().splitlines()] == ["a.png", "b.bmp"]


def drawings(folder: Path) -> list[tuple[int, int]]:
    """The sizes of all pictures under `folder`."""
    found = []
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
            found.append(image.size)
    return found


def test_where_words_looked_is_drawn(caption: Command, texts: Texts, here: Path) -> None:
    expected = texts(NAMES)
    assert caption("a.png", "--explain", "new/one.png") == (0, f"{expected['a.png'][0]}\n", "")
    ((width, height),) = drawings(here / "new")
    assert width > 4 * 140  # as many panels as stand in a row
    assert height > 100
    assert caption(*NAMES, "--explain", "drawn") == (0, as_text(expected), "")
    assert sorted(path.name for path in (here / "drawn").iterdir()) == ["a.png.png", "b.bmp.png", "c, d.png.png"]
    assert len(drawings(here / "drawn")) == 3


def test_pictures_of_one_name_in_two_folders_have_a_drawing_each(caption: Command, here: Path) -> None:
    assert caption("a.png", "album/a.png", "--explain", "drawn").status == 0
    assert len(drawings(here / "drawn")) == 2


def test_speech_is_drawn_too(seeded_bundle: Path, here: Path) -> None:
    for name in ("one.wav", "two.wav"):
        with wave.open(str(here / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(np.random.default_rng(0).normal(0, 3000, 16_000).astype("<i2").tobytes())

    def transcribe(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        options = ("--model", str(seeded_bundle), "-l", "en", "--beams", "1", "--threads", "1", "--temperature", "0")
        return subprocess.run([HEEDFUL, "transcribe", *options, *arguments], capture_output=True)

    assert transcribe("one.wav", "--explain", "new/one.png").returncode == 0
    assert transcribe("one.wav", "two.wav", "--explain", "drawn").returncode == 0
    (size,) = drawings(here / "new")
    assert sorted(path.name for path in (here / "drawn").iterdir()) == ["one.wav.png", "two.wav.png"]
    assert drawings(here / "drawn") == [size] * 2
    refused = transcribe("one.wav", "two.wav", "--explain", "new/one.png")
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"give --explain a folder" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 1, "no pictures: name some, or a folder with --recursive"),
        (("--recursive", "a.png"), 1, "a.png is not a folder"),
        (("-r", "empty"), 1, "no pictures"),
        (("missing.png",), 1, "missing.png: No such file"),
        (("a.png", "b.bmp", "--explain", "x.png"), 1, "several pictures .* x.png: give --explain a folder"),
        (("a.png", "--explain", "a.png/x.png"), 1, "x.png cannot be written"),
        (("a.png", "--num-captions", "0"), 1, "count must be a whole number from 1"),
        (("a.png", "--num-captions", "3", "--beams", "2"), 1, "count must be at most the beams, 2"),
        (("a.png", "--batch", "0"), 1, "batch must be a whole number from 1 to 1024"),
        (("a.png", "--batch", "2000"), 1, "batch must be a whole number from 1 to 1024"),
        (("a.png", "--format", "yaml"), 2, "yaml"),
        (("a.png", "--output", "a.png"), 1, "a.png is there and does not hold captions"),
        (("a.png", "--output", "a.png/out"), 1, "a.png/out cannot be written"),
        (("a.png", "--model", "no-such-bundle"), 1, "no bundle 'no-such-bundle'"),
        (("a.png", "--model", "{speech}"), 1, "seeded does not caption: `heedful list` says"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_clear_line(
    caption: Command, here: Path, seeded_bundle: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    (here / "empty").mkdir()
    before = (here / "a.png").read_bytes()
    done = caption(*(each.format(speech=seeded_bundle) for each in arguments))
    assert done.status == status
    assert "Traceback" not in done.err
    assert [line for line in done.err.splitlines() if re.search(message, line)]
    assert status == 2 or done.err.count("\n") == 1
    assert (here / "a.png").read_bytes() == before
