"""`heedful translate` and `heedful summarize`: text to text."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO

import typer
from PIL import Image
from tqdm import tqdm

from heedful.runtime.drawing.explain import explain as draw
from heedful.runtime.drawing.explain import save
from heedful.runtime.engine.device import DeviceName
from heedful.runtime.errors import InputError
from heedful.runtime.load import load
from heedful.runtime.output import open_output
from heedful.runtime.text.lines import read_lines
from heedful.runtime.text.writer import Summarizer, Writer

DEFAULT_BUNDLE = "translate-en-pt-int8"
# sentences that are drawn; who wants more has --alignment
_PAGES = 50

Model = Annotated[str, typer.Option("--model", "-m", help="A bundle's folder or name.")]
Source = Annotated[str | None, typer.Option("--from", help="Language of the text, as the model calls it.")]
Target = Annotated[str | None, typer.Option("--to", help="Language to translate into.")]
Beams = Annotated[int | None, typer.Option(help="Width of the beam search; 1 is greedy. [as the model asks]")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write there, once all is done.")]
Device = Annotated[DeviceName, typer.Option(help="auto takes CUDA where it works.")]
Threads = Annotated[int, typer.Option(help="Threads; 0: one per core.")]
Prompt = Annotated[str | None, typer.Option(help="Text put before every input, as T5 wants it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(translate)
    app.command()(summarize)


def translate(
    text: Annotated[list[str] | None, typer.Argument(help="Texts; standard input, line by line, if none.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A text file, translated line by line.")] = None,
    model: Model = DEFAULT_BUNDLE,
    source: Source = None,
    target: Target = None,
    beams: Beams = None,
    prompt: Prompt = None,
    shortlist: Annotated[
        bool, typer.Option("--shortlist", help="Use no words but those the bundle's shortlist has for the source's.")
    ] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print every line as soon as it is translated.")] = False,
    alignment: Annotated[
        bool, typer.Option("--alignment", help="Add a tab and links between words, 0-0 1-2 ..., to each line.")
    ] = False,
    explain: Annotated[
        Path | None,
        typer.Option(help="Draw which words each word of a sentence looked at: a .png, numbered if several."),
    ] = None,
    output: Output = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Translate text: line N of the output is line N of the input."""
    translator = _load(model, device, threads)
    options: dict[str, Any] = {"source": source, "target": target, "beams": beams, "prompt": prompt}
    options["shortlist"] = shortlist
    if stream:
        options["ahead"] = 1
    with _lines(text, file, hidden=output is None and sys.stdout.isatty()) as lines, open_output(output) as out:
        pages: list[Image.Image] = []
        for written in translator.stream(lines, alignment=alignment or explain is not None, **options):
            out.write(_one_line(written.text) + (_links(written) if alignment else "") + "\n")
            if stream:
                out.flush()
            if explain is not None and len(pages) < _PAGES:
                pages += draw(written)
    if explain is not None:
        save(pages[:_PAGES], explain)


def summarize(
    text: Annotated[list[str] | None, typer.Argument(help="Texts; all of standard input if none.")] = None,
    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="A text file; repeat the option.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A bundle's folder or name.")] = ...,  # type: ignore[assignment]
    beams: Beams = None,
    prompt: Prompt = None,
    output: Output = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Summarise texts, one line for each. A text longer than the model can read is summarised part by part."""
    summarizer = _load(model, device, threads)
    if prompt is None and not isinstance(summarizer, Summarizer):
        prompt = summarizer.model.prefixes.get("summarization")
    texts = [*(text or ()), *map(_whole, file or ())] or [_decode(sys.stdin.buffer, "standard input")]
    with open_output(output) as out:
        for written in summarizer.stream(texts, beams=beams, prompt=prompt, split=False):
            out.write(_one_line(written.text) + "\n")


def _load(model: str, device: DeviceName, threads: int) -> Writer:
    writer = load(model, device, threads=threads)
    if not isinstance(writer, Writer):
        raise InputError(f"{model} does not write text about text: `heedful list` says what each bundle does")
    return writer


def _whole(path: Path) -> str:
    with _opened(path) as stream:
        return _decode(stream, str(path))


def _decode(stream: BinaryIO, name: str) -> str:
    return "\n".join(read_lines(stream, name))


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _lines(texts: list[str] | None, file: Path | None, *, hidden: bool) -> Iterator[Iterable[str]]:
    """The lines to translate, with a bar on standard error where that is a terminal and not `hidden`."""
    if texts and file:
        raise InputError("texts and --file exclude one another: give one of them")
    if texts:
        yield (line for text in texts for line in text.split("\n"))
        return
    stream: IO[bytes] = _opened(file) if file else sys.stdin.buffer
    total = file.stat().st_size if file else None
    disable = hidden or not sys.stderr.isatty()
    with stream, tqdm(total=total, unit="B", unit_scale=True, desc=file and file.name, disable=disable) as bar:
        yield _counted(read_lines(stream, str(file or "standard input")), bar)  # type: ignore[arg-type]


def _counted(lines: Iterator[str], bar: Any) -> Iterator[str]:
    for line in lines:
        yield line
        bar.update(len(line.encode(errors="replace")) + 1)


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


def _links(written: Any) -> str:
    """Links of all sentences, words counted from the beginning of the line."""
    links, source, target = [], 0, 0
    for sentence in written.sentences:
        found = sentence.alignment
        links += [f"{source + i}-{target + word}" for word, those in enumerate(found.links) for i in those]
        source += len(found.source)
        target += len(found.target)
    return "\t" + " ".join(links)
