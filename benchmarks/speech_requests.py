"""Requests from eight threads at once against the same eight one after another, on one loaded transcriber.

    python benchmarks/speech_requests.py LONG [--models whisper-tiny.en whisper-base] [--precision int8]

LONG is cut into eight pieces of 40 s, a request each: English, temperature 0, greedy and with five beams. Both ways
take turns; seconds are medians until the last request is answered. The bundles MODEL-PRECISION must be there; LONG
lasts at least 320 s.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rivals.at_once import COLUMNS, REQUESTS, compared
from rivals.measure import conditions, head, parser, row
from rivals.task import SEARCHES

from heedful.runtime import load
from heedful.runtime.home import locate
from heedful.runtime.speech.audio import SAMPLE_RATE, read_audio

SECONDS = 40

Piece = NDArray[np.float32]


def pieces(audio: str) -> list[Piece]:
    """The eight pieces of `audio`."""
    samples = np.concatenate(list(read_audio(locate(audio, "samples"))))
    length = SECONDS * SAMPLE_RATE
    if len(samples) < REQUESTS * length:
        raise SystemExit(f"{audio} lasts {len(samples) / SAMPLE_RATE:.0f} s: at least {REQUESTS * SECONDS} are needed")
    return [samples[i * length : (i + 1) * length] for i in range(REQUESTS)]


def transcribe(transcriber: Any, beams: int, piece: Piece) -> str:
    """The text of `piece`."""
    options = {"beams": beams, "temperatures": (0.0,), "condition_on_previous_text": False}
    return str(transcriber(piece, sample_rate=SAMPLE_RATE, language="en", **options).text)


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("long")
    arguments_of.add_argument("--models", nargs="+", default=["whisper-tiny.en", "whisper-base"])
    arguments_of.add_argument("--precision", default="int8", choices=["int8", "fp32"])
    arguments = arguments_of.parse_args()
    requests = pieces(arguments.long)
    print(conditions(f"{arguments.threads} threads", f"median of {arguments.runs} alternating runs"), end="\n\n")
    print(head("model", "precision", "search", *COLUMNS))
    for model in arguments.models:
        transcriber = load(f"{model}-{arguments.precision}", "cpu", threads=arguments.threads)
        for search, beams in SEARCHES.items():
            ask = partial(transcribe, transcriber, beams)
            print(row(model, arguments.precision, search, *compared(ask, requests, arguments.runs)), flush=True)


if __name__ == "__main__":
    main()
