"""The export certificate: what was checked of a bundle before it was written, with the figures.

Three things are looked at, on a few real inputs, which the family chooses:

- differences: of each kind of output from the model in PyTorch: `rms`, the root mean square of the difference over
  that of the output, and `largest`, the largest difference over the output's largest value; logits are taken less
  their mean over the vocabulary, on which no probability depends;
- exact: whether tokens are the same whatever shares the batch, at several batch sizes, prompt lengths and beam widths;
  in float32 also the same as the PyTorch model's;
- agreement: how often, after the same tokens, bundle and PyTorch model find the same token likeliest.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heedful.export.eager import EagerDecoder
from heedful.export.family import Subject
from heedful.export.graphs import Aligner, flatten
from heedful.export.integer_memory import restored
from heedful.runtime.engine.buffers import HostBuffer
from heedful.runtime.engine.decoder import All, Decoder, Scores, Wanted
from heedful.runtime.engine.generate import Job, Stepper, generate
from heedful.runtime.engine.rules import Suppress
from heedful.runtime.engine.search import Beam, Hypothesis, Limits, Sample, Search, Step
from heedful.runtime.errors import ExportError

_STEPS = 12
_BATCHES, _WIDTHS = (1, 2, 4), (1, 2, 5)


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


class Forced:
    """A search that goes through `tokens` whatever the logits, which it keeps: `seen`, (1, vocabulary) each."""

    wanted = Wanted()

    def __init__(self, tokens: Sequence[int]) -> None:
        self.left = list(tokens)
        self.seen: list[NDArray[np.float32]] = []

    def advance(self, scores: Scores) -> Step | None:
        assert isinstance(scores, All)  # as is wanted
        self.seen.append(scores.logits.copy())
        return Step([0], [self.left.pop(0)]) if self.left else None

    def results(self) -> list[Hypothesis]:
        return []


def certify(subject: Subject, precision: str) -> dict[str, Any]:
    """Compare the graphs of a bundle, each of its decoders, with its model.

    Raises ExportError when they differ by more than `precision` allows.
    """
    tolerance = TOLERANCES[precision]
    eager = EagerDecoder(subject.model.decoder, subject.memory, subject.lengths)
    reference = _run(eager, subject, [0, 1], subject.header, 1)
    differences: dict[str, dict[str, float]] = {}
    exact, agreements, compared = [], [], 0
    for name, make in subject.opened.decoders.items():
        decoder = make(len(subject.inputs))
        subject.opened.encode(decoder, dict(enumerate(subject.inputs)))
        if not differences:
            differences = _memory_differences(decoder, subject)
            differences |= _aligner_difference(subject, decoder, reference[0])
        logits, agreement, tokens = _teacher_forced(subject, decoder, eager, reference)
        differences["logits" if name == "decoder" else f"logits of {name}"] = logits
        # first of all: with outputs that are no numbers there is nothing to search for
        _judge_differences(differences, tolerance, precision)
        exact.append(_exactness(subject, decoder, eager if tolerance.same_tokens else None))
        if not exact[-1]["passed"]:
            raise ExportError(
                f"the export failed its check: tokens of {name} differ in {exact[-1]}; nothing was written"
            )
        if agreement < tolerance.agreement:
            raise ExportError(
                f"the export failed its check: only {agreement:.1%} of tokens of {name} agree with the PyTorch model, "
                f"and {precision} asks for {tolerance.agreement:.0%}; choose a higher precision; nothing was written"
            )
        agreements.append(agreement * tokens)
        compared += tokens
    cases = sum(each["cases"] for each in exact)
    return asdict(Certificate(differences, exact[0] | {"cases": cases}, round(sum(agreements) / compared, 4), compared))


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


def _memory_differences(decoder: Decoder, subject: Subject) -> dict[str, dict[str, float]]:
    found: dict[str, list[NDArray[Any]]] = {"key": [], "value": []}
    expected: dict[str, list[NDArray[Any]]] = {"key": [], "value": []}
    for layer, memory in enumerate(subject.memory):
        for row in range(len(subject.inputs)):
            parts = _remembered(decoder, layer, row)
            for part, tensor in zip(memory._fields, memory, strict=True):
                end = tensor.shape[2] if subject.lengths is None else subject.lengths[row]
                whole = tensor[row, :, :end]
                if part == "key" and decoder.shape.memory:
                    whole = whole - whole.mean(1, keepdim=True)
                expected[part].append(whole.numpy().ravel())
                found[part].append(parts[part][:, :end].ravel())
    return {f"encoder {part}s": _compare(np.concatenate(found[part]), np.concatenate(expected[part])) for part in found}


def _remembered(decoder: Decoder, layer: int, row: int) -> dict[str, NDArray[Any]]:
    """Keys and values of a layer, (h, frames, d)."""
    parts = {}
    for name, buffer in decoder.memory.items():
        assert isinstance(buffer, HostBuffer)
        number, part = name.split(".")
        if int(number) == layer:
            parts[part] = buffer.array[row]
    return restored(parts) if decoder.shape.memory else parts


def _search(subject: Subject, width: int) -> Search:
    # without an end token every case runs its full length
    limits = Limits(-1, _STEPS, [Suppress([subject.end])])
    return Sample(limits) if width == 1 else Beam(limits, width=width)


def _run(
    stepper: Stepper, subject: Subject, rows: Sequence[int], prompt: Sequence[int], width: int
) -> list[tuple[int, ...]]:
    jobs = [Job(row, prompt, _search(subject, width)) for row in rows]
    generate(stepper, jobs)
    return [job.search.results()[0].tokens for job in jobs]


def _exactness(subject: Subject, decoder: Decoder, against: EagerDecoder | None) -> dict[str, Any]:
    """Tokens of several rows at once, and of each row alone, in the bundle or in PyTorch."""
    variants = [(prompt, 1) for prompt in subject.prompts]
    variants += [(subject.prompts[-1], width) for width in _WIDTHS[1:]]
    count = len(subject.inputs)
    batches = [batch for batch in _BATCHES if batch <= count]
    failed = []
    for prompt, width in variants:
        reference: Stepper = decoder if against is None else against
        alone = [_run(reference, subject, [row], prompt, width)[0] for row in range(count)]
        for batch in batches:
            if _run(decoder, subject, range(batch), prompt, width) != alone[:batch]:
                failed.append(f"batch {batch}, prompt of {len(prompt)}, {width} beams")
    failed += [f"input {row} in one run" for row in range(count) if not _alone_is_the_same(subject, decoder, row)]
    return {
        "compared_with": "each row alone" if against is None else "PyTorch",
        "batch_sizes": batches,
        "prompt_lengths": [len(prompt) for prompt in subject.prompts],
        "beam_widths": list(_WIDTHS),
        "cases": len(variants) * len(batches) + (0 if subject.alone is None else count),
        "failed": failed,
        "passed": not failed,
    }


def _alone_is_the_same(subject: Subject, decoder: Decoder, row: int) -> bool:
    """Whether a text is the same written in one run, where it can be, and step by step."""
    if subject.alone is None:
        return True
    search = Sample(Limits(subject.end, _STEPS))
    generate(decoder, [Job(row, subject.header, search)])
    alone = subject.alone(subject.inputs[row], _STEPS)
    return alone is not None and search.results()[0].tokens == alone.tokens


def _teacher_forced(
    subject: Subject, decoder: Decoder, eager: EagerDecoder, texts: Sequence[tuple[int, ...]]
) -> tuple[dict[str, float], float, int]:
    """Logits after every token of `texts`, row by row, from both."""
    sides: list[NDArray[np.float32]] = []
    for stepper in (decoder, eager):
        logits = []
        for row, text in enumerate(texts):
            forced = Forced(text)
            generate(stepper, [Job(row, subject.header, forced)])
            logits += forced.seen
        sides.append(np.concatenate(logits))
    found, expected = sides
    agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
    centred = (side - side.mean(axis=1, keepdims=True) for side in sides)
    return _compare(*centred), agreement, len(found)


def _aligner_difference(subject: Subject, decoder: Decoder, text: tuple[int, ...]) -> dict[str, dict[str, float]]:
    weights, probabilities = subject.opened.align(decoder, 0, subject.header, text)
    end = None if subject.lengths is None else subject.lengths[0]
    flat = [tensor[:1, :, :end] for tensor in flatten(subject.memory)]
    eager = Aligner(subject.model.decoder, subject.reading.heads, subject.reading.vocabulary)
    with torch.no_grad():
        expected, logprobs = eager(torch.tensor([[*subject.header, *text]]), flat)
    first = len(subject.header) - 1
    return {
        "alignment weights": _compare(weights, expected[0, :, first:].numpy()),
        "alignment probabilities": _compare(probabilities, logprobs[0, first:].exp().numpy()),
    }
