"""Commands about what there is: home, list, inspect."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from heedful.runtime.bundle import open_bundle, read_manifest
from heedful.runtime.errors import BundleError
from heedful.runtime.home import home, listed


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (show_home, show_list, inspect):
        app.command(name=command.__name__.removeprefix("show_"))(command)


def show_home() -> None:
    """Print the folder where checkpoints, bundles and samples are kept (HEEDFUL_HOME)."""
    typer.echo(home())


def show_list() -> None:
    """List the bundles, checkpoints and samples that are there."""
    rows = [("bundle", path.name, _summary(path)) for path in listed("bundles")]
    rows += [("checkpoint", path.name, "") for path in listed("checkpoints")]
    rows += [("sample", path.name, "") for path in listed("samples")]
    if not rows:
        typer.echo(f"nothing in {home()} yet: `heedful fetch whisper-tiny.en` fetches a first model", err=True)
    for kind, name, summary in rows:
        typer.echo(f"{kind:<11} {name:<28} {summary}".rstrip())


def _summary(path: Path) -> str:
    try:
        manifest = read_manifest(path)
    except BundleError as error:
        return f"unusable: {error}"
    size = sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6
    return f"{manifest['task']}, {manifest['family']}, {manifest['precision']}, {size:.0f} MB"


def inspect(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder or name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole manifest.")] = False,
) -> None:
    """Verify a bundle and print what it is and what was checked of it."""
    manifest = open_bundle(bundle).manifest
    if as_json:
        typer.echo(json.dumps(manifest, indent=1, ensure_ascii=False))
        return
    for line in _description(manifest):
        typer.echo(line)


def _description(manifest: dict[str, Any]) -> list[str]:
    source, certificate = manifest["source"], manifest["certificate"]
    exact = certificate["exact"]
    lines = [
        f"task         {manifest['task']}",
        f"family       {manifest['family']}",
        f"precision    {manifest['precision']}",
        f"parameters   {manifest['parameters']:,}",
        f"source       {source['name']} ({source['format']}), licence: {source['license'] or 'not stated'}",
        "files",
        *(
            f"  {name:<16} {entry['bytes']:>13,} bytes  sha256 {entry['sha256']}"
            for name, entry in manifest["files"].items()
        ),
        "certificate: differences from PyTorch, relative",
        *(
            f"  {name:<24} rms {d['rms']:.2e}  largest {d['largest']:.2e}"
            for name, d in certificate["differences"].items()
        ),
        f"certificate: likeliest token agrees with PyTorch in {certificate['agreement']:.1%} of "
        f"{certificate['tokens_compared']}",
        f"certificate: tokens identical to {exact['compared_with']} in {exact['cases']} cases of batch sizes "
        f"{exact['batch_sizes']}, prompt lengths {exact['prompt_lengths']}, beams {exact['beam_widths']}",
    ]
    return lines
