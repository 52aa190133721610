"""Lines of text files of any size, and text without what no model can take."""

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from itertools import count
from typing import BinaryIO

from heedful.runtime.errors import InputError

_MOST_MIB = 16
_MOST_BYTES = _MOST_MIB << 20

_BLANKS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")
_INVISIBLE = re.compile("[\u00ad\u2060\ufeff]")


def read_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    r"""The lines of `stream` without their ends; `name` is what messages call it.

    Only "\n" and "\r\n" end a line, so that line N here is line N to `sed` and `wc` too. A byte order mark at the
    start is dropped. Raises InputError where the text is not UTF-8, and for a line of more than 16 MiB: no more
    than a line is held in memory.
    """
    offset = 0
    for number in count(1):
        # so long that a line read in part is too long even without a byte order mark
        line = stream.readline(_MOST_BYTES + 2 + len(BOM_UTF8))
        offset += len(line)
        if number == 1:
            line = line.removeprefix(BOM_UTF8)
        if not line:
            return
        start = offset - len(line)
        if line.endswith(b"\n"):
            line = line[:-1].removesuffix(b"\r")
        if len(line) > _MOST_BYTES:
            raise InputError(f"{name}: line {number} is longer than {_MOST_MIB} MiB; break it into shorter lines")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            encoding = "utf-16" if line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "latin1"
            raise InputError(
                f"{name}: line {number} is not UTF-8 (byte {line[error.start]:#04x} at offset {start + error.start}); "
                f"convert the file first, for example with: iconv -f {encoding} -t utf-8 {name}"
            ) from None


def clean(text: str) -> str:
    """`text` without what a model cannot take, or takes for the end of a word.

    A space takes the place of each control character (category Cc) but the tab, line ends included, and of each
    surrogate, which no encoding holds. Soft hyphens (U+00AD), word joiners (U+2060) and byte order marks (U+FEFF)
    are dropped: they show nothing and tear the word apart that they are in. All else stays, joiners and marks of
    direction too, which have a meaning in some scripts.
    """
    return _INVISIBLE.sub("", _BLANKS.sub(" ", text))
