"""The command line: whatever runs bundles."""

import logging
import sys

import typer

from heedful.runtime import errors
from heedful.runtime.cli import bench, bundles, caption, commands, text, transcribe

__all__ = ["app", "main"]

app = typer.Typer(
    cls=commands.Commands,
    name="heedful",
    help="Turn attention models into ONNX and run them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bundles.register(app)
transcribe.register(app)
text.register(app)
caption.register(app)
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
