"""Decoding side by side with the real decoder: whatever shares the batch, an input gets the bits it gets alone."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heedful.runtime.bundle import open_bundle
from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.device import choose_device
from heedful.runtime.engine.generate import Job, generate
from heedful.runtime.engine.rules import Suppress
from heedful.runtime.engine.search import Beam, Hypothesis, Limits, Sample, Search
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.speech.model import SpeechModel

VOCABULARY, POSITIONS, SAMPLES, END, ROWS = 317, 64, 16_000, 0, 6

# hypotheses with their scores, and the digest of the logits after every token of the prompt
Outcome = tuple[list[Hypothesis], str]


@dataclass(frozen=True)
class Bundled:
    """A bundle, and what makes one of its decoders."""

    model: SpeechModel
    decoder: Callable[[int], Decoder]


@pytest.fixture(
    scope="module", params=[("seeded_bundle", "decoder"), ("seeded_int8", "decoder"), ("seeded_int8", "beams")], ids=str
)
def bundled(request: pytest.FixtureRequest) -> Bundled:
    name, graph = request.param
    model = SpeechModel(Sessions(open_bundle(request.getfixturevalue(name)), choose_device("cpu"), 1))
    return Bundled(model, model.decoders[graph])


@dataclass(frozen=True)
class Case:
    """An input and how it is decoded: `width` beams, or as many samples where there is a `temperature`; of the first
    `letters` tokens, so that with few of them some texts end early.
    """

    sound: int
    prompt: tuple[int, ...]
    length: int
    width: int
    temperature: float
    letters: int

    def search(self) -> Search:
        limits = Limits(END, self.length, [Suppress(range(self.letters, VOCABULARY))])
        if self.temperature:
            rng = np.random.default_rng(self.sound)
            return Sample(limits, temperature=self.temperature, count=self.width, rng=rng)
        return Sample(limits) if self.width == 1 else Beam(limits, width=self.width)


LONGEST_PROMPT = 24
cases = st.builds(
    Case,
    sound=st.integers(0, 10**6),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=LONGEST_PROMPT).map(tuple),
    length=st.integers(1, POSITIONS - LONGEST_PROMPT),
    width=st.integers(1, 5),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    letters=st.sampled_from([12, VOCABULARY]),
)
placed = st.integers(1, 5).flatmap(
    lambda count: st.tuples(
        st.lists(cases, min_size=count, max_size=count), st.permutations(range(ROWS)).map(lambda rows: rows[:count])
    )
)


def run(model: SpeechModel, decoder: Decoder, chosen: Sequence[Case], rows: Sequence[int]) -> list[Outcome]:
    """What each of `chosen` gives in its row of `decoder`."""
    jobs = []
    for case, row in zip(chosen, rows, strict=True):
        rng = np.random.default_rng(case.sound)
        model.encode(decoder, {row: rng.normal(0, 0.1, rng.integers(1, SAMPLES + 1)).astype(np.float32)})
        jobs.append(Job(row, case.prompt, case.search(), watch=range(len(case.prompt))))
    generate(decoder, jobs)
    logits = [job.prompt_logits for job in jobs]
    digests = [hashlib.sha256(each.tobytes()).hexdigest() for each in logits if each is not None]
    return list(zip((job.search.results() for job in jobs), digests, strict=True))


def alone(bundled: Bundled, case: Case) -> Outcome:
    return run(bundled.model, bundled.decoder(1), [case], [0])[0]


@settings(max_examples=60)
@given(placed=placed)
def test_company_changes_no_bit(bundled: Bundled, placed: tuple[list[Case], list[int]]) -> None:
    chosen, rows = placed
    assert run(bundled.model, bundled.decoder(ROWS), chosen, rows) == [alone(bundled, case) for case in chosen]


def test_a_row_remembers_nothing_of_what_it_decoded(bundled: Bundled) -> None:
    """Its caches are not cleared, and have grown meanwhile."""
    wide = Case(sound=1, prompt=(3, 1, 4), length=40, width=5, temperature=0.0, letters=VOCABULARY)
    narrow = Case(sound=2, prompt=(2, 7), length=30, width=2, temperature=0.0, letters=VOCABULARY)
    decoder = bundled.decoder(2)
    first = run(bundled.model, decoder, [wide], [1])
    assert decoder.buffers.capacity > bundled.decoder(2).buffers.capacity
    assert [*first, *run(bundled.model, decoder, [narrow, wide], [1, 0])] == [
        alone(bundled, case) for case in (wide, narrow, wide)
    ]
