"""Word error rates of our bundles and of faster-whisper on the same weights, clips and search, as a Markdown table.

    python benchmarks/speech_quality.py CLIPS --rival-python PYTHON [--models whisper-tiny.en whisper-base]

CLIPS is a folder with clips.jsonl (`audio`, `text` a line). PYTHON has faster-whisper 1.2.1 installed. The bundles
MODEL-fp32 and MODEL-int8 must be there. English, temperature 0, no text of earlier windows in the prompt; texts are
normalised with whisper-normalizer's English rules before scoring.
"""

import argparse
import json
import sys
from pathlib import Path

import jiwer
from whisper_normalizer.english import EnglishTextNormalizer

sys.path.insert(0, str(Path(__file__).parent))
from rivals import Rival

from heedful.runtime import load
from heedful.runtime.home import home

PRECISIONS = {"fp32": "float32", "int8": "int8"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--rival-python", required=True)
    parser.add_argument("--models", nargs="+", default=["whisper-tiny.en", "whisper-base"])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    clips = [json.loads(line) for line in (arguments.clips / "clips.jsonl").read_text().splitlines()]
    rival = Rival(arguments.rival_python, "run_faster_whisper.py")
    normalize = EnglishTextNormalizer()
    references = [normalize(clip["text"]) for clip in clips]
    print("| model | precision | search | heedful WER % | faster-whisper 1.2.1 WER % |")
    print("|---|---|---|---|---|")
    for model in arguments.models:
        for precision in arguments.precisions:
            transcriber = load(f"{model}-{precision}", "cpu", threads=arguments.threads)
            for beams in (1, 5):
                ours, theirs = [], []
                for clip in clips:
                    audio = str(arguments.clips / clip["audio"])
                    options = {"language": "en", "condition_on_previous_text": False}
                    text = transcriber(audio, beams=beams, temperatures=(0.0,), **options).text
                    ours.append(normalize(text))
                    answer = rival(
                        model=str(home() / "checkpoints" / model),
                        compute_type=PRECISIONS[precision],
                        threads=arguments.threads,
                        audio=audio,
                        options={**options, "beam_size": beams, "temperature": 0.0},
                    )
                    theirs.append(normalize(answer["text"]))
                rates = [100 * jiwer.wer(references, found) for found in (ours, theirs)]
                search = "greedy" if beams == 1 else f"beam {beams}"
                print(f"| {model} | {precision} | {search} | {rates[0]:.2f} | {rates[1]:.2f} |", flush=True)
    rival.close()


if __name__ == "__main__":
    main()
