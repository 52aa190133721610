"""`heedful transcribe`: recordings to text and subtitles."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from heedful.runtime.cli.commands import report
from heedful.runtime.drawing.explain import explain as draw
from heedful.runtime.drawing.explain import save, targets_of
from heedful.runtime.engine.device import DeviceName
from heedful.runtime.errors import HeedfulError, InputError
from heedful.runtime.home import STDIN, sample
from heedful.runtime.load import TASKS, load
from heedful.runtime.output import open_output
from heedful.runtime.speech.audio import read_audio
from heedful.runtime.speech.formats import writer
from heedful.runtime.speech.media import duration
from heedful.runtime.speech.options import Task
from heedful.runtime.speech.results import Segment, Transcript
from heedful.runtime.speech.transcriber import Transcriber
from heedful.runtime.speech.transcription import Transcription, collect

DEFAULT_BUNDLE = "whisper-tiny.en-int8"

Format = Literal["txt", "srt", "vtt", "tsv", "json"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(transcribe)


def transcribe(
    audio: Annotated[
        list[str], typer.Argument(help="Audio or video files, names of samples, or - for standard input.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A bundle's folder or name.")] = DEFAULT_BUNDLE,
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="As en, pt, zh; detected if left out.")
    ] = None,
    task: Annotated[Task, typer.Option(help="translate gives English.")] = "transcribe",
    beams: Annotated[int, typer.Option(help="Width of the beam search; 1 is greedy.")] = 5,
    words: Annotated[bool, typer.Option("--words", help="Time every word (in JSON).")] = False,
    format: Annotated[Format, typer.Option("--format", "-f")] = "txt",
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-o", help="Write NAME.FORMAT there.")] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Draw when each word was said: a .png, or a folder for several recordings.")
    ] = None,
    device: Annotated[DeviceName, typer.Option(help="auto takes CUDA where it works.")] = "auto",
    batch: Annotated[int, typer.Option(help="Windows decoded side by side, cut at silences.")] = 1,
    vad: Annotated[bool | None, typer.Option("--vad/--no-vad", help="Find speech first; on when batching.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="Tried in turn; repeat the option.")] = None,
    initial_prompt: Annotated[str | None, typer.Option(help="Text before the first window.")] = None,
    hotwords: Annotated[str | None, typer.Option(help="Words to expect.")] = None,
    condition: Annotated[bool, typer.Option("--condition/--no-condition", help="Prompt with the text so far.")] = True,
    threads: Annotated[int, typer.Option(help="Threads inside an operator; 0: one per core.")] = 0,
) -> None:
    """Transcribe recordings of any length, to standard output or, several at once, to a folder."""
    options: dict[str, Any] = {
        "language": language,
        "task": task,
        "beams": beams,
        "words": words or explain is not None,
        "batch": batch,
        "vad": vad,
        "initial_prompt": initial_prompt,
        "hotwords": hotwords,
        "condition_on_previous_text": condition,
    }
    if temperature:
        options["temperatures"] = tuple(temperature)
    targets = _targets(audio, output_dir, format)
    if explain is not None and len(audio) > 1 and explain.suffix.lower() == ".png":
        raise InputError(f"several recordings cannot all be explained in {explain}: give --explain a folder")
    transcriber = load(model, device, threads=threads, rows=max(TASKS["transcribe"].rows, batch))
    if not isinstance(transcriber, Transcriber):
        raise InputError(f"{model} does not transcribe: `heedful list` says what each bundle does")
    drawings = targets_of(explain, audio)
    failed = 0
    for name, target in targets:
        try:
            with open_output(target) as output:
                transcript = _one(transcriber, name, format, output, options)
            if name in drawings:
                save(draw(transcript, waveform=_waveform(name)), drawings[name])
        except HeedfulError as error:
            failed += 1
            report(error)
    if failed:
        raise typer.Exit(1)


def _targets(audio: list[str], output_dir: Path | None, format: str) -> list[tuple[str, Path | None]]:
    """Where the text of each recording goes; None is standard output."""
    if output_dir is None:
        if len(audio) > 1 and format not in {"txt", "json"}:
            raise InputError(f"several recordings as {format} would run into one another: give --output-dir")
        return [(name, None) for name in audio]
    targets: dict[Path, str] = {}
    for name in audio:
        target = output_dir / f"{'stdin' if name == STDIN else Path(name).stem}.{format}"
        if target in targets:
            raise InputError(f"{targets[target]} and {name} would both be written to {target}: give them separately")
        targets[target] = name
    return [(name, target) for target, name in targets.items()]


def _waveform(name: str) -> NDArray[np.float32] | None:
    """The sound of the file `name`; None of standard input or another pipe, which was read once and is gone."""
    path = sample(name)
    return None if name == STDIN or not os.path.isfile(path) else np.concatenate(list(read_audio(path)))


def _one(transcriber: Transcriber, name: str, format: str, output: IO[str], options: dict[str, Any]) -> Transcript:
    source: Any = sys.stdin.buffer if name == STDIN else sample(name)
    transcription = transcriber.stream(source, **options)
    form = writer(format)
    with _progress(source, transcription, hidden=output is sys.stdout and sys.stdout.isatty()) as advance:

        def each(segment: Segment) -> None:
            output.write(form.segment(segment))
            output.flush()
            advance(segment)

        output.write(form.begin())
        transcript = collect(transcription, each)
        output.write(form.finish(transcript))
        output.flush()
    return transcript


@contextmanager
def _progress(source: Any, transcription: Transcription, *, hidden: bool) -> Iterator[Callable[[Segment], None]]:
    """A bar in seconds of audio on standard error, where that is a terminal and the text does not go there too."""
    disable = hidden or not sys.stderr.isatty()
    total = duration(source) if isinstance(source, str) and not disable else None
    label = Path(source).name if isinstance(source, str) else None
    with tqdm(total=total, unit="s", desc=label, disable=disable, bar_format=None if total is None else _BAR) as bar:
        yield lambda segment: _move(bar, segment.end)
        _move(bar, transcription.duration)


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"


def _move(bar: Any, seconds: float) -> None:
    bar.update(max(0.0, seconds - bar.n))
