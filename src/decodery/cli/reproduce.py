"""`decodery reproduce`: measure what a method's paper claims, scaled down, and say what held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from decodery.cli.output import err, out, print_json, table
from decodery.core.errors import ParameterError

if TYPE_CHECKING:
    from decodery.reproductions.frame import Estimate, Progress, Result


def reproduce(
    name: Annotated[str, typer.Argument(help="A method that ships a reproduction.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Under a minute on two cores; the default.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Some minutes: larger grid, more draws.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Folder for results.json and figure.png."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The first of the run's seeds.")] = 0,
) -> None:
    """Measure a paper's claims about a method, with spread, and give a verdict on each."""
    from decodery.reproductions import frame

    if quick and full:
        raise ParameterError("--quick and --full are both given; give one of them")
    with _progress() as progress:
        result = frame.reproduce(
            name, "full" if full else "quick", seed=seed, out=folder, progress=progress
        )
    if as_json:
        print_json(result.to_dict())
    else:
        _show(result)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error, nothing when it is not a terminal."""
    from rich.progress import Progress as Bar

    with Bar(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("measuring", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(result: Result) -> None:
    from decodery.reproductions import frame

    quantities, rows = frame.pivot(result)
    shown = table("setting", *quantities, title=f"{result.reproduction.title}, {result.mode}")
    shown.columns[0].no_wrap = True
    for setting, estimates in rows:
        shown.add_row(setting, *(_cell(estimate) for estimate in estimates))
    out.print(shown)
    out.print("[dim]mean ± bootstrap standard error[/]")
    for outcome in result.outcomes:
        colour = "green" if outcome.verdict == "confirmed" else "yellow"
        out.print()
        out.print(f"[bold]{outcome.claim.id}[/]  [{colour}]{outcome.verdict}[/]", end="  ")
        out.print(outcome.claim.claim, markup=False)
        out.print(f"expected: {outcome.claim.expected}", markup=False)
        for finding in outcome.findings:
            mark = "yes" if finding.holds else "no"
            out.print(
                f"{mark:>3}  {finding.check.quantity}: {finding.estimate} ({finding.check.bounds})",
                markup=False,
            )
    out.print()
    seeds = len(result.measurements.seeds)
    out.print(
        f"{result.measurements.model}, {seeds} seed{'s' if seeds > 1 else ''},"
        f" {result.seconds:.0f} s, {result.figure}",
        markup=False,
    )


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.3g}±{estimate.standard_error:.1g}"
