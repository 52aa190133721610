"""How far int8 is from fp32 in many windows of one recording, as a Markdown table.

    python benchmarks/speech_agreement.py RECORDING [--models whisper-tiny.en whisper-base] [--every 15]

The bundles MODEL-fp32 and MODEL-int8 must be there. A window of 30 seconds begins every so many; English, temperature
0, each window by itself. The text that fp32 writes, greedily or with five beams, is read again by the decoder that int8
has for that search, after the encoder of int8: the divergence (Kullback-Leibler, in nats) of what it says of each next
token from what fp32 says, and how often it finds another token likeliest. Beside it the windows whose whole text is the
same, each bundle for itself. Needs torch, as exporting does.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rivals.measure import head, parser, row

from heedful.export.certificate import Forced
from heedful.runtime import Transcriber, load
from heedful.runtime.engine.decoder import Decoder
from heedful.runtime.engine.generate import Job, generate
from heedful.runtime.engine.search import log_sum_exp
from heedful.runtime.speech.audio import SAMPLE_RATE, read_audio
from heedful.runtime.speech.options import TranscribeOptions

WINDOW = 30
OPTIONS: dict[str, Any] = {"language": "en", "temperatures": (0.0,)}


def windows(recording: Path, every: float) -> Iterator[NDArray[np.float32]]:
    """Whole windows of `recording`, one every so many seconds."""
    samples = np.concatenate(list(read_audio(recording)))
    size = WINDOW * SAMPLE_RATE
    for start in range(0, len(samples) - size + 1, round(every * SAMPLE_RATE)):
        yield samples[start : start + size]


def log_probabilities(transcriber: Transcriber, decoder: Decoder, window: Any, text: str) -> NDArray[np.float64]:
    """What is said of each token of `text` (n, vocabulary), after the window was encoded anew."""
    model = transcriber.model
    model.encode(decoder, {0: window})
    header = model.tokens.header("en", TranscribeOptions.of(**OPTIONS, timestamps=False))
    forced = Forced(model.tokens.encode(text))
    generate(decoder, [Job(0, header, forced)])
    logits = np.concatenate(forced.seen).astype(np.float64)
    return logits - log_sum_exp(logits)[:, None]


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__, runs=0)
    arguments_of.add_argument("recording", type=Path)
    arguments_of.add_argument("--models", nargs="+", default=["whisper-tiny.en", "whisper-base"])
    arguments_of.add_argument("--every", type=float, default=15)
    arguments = arguments_of.parse_args()
    pieces = list(windows(arguments.recording, arguments.every))
    print(f"{len(pieces)} windows of {arguments.recording.name}\n")
    print(head("model", "decoder", "tokens", "divergence", "likeliest differs %", "texts the same"))
    for model in arguments.models:
        exact, rounded = (load(f"{model}-{kind}", "cpu", threads=arguments.threads) for kind in ("fp32", "int8"))
        for name, beams in (("decoder", 1), ("beams", 5)):
            reference, decoder = exact.model.decoder(1), rounded.model.decoders[name](1)
            divergences, differs, same = [], [], 0
            for piece in pieces:
                texts = [each(piece, sample_rate=SAMPLE_RATE, beams=beams, **OPTIONS).text for each in (exact, rounded)]
                same += texts[0] == texts[1]
                expected = log_probabilities(exact, reference, piece, texts[0])
                found = log_probabilities(rounded, decoder, piece, texts[0])
                divergences.append((np.exp(expected) * (expected - found)).sum(1))
                differs.append(expected.argmax(1) != found.argmax(1))
            divergence, other = (np.concatenate(each) for each in (divergences, differs))
            cells = f"{divergence.mean():.5f}", f"{100 * other.mean():.2f}", f"{same} of {len(pieces)}"
            print(row(model, name, len(divergence), *cells), flush=True)


if __name__ == "__main__":
    main()
