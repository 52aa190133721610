"""Captions on disk: one a line in three formats. A file that was cut off is gone on with where it ended."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from heedful.runtime.errors import InputError
from heedful.runtime.home import STDIN
from heedful.runtime.image.results import Caption

# file names need not be valid UTF-8
_ENCODING: dict[str, str] = {"encoding": "utf-8", "errors": "surrogateescape"}


@dataclass(frozen=True, slots=True)
class Format:
    """`header` opens a file; `begun` tells whether something may be a line that was cut off; `lines` are what stands of
    the caption of a picture called so; `images` is the picture that one line is about, once for each caption in it, and
    raises ValueError, LookupError or TypeError for a line of something else. `each`: every one of several captions has
    a line of its own.
    `ends`: what a picture's name may not hold, because a name or a line would seem to end there.
    """

    header: str
    begun: Callable[[str], bool]
    lines: Callable[[str, Caption], str]
    images: Callable[[str], list[str]]
    each: bool
    ends: str


def _one_line(text: str) -> str:
    return " ".join(text.replace("\t", " ").splitlines())


def _text(image: str, caption: Caption) -> str:
    return "".join(f"{image}\t{_one_line(each.text)}\n" for each in caption.candidates)


def _text_images(line: str) -> list[str]:
    image, _ = line.split("\t")
    return [image]


def _json(image: str, caption: Caption) -> str:
    record: dict[str, object] = {"image": image, "text": caption.text, "score": round(caption.score, 4)}
    if len(caption.candidates) > 1:
        record["captions"] = [{"text": each.text, "score": round(each.score, 4)} for each in caption.candidates]
    return json.dumps(record, ensure_ascii=False) + "\n"


def _json_images(line: str) -> list[str]:
    record = json.loads(line)
    image = record["image"]
    if not isinstance(image, str):
        raise TypeError(f"{image!r} is no name of a picture")
    return [image] * len(record.get("captions", [record]))


def _csv(image: str, caption: Caption) -> str:
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows(
        [image, _one_line(each.text), round(each.score, 4)] for each in caption.candidates
    )
    return rows.getvalue()


def _csv_images(line: str) -> list[str]:
    try:
        ((image, _, score),) = csv.reader([line])
    except csv.Error as error:
        raise ValueError(str(error)) from error
    float(score)
    return [image]


_OBJECT = '{"image": "'
FORMATS = {
    "txt": Format("", lambda rest: "\t" in rest, _text, _text_images, each=True, ends="\t\n\r"),
    "json": Format("", lambda rest: _OBJECT.startswith(rest[: len(_OBJECT)]), _json, _json_images, each=False, ends=""),
    "csv": Format("image,text,score\n", lambda rest: True, _csv, _csv_images, each=True, ends="\n\r"),
}


class Records:
    """A file of captions that grows: `done` are the pictures that are in it already, with `count` captions each;
    standard input is never among them. Raises InputError for a file of anything else, of another number of captions,
    too: a file is not to hold some pictures with one number and some with another.
    """

    def __init__(self, path: Path, format: str, count: int = 1) -> None:
        self.path = path
        self._format = FORMATS[format]
        self.done: set[str] = set()
        if path.exists():
            self._read(count)

    def _read(self, count: int) -> None:
        header = self._format.header
        try:
            content = self.path.read_bytes().decode(**_ENCODING)
            if not content.startswith(header) and not header.startswith(content):
                raise ValueError("its first line is another")
            # a last line without an end was being written when the run was cut off
            *lines, rest = content[len(header) :].split("\n")
            found = [self._format.images(line) for line in lines]
            if rest and not lines and not self._format.begun(rest):
                raise ValueError("its first line is another")
            held = Counter(chain.from_iterable(found))
            held.pop(STDIN, None)  # which is another picture each time
            # that run may have left fewer captions of the last picture
            last = found[-1][0] if found else ""
            if self._format.each and held.get(last, count) < count:
                lines = [line for line, (image,) in zip(lines, found, strict=True) if image != last]
                del held[last]
            for image, number in held.items():
                if number != count:
                    raise ValueError(f"{image!r} has {number}")
            kept = header if content.startswith(header) else ""
            size = len((kept + "".join(f"{line}\n" for line in lines)).encode(**_ENCODING))
            with self.path.open("rb+") as file:
                file.truncate(size)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{self.path} is there and does not hold captions in this format, {count} a picture ({error}): "
                "name another file, or remove it"
            ) from error
        self.done = set(held)

    def check(self, image: str) -> None:
        """Raises InputError for a picture whose name cannot be read again from a file in this format."""
        if any(end in image for end in self._format.ends):
            raise InputError(f"{image!r}: a name with a tab or a line break: rename the picture, or use --format json")

    @contextmanager
    def appended(self) -> Iterator[Callable[[str, Caption], None]]:
        """Writes each caption as it comes."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a", encoding="utf-8", errors="surrogateescape", newline="")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error
        with file:
            if file.tell() == 0:
                file.write(self._format.header)

            def write(image: str, caption: Caption) -> None:
                file.write(self._format.lines(image, caption))
                file.flush()

            yield write
