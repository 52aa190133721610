"""The model of the shape of opus-mt, made when it is first needed."""

from pathlib import Path

from heedful.export.bundle import export
from heedful.runtime.home import home
from rivals.opus import BUNDLE, write


def exported(folder: Path) -> None:
    """The model in `folder` and its bundle, each made if it is not there."""
    if not folder.exists():
        write(folder)
    if not (home() / "bundles" / BUNDLE).exists():
        export(folder, BUNDLE, "int8")
