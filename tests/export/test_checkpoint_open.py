"""Opening a checkpoint: where it is looked for, what is recognised and what is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
from huggingface_hub import metadata_load
from safetensors.torch import save_file

from heedful.export import checkpoint, whisper
from heedful.export.catalog import CATALOG
from heedful.export.checkpoint import open_checkpoint
from heedful.runtime.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3)}
CARD = "---\nlanguage: en\nlicense: apache-2.0\ntags:\n- audio\n---\n# A model\nlicense: none\n"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEEDFUL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make(folder: Path) -> Path:
    """A checkpoint with nothing missing."""
    folder.mkdir(parents=True)
    save_file(WEIGHTS, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 448}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 80}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text(CARD)
    return folder


def test_a_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    found = open_checkpoint(folder)
    assert (found.path, found.source, found.format) == (folder, str(folder), "huggingface")
    assert found.config == {"model_type": "whisper"}
    assert found.generation == {"max_length": 448}
    assert found.preprocessor == {"feature_size": 80}
    assert found.tokenizer == folder / "tokenizer.json"
    assert torch.equal(found.tensors["weight"], WEIGHTS["weight"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.source = "elsewhere"  # type: ignore[misc]


def test_what_may_be_absent(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    for name in ("generation_config.json", "preprocessor_config.json", "README.md"):
        (folder / name).unlink()
    found = open_checkpoint(folder)
    assert (found.generation, found.preprocessor, found.license) == ({}, {}, None)


def test_a_name_in_home(own_home: Path) -> None:
    folder = make(own_home / "checkpoints" / "mine")
    assert open_checkpoint("mine").path == folder
    assert open_checkpoint("mine").source == "mine"


def test_a_fetched_name_has_the_catalogues_license(own_home: Path) -> None:
    make(own_home / "checkpoints" / "whisper-tiny.en")
    assert open_checkpoint("whisper-tiny.en").license == CATALOG["whisper-tiny.en"].license == "MIT"


def test_a_folder_elsewhere_of_a_catalogue_name_has_its_own_license(tmp_path: Path) -> None:
    assert open_checkpoint(make(tmp_path / "whisper-tiny.en")).license == "apache-2.0"


@pytest.mark.parametrize(
    "card", [CARD, CARD.replace("apache-2.0", "'cc-by-4.0'"), CARD.replace("\n", "\r\n"), "# No front matter\n", ""]
)
def test_the_license_is_what_the_hub_reads_in_the_card(tmp_path: Path, card: str) -> None:
    folder = make(tmp_path / "model")
    (folder / "README.md").write_bytes(card.encode())
    assert open_checkpoint(folder).license == (metadata_load(folder / "README.md") or {}).get("license")


def test_not_fetched_yet() -> None:
    with pytest.raises(CheckpointError, match=r"run `heedful fetch whisper-base`"):
        open_checkpoint("whisper-base")


def test_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def snapshot(repo_id: str, revision: str | None) -> Path:
        asked.append((repo_id, revision))
        return make(tmp_path / "cache" / COMMIT)

    monkeypatch.setattr(checkpoint, "snapshot", snapshot)
    found = open_checkpoint("org/name", revision="v2")
    assert asked == [("org/name", "v2")]
    assert (found.source, found.license) == (f"org/name@{COMMIT}", "apache-2.0")


def test_a_folder_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("org/name").path == Path("org/name")


@pytest.mark.parametrize("name", ["nowhere", "two-cities", "./org/name", "/no/such/folder", "a/b/c", "org/"])
def test_found_nowhere(own_home: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(name)
    for tried in (repr(name), str(own_home / "checkpoints"), "whisper-base, whisper-tiny.en", "org/name"):
        assert tried in str(raised.value)


def test_a_revision_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revision 'v2'"):
        open_checkpoint(make(tmp_path / "model"), revision="v2")


def test_a_file_in_place_of_its_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file: give the folder"):
        open_checkpoint(make(tmp_path / "model") / "model.safetensors")


def legacy_pickle(path: Path) -> None:
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)


def zipped_pickle(path: Path) -> None:
    torch.save(WEIGHTS, path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "model.pt", "whisper.pth", "last.ckpt"])
@pytest.mark.parametrize("write", [legacy_pickle, zipped_pickle])
def test_pickles_are_refused(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    folder = make(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    write(folder / name)
    with pytest.raises(CheckpointError, match=rf"pickled \({name}\).*save_pretrained.*weights_only=True"):
        open_checkpoint(folder)


def test_the_advice_on_pickles_holds_for_tied_weights(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    target = folder / "model.safetensors"
    target.unlink()
    torch.save(WEIGHTS | {"tied": WEIGHTS["weight"], "view": WEIGHTS["weight"].T}, folder / "model.bin")
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(folder)
    (advice,) = (each for each in str(raised.value).split("`") if each.startswith("safetensors"))
    eval(advice, {"safetensors": safetensors, "torch": torch, "FILE": folder / "model.bin", "TARGET": target})
    assert torch.equal(open_checkpoint(folder).tensors["tied"], WEIGHTS["weight"])


def test_safetensors_beside_a_pickle_are_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    zipped_pickle(folder / "pytorch_model.bin")
    assert open_checkpoint(folder).format == "huggingface"


def test_no_weights(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model holds no weights: expected model\.safetensors"):
        open_checkpoint(folder)


def test_no_tokenizer(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json; make one with `transformers\.AutoTokenizer"):
        whisper.tokenizers(open_checkpoint(folder))


def test_no_config(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_malformed_json(tmp_path: Path, name: str, text: bytes) -> None:
    folder = make(tmp_path / "model")
    (folder / name).write_bytes(text)
    with pytest.raises(CheckpointError, match=rf"{name} is not"):
        open_checkpoint(folder)


# The published sizes of tiny.en: 80 mel bands, width 384, a vocabulary of 51864, 1500 frames, 448 positions.
SHAPES = {
    "encoder/conv1/weight": (384, 80, 3),
    "encoder/position_encodings/encodings": (1500, 384),
    "decoder/embeddings/weight": (51864, 384),
    "decoder/position_encodings/encodings": (448, 384),
    "encoder/layer_3/self_attention/linear_0/weight": (3 * 384, 384),
}


@pytest.mark.network
def test_whisper_tiny_en(tiny_en_checkpoint: Path) -> None:
    found = open_checkpoint(tiny_en_checkpoint)
    assert found.format == "ctranslate2"
    assert {name: tuple(found.tensors[name].shape) for name in SHAPES} == SHAPES
    assert found.tensors["encoder/conv1/weight"].dtype == torch.float16
    assert found.tensors["decoder/projection/weight"] is found.tensors["decoder/embeddings/weight"]
    assert found.config["alignment_heads"][0] == [1, 0]
