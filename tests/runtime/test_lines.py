"""Lines of files, against what io's text files read, and characters cleaned, against the Unicode database."""

import codecs
import io
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice, repeat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heedful.runtime.errors import InputError
from heedful.runtime.text import lines as module
from heedful.runtime.text.lines import clean, read_lines

ENDS = ["\n", "\r\n", "\r", "\r\r\n", "\n\r", "\u2028", "\u2029", "\x85", "\x0b", "\f", "\x1c", "\ufeff", "\0"]
encodable = st.characters(exclude_categories=["Cs"])
texts = st.lists(st.text(encodable) | st.sampled_from(ENDS)).map("".join)


def read(data: bytes) -> list[str]:
    return list(read_lines(io.BytesIO(data), "notes.txt"))


def read_by_io(data: bytes) -> list[str]:
    lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="\n")
    return [line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line for line in lines]


@given(text=texts, mark=st.booleans())
@example(text="", mark=True)
@example(text="\n", mark=True)
@example(text="\ufeffa", mark=True)
def test_lines_are_those_of_a_text_file(text: str, mark: bool) -> None:
    data = codecs.BOM_UTF8 * mark + text.encode()
    assert read(data) == read_by_io(data)


def test_only_line_feeds_end_lines() -> None:
    assert read("a\rb\u2028c\fd\x85e\r\n\n é\r".encode()) == ["a\rb\u2028c\fd\x85e", "", " é\r"]


@given(before=texts, bad=st.sampled_from([b"\xe9", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf0\x9f"]), after=texts)
def test_what_is_not_utf_8_is_shown_where_it_is(before: str, bad: bytes, after: str) -> None:
    data = before.encode() + bad + b"\n" + after.encode()
    with pytest.raises(UnicodeDecodeError) as wrong:
        data.decode()
    offset = wrong.value.start
    number = data[:offset].count(b"\n") + 1
    found: list[str] = []
    with pytest.raises(InputError) as error:
        found.extend(read_lines(io.BytesIO(data), "notes.txt"))
    assert str(error.value) == (
        f"notes.txt: line {number} is not UTF-8 (byte 0x{data[offset]:02x} at offset {offset}); "
        "convert the file first, for example with: iconv -f latin1 -t utf-8 notes.txt"
    )
    assert error.value.__cause__ is None


def test_lines_before_a_bad_one_are_read() -> None:
    lines = read_lines(io.BytesIO(b"um\r\ndois\n" + "três\n".encode("latin1")), "notes.txt")
    assert [next(lines), next(lines)] == ["um", "dois"]
    with pytest.raises(InputError, match=r"^notes.txt: line 3 is not UTF-8 \(byte 0xea at offset 11\)"):
        next(lines)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_of_utf_16_is_recognised(encoding: str) -> None:
    with pytest.raises(InputError, match=r"at offset 0.*iconv -f utf-16 -t utf-8 notes.txt$"):
        read("\ufeffolá\n".encode(encoding))


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nb", "\r\nb"], ids=repr)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_lines_may_be_so_long_and_no_longer(mark: bytes, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 100)
    assert read(mark + b"a" * 100 + end.encode()) == ["a" * 100, *end.split("\n")[1:2]][: 1 + end.endswith("b")]
    for extra in range(1, 10):
        with pytest.raises(InputError, match=r"^notes.txt: line 2 is longer than 16 MiB"):
            read(mark + b"\n" + b"a" * (100 + extra) + end.encode())
        with pytest.raises(InputError, match=r"^notes.txt: line 1 is longer than 16 MiB"):
            read(mark + b"a" * (100 + extra) + end.encode())


class Endless(io.BytesIO):
    """A stream of the same lines for ever; keeps how much of it was read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        super().__init__()
        self.chunks = iter(chunks)
        self.taken = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        line = next(self.chunks)[:size]
        self.taken += len(line)
        return line


def test_lines_are_read_one_by_one() -> None:
    stream = Endless(repeat(b"olar\n"))
    assert list(islice(read_lines(stream, "-"), 1000)) == ["olar"] * 1000
    assert stream.taken == 5000


def test_a_line_without_end_is_not_read_to_its_end() -> None:
    stream = Endless(repeat(bytes(64 << 20)))
    with pytest.raises(InputError, match=r"^-: line 1 is longer than 16 MiB"):
        next(read_lines(stream, "-"))
    assert 16 << 20 < stream.taken < (16 << 20) + 100


def every_character() -> Iterator[str]:
    return map(chr, range(sys.maxunicode + 1))


def cleaned(character: str) -> str:
    if character in "\u00ad\u2060\ufeff":
        return ""
    return " " if character != "\t" and unicodedata.category(character) in {"Cc", "Cs"} else character


def test_every_character_is_cleaned_as_the_unicode_database_has_it() -> None:
    assert clean("".join(every_character())) == "".join(map(cleaned, every_character()))


@given(text=st.text(st.characters()) | st.text("\t\n\r\0\x7f\x85\u00ad\u2060\ufeff\ud83c\udf0da 🌍"))
def test_clean_text_can_be_encoded_and_stays_clean(text: str) -> None:
    once = clean(text)
    assert clean(once) == once == once.encode().decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("co\u00adope\u2060ra\ufefftion", "cooperation"),
        ("one\r\ntwo\0three\x85four\tfive", "one  two three four\tfive"),
        (
            "می\u200cروم 👩\u200d🚀 ❤\ufe0f ก\u200bข \u202eabc\u202c",
            "می\u200cروم 👩\u200d🚀 ❤\ufe0f ก\u200bข \u202eabc\u202c",
        ),
        ("lone \ud83c surrogate", "lone   surrogate"),
    ],
)
def test_what_tears_words_apart_is_dropped_and_what_means_something_kept(text: str, expected: str) -> None:
    assert clean(text) == expected
