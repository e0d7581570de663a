"""`decodery cache`: where converted models lie, how large they are, and how to remove them."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from decodery.cli.output import out, print_json, table

app = typer.Typer(help="Show or clear the folder of converted models.", invoke_without_command=True)


@app.callback()
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the converted models."""
    if context.invoked_subcommand is not None:
        return
    from decodery.models.cache import cache_entries, cache_folder

    entries = cache_entries()
    if as_json:
        listed = [
            {
                "name": entry.name,
                "path": str(entry.path),
                "bytes": entry.nbytes,
                "source": entry.source,
                "created": entry.created,
            }
            for entry in entries
        ]
        print_json({"folder": str(cache_folder()), "entries": listed})
        return
    out.print(str(cache_folder()), markup=False)
    if not entries:
        out.print("empty")
        return
    shown = table("model", "MB", "source")
    for entry in entries:
        shown.add_row(entry.name, f"{entry.nbytes / 1e6:.0f}", entry.source)
    out.print(shown)


@app.command("clear")
def clear(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="A model as `decodery cache` lists it; default: all."),
    ] = None,
) -> None:
    """Remove one converted model, or all."""
    from decodery.models.cache import clear_cache

    out.print(f"{clear_cache(name) / 1e6:.0f} MB removed")
