"""Reading safetensors in Hugging Face's layout, against files that safetensors and huggingface_hub write."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from heedful.export.huggingface import read, recognises
from heedful.runtime.errors import CheckpointError

State = dict[str, torch.Tensor]


def state() -> State:
    generator = torch.Generator().manual_seed(0)
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float32]
    return {f"layer.{i}.weight": torch.randn(4, 8, generator=generator).to(dtype) for i, dtype in enumerate(dtypes)}


def assert_same(found: State, expected: State) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_torch_state_dict(state(), tmp_path, max_shard_size=150)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_a_single_file(tmp_path: Path, name: str) -> None:
    assert not recognises(tmp_path)
    save_file(state(), tmp_path / name)
    assert recognises(tmp_path)
    assert_same(read(tmp_path), state())


def test_shards(sharded: Path) -> None:
    assert recognises(sharded)
    assert_same(read(sharded), state())


def test_shards_through_links_as_in_the_hubs_cache(sharded: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in sharded.glob("model*"):
        (snapshot / file.name).symlink_to(Path("..", file.name))
    assert_same(read(snapshot), state())


def test_model_safetensors_is_read_whatever_lies_beside_it(sharded: Path) -> None:
    whole = {"all": torch.ones(3)}
    save_file(whole, sharded / "model.safetensors")
    assert_same(read(sharded), whole)


def test_two_files_without_an_index_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(state(), tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors, b\.safetensors: keep one"):
        read(tmp_path)


def test_tensors_are_owned(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state(), path)
    tensors = read(tmp_path)
    for tensor in tensors.values():
        tensor.zero_()
    assert_same(read(tmp_path), state())
    kept = read(tmp_path)
    path.unlink()
    assert_same(kept, state())


def test_a_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        read(sharded)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", "sub/x.safetensors", "..", ""])
def test_a_shard_outside_the_folder(sharded: Path, tmp_path: Path, shard: str) -> None:
    save_file(state(), tmp_path.parent / "outside.safetensors")
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"layer.0.weight": shard}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        read(sharded)


def test_a_shard_without_a_tensor_it_should_hold(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["absent"] = content["weight_map"]["layer.0.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="lacks 'absent'"):
        read(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', "\xff"])
def test_a_malformed_index(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is no index"):
        read(sharded)


@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file(tmp_path_factory: pytest.TempPathFactory, kept: float) -> None:
    folder = tmp_path_factory.mktemp("truncated")
    path = folder / "model.safetensors"
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        read(folder)
    shutil.rmtree(folder)
