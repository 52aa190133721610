"""`heedful caption`: pictures to text."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from PIL import Image
from tqdm import tqdm

from heedful.runtime.cli.commands import report
from heedful.runtime.drawing.explain import explain as draw
from heedful.runtime.drawing.explain import save, targets_of
from heedful.runtime.engine.device import DeviceName
from heedful.runtime.errors import InputError
from heedful.runtime.home import STDIN, sample
from heedful.runtime.image.captioner import Captioner
from heedful.runtime.image.options import CaptionOptions
from heedful.runtime.image.records import FORMATS, Records
from heedful.runtime.image.results import Caption
from heedful.runtime.load import TASKS, load

DEFAULT_BUNDLE = "captioner"

Format = Literal["txt", "json", "csv"]
Write = Callable[[str, Caption], None]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(caption)


def caption(
    images: Annotated[
        list[str] | None, typer.Argument(help="Pictures, names of samples, or - for standard input.")
    ] = None,
    recursive: Annotated[
        list[Path] | None, typer.Option("--recursive", "-r", help="A folder of pictures; repeat the option.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A bundle's folder or name.")] = DEFAULT_BUNDLE,
    prompt: Annotated[str | None, typer.Option(help="What captions begin with, such as 'a photo of'.")] = None,
    beams: Annotated[
        int | None, typer.Option(help="Width of the beam search; 1 is greedy. [as the model asks]")
    ] = None,
    num_captions: Annotated[int, typer.Option(help="How many captions a picture, the best first.")] = 1,
    format: Annotated[Format, typer.Option("--format", "-f", help="json is one object a line.")] = "txt",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there; pictures that are in it already are left out.")
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Draw where each word looked: a .png, or a folder for several pictures.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures decoded side by side.")] = 8,
    device: Annotated[DeviceName, typer.Option(help="auto takes CUDA where it works.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads; 0: one per core.")] = 0,
) -> None:
    """Caption pictures. One that cannot be read is reported and left out; then the exit status is 1."""
    names = list(
        dict.fromkeys([*(images or ()), *(name for folder in recursive or () for name in _pictures_in(folder))])
    )
    if not names:
        raise InputError("no pictures: name some, or a folder with --recursive")
    several = len(names) > 1 or bool(recursive)
    if explain is not None and several and explain.suffix.lower() == ".png":
        raise InputError(f"several pictures cannot all be explained in {explain}: give --explain a folder")
    options: dict[str, Any] = {"prompt": prompt, "beams": beams, "count": num_captions, "batch": batch}
    options["heatmaps"] = explain is not None
    CaptionOptions.of(**options)  # what is wrong with them is said before anything is loaded
    captioner = load(model, device, threads=threads, rows=max(TASKS["caption"].rows, batch))
    if not isinstance(captioner, Captioner):
        raise InputError(f"{model} does not caption: `heedful list` says what each bundle does")
    records = Records(output, format, num_captions) if output else None
    left = [name for name in names if records is None or name not in records.done]
    if len(left) < len(names):
        typer.echo(f"heedful: {len(names) - len(left)} of {len(names)} are in {output} already", err=True)
    sink = _printed(format, alone=not several) if records is None else records.appended()
    fit = left if records is None else list(_fit(records, left))
    with sink as write, _progress(len(fit), hidden=output is None) as advance:
        failed = _run(captioner, fit, options, write, advance, targets_of(explain, names))
    if failed or len(fit) < len(left):
        raise typer.Exit(1)


def _fit(records: Records, names: Sequence[str]) -> Iterator[str]:
    """Those of `names` that can be in the file; what is wrong with the others is said."""
    for name in names:
        try:
            records.check(name)
            yield name
        except InputError as error:
            report(error)


def _run(
    captioner: Captioner,
    names: Sequence[str],
    options: dict[str, Any],
    write: Write,
    advance: Callable[[], None],
    targets: Mapping[str, Path],
) -> int:
    """Caption the pictures and draw those that have `targets`; how many could not be read."""
    failed = 0
    sources = (sys.stdin.buffer if name == STDIN else sample(name) for name in names)
    for name, found in zip(names, captioner.attempts(sources, **options), strict=True):
        if isinstance(found, InputError):
            failed += 1
            report(found)
        else:
            write(name, found)
            if name in targets:
                save(draw(found), targets[name])
        advance()
    return failed


def _pictures_in(folder: Path) -> Iterator[str]:
    """All files under `folder` whose names end as those of kinds that Pillow reads and calls images, in order."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    registered = Image.registered_extensions()  # which fills Image.OPEN and Image.MIME
    # others are films, drawings and data, which need other programs, and textures of games
    kinds = {kind for kind in Image.OPEN if Image.MIME.get(kind, "").startswith("image/")}
    endings = tuple(ending for ending, kind in registered.items() if kind in kinds)
    for path, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(endings) and not name.startswith("."):
                yield os.path.join(path, name)


@contextmanager
def _printed(format: str, *, alone: bool) -> Iterator[Write]:
    """To standard output; as text, a picture that is `alone` need not be named."""
    form = FORMATS[format]
    sys.stdout.write(form.header)

    def write(name: str, found: Caption) -> None:
        bare = alone and format == "txt"
        lines = "".join(f"{each.text}\n" for each in found.candidates) if bare else form.lines(name, found)
        sys.stdout.write(lines)
        sys.stdout.flush()

    yield write


@contextmanager
def _progress(total: int, *, hidden: bool) -> Iterator[Callable[[], None]]:
    """A bar on standard error, where that is a terminal and captions do not go there too."""
    disable = (hidden and sys.stdout.isatty()) or not sys.stderr.isatty()
    with tqdm(total=total, unit="picture", disable=disable) as bar:
        yield lambda: _advance(bar)


def _advance(bar: Any) -> None:
    bar.update(1)
