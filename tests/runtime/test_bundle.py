"""A bundle that cannot be trusted or read is one clear error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heedful.runtime import BundleError, load, open_bundle

Damage = Callable[[Path], None]


def edit(**changes: Any) -> Damage:
    def apply(bundle: Path) -> None:
        file = bundle / "bundle.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return apply


def flip_a_byte(bundle: Path) -> None:
    content = bytearray((bundle / "weights.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "weights.bin").write_bytes(content)


def truncate(bundle: Path) -> None:
    content = (bundle / "decoder.onnx").read_bytes()
    (bundle / "decoder.onnx").write_bytes(content[:-1])


def link_out(bundle: Path) -> None:
    outside = bundle.parent / "outside.onnx"
    (bundle / "encoder.onnx").rename(outside)
    (bundle / "encoder.onnx").symlink_to(outside)


def foreign(bundle: Path) -> None:
    shutil.copy(bundle / "encoder.onnx", bundle / "aligner.onnx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bundle: (bundle / "tokenizer.json").unlink(), "lacks tokenizer.json"),
        (flip_a_byte, "weights.bin is not the file"),
        (truncate, "decoder.onnx is not the file"),
        (foreign, "aligner.onnx is not the file"),
        (link_out, "outside the bundle: encoder.onnx"),
        (edit(files={"../evil": {"sha256": "", "bytes": 0}}), "outside the bundle: ../evil"),
        (edit(files={"/etc/passwd": {"sha256": "", "bytes": 0}}), "outside the bundle: /etc/passwd"),
        (edit(heedful=999), "upgrade heedful"),
        (edit(heedful=None), "not the manifest"),
        (edit(task="divine"), "'divine'"),
        (edit(files=None), "incomplete"),
        (lambda bundle: (bundle / "bundle.json").write_text("{"), "not valid JSON"),
        (lambda bundle: (bundle / "bundle.json").unlink(), "not a bundle"),
    ],
    ids=lambda value: value.replace("/", "-") if isinstance(value, str) else "damage",
)
def test_a_damaged_bundle_is_refused(seeded_bundle: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(seeded_bundle, bundle)
    damage(bundle)
    with pytest.raises(BundleError, match=message):
        load(bundle, "cpu")


def test_an_undamaged_copy_loads(seeded_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(seeded_bundle, tmp_path / "bundle")
    assert load(tmp_path / "bundle", "cpu").device == "cpu"


def test_a_bundle_that_is_nowhere_is_named() -> None:
    with pytest.raises(BundleError, match="no bundle 'nothing-of-that-name'"):
        open_bundle("nothing-of-that-name")
