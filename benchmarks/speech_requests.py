"""Requests from eight threads at once against the same eight one after another, on one loaded transcriber.

    python benchmarks/speech_requests.py LONG [--models whisper-tiny.en whisper-base] [--precision int8]

LONG is cut into eight pieces of 40 s, a request each: greedy, English, temperature 0. Both ways take turns; seconds are
medians until the last request is answered. The bundles MODEL-PRECISION must be there; LONG lasts at least 320 s.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rivals.measure import alternate, conditions, head, parser, row, spread, typical

from heedful.runtime import load
from heedful.runtime.home import locate
from heedful.runtime.speech.audio import SAMPLE_RATE, read_audio

REQUESTS, SECONDS = 8, 40

Piece = NDArray[np.float32]
Each = Callable[[Callable[[Piece], str], list[Piece]], Iterable[str]]


def pieces(audio: str) -> list[Piece]:
    """The eight pieces of `audio`."""
    samples = np.concatenate(list(read_audio(locate(audio, "samples"))))
    length = SECONDS * SAMPLE_RATE
    if len(samples) < REQUESTS * length:
        raise SystemExit(f"{audio} lasts {len(samples) / SAMPLE_RATE:.0f} s: at least {REQUESTS * SECONDS} are needed")
    return [samples[i * length : (i + 1) * length] for i in range(REQUESTS)]


def answered(each: Each, transcribe: Callable[[Piece], str], requests: list[Piece]) -> dict[str, Any]:
    """The texts of all requests, and how long they took."""
    begin = time.perf_counter()
    texts = list(each(transcribe, requests))
    return {"texts": texts, "seconds": time.perf_counter() - begin}


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("long")
    arguments_of.add_argument("--models", nargs="+", default=["whisper-tiny.en", "whisper-base"])
    arguments_of.add_argument("--precision", default="int8", choices=["int8", "fp32"])
    arguments = arguments_of.parse_args()
    requests = pieces(arguments.long)
    print(conditions(f"{arguments.threads} threads", f"median of {arguments.runs} alternating runs"), end="\n\n")
    columns = ("model", "precision", "one after another s", "at once s", "throughput ratio", "same texts", "spread %")
    print(head(*columns))
    for model in arguments.models:
        transcriber = load(f"{model}-{arguments.precision}", "cpu", threads=arguments.threads)

        def transcribe(piece: Piece, transcriber: Any = transcriber) -> str:
            options = {"language": "en", "beams": 1, "temperatures": (0.0,), "condition_on_previous_text": False}
            return str(transcriber(piece, sample_rate=SAMPLE_RATE, **options).text)

        with ThreadPoolExecutor(REQUESTS) as threads:
            sides = {
                "one after another": partial(answered, map, transcribe, requests),
                "at once": partial(answered, threads.map, transcribe, requests),
            }
            apart, together = alternate(sides, arguments.runs).values()
        same = sum(a == b for a, b in zip(apart[0]["texts"], together[0]["texts"], strict=True))
        seconds = [typical(apart), typical(together)]
        figures = (*(f"{each:.2f}" for each in seconds), f"{seconds[0] / seconds[1]:.2f}", f"{same} of {REQUESTS}")
        print(row(model, arguments.precision, *figures, spread(apart, together)), flush=True)


if __name__ == "__main__":
    main()
