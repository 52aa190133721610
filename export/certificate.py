"""The export certificate: what was checked of a bundle before it was written, with the figures.

Three things are looked at, on a few seconds of real speech (export/fixture.flac):

- differences: of each kind of output from the model in PyTorch: `rms`, the root mean square of the difference over
  that of the output, and `largest`, the largest difference over the output's largest value;
- exact: whether tokens are the same whatever shares the batch, at several batch sizes, prompt lengths and beam widths;
  in float32 also the same as the PyTorch model's;
- agreement: how often, after the same tokens, bundle and PyTorch model find the same token likeliest.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heedful.export.eager import EagerDecoder
from heedful.export.graphs import Aligner, flatten
from heedful.models.cache import KeyValue
from heedful.models.whisper import Whisper
from heedful.runtime.engine.buffers import HostBuffer
from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.generate import Job, Stepper, generate
from heedful.runtime.engine.rules import Suppress
from heedful.runtime.engine.search import Beam, Limits, Sample, Search
from heedful.runtime.errors import ExportError
from heedful.runtime.speech.audio import SAMPLE_RATE, read_audio
from heedful.runtime.speech.model import SpeechModel

FIXTURE = Path(__file__).with_name("fixture.flac")
_STEPS = 12
_BATCHES, _PROMPTS, _WIDTHS = (1, 2, 4), (1, 2, 6), (1, 2, 5)


@dataclass(frozen=True)
class Tolerance:
    """How far a precision may differ: `rms` of every output, and in the likeliest token."""

    rms: float
    agreement: float
    same_tokens: bool


TOLERANCES = {
    "fp32": Tolerance(rms=1e-4, agreement=1.0, same_tokens=True),
    "fp16": Tolerance(rms=2e-2, agreement=0.95, same_tokens=False),
    "int8": Tolerance(rms=0.3, agreement=0.85, same_tokens=False),
}


@dataclass(frozen=True)
class Certificate:
    """What was found; see the module."""

    differences: dict[str, dict[str, float]]
    exact: dict[str, Any]
    agreement: float
    tokens_compared: int


def fixture_windows(count: int, samples: int) -> list[NDArray[np.float32]]:
    """`count` different waveforms (at most `samples`,): the fixture from a second further on each time."""
    speech = np.concatenate(list(read_audio(FIXTURE)))
    return [speech[i * SAMPLE_RATE :][:samples] for i in range(count)]


def certify(
    model: Whisper, bundled: SpeechModel, precision: str, alignment_heads: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Compare the graphs of `bundled` with `model`.

    Raises ExportError when they differ by more than `precision` allows.
    """
    windows = fixture_windows(max(_BATCHES), bundled.samples)
    padded = np.stack([np.pad(window, (0, bundled.samples - len(window))) for window in windows])
    with torch.no_grad():
        memory = model.encode(torch.from_numpy(padded))
    decoder = bundled.decoder(len(windows))
    bundled.encode(decoder, dict(enumerate(windows)))
    header = [bundled.tokens.special.start, bundled.tokens.special.no_timestamps]
    differences = _memory_differences(decoder, memory)
    reference = _run(EagerDecoder(model, memory), bundled, [0, 1], header, 1)
    logits, agreement, compared = _teacher_forced(model, memory, bundled, decoder, header, reference)
    weights = _aligner_difference(model, memory, bundled, decoder, alignment_heads, header, reference[0])
    differences |= logits | weights
    tolerance = TOLERANCES[precision]
    # first of all: with outputs that are no numbers there is nothing to search for
    _judge_differences(differences, tolerance, precision)
    against = EagerDecoder(model, memory) if tolerance.same_tokens else None
    exact = _exactness(bundled, decoder, against)
    if not exact["passed"]:
        raise ExportError(f"the export failed its check: tokens differ in {exact}; nothing was written")
    if agreement < tolerance.agreement:
        raise ExportError(
            f"the export failed its check: only {agreement:.1%} of tokens agree with the PyTorch model, "
            f"and {precision} asks for {tolerance.agreement:.0%}; choose a higher precision; nothing was written"
        )
    return asdict(Certificate(differences, exact, round(agreement, 4), compared))


def _judge_differences(differences: dict[str, dict[str, float]], tolerance: Tolerance, precision: str) -> None:
    for name, difference in differences.items():
        if not difference["rms"] <= tolerance.rms:
            raise ExportError(
                f"the export failed its check: {name} differ from the PyTorch model's by {difference['rms']:.3g} of "
                f"their root mean square, and {precision} allows {tolerance.rms:.3g}; nothing was written"
            )


def _compare(found: NDArray[Any], expected: NDArray[Any]) -> dict[str, float]:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    difference = np.nan_to_num(np.abs(found - expected), nan=np.inf)
    rms = np.sqrt((difference**2).mean() / max((expected**2).mean(), 1e-24))
    largest = difference.max() / max(np.abs(expected).max(), 1e-12)
    return {"rms": float(f"{rms:.3g}"), "largest": float(f"{largest:.3g}")}


def _memory_differences(decoder: Decoder, memory: list[KeyValue]) -> dict[str, dict[str, float]]:
    def found(part: str) -> NDArray[Any]:
        buffers = [decoder.memory[f"{layer}.{part}"] for layer in range(len(memory))]
        return np.stack([buffer.array for buffer in buffers if isinstance(buffer, HostBuffer)])

    keys, values = (torch.stack(parts).numpy() for parts in zip(*memory, strict=True))
    return {"encoder keys": _compare(found("key"), keys), "encoder values": _compare(found("value"), values)}


def _search(bundled: SpeechModel, width: int) -> Search:
    # without an end token every case runs its full length
    limits = Limits(-1, _STEPS, [Suppress([bundled.tokens.special.end])])
    return Sample(limits) if width == 1 else Beam(limits, width=width)


def _run(
    stepper: Stepper, bundled: SpeechModel, rows: Sequence[int], prompt: Sequence[int], width: int
) -> list[tuple[int, ...]]:
    jobs = [Job(row, prompt, _search(bundled, width)) for row in rows]
    generate(stepper, jobs)
    return [job.search.results()[0].tokens for job in jobs]


def _exactness(bundled: SpeechModel, decoder: Decoder, against: EagerDecoder | None) -> dict[str, Any]:
    """Tokens of several rows at once, and of each row alone, in the bundle or in PyTorch."""
    special = bundled.tokens.special
    words = bundled.tokens.encode("and so it goes on and on")
    prompts = [[*[special.previous, *words][: length - 1], special.start] for length in _PROMPTS]
    variants = [(prompt, 1) for prompt in prompts] + [(prompts[1], width) for width in _WIDTHS[1:]]
    failed = []
    for prompt, width in variants:
        reference: Stepper = decoder if against is None else against
        alone = [_run(reference, bundled, [row], prompt, width)[0] for row in range(max(_BATCHES))]
        for batch in _BATCHES:
            if _run(decoder, bundled, range(batch), prompt, width) != alone[:batch]:
                failed.append(f"batch {batch}, prompt of {len(prompt)}, {width} beams")
    return {
        "compared_with": "each row alone" if against is None else "PyTorch",
        "batch_sizes": list(_BATCHES),
        "prompt_lengths": list(_PROMPTS),
        "beam_widths": list(_WIDTHS),
        "cases": len(variants) * len(_BATCHES),
        "failed": failed,
        "passed": not failed,
    }


def _teacher_forced(
    model: Whisper,
    memory: list[KeyValue],
    bundled: SpeechModel,
    decoder: Decoder,
    header: list[int],
    texts: Sequence[tuple[int, ...]],
) -> tuple[dict[str, dict[str, float]], float, int]:
    """Logits after every token of `texts`, row by row, from both."""
    sides: list[NDArray[np.float32]] = []
    for stepper in (decoder, EagerDecoder(model, memory)):
        rows = []
        for row, text in enumerate(texts):
            prompt = [*header, *text]
            job = Job(row, prompt, _search(bundled, 1), watch=range(len(prompt) - 1))
            rows.append(stepper.step({row: job.start()})[row])
        sides.append(np.concatenate(rows))
    found, expected = sides
    agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
    return {"logits": _compare(found, expected)}, agreement, len(found)


def _aligner_difference(
    model: Whisper,
    memory: list[KeyValue],
    bundled: SpeechModel,
    decoder: Decoder,
    heads: Sequence[tuple[int, int]],
    header: list[int],
    text: tuple[int, ...],
) -> dict[str, dict[str, float]]:
    weights, probabilities = bundled.align(decoder, 0, header, text)
    flat = [tensor[:1] for tensor in flatten(memory)]
    eager = Aligner(model, heads, bundled.tokens.special.end)
    with torch.no_grad():
        expected, logprobs = eager(torch.tensor([[*header, *text]]), flat)
    first = len(header) - 1
    return {
        "alignment weights": _compare(weights, expected[0, :, first:].numpy()),
        "alignment probabilities": _compare(probabilities, logprobs[0, first:].exp().numpy()),
    }
