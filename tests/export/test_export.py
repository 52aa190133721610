"""Exporting a small checkpoint: what lies in the bundle at each precision, and that a failure leaves nothing."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers
from huggingface_hub import save_torch_state_dict
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from heedful.export import bundle as exporting
from heedful.export import certificate
from heedful.export.bundle import Precision, export
from heedful.export.certificate import TOLERANCES, Tolerance
from heedful.export.graphs import Graph
from heedful.export.trace import trace
from heedful.export.whisper import fixture_windows
from heedful.models.spectrogram import LogMel
from heedful.runtime import load
from heedful.runtime.bundle import open_bundle
from heedful.runtime.engine.buffers import HostBuffer
from heedful.runtime.engine.device import choose_device
from heedful.runtime.engine.generate import Job
from heedful.runtime.engine.search import Limits, Sample
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.errors import CheckpointError, ExportError
from heedful.runtime.home import listed
from heedful.runtime.speech.model import SpeechModel

hf: Any = transformers

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FILES = {"weights.bin", "encoder.onnx", "decoder.onnx", "aligner.onnx", "tokenizer.json", "vocabulary.json"}
HEADS = [[1, 2], [0, 0]]


@pytest.fixture(scope="module")
def checkpoint(seeded_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seeded checkpoint with weights of the spread of trained ones: fresh ones lose more in 8 bits."""
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    shutil.copytree(seeded_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        tensor.normal_(0, 0.45 if "encoder_attn" in name else 0.15, generator=generator)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"alignment_heads": HEADS}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def traced() -> Iterator[Callable[[Graph], ir.Model]]:
    """Tracing takes seconds: graphs of the same name and precision, whose weights are all the same here, are kept."""
    kept: dict[tuple[str, torch.dtype], bytes] = {}

    def remembering(graph: Graph) -> ir.Model:
        key = graph.name, next(graph.module.parameters()).dtype
        if key not in kept:
            kept[key] = ir.serde.serialize_model(trace(graph)).SerializeToString()
        return ir.serde.deserialize_model(onnx.ModelProto.FromString(kept[key]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "trace", remembering)
        yield remembering


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the bundle of a precision, exported when first asked for."""
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(precision: str) -> Path:
        target = folder / precision
        return target if target.is_dir() else export(checkpoint, target, precision)  # type: ignore[arg-type]

    return bundle


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    return hf.WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()


def speech(bundle: Path) -> SpeechModel:
    return SpeechModel(Sessions(open_bundle(bundle), choose_device("cpu"), 1))


def relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    difference, expected = found.astype(np.float64) - expected, expected.astype(np.float64)
    return float(np.sqrt((difference**2).mean() / (expected**2).mean()))


def features(windows: list[NDArray[np.float32]]) -> Any:
    """The spectrum as transformers computes it."""
    extractor = hf.WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    return extractor(windows, sampling_rate=16_000, return_tensors="pt").input_features


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-4), ("fp16", 5e-3), ("int8", 0.1)])
def test_logits_are_those_of_transformers(
    bundles: Callable[[str], Path], theirs: Any, precision: str, allowed: float
) -> None:
    bundled = speech(bundles(precision))
    windows = fixture_windows(2, bundled.samples)
    tokens = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = theirs(input_features=features(windows), decoder_input_ids=tokens).logits.numpy()
    decoder = bundled.decoder(2)
    bundled.encode(decoder, dict(enumerate(windows)))
    jobs = [Job(row, text.tolist(), Sample(Limits(-1, 1)), watch=range(8)) for row, text in enumerate(tokens)]
    found = decoder.step({job.row: job.start() for job in jobs})
    # less their mean, on which no probability depends; of int8 all but the likeliest are in 4 bits
    centred = (each - each.mean(-1, keepdims=True) for each in (np.stack([found[0].logits, found[1].logits]), expected))
    assert relative(*centred) < allowed


MEMORY = {
    "key": ["int8", [4, 1, 1, 16, 50]],
    "key_scale": ["float32", [4, 1, 50]],
    "key_offset": ["float32", [4, 1, 50]],
    "value": ["int8", [4, 50, 16]],
    "value_scale": ["float32", [4, 1, 16]],
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_manifest(bundles: Callable[[str], Path], checkpoint: Path, theirs: Any, precision: str) -> None:
    folder = bundles(precision)
    names = FILES | ({"beams.onnx"} if precision == "int8" else set())
    assert {file.name for file in folder.iterdir()} == {"bundle.json", *names}
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    files, speech, certificate = (manifest.pop(name) for name in ("files", "speech", "certificate"))
    assert files == {
        name: {
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "bytes": (folder / name).stat().st_size,
        }
        for name in names
    }
    # the keys of 2 + 2 * 2 attentions get a bias, of zeros
    assert manifest == {
        "heedful": 7,
        "task": "transcribe",
        "family": "whisper",
        "precision": precision,
        "source": {"name": str(checkpoint), "format": "huggingface", "license": "mit"},
        "parameters": theirs.num_parameters() + 6 * 64,
        "decoder": {
            "layers": 2,
            "heads": 4,
            "head_dim": 16,
            "frames": 50,
            "positions": 64,
            "vocabulary": 317,
            "dtype": "float16" if precision == "fp16" else "float32",
            "cache": {"key": [4, 16], "value": [4, 16]},
            **({"memory": MEMORY} if precision == "int8" else {}),
        },
    }
    assert speech["audio"] == {"sample_rate": 16_000, "samples": 16_000, "frame": 0.02}
    assert speech["alignment_heads"] == HEADS
    assert speech["tokens"]["languages"] == {"en": 258, "pt": 259}
    assert {256, *range(260, 265)} & {*speech["suppress"]} == {260, 261, 262, 263, 264}
    assert certificate["exact"]["passed"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_certificate_holds_figures(bundles: Callable[[str], Path], precision: str) -> None:
    found = open_bundle(bundles(precision)).manifest["certificate"]
    decoders = ["logits", "logits of beams"] if precision == "int8" else ["logits"]
    aligner = ["alignment weights", "alignment probabilities"]
    assert list(found["differences"]) == ["encoder keys", "encoder values", *aligner, *decoders]
    for figures in found["differences"].values():
        assert 0 < figures["rms"] <= TOLERANCES[precision].rms
        assert 0 < figures["largest"] < 10 * TOLERANCES[precision].rms
    assert found["exact"] == {
        "compared_with": "PyTorch" if precision == "fp32" else "each row alone",
        "batch_sizes": [1, 2, 4],
        "prompt_lengths": [1, 2, 6],
        "beam_widths": [1, 2, 5],
        "cases": (3 + 2) * 3 * len(decoders),
        "failed": [],
        "passed": True,
    }
    assert TOLERANCES[precision].agreement <= found["agreement"] <= 1
    assert found["tokens_compared"] == 2 * (1 + 12) * len(decoders)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_certificate_compares_with_the_checkpoint_itself(
    bundles: Callable[[str], Path], theirs: Any, precision: str
) -> None:
    """Of the encoder, by another way: not with weights or a spectrum already rounded to the bundle's precision."""
    bundled = speech(bundles(precision))
    windows = fixture_windows(4, bundled.samples)
    decoder = bundled.decoder(4)
    bundled.encode(decoder, dict(enumerate(windows)))
    with torch.no_grad():
        hidden = theirs.model.encoder(features(windows)).last_hidden_state
        values = [layer.encoder_attn.v_proj(hidden) for layer in theirs.model.decoder.layers]
    expected = torch.stack(values).reshape(2, 4, 50, 4, 16).transpose(2, 3).numpy()
    buffers = decoder.memory.items()
    memory: dict[str, Any] = {name: buffer.array for name, buffer in buffers if isinstance(buffer, HostBuffer)}
    scales = [memory.get(f"{layer}.value_scale", 1) for layer in range(2)]
    found = np.stack([memory[f"{layer}.value"] * scale for layer, scale in enumerate(scales)])
    stated = bundled.bundle.manifest["certificate"]["differences"]["encoder values"]["rms"]
    assert stated == pytest.approx(relative(found, expected), rel=0.05, abs=2e-5)


def test_half_precision_spares_the_spectrum(bundles: Callable[[str], Path]) -> None:
    proto = onnx.load(bundles("fp16") / "encoder.onnx")
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in proto.graph.initializer}
    exact = LogMel(80)
    np.testing.assert_array_equal(constants["model.log_mel.filters"], exact.filters.numpy())
    np.testing.assert_array_equal(constants["model.log_mel.basis"], exact.basis.numpy())
    assert constants["model.encoder.first.weight.unfolded.0"].dtype == np.float16


def test_bundles_load(bundles: Callable[[str], Path], checkpoint: Path) -> None:
    for precision in PRECISIONS:
        load(bundles(precision), device="cpu")
    # the checkpoint's tokenizer has no decoder, and would write a space as the letter that stands for its byte
    assert Tokenizer.from_file(str(checkpoint / "tokenizer.json")).decode([220, 32]) != " A"
    words = Tokenizer.from_file(str(bundles("fp32") / "tokenizer.json"))
    assert words.decode(words.encode("and so: it goes").ids) == "and so: it goes"


def test_half_precision_takes_half_the_bytes(bundles: Callable[[str], Path]) -> None:
    spectrum = sum(buffer.nbytes for buffer in LogMel(80).buffers())
    sizes = {precision: (bundles(precision) / "weights.bin").stat().st_size - spectrum for precision in PRECISIONS}
    # beside the parameters there is padding to pages
    assert 0.5 <= sizes["fp16"] / sizes["fp32"] < 0.6
    # a quarter, but for the decoder, which is there twice
    assert sizes["int8"] / sizes["fp32"] < 0.6


def steps(checkpoint: Path) -> list[str]:
    graphs = [f"tracing the {name}" for name in ("encoder", "decoder", "aligner")]
    return [f"reading {checkpoint}", *graphs, "comparing with PyTorch"]


def test_it_says_what_it_does_and_where_the_bundle_is(checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert export(checkpoint, tmp_path / "new" / "bundle", report=said.append) == tmp_path / "new" / "bundle"
    assert said == steps(checkpoint)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["bundle"]
    assert (tmp_path / "new" / "bundle").stat().st_mode & 0o777 == 0o755


def test_a_name_goes_to_the_bundle_folder_and_a_path_where_it_says(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HEEDFUL_HOME", str(tmp_path / "home"))
    assert export(checkpoint, "mine") == tmp_path / "home" / "bundles" / "mine"
    assert listed("bundles") == [tmp_path / "home" / "bundles" / "mine"]
    assert export(checkpoint, "sub/mine") == Path("sub/mine")
    assert export(checkpoint, "./mine") == Path("mine")
    for name in ("mine", tmp_path / "here" / "mine", tmp_path / "here" / "sub" / "mine"):
        assert open_bundle(name).manifest["source"]["name"] == str(checkpoint)
    with pytest.raises(ExportError, match="there already"):
        export(checkpoint, "mine")


def test_shards_are_put_together(checkpoint: Path, tmp_path: Path) -> None:
    """The graphs are those of the whole checkpoint: the comparison with PyTorch fails where the shards differ."""
    sharded = tmp_path / "sharded"
    shutil.copytree(checkpoint, sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    save_torch_state_dict(load_file(checkpoint / "model.safetensors"), sharded, max_shard_size=200_000)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    manifest = open_bundle(export(sharded, tmp_path / "bundle")).manifest
    assert manifest["certificate"]["differences"]["logits"]["rms"] < 1e-5


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["folder", "file"])
def test_what_is_there_already_stays(checkpoint: Path, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "bundle")
    with pytest.raises(ExportError, match=r"bundle is there already: remove it"):
        export(checkpoint, tmp_path / "bundle")
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_an_unknown_precision(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"unknown precision 'int3': choose one of fp32, int8, fp16"):
        export(checkpoint, tmp_path / "bundle", "int3")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_another_family(checkpoint: Path, tmp_path: Path) -> None:
    other = altered(checkpoint, tmp_path / "other", "config.json", {"model_type": "bert"})
    with pytest.raises(CheckpointError, match=r"other is of bert; Heedful exports whisper"):
        export(other, tmp_path / "new" / "bundle")
    assert not (tmp_path / "new").exists()


def altered(checkpoint: Path, folder: Path, file: str, changed: dict[str, Any]) -> Path:
    shutil.copytree(checkpoint, folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changed))
    return folder


def fails(checkpoint: Path, folder: Path, error: type[BaseException], match: str, **options: Any) -> None:
    """Assert that an export into `folder` fails so, and that nothing of it is left there, hidden or not."""
    folder.mkdir(exist_ok=True)
    before = sorted(folder.rglob("*"))
    with pytest.raises(error, match=match):
        export(checkpoint, folder / "bundle", **options)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_differences_above_the_tolerance_leave_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setitem(certificate.TOLERANCES, precision, Tolerance(rms=1e-9, agreement=0.0, same_tokens=False))
    said = rf"encoder keys differ .* and {precision} allows 1e-09; nothing was written"
    fails(checkpoint, tmp_path / "out", ExportError, said, precision=precision)


def test_a_graph_that_lost_a_weight_leaves_nothing(
    checkpoint: Path, traced: Callable[[Graph], ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(graph: Graph) -> ir.Model:
        model = traced(graph)
        if graph.name == "decoder":
            value = model.graph.initializers["decoder.positions.weight"]
            assert value.const_value is not None
            value.const_value = ir.tensor(np.roll(value.const_value.numpy(), 1, axis=0), name=value.name)
        return model

    monkeypatch.setattr(exporting, "trace", damaging)
    fails(checkpoint, tmp_path / "out", ExportError, "logits differ from the PyTorch model's")


@pytest.mark.parametrize("step", range(5))
def test_an_interrupt_leaves_nothing(checkpoint: Path, tmp_path: Path, step: int) -> None:
    def interrupt(said: str) -> None:
        if said == steps(checkpoint)[step]:
            raise KeyboardInterrupt(said)

    fails(checkpoint, tmp_path / "out", KeyboardInterrupt, steps(checkpoint)[step], report=interrupt)


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "store", full)
    fails(checkpoint, tmp_path / "out", ExportError, "bundle could not be written: .*No space left")


def test_a_bundle_that_another_export_made_meanwhile_stays(checkpoint: Path, tmp_path: Path) -> None:
    def other(said: str) -> None:
        if said == "comparing with PyTorch":
            (tmp_path / "bundle").mkdir()
            (tmp_path / "bundle" / "theirs").touch()

    with pytest.raises(ExportError, match="could not be written"):
        export(checkpoint, tmp_path / "bundle", report=other)
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == ["bundle", "bundle/theirs"]


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_an_unreadable_tokenizer_leaves_nothing(checkpoint: Path, tmp_path: Path, content: str) -> None:
    other = altered(checkpoint, tmp_path / "other", "config.json", {})
    (other / "tokenizer.json").write_text(content)
    fails(other, tmp_path / "out", CheckpointError, r"tokenizer\.json cannot be read")


def test_a_checkpoint_that_does_not_fit_its_configuration_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    other = altered(checkpoint, tmp_path / "other", "config.json", {"d_model": 48})
    fails(other, tmp_path / "out", CheckpointError, "has shape .* the configuration asks for")


def test_a_place_that_cannot_be(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="file"):
        export(checkpoint, tmp_path / "file" / "bundle")


def test_no_name(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEEDFUL_HOME", str(tmp_path))
    with pytest.raises(ExportError, match="choose another name"):
        export(checkpoint, "")
    assert not list(tmp_path.iterdir())
