"""BLEU and CIDEr of captions, and how many pictures a second they take, as a Markdown table.

    python benchmarks/caption_quality.py FOLDER BUNDLE ... [--split val] [--save FILE]

FOLDER holds images/ and captions.jsonl: `image`, `captions` and, where there is one, `split` a line. Captions are
compared as lower-case words without punctuation, by the scorers of pycocoevalcap, which this interpreter must have;
CIDEr is times 100. --save writes what was captioned, a JSON object a line.
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from rivals.measure import conditions, head, row

from heedful.runtime import load

NGRAMS = 4


def plain(text: str) -> str:
    """The words of `text` that are compared."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-1 to 4 and CIDEr, in percent."""
    found = {i: [plain(caption)] for i, caption in enumerate(captions)}
    expected = {i: [plain(each) for each in several] for i, several in enumerate(references)}
    bleu, _ = Bleu(NGRAMS).compute_score(expected, found, verbose=0)
    cider, _ = Cider().compute_score(expected, found)
    return [100 * float(score) for score in (*bleu, cider)]


def captioned(captioner: Any, paths: Sequence[Path], **options: int) -> tuple[list[str], float]:
    """The captions, and how many a second were written."""
    begin = time.perf_counter()
    texts = [caption.text for caption in captioner.stream(paths, **options)]
    return texts, len(texts) / (time.perf_counter() - begin)


def lines(folder: Path, split: str | None) -> list[dict[str, Any]]:
    """The lines of captions.jsonl, those of `split` where it is given."""
    every = map(json.loads, (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in every if split is None or line.get("split") == split]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--split", help="only pictures of this split; all unless given")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", type=Path)
    a = parser.parse_args()
    chosen = lines(a.folder, a.split)
    paths = [a.folder / "images" / line["image"] for line in chosen]
    references = [line["captions"] for line in chosen]
    about = f"{len(paths)} pictures of {a.folder.name}{f' ({a.split})' if a.split else ''}"
    print(conditions(about, f"batch {a.batch}", f"{a.threads} threads"), end="\n\n")
    names = [f"BLEU-{n + 1}" for n in range(NGRAMS)]
    print(head("bundle", "search", *names, "CIDEr", "pictures/s"))
    with a.save.open("w", encoding="utf-8") if a.save else nullcontext() as file:
        for bundle in a.bundles:
            captioner = load(bundle, "cpu", threads=a.threads)
            captioner(paths[0])  # the first takes longer
            for beams in a.beams:
                search = "greedy" if beams == 1 else f"beam {beams}"
                texts, rate = captioned(captioner, paths, beams=beams, batch=a.batch)
                figures = [f"{score:.1f}" for score in scores(texts, references)]
                print(row(Path(bundle).name, search, *figures, f"{rate:.1f}"), flush=True)
                if file:
                    for line, text in zip(chosen, texts, strict=True):
                        record = {"bundle": bundle, "search": search, "image": line["image"], "caption": text}
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
