"""Pictures beside what a captioner says of them and what people said, as Markdown: good and bad, none chosen.

    python benchmarks/caption_examples.py BUNDLE DATA OUTPUT [--count 20]

DATA has captions.jsonl ({"image", "captions", "license", "license_url", "source"} a line) and images/; the first
`count` lines are taken. OUTPUT, a folder, gets a README.md and small copies of the pictures, which keep their licences.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from heedful.runtime import load

SIDE = 240
HEAD = """# What the small captioner says

Written by `benchmarks/caption_examples.py` with the bundle of `export/checkpoints/captioner` in int8, beam search as
the checkpoint asks; the photographs are the first {count} of a collection that it was not trained on, none left out.
The third column is the first of five captions that people wrote. Each photograph is made smaller here and keeps the
licence beside it; its address on Flickr is the credit that is known.

| photograph | the captioner | a person | licence, source |
|---|---|---|---|
"""


def row(record: dict[str, Any], text: str) -> str:
    """A line of the table."""
    name = record["image"]
    licence = "not stated"
    if "license" in record:
        licence = f"[{record['license']}](https://{record['license_url']}), [source](https://{record['source']})"
    return f"| ![{name}]({name}) | {text} | {record['captions'][0].strip()} | {licence} |\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=20)
    arguments = parser.parse_args()
    lines = (arguments.data / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines[: arguments.count]]
    paths = [arguments.data / "images" / record["image"] for record in records]
    arguments.output.mkdir(parents=True, exist_ok=True)
    page = HEAD.format(count=len(records))
    for record, path, caption in zip(records, paths, load(arguments.bundle).stream(paths), strict=True):
        with Image.open(path) as picture:
            picture.thumbnail((SIDE, SIDE))
            picture.convert("RGB").save(arguments.output / record["image"], quality=80)
        page += row(record, caption.text)
    (arguments.output / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
