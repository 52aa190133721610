"""Word times of our bundles beside faster-whisper's on the same weights and recording.

    python benchmarks/speech_words.py AUDIO... --rival-python PYTHON [--models whisper-tiny.en whisper-base]

Words that both found are paired in order; the table gives how many, and the median and 90th percentile of the
difference of their starts. PYTHON has faster-whisper 1.2.1 installed; the bundles MODEL-PRECISION must be there.
"""

import argparse
import sys
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from rivals import Rival

from heedful.runtime import load
from heedful.runtime.home import home, locate


def letters(word: str) -> str:
    """The word without case and punctuation."""
    return "".join(each for each in word.lower() if each.isalnum())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--rival-python", required=True)
    parser.add_argument("--models", nargs="+", default=["whisper-tiny.en", "whisper-base"])
    parser.add_argument("--precision", default="int8", choices=["int8", "fp32"])
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rival = Rival(arguments.rival_python, "run_faster_whisper.py")
    print("| recording | model | precision | beams | words paired | median ms | 90th percentile ms |")
    print("|---|---|---|---|---|---|---|")
    for model in arguments.models:
        transcriber = load(f"{model}-{arguments.precision}", "cpu", threads=arguments.threads)
        for name in arguments.audio:
            audio = str(locate(name, "samples"))
            options = {"language": "en", "condition_on_previous_text": False}
            found = transcriber(audio, beams=arguments.beams, temperatures=(0.0,), words=True, **options)
            ours = [(word.start, letters(word.text)) for segment in found.segments for word in segment.words or ()]
            answer = rival(
                model=str(home() / "checkpoints" / model),
                compute_type={"int8": "int8", "fp32": "float32"}[arguments.precision],
                threads=arguments.threads,
                audio=audio,
                options={**options, "beam_size": arguments.beams, "temperature": 0.0, "word_timestamps": True},
            )
            theirs = [(start, letters(word)) for start, _, word in answer["words"]]
            blocks = SequenceMatcher(None, [w for _, w in ours], [w for _, w in theirs], autojunk=False)
            differences = [
                abs(ours[block.a + i][0] - theirs[block.b + i][0]) * 1000
                for block in blocks.get_matching_blocks()
                for i in range(block.size)
            ]
            median, tail = np.median(differences), np.percentile(differences, 90)
            row = [Path(name).name, model, arguments.precision, arguments.beams, len(differences)]
            print("|", " | ".join(str(each) for each in [*row, f"{median:.0f}", f"{tail:.0f}"]), "|", flush=True)
    rival.close()


if __name__ == "__main__":
    main()
