"""What becomes of a bundle that is there already, by its format."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from heedful.export import bundle as exporting
from heedful.export.bundle import export
from heedful.export.workspace import workspace
from heedful.runtime.bundle import MANIFEST, VERSION, open_bundle
from heedful.runtime.errors import BundleError, ExportError


@pytest.fixture
def old(seeded_checkpoint: Path, tmp_path: Path) -> Path:
    """A bundle as a version before this one wrote it, with a file that is not written any more."""
    path = export(seeded_checkpoint, tmp_path / "bundle")
    restate(path, VERSION - 1)
    (path / "old.onnx").touch()
    return path


def restate(bundle: Path, version: int) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"heedful": version}), encoding="utf-8")


def test_one_of_an_older_format_is_replaced(seeded_checkpoint: Path, old: Path) -> None:
    with pytest.raises(BundleError, match="export it again"):
        open_bundle(old)
    assert export(seeded_checkpoint, old) == old
    assert open_bundle(old).manifest["heedful"] == VERSION
    assert not (old / "old.onnx").exists()
    assert [path.name for path in old.parent.iterdir()] == [old.name]


@pytest.mark.parametrize("version", [VERSION, VERSION + 1])
def test_any_other_stays(seeded_checkpoint: Path, old: Path, version: int) -> None:
    restate(old, version)
    with pytest.raises(ExportError, match="there already"):
        export(seeded_checkpoint, old)
    assert (old / "old.onnx").exists()


def test_a_file_of_that_name_stays(seeded_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(ExportError, match="there already"):
        export(seeded_checkpoint, tmp_path / "bundle")
    assert (tmp_path / "bundle").read_text() == "mine"


def test_nothing_is_lost_where_the_new_one_fails(
    seeded_checkpoint: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise ExportError("the graphs differ")

    monkeypatch.setattr(exporting, "certify", fails)
    with pytest.raises(ExportError, match="the graphs differ"):
        export(seeded_checkpoint, old)
    assert (old / "old.onnx").exists()


WRITING = """
import sys
from pathlib import Path
from heedful.export.workspace import workspace
with workspace(Path(sys.argv[1])) as folder:
    (folder / "weights.bin").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_export_left_is_removed(seeded_checkpoint: Path, tmp_path: Path) -> None:
    """Unless its process lives, or it is of another bundle, or was never an export's."""
    others = [tmp_path / name for name in (".bundle.x.abcdefgh", ".bundle.abcdefgh")]
    for other in others:
        other.mkdir()
    (others[0] / "lock").touch()
    command = [sys.executable, "-c", WRITING, str(tmp_path / "bundle")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with workspace(tmp_path / "bundle"):
            assert (left / "weights.bin").exists()
        process.kill()
    assert (left / "weights.bin").exists()
    export(seeded_checkpoint, tmp_path / "bundle")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "bundle"])
