"""The `heedful` command."""

import logging
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from heedful.runtime import errors
from heedful.runtime.cli import bench, bundles, text, transcribe

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """All commands, for which a reader who has seen enough, `head` for one, is no error."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # what is left unwritten must not raise again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


app = typer.Typer(
    cls=_Commands,
    name="heedful",
    help="Turn attention models into ONNX and run them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bundles.register(app)
transcribe.register(app)
text.register(app)
bench.register(app)


def main() -> None:
    """Run the command line. Exit status: 0 done, 1 something failed (one line on standard error), 2 bad usage."""
    logging.basicConfig(level=logging.WARNING, format="heedful: %(message)s", stream=sys.stderr)
    try:
        app()
    except errors.HeedfulError as error:
        sys.exit(f"heedful: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
