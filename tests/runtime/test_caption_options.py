"""Options of captions: those that make no sense, and what is held for heat maps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from heedful.runtime import Captioner, InputError, load
from heedful.runtime.image.pixels import Picture, PictureSource

PICTURE = Image.new("RGB", (40, 30), "teal")


@pytest.fixture(scope="module")
def captioner(seeded_captioner: Path) -> Captioner:
    found: Captioner = load(seeded_captioner, "cpu", threads=1)
    return found


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    *[({"count": value}, "count must be a whole number from 1 to 256") for value in (0, -1, 257, 2.0, True, "2", None)],
    *[({"beams": value}, "beams must be a whole number from 1 to 256") for value in (0, 257, 1.0, "4")],
    *[({"batch": value}, "batch must be a whole number from 1 to 1024") for value in (0, 1025, 8.0, None)],
    *[({"max_length": value}, "max_length must be a whole number from 1") for value in (0, 1e3)],
    *[({"length_penalty": value}, "length_penalty must be a number") for value in (float("nan"), "1", True, 51, -51)],
    ({"count": 4, "beams": 3}, "count must be at most the beams, 3, not 4"),
    ({"heatmaps": 1}, "heatmaps must be a bool"),
    ({"prompt": b"a photo"}, "prompt must be a str"),
    ({"prompt": "a \udc00 photo"}, r"prompt has half of a character, '\\udc00' at 2"),
    ({"early_stopping": "always"}, "early_stopping must be True, False or 'never'"),
    ({"repetition_penalty": -1.0}, "repetition_penalty must be above 0"),
    ({"no_repeat_ngram": -1}, "no_repeat_ngram must be a whole number from 0"),
    ({"min_length": -1}, "min_length must be a whole number from 0"),
    ({"num_captions": 2}, "unknown option 'num_captions': there are beams, .*count, heatmaps"),
    ({"max_length": 1}, "max_length"),
    ({"max_length": 4, "prompt": "a photo of"}, "the prompt 'a photo of' has 3 tokens, .* max_length"),
    ({"prompt": "sea " * 100}, "the prompt .* has 100 tokens, which leaves no room"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_an_option_that_makes_no_sense_is_named(captioner: Captioner, options: dict[str, Any], message: str) -> None:
    """At once, also by a stream of which nothing is taken yet."""
    asks: list[Callable[..., Any]] = [captioner, captioner.stream, captioner.attempts]
    for ask in asks:
        with pytest.raises(InputError, match=message):
            ask([PICTURE], **options)
    with pytest.raises(InputError, match=message):
        captioner.submit(PICTURE, **options).result(30)


def test_whole_pictures_are_held_for_heat_maps_only(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Picture] = []
    read = captioner.model.read

    def watched(image: PictureSource, **options: Any) -> Picture:
        held.append(read(image, **options))
        return held[-1]

    monkeypatch.setattr(captioner.model, "read", watched)
    for heatmaps in (False, True):
        captioner(PICTURE, beams=1, heatmaps=heatmaps)
    assert [picture.upright is not None for picture in held] == [False, True]
    # nor are the pixels part of a larger array
    assert all(picture.pixels.base is None for picture in held)
