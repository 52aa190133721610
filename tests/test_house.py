"""The rules of the house: what may import what, what the wheel holds, how large a file may grow."""

import ast
import configparser
import importlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "export", "runtime")
CODE = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROGRAMS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_LINES = 400

HEAVY = {"torch", "torchaudio", "transformers", "onnx", "onnxscript"}
BANNED = {
    "models": {"heedful.export", "heedful.runtime"},
    "runtime": {"heedful.models", "heedful.export"} | HEAVY,
}
PICKLERS = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def within(name: str, modules: set[str]) -> bool:
    """Whether the dotted `name` is one of `modules` or inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def imports(tree: ast.AST) -> Iterator[str]:
    """Each dotted name imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def breaches(path: str, source: str) -> list[str]:
    """What in `source`, the text of the file at `path` from the root, breaks a rule about imports."""
    banned = BANNED.get(path.partition("/")[0], set())
    found = []
    for name in imports(ast.parse(source)):
        if within(name, banned):
            found.append(f"{path} imports {name}")
        if name.startswith(".") or within(name, set(PACKAGES)):
            found.append(f"{path} imports {name} by a bare or relative name")
    return found


def unsafe_loads(path: str, source: str) -> list[str]:
    """What in `source` could run code from a data file."""
    tree = ast.parse(source)
    found = [f"{path} imports {name}" for name in imports(tree) if within(name, PICKLERS)]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if ast.unparse(call.func) == "torch.load" and options.get("weights_only") != "True":
            found.append(f"{path}:{call.lineno} calls torch.load without weights_only=True")
        if options.get("allow_pickle", "False") != "False":
            found.append(f"{path}:{call.lineno} allows pickles")
    return found


def test_make_bench_knows_what_each_benchmark_takes() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert f"\nBENCH_{path.stem} = " in makefile


@pytest.mark.parametrize("path", [*CODE, *PROGRAMS, *TESTS], ids=relative)
def test_imports_keep_to_the_rules(path: Path) -> None:
    assert breaches(relative(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/new.py", "from heedful.runtime.errors import InputError"),
        ("models/new.py", "def build():\n    import heedful.export.fetch"),
        ("runtime/new.py", "from heedful import models"),
        ("runtime/new.py", "def run():\n    from heedful.export.fetch import fetch"),
        ("runtime/new.py", "def run():\n    import torch.nn"),
        ("runtime/new.py", "if TYPE_CHECKING:\n    from onnx import ModelProto"),
        ("runtime/cli.py", "from heedful.export.fetch import fetch"),
        ("runtime/cli.py", "def run():\n    from heedful.export.fetch import fetch"),
        ("runtime/cli.py", "def run():\n    import heedful.models"),
        ("export/new.py", "from models.attention import Attention"),
        ("export/new.py", "import runtime"),
        ("export/new.py", "from . import fetch"),
        ("benchmarks/new.py", "import export.fetch"),
    ],
)
def test_a_forbidden_import_is_seen(path: str, source: str) -> None:
    assert len(breaches(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/new.py", "import torch\nfrom heedful.models.attention import Attention"),
        ("export/new.py", "import onnx\nfrom heedful.models import attention\nfrom heedful.runtime import errors"),
        ("runtime/new.py", "import onnxruntime\nfrom heedful.runtime import errors"),
    ],
)
def test_an_allowed_import_is_let_pass(path: str, source: str) -> None:
    assert breaches(path, source) == []


@pytest.mark.parametrize("path", [*CODE, *PROGRAMS], ids=relative)
def test_nothing_unpickles(path: Path) -> None:
    assert unsafe_loads(relative(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=safe)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_unpickling_is_seen(source: str) -> None:
    assert len(unsafe_loads("export/new.py", source)) == 1
    assert unsafe_loads("export/new.py", "torch.load(path, weights_only=True)\nnumpy.load(path)") == []


@pytest.mark.parametrize("path", [*CODE, *PROGRAMS, *TESTS], ids=relative)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def module_name(path: Path) -> str:
    return ".".join(["heedful", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def test_the_runtime_loads_nothing_heavy() -> None:
    names = [module_name(path) for path in CODE if path.is_relative_to(ROOT / "runtime")]
    assert {"heedful.runtime", "heedful.runtime.cli"} <= set(names)
    loads = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", loads, *names], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert set(names) <= loaded
    assert {name for name in loaded if within(name, HEAVY | {"pandas", "heedful.models", "heedful.export"})} == set()


def public_names(module: ModuleType) -> list[str]:
    """Names that `from module import *` should give: neither private ones nor modules."""
    names = (name for name in dir(module) if not name.startswith("_"))
    return sorted(name for name in names if not isinstance(getattr(module, name), ModuleType))


@pytest.mark.parametrize("folder", sorted({path.parent for path in CODE}), ids=relative)
def test_every_folder_of_code_is_a_package(folder: Path) -> None:
    assert (folder / "__init__.py").is_file()


@pytest.mark.parametrize("path", [path for path in CODE if path.name == "__init__.py"], ids=relative)
def test_public_names_are_complete_and_sorted(path: Path) -> None:
    module = importlib.import_module(module_name(path))
    # Installed in editable mode before it had this file, a package would be a bare namespace until installed again.
    assert module.__file__ == str(path)
    assert public_names(module) == list(getattr(module, "__all__", []))


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    expected = {
        f"heedful/{relative(path)}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"heedful/{package}/py.typed" for package in PACKAGES} < expected
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    assert {name for name in files if not name.split("/")[0].endswith(".dist-info")} == expected


def test_the_wheel_carries_the_command_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = {name.split("/", 1)[1]: name for name in archive.namelist() if ".dist-info/" in name}
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(metadata["entry_points.txt"]).decode())
        licence = archive.read(metadata["licenses/LICENSE"]).decode()
        card = archive.read(metadata["licenses/export/checkpoints/captioner/README.md"]).decode()
        stated = archive.read(metadata["METADATA"]).decode()
    assert dict(scripts["console_scripts"]) == {"heedful": "heedful.export.cli:main"}
    assert licence == (ROOT / "LICENSE").read_text(encoding="utf-8")
    # the weights that come with it have a licence of their own
    assert "License-Expression: Apache-2.0 AND LicenseRef-research-only-data\n" in stated
    assert "license_name: apache-2.0-and-research-only-data\n" in card
