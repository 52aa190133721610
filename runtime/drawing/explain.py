"""Where a model looked, drawn: a caption's words on the picture, a text's on its source, a transcript's in time."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heedful.runtime.drawing.matrix import draw_matrix, draw_times
from heedful.runtime.drawing.panels import draw_panels
from heedful.runtime.errors import InputError
from heedful.runtime.home import STDIN
from heedful.runtime.image.results import Caption
from heedful.runtime.speech.results import Transcript
from heedful.runtime.text.results import Sentence, Written

# seconds of speech on a page
PAGE = 240.0


def explain(
    result: Caption | Written | Transcript, *, waveform: NDArray[np.float32] | None = None, rate: int = 16_000
) -> list[Image.Image]:
    """Pictures of where the model looked for each word of `result`: one of a caption, one a sentence of a text, one for
    each four minutes of speech.

    The result must have been asked for with `heatmaps`, `alignment` or `words`; else InputError says so. A
    `waveform` (samples,) at `rate` hertz is drawn behind the words of a transcript.
    """
    if isinstance(result, Caption):
        return [_caption(result)]
    if isinstance(result, Written):
        return [_sentence(each) for each in result.sentences]
    return _transcript(result, waveform, rate)


def save(pages: Sequence[Image.Image], target: Path) -> None:
    """Write `pages` as `target`, or, when there are several, as `target` with a number before its ending."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for i, page in enumerate(pages, 1):
            page.save(target if len(pages) == 1 else target.with_stem(f"{target.stem}-{i}"))
    except (OSError, ValueError) as error:
        raise InputError(f"{target} cannot be written: {error}") from error


def targets_of(explain: Path | None, names: Sequence[str]) -> dict[str, Path]:
    """Where the drawing about each of the files `names` goes: `explain`, if that is a picture's name, else into that
    folder, files of one name with their folders in it. Empty where `explain` is None.
    """
    if explain is None:
        return {}
    if explain.suffix.lower() == ".png":
        return dict.fromkeys(names, explain)
    paths = {name: Path("stdin" if name == STDIN else name) for name in names}
    often = Counter(path.name for path in paths.values())
    flat = {
        name: path.name if often[path.name] == 1 else "_".join(path.parts[bool(path.anchor) :])
        for name, path in paths.items()
    }
    return {name: explain / f"{each}.png" for name, each in flat.items()}


def _caption(caption: Caption) -> Image.Image:
    if caption.picture is None:
        raise InputError("this caption has no heat maps: ask for them with heatmaps=True")
    words = [(word.text, word.heatmap) for word in caption.words]
    return draw_panels(caption.picture, words, caption.region, caption.text)


def _sentence(sentence: Sentence) -> Image.Image:
    found = sentence.alignment
    if found is None:
        raise InputError("this text has no alignment: ask for it with alignment=True")
    return draw_matrix(found.weights, found.target, found.source, sentence.text)


def _transcript(transcript: Transcript, waveform: NDArray[np.float32] | None, rate: int) -> list[Image.Image]:
    if any(segment.words is None for segment in transcript.segments):
        raise InputError("this transcript has no word times: ask for them with words=True")
    words = list(chain.from_iterable(segment.words or () for segment in transcript.segments))
    pages = []
    for start in np.arange(0.0, max(transcript.duration, 1e-3), PAGE).tolist():
        end = min(start + PAGE, transcript.duration)
        part = None if waveform is None else waveform[int(start * rate) : int(end * rate)]
        last = end == transcript.duration  # a word may begin where everything ends
        its = [
            (word.text.strip(), word.start, word.end, word.probability)
            for word in words
            if start <= word.start and (word.start < end or last)
        ]
        pages.append(draw_times(its, (start, end), part, f"{start:.0f} to {end:.0f} s"))
    return pages
