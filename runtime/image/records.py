"""Captions on disk: one a line in three formats. A file that was cut off is gone on with where it ended."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from heedful.runtime.errors import InputError
from heedful.runtime.image.results import Caption


@dataclass(frozen=True, slots=True)
class Format:
    """`header` opens a file; `lines` are what stands of the caption of a picture called so; `images` are the pictures
    that lines, the header's left out, are about.
    """

    header: str
    lines: Callable[[str, Caption], str]
    images: Callable[[IO[str]], Iterator[str]]


def _text(image: str, caption: Caption) -> str:
    return "".join(f"{image}\t{each.text}\n" for each in caption.candidates)


def _json(image: str, caption: Caption) -> str:
    record: dict[str, object] = {"image": image, "text": caption.text, "score": round(caption.score, 4)}
    if len(caption.candidates) > 1:
        record["captions"] = [{"text": each.text, "score": round(each.score, 4)} for each in caption.candidates]
    return json.dumps(record, ensure_ascii=False) + "\n"


def _csv(image: str, caption: Caption) -> str:
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows(
        [image, each.text, round(each.score, 4)] for each in caption.candidates
    )
    return rows.getvalue()


FORMATS = {
    "txt": Format("", _text, lambda lines: (line.split("\t")[0] for line in lines)),
    "json": Format("", _json, lambda lines: (json.loads(line)["image"] for line in lines)),
    "csv": Format("image,text,score\n", _csv, lambda lines: (row[0] for row in csv.reader(lines))),
}


class Records:
    """A file of captions that grows: `done` are the pictures that are in it already."""

    def __init__(self, path: Path, format: str) -> None:
        self.path = path
        self._format = FORMATS[format]
        self.done = self._read()

    def _read(self) -> set[str]:
        if not self.path.exists():
            return set()
        try:
            self._cut()
            with self.path.open(encoding="utf-8", newline="") as file:
                if file.readline() != self._format.header and self._format.header:
                    raise ValueError("its first line is another")
                if not self._format.header:
                    file.seek(0)
                return set(self._format.images(file))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{self.path} is there and does not hold captions in this format ({error}): "
                "name another file, or remove it"
            ) from error

    def _cut(self) -> None:
        """Drop a last line that has no end: it was being written when the run was cut off."""
        with self.path.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)

    @contextmanager
    def appended(self) -> Iterator[Callable[[str, Caption], None]]:
        """Writes each caption as it comes."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error
        with file:
            if file.tell() == 0:
                file.write(self._format.header)

            def write(image: str, caption: Caption) -> None:
                file.write(self._format.lines(image, caption))
                file.flush()

            yield write
