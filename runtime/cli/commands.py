"""How all commands are run."""

import codecs
import io
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from heedful.runtime.errors import HeedfulError


class Commands(TyperGroup):
    """All commands, for which a reader who has seen enough, `head` for one, is no error."""

    def invoke(self, ctx: Any) -> Any:
        _write_any_text()
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # what is left unwritten must not raise again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


def report(error: HeedfulError) -> None:
    """Say what is wrong with one input, on standard error, where the others go on."""
    typer.echo(f"heedful: error: {error}", err=True)


def _write_any_text() -> None:
    """Have standard output take any text: files and pipes are UTF-8, a terminal shows a ? for what it lacks.

    What PYTHONIOENCODING names is left as it is.
    """
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    if not encoding and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")
    # UTF-8 lacks nothing but the bytes of file names that are not UTF-8
    utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    sys.stdout.reconfigure(errors=errors or ("surrogateescape" if utf8 else "replace"))
