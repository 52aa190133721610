"""Requests of several callers at once: each gets what it gets alone."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.runtime import BusyError, InputError, Transcriber, Transcript, load

RATE = 16_000

# seed, seconds, beams, words, seconds before it comes
Request = tuple[int, float, int, bool, float]
requests = st.tuples(
    st.integers(0, 10**6), st.floats(0.2, 2.5), st.sampled_from([1, 1, 2, 4]), st.booleans(), st.floats(0, 0.05)
)


@pytest.fixture(
    scope="module", params=[(bundle, threads) for bundle in ("bundle", "int8") for threads in (1, 2)], ids=str
)
def seeded(request: pytest.FixtureRequest) -> Transcriber:
    """With one thread all share a decoder; with two they have narrow lanes, and one by itself the wide one."""
    name, threads = request.param
    bundle: Path = request.getfixturevalue(f"seeded_{name}")
    transcriber: Transcriber = load(bundle, "cpu", threads=threads, rows=3)
    return transcriber


def noise(seed: int, seconds: float) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def answer(transcriber: Transcriber, request: Request) -> Transcript:
    seed, seconds, beams, words, delay = request
    time.sleep(delay)
    options = {"language": "en", "temperatures": (0.0,), "beams": beams, "words": words}
    return transcriber(noise(seed, seconds), sample_rate=RATE, **options)


@settings(deadline=None, max_examples=8)
@given(chosen=st.lists(requests, min_size=2, max_size=6))
def test_each_gets_what_it_gets_alone(seeded: Transcriber, chosen: list[Request]) -> None:
    """More callers than rows, of any lengths and beam widths, arriving at any time."""
    alone = [answer(seeded, request) for request in chosen]
    with ThreadPoolExecutor(len(chosen)) as pool:
        together = list(pool.map(lambda request: answer(seeded, request), chosen))
    assert together == alone


def test_submitted_requests_give_what_calls_give(seeded: Transcriber) -> None:
    options = {"sample_rate": RATE, "language": "en", "beams": 1, "temperatures": (0.0,)}
    sounds = [noise(seed, 1.5) for seed in range(4)]
    expected = [seeded(sound, **options) for sound in sounds]  # type: ignore[arg-type]

    async def ask() -> list[Transcript]:
        futures = [seeded.submit(sound, **options) for sound in sounds]  # type: ignore[arg-type]
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    assert asyncio.run(ask()) == expected
    with pytest.raises(InputError, match="beams"):
        seeded.submit(sounds[0], sample_rate=RATE, beams=0).result(30)


def test_a_caller_who_dawdles_holds_up_nobody(seeded: Transcriber) -> None:
    """With as many streams begun as there are rows, and none taken further, a call still gets its answer."""
    options = {"language": "en", "beams": 1, "temperatures": (0.0,)}
    streams = [iter(seeded.stream(noise(seed, 3), sample_rate=RATE, **options)) for seed in range(3)]
    for stream in streams:
        next(stream, None)
    last = seeded.submit(noise(9, 1), sample_rate=RATE, **options)
    assert last.result(60).duration == 1


@pytest.mark.parametrize("bundle", ["bundle", "int8"])
def test_more_requests_than_the_queue_holds_are_refused_or_wait(bundle: str, request: pytest.FixtureRequest) -> None:
    """Greedy search and beams have decoders of their own in int8, but share the queue."""
    small = load(request.getfixturevalue(f"seeded_{bundle}"), "cpu", threads=1, queue=1)
    options = {"sample_rate": RATE, "language": "en", "temperatures": (0.0,)}
    first = iter(small.stream(noise(0, 3), beams=1, **options))
    assert next(first).id == 0
    with pytest.raises(BusyError, match="1 requests are under way"):
        small(noise(1, 1), beams=2, **options)
    waiting = [small.submit(noise(1, 1), beams=beams, **options) for beams in (1, 2)]
    time.sleep(0.2)
    assert not any(each.done() for each in waiting)
    first.close()
    assert [each.result(60).language for each in waiting] == ["en", "en"]
    assert small(noise(1, 1), beams=1, **options).language == "en"


def test_more_windows_than_rows_are_an_error(seeded: Transcriber) -> None:
    with pytest.raises(InputError, match=r"batch 4 is more than the 3 rows .* rows=4"):
        seeded(noise(0, 1), sample_rate=RATE, language="en", batch=4)


SIZES = [("threads", -1), ("rows", 0), ("queue", 0), *[(name, 1025) for name in ("threads", "rows", "queue")]]


@pytest.mark.parametrize(("name", "value"), [*SIZES, ("threads", None), ("rows", "3"), ("queue", 2.0)])
def test_sizes_have_bounds(seeded_bundle: Path, name: str, value: object) -> None:
    sizes: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=f"{name} must be a whole number from"):
        load(seeded_bundle, "cpu", **sizes)
