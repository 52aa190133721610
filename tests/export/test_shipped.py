"""The checkpoint that comes with the package: found by its name, small, licensed, and what it writes is its model's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heedful.export.bundle import export
from heedful.export.captioners import OWN
from heedful.export.checkpoint import SHIPPED, open_checkpoint, shipped
from heedful.models.captioner import Captioner
from heedful.runtime import CheckpointError, load

MOST_BYTES = 20_000_000


@pytest.fixture(scope="module")
def model() -> Captioner:
    """The network, as its checkpoint is read."""
    return OWN.load(open_checkpoint("captioner"))


def test_it_is_small_and_says_what_may_be_done_with_it() -> None:
    assert shipped() == ["captioner"]
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < MOST_BYTES
    checkpoint = open_checkpoint("captioner")
    assert checkpoint.license == "other"
    assert "research" in (SHIPPED / "captioner/README.md").read_text()


@pytest.mark.parametrize("key", ["decoder_start_token_id", "eos_token_id"])
def test_a_token_that_it_does_not_state_is_named(key: str) -> None:
    checkpoint = open_checkpoint("captioner")
    assert OWN.ends(checkpoint) == (1, 2)
    lacking = replace(checkpoint, generation={**checkpoint.generation, key: None})
    with pytest.raises(CheckpointError, match=rf"captioner: generation_config\.json lacks '{key}'"):
        OWN.ends(lacking)


def test_a_checkpoint_of_that_name_at_home_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEEDFUL_HOME", str(tmp_path))
    mine = tmp_path / "checkpoints/captioner"
    mine.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"{mine} holds no weights"):
        open_checkpoint("captioner")


def test_a_bundle_writes_what_the_network_finds_likeliest(model: Captioner, tmp_path: Path) -> None:
    caption = load(export("captioner", tmp_path / "bundle"))
    noise = np.random.default_rng(5).integers(0, 256, (7, 9, 3), np.uint8)
    picture = Image.fromarray(noise).resize((300, 260), Image.Resampling.BICUBIC)
    found = caption(picture, beams=1)
    pixels = torch.from_numpy(np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR)).copy()[None])
    tokens, silent = [1], [0, 1, 3]
    with torch.no_grad():
        while tokens[-1] != 2 and len(tokens) < 23:
            logits = model(pixels, torch.tensor([tokens]))[0, -1]
            logits[silent] = -torch.inf
            tokens.append(int(logits.argmax()))
    assert list(found.tokens) == [token for token in tokens[1:] if token != 2]
    assert len(found.text.split()) == len(found.tokens) > 2
