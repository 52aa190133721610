"""Captions on disk: what other readers find in them, and that a file goes on where it was cut off."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heedful.runtime import Candidate, Caption, InputError
from heedful.runtime.home import STDIN
from heedful.runtime.image.records import FORMATS, Records

Named = tuple[str, Caption]


def caption(*texts: str) -> Caption:
    """The candidates have these texts, and scores that fall."""
    candidates = tuple(Candidate(text, -0.5 - i / 3) for i, text in enumerate(texts))
    return Caption(texts[0], candidates[0].score, (), candidates, (), (0, 0, 1, 1))


def write(path: Path, format: str, captions: Sequence[Named]) -> None:
    with Records(path, format).appended() as record:
        for name, each in captions:
            record(name, each)


# what file names and captions may hold, with what formats make something of among it
LETTERS = st.sampled_from("ab ,;\"'\\/.:{}[]#-éβ我🌍") | st.characters(exclude_categories=["C", "Zl", "Zp"])
TEXTS = st.text(LETTERS, max_size=12)


def pictures(count: int) -> st.SearchStrategy[list[Named]]:
    """Pictures of different names, with as many captions each."""
    one = st.tuples(TEXTS.map("{}.png".format), st.lists(TEXTS, min_size=count, max_size=count))
    found = st.lists(one, min_size=1, max_size=6, unique_by=lambda each: each[0])
    return found.map(lambda them: [(name, caption(*texts)) for name, texts in them])


def of_txt(content: str) -> list[tuple[str, list[str]]]:
    rows = [line.split("\t") for line in content.split("\n")[:-1]]
    return gathered([(name, text) for name, text in rows])


def of_csv(content: str) -> list[tuple[str, list[str]]]:
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert all(-9 < float(row["score"]) < 0 for row in rows)
    return gathered([(row["image"], row["text"]) for row in rows])


def of_json(content: str) -> list[tuple[str, list[str]]]:
    found = []
    for record in map(json.loads, content.split("\n")[:-1]):
        several = record.get("captions", [{"text": record["text"], "score": record["score"]}])
        assert several[0] == {"text": record["text"], "score": record["score"]}
        found.append((record["image"], [each["text"] for each in several]))
    return found


def gathered(rows: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Lines that follow one another about one picture, together."""
    found: list[tuple[str, list[str]]] = []
    for name, text in rows:
        if not found or found[-1][0] != name:
            found.append((name, []))
        found[-1][1].append(text)
    return found


READERS: dict[str, Callable[[str], list[tuple[str, list[str]]]]] = {"txt": of_txt, "csv": of_csv, "json": of_json}
formats = pytest.mark.parametrize("format", READERS)


def test_there_is_a_reader_for_every_format() -> None:
    assert READERS.keys() == FORMATS.keys()


@formats
@given(captions=st.integers(1, 3).flatmap(pictures))
def test_others_read_what_was_written(format: str, captions: list[Named]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "new", "captions")
        write(path, format, captions)
        content = path.read_bytes().decode()
        assert READERS[format](content) == [(name, [c.text for c in each.candidates]) for name, each in captions]
        assert Records(path, format, len(captions[0][1].candidates)).done == {name for name, _ in captions}
        assert path.read_bytes().decode() == content


@formats
@given(captions=st.integers(1, 3).flatmap(pictures), where=st.floats(0, 1))
@example(captions=[("a.png", caption("a cat"))], where=0)
@example(captions=[("a.png", caption("a cat", "a sea"))], where=0.6)
def test_a_file_cut_anywhere_goes_on_to_be_what_it_would_have_been(
    format: str, captions: list[Named], where: float
) -> None:
    """Cut at any byte, within a letter too; each picture is there once in the end, with all its captions."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "captions")
        write(path, format, captions)
        whole = path.read_bytes()
        path.write_bytes(whole[: round(where * len(whole))])
        named = re.match(rb"[^\t]*", whole)
        if format == "txt" and named and 0 < len(path.read_bytes()) <= named.end():
            # a name alone could be anything
            with pytest.raises(InputError, match="does not hold captions"):
                Records(path, format)
            assert whole.startswith(path.read_bytes())
            return
        records = Records(path, format, len(captions[0][1].candidates))
        assert records.done <= {name for name, _ in captions}
        with records.appended() as record:
            for name, each in captions:
                if name not in records.done:
                    record(name, each)
        assert path.read_bytes() == whole


@formats
def test_a_caption_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path, format: str) -> None:
    path = tmp_path / "captions"
    with Records(path, format).appended() as record:
        for i in range(3):
            record(f"{i}.png", caption("a cat"))
            assert [name for name, _ in READERS[format](path.read_text())] == [f"{j}.png" for j in range(i + 1)]


ODD = {
    "line feed in a caption": ("a.png", "a\ncat"),
    "carriage return in a caption": ("a.png", "a\rcat"),
    "tab in a caption": ("a.png", "a\tcat"),
    "line separators": ("a\u2028\x85\x0b.png", "a\u2029\x1ccat"),
    "not UTF-8": (os.fsdecode(b"caf\xe9.png"), "a cat"),
}


@formats
@pytest.mark.parametrize(("name", "text"), ODD.values(), ids=ODD)
def test_only_names_of_pictures_are_taken_for_such(tmp_path: Path, format: str, name: str, text: str) -> None:
    """Whatever a model writes and a file system allows; cut anywhere, too."""
    path = tmp_path / "captions"
    write(path, format, [(name, caption(text)), ("b.png", caption("a sea"))])
    assert Records(path, format).done == {name, "b.png"}
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for end in range(first, len(content)):
        path.write_bytes(content[:end])
        assert Records(path, format).done <= {name, "b.png"}


@formats
@pytest.mark.parametrize(("held", "asked"), [(1, 3), (3, 1), (3, 2), (4, 2)])
def test_another_number_of_captions_is_refused(tmp_path: Path, format: str, held: int, asked: int) -> None:
    path = tmp_path / "captions"
    write(path, format, [(name, caption(*["a cat"] * held)) for name in ("a.png", "b.png", "c.png")])
    content = path.read_bytes()
    with pytest.raises(InputError, match=rf"this format, {asked} a picture \('a.png' has {held}\): name another file"):
        Records(path, format, asked)
    assert path.read_bytes() == content
    assert Records(path, format, held).done == {"a.png", "b.png", "c.png"}


@formats
def test_standard_input_is_another_picture_each_time(tmp_path: Path, format: str) -> None:
    path = tmp_path / "captions"
    for text in ("a cat", "a sea"):
        write(path, format, [(f"{text}.png", caption(text)), (STDIN, caption(text))])
        assert STDIN not in Records(path, format).done
    assert [name for name, _ in READERS[format](path.read_text())] == ["a cat.png", STDIN, "a sea.png", STDIN]
    assert Records(path, format).done == {"a cat.png", "a sea.png"}


@formats
@pytest.mark.parametrize("name", ["a\tb.png", "a\nb.png", "a\rb.png"], ids=["tab", "line feed", "carriage return"])
def test_a_name_is_read_again_or_refused(tmp_path: Path, format: str, name: str) -> None:
    records = Records(tmp_path / "captions", format)
    if format == "txt" or (format == "csv" and "\t" not in name):
        with pytest.raises(InputError, match=r"^'a\\[tnr]b\.png': .* rename the picture, or use --format json"):
            records.check(name)
        return
    records.check(name)
    write(records.path, format, [(name, caption("a cat")), ("b.png", caption("a sea"))])
    assert Records(records.path, format).done == {name, "b.png"}


PROSE = "It was the best of times,\nit was the worst of times."


def foreign() -> dict[str, tuple[str, bytes]]:
    """A format, and what a file of another kind holds, whole and without its end."""
    found = {
        "txt, prose": ("txt", PROSE.encode()),
        "json, prose": ("json", PROSE.encode()),
        "csv, prose": ("csv", PROSE.encode()),
        "json, an array": ("json", b'[{"image": "a.png", "text": "a cat"}]\n'),
        "json, a number": ("json", b"1\n2"),
        "json, no names": ("json", b'{"image": ["a.png"]}\n'),
        "csv, a quotation without end": ("csv", b'image,text,score\n"' + b"a" * 200_000 + b"\n"),
        "csv, other columns": ("csv", b"text,image\na cat,a.png\n"),
        **{f"{format}, a picture": (format, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\xff") for format in FORMATS},
        **{f"{format}, latin-1": (format, "a café\n".encode("latin-1")) for format in FORMATS},
    }
    with TemporaryDirectory() as folder:
        for other in FORMATS:
            path = Path(folder, other)
            write(path, other, [("a.png", caption("a cat")), ("b.png", caption("a sea"))])
            for format in FORMATS.keys() - {other}:
                found[f"{format}, {other}"] = (format, path.read_bytes())
                found[f"{format}, {other} cut off"] = (format, path.read_bytes()[:-3])
    return dict(sorted(found.items()))


FOREIGN = foreign()


@pytest.mark.parametrize(("format", "content"), FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_holds_something_else_is_refused_and_left_alone(
    tmp_path: Path, format: str, content: bytes
) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is there and does not hold captions"):
        Records(path, format)
    assert path.read_bytes() == content


@formats
def test_what_cannot_be_written_is_said(tmp_path: Path, format: str) -> None:
    with pytest.raises(InputError, match="is there and does not hold captions"):
        Records(tmp_path, format)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), Records(tmp_path / "file/captions", format).appended():
        pass


@formats
def test_an_empty_file_is_one_to_begin(tmp_path: Path, format: str) -> None:
    path = tmp_path / "captions"
    path.touch()
    write(path, format, [("a.png", caption("a cat"))])
    assert READERS[format](path.read_text()) == [("a.png", ["a cat"])]
