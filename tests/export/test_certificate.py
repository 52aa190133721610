"""The certificate beside a bundle whose graphs were tampered with: it fails for what a precision does not allow."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import external_data_helper, numpy_helper

from heedful.export import bundle as exporting
from heedful.export import whisper
from heedful.export.bundle import export
from heedful.export.certificate import TOLERANCES, certify
from heedful.export.checkpoint import open_checkpoint
from heedful.export.whisper import fixture_windows
from heedful.models.whisper import Whisper
from heedful.runtime.bundle import Bundle, open_bundle
from heedful.runtime.engine.decoder import All, Decoder, Feed, Scores
from heedful.runtime.errors import ExportError

Array = NDArray[Any]
Change = Callable[[Array], Array]


@pytest.fixture(scope="module")
def model(seeded_checkpoint: Path) -> Iterator[Whisper]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small cost less than handing them round
    yield whisper.load(open_checkpoint(seeded_checkpoint))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bundle(seeded_bundle: Path) -> Bundle:
    return open_bundle(seeded_bundle)


def tampered(bundle: Bundle, folder: Path, graph: str, weight: str, change: Change) -> Bundle:
    """`bundle` again in `folder`, with another `weight` and its parts in a graph; nobody asks if files are whole."""
    shutil.copytree(bundle.path, folder)
    proto = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
    found = [each for each in proto.graph.initializer if f"{each.name}.".startswith(f"{weight}.")]
    assert found
    for each in found:
        external_data_helper.load_external_data_for_tensor(each, str(folder))
        changed = change(numpy_helper.to_array(each)).astype(np.float32)
        each.CopyFrom(numpy_helper.from_array(changed, each.name))
    onnx.save(proto, folder / f"{graph}.onnx")
    return Bundle(folder, bundle.manifest)


def noisy(share: float) -> Change:
    """Adds noise of that share of the weight's own root mean square."""

    def change(weight: Array) -> Array:
        noise = np.random.default_rng(0).standard_normal(weight.shape)
        return np.asarray(weight + share * np.sqrt((weight.astype(np.float64) ** 2).mean()) * noise)

    return change


def lost(weight: Array) -> Array:
    return np.full_like(weight, np.nan)


ENCODER = "model.encoder.layers.1.feed_forward.output.weight"
VALUES = "model.decoder.layers.1.cross_attention.key_value.weight"
EMBEDDING = "decoder.tokens.weight"
QUERY = "decoder.layers.1.cross_attention.query.weight"


@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_bundle_as_it_was_made_passes_at_any_precision(model: Whisper, bundle: Bundle, precision: str) -> None:
    found = certify(whisper.subject(model, bundle), precision)
    assert found["agreement"] == 1
    assert found["exact"]["passed"]
    assert max(figures["rms"] for figures in found["differences"].values()) < 1e-5


@pytest.mark.parametrize(
    ("graph", "weight", "change", "outputs"),
    [
        ("encoder", ENCODER, noisy(0.01), "encoder keys"),
        ("encoder", VALUES, lambda weight: np.concatenate([weight[:, :64], noisy(0.01)(weight[:, 64:])], axis=1),
         "encoder values"),
        ("decoder", EMBEDDING, noisy(0.01), "logits"),
        ("decoder", "decoder.positions.weight", lambda weight: np.roll(weight, 1, axis=0), "logits"),
        ("aligner", QUERY, noisy(0.01), "alignment weights"),
        ("aligner", EMBEDDING, noisy(0.003), "alignment probabilities"),
        ("encoder", ENCODER, lost, "encoder keys"),
        ("decoder", EMBEDDING, lost, "logits"),
    ],
    ids=["encoder", "values", "embedding", "positions", "query", "probabilities", "encoder lost", "decoder lost"],
)  # fmt: skip
def test_another_weight_fails_by_the_outputs_it_reaches(
    model: Whisper, bundle: Bundle, tmp_path: Path, graph: str, weight: str, change: Change, outputs: str
) -> None:
    bundled = tampered(bundle, tmp_path / "tampered", graph, weight, change)
    with pytest.raises(ExportError, match=rf"{outputs} differ from .* fp32 allows 0\.0001; nothing was written"):
        certify(whisper.subject(model, bundled), "fp32")


def test_the_same_weight_written_again_passes(model: Whisper, bundle: Bundle, tmp_path: Path) -> None:
    bundled = tampered(bundle, tmp_path / "same", "decoder", EMBEDDING, lambda weight: weight)
    assert certify(whisper.subject(model, bundled), "fp32") == certify(whisper.subject(model, bundle), "fp32")


@pytest.mark.parametrize(
    ("share", "passes"),
    [(1e-6, {"fp32", "fp16", "int8"}), (1e-3, {"fp16", "int8"}), (0.1, {"int8"}), (0.5, set[str]())],
)
def test_each_precision_allows_its_own_share(
    model: Whisper, bundle: Bundle, tmp_path: Path, share: float, passes: set[str]
) -> None:
    bundled = tampered(bundle, tmp_path / "tampered", "decoder", EMBEDDING, lambda weight: weight * (1 + share))
    found = set()
    for precision in TOLERANCES:
        try:
            certify(whisper.subject(model, bundled), precision)
        except ExportError:
            continue
        found.add(precision)
    assert found == passes


def change_logits(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Have every decoder hand over its logits with this `change`."""
    steps = Decoder.step

    def changed(decoder: Decoder, feeds: Mapping[int, Feed]) -> dict[int, Any]:
        return {row: each._replace(logits=change(each.logits)) for row, each in steps(decoder, feeds).items()}

    monkeypatch.setattr(Decoder, "step", changed)


def test_the_figure_is_the_difference_that_was_made(
    model: Whisper, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All logits too large by a hundredth: that is a hundredth of their root mean square, and of the largest."""
    change_logits(monkeypatch, lambda logits: logits * np.float32(1.01))
    found = certify(whisper.subject(model, bundle), "fp16")
    assert found["differences"]["logits"] == pytest.approx({"rms": 0.01, "largest": 0.01}, rel=0.01)
    assert found["agreement"] == 1


def test_what_all_logits_have_in_common_is_no_difference(
    model: Whisper, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No probability depends on it."""
    change_logits(monkeypatch, lambda logits: logits + np.float32(5))
    assert certify(whisper.subject(model, bundle), "fp32")["differences"]["logits"]["rms"] < 1e-4


def test_a_likeliest_token_that_changes_is_counted(
    model: Whisper, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two largest logits of every third token change places: little by any mean, much to a reader."""
    steps = Decoder.step

    def swapping(decoder: Decoder, feeds: Mapping[int, Feed]) -> dict[int, Scores]:
        found = steps(decoder, feeds)
        for row, feed in feeds.items():
            scores = found[row]
            assert isinstance(scores, All)
            for each in scores.logits if feed.at % 3 == 0 else ():
                second, first = np.argsort(each)[-2:]
                each[[first, second]] = each[[second, first]]
        return found

    monkeypatch.setattr(Decoder, "step", swapping)
    with pytest.raises(
        ExportError, match=r"only 6\d\.\d% of tokens of decoder agree .* int8 asks for 85%; choose a higher"
    ):
        certify(whisper.subject(model, bundle), "int8")


@pytest.mark.parametrize("precision", TOLERANCES)
def test_rows_that_disturb_one_another_fail(
    model: Whisper, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """A decoder that gives the first of four rows the logits of the last: each row alone is right."""
    steps = Decoder.step

    def mixing(decoder: Decoder, feeds: Mapping[int, Feed]) -> dict[int, Any]:
        found: dict[int, Any] = steps(decoder, feeds)
        return found | {0: found[3]._replace(logits=np.roll(found[3].logits, 1, axis=1))} if len(found) == 4 else found

    monkeypatch.setattr(Decoder, "step", mixing)
    with pytest.raises(ExportError, match=r"tokens of decoder differ in .*'batch 4, prompt of 1, 1 beams'") as failed:
        certify(whisper.subject(model, bundle), precision)
    assert "batch 2," not in str(failed.value)


def test_a_rewrite_of_the_model_that_changes_results_fails(
    seeded_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs that are true to a model that was spoilt before they were traced are not true to the checkpoint."""

    @torch.no_grad()
    def wrong(model: Whisper) -> None:
        model.decoder.tokens.weight[:, ::2] *= 1.1

    monkeypatch.setattr(exporting, "fold_scales", wrong)
    with pytest.raises(ExportError, match=r"differ from the PyTorch model's by .*; nothing was written"):
        export(seeded_checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_fixture_gives_different_windows_of_speech() -> None:
    speech, *later = fixture_windows(4, 480_000)
    assert len(speech) > 4 * 16_000
    assert speech.std() > 0.01
    for second, window in enumerate(later, 1):
        np.testing.assert_array_equal(window, speech[second * 16_000 :])
    for whole, window in zip((speech, *later), fixture_windows(4, 8_000), strict=True):
        np.testing.assert_array_equal(window, whole[:8_000])
