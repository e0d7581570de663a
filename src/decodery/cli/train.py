"""`decodery train`: what there is to train, and a command for each with flags from its Params."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decodery.cli.flags import flags_of, with_flags
from decodery.cli.output import err, out, print_json, table
from decodery.cli.run import INTERRUPTED
from decodery.training import frame

if TYPE_CHECKING:
    from decodery.training.run import Progress

SECONDS_BETWEEN_LINES = 5.0


def make_app() -> typer.Typer:
    """The commands, one for each training that is registered now; in names _ is as good as -."""
    app = typer.Typer(help="Train what a method needs, or list it.", invoke_without_command=True)
    app.callback(invoke_without_command=True)(_list)
    for training in frame.trainings().values():
        command = with_flags(_command(training), flags_of(training.params, "Training"))
        shown = training.name.replace("_", "-")
        app.command(shown, help=training.summary)(command)
        if shown != training.name:
            app.command(training.name, help=training.summary, hidden=True)(command)
    return app


def _list(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    known = frame.trainings().values()
    if as_json:
        print_json([{"name": item.name, "summary": item.summary} for item in known])
        return
    shown = table("training", "summary")
    for item in known:
        shown.add_row(f"[bold]{item.name.replace('_', '-')}[/]", item.summary)
    out.print(shown)
    out.print("\ndecodery train NAME --out FOLDER; decodery train NAME --help")


def _command(training: frame.Training) -> Any:
    def command(
        folder: Annotated[
            Path, typer.Option("--out", help="A new folder for the run and what it makes.")
        ],
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on with the run that is in the folder.")
        ] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print one JSON object instead of a table.")
        ] = False,
        *,
        values: dict[str, Any],
    ) -> None:
        try:
            with _progress() as progress:
                result = frame.train(training, values, folder, resume=resume, progress=progress)
        except KeyboardInterrupt:
            err.print(f"interrupted; --resume goes on with {folder}", markup=False)
            raise typer.Exit(INTERRUPTED) from None
        if as_json:
            print_json({"part": str(result.part), "facts": dict(result.facts)})
            return
        shown = table("measured", "")
        for name, value in result.facts.items():
            number = f"{value:.4g}" if isinstance(value, float) else str(value)
            shown.add_row(name, number)
        out.print(shown)
        out.print(str(result.part), markup=False)

    return command


@contextmanager
def _progress() -> Iterator[Progress]:
    """On standard error: a bar in a terminal, else a line now and then."""
    if err.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bar(*columns, console=err, transient=True) as bar:
            task = bar.add_task("", total=None, note="")

            def move(phase: str, done: int, total: int, note: str = "") -> None:
                bar.update(task, description=phase, completed=done, total=total, note=note)

            yield move
        return
    said: dict[str, float] = {}

    def say(phase: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done == total or now - said.get(phase, 0.0) > SECONDS_BETWEEN_LINES:
            said[phase] = now
            err.print(f"{phase} {done}/{total} {note}".rstrip(), markup=False)

    yield say
