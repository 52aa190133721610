"""Word error rates of our bundles and of faster-whisper, same weights, recordings and search, as a Markdown table.

    python benchmarks/speech_quality.py CLIPS LONG --rival-python PYTHON [--models whisper-tiny.en whisper-base]

CLIPS is a folder with clips.jsonl (`audio`, `text` a line), LONG a recording of minutes with its text beside it in a
file that ends in .txt. PYTHON has faster-whisper 1.2.1 installed. The bundles MODEL-fp32 and MODEL-int8 must be there.
English, temperature 0, no text of earlier windows in the prompt, window after window; texts are normalised with
whisper-normalizer's English rules before scoring.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jiwer
from rivals import Rival
from rivals.measure import head, row
from whisper_normalizer.english import EnglishTextNormalizer

from heedful.runtime import Transcriber, load
from heedful.runtime.home import home

PRECISIONS = {"fp32": "float32", "int8": "int8"}


OPTIONS = {"language": "en", "condition_on_previous_text": False}


def by_heedful(transcriber: Transcriber, beams: int, audio: Path) -> str:
    return transcriber(str(audio), beams=beams, temperatures=(0.0,), **OPTIONS).text


def by_rival(rival: Rival, model: str, compute_type: str, threads: int, beams: int, audio: Path) -> str:
    options = {**OPTIONS, "beam_size": beams, "temperature": 0.0}
    answer = rival(model=model, compute_type=compute_type, threads=threads, audio=str(audio), options=options)
    return str(answer["text"])


def rate(write: Callable[[Path], str], recordings: list[tuple[Path, str]]) -> float:
    """Word error rate in percent over all of `recordings`, each with its text."""
    normalize = EnglishTextNormalizer()
    references = [normalize(text) for _, text in recordings]
    return 100 * float(jiwer.wer(references, [normalize(write(audio)) for audio, _ in recordings]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("long", type=Path)
    parser.add_argument("--rival-python", required=True)
    parser.add_argument("--models", nargs="+", default=["whisper-tiny.en", "whisper-base"])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    clips = [json.loads(line) for line in (arguments.clips / "clips.jsonl").read_text().splitlines()]
    recordings = {
        "clips": [(arguments.clips / clip["audio"], clip["text"]) for clip in clips],
        arguments.long.name: [(arguments.long, arguments.long.with_suffix(".txt").read_text(encoding="utf-8"))],
    }
    rival = Rival(arguments.rival_python, "run_faster_whisper.py")
    columns = [f"{name}, {engine} WER %" for name in recordings for engine in ("heedful", "faster-whisper 1.2.1")]
    print(head("model", "precision", "search", *columns))
    for model in arguments.models:
        for precision in arguments.precisions:
            transcriber = load(f"{model}-{precision}", "cpu", threads=arguments.threads)
            for beams in (1, 5):
                ours = partial(by_heedful, transcriber, beams)
                weights = str(home() / "checkpoints" / model)
                theirs = partial(by_rival, rival, weights, PRECISIONS[precision], arguments.threads, beams)
                rates = [rate(write, texts) for texts in recordings.values() for write in (ours, theirs)]
                search = "greedy" if beams == 1 else f"beam {beams}"
                print(row(model, precision, search, *(f"{each:.2f}" for each in rates)), flush=True)
    rival.close()


if __name__ == "__main__":
    main()
