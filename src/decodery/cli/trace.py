"""`decodery trace`: look at what `decodery run --trace FILE` wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from decodery.core.errors import ParameterError

app = typer.Typer(help="Look at the trace of a run.", no_args_is_help=True)

MINIMUM_WIDTH = 20
MOST = 20  # steps that are drawn where none are asked for


@app.callback()
def trace() -> None:
    """Look at the trace of a run."""


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="What `decodery run --trace FILE` wrote.")],
    steps: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help=f"Which steps to draw: 5, 3-7, 1,4-6 or all; default: the first {MOST}."),
    ] = None,
    width: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Characters of a line; default: the terminal's."),
    ] = None,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a page to look at in a browser to this file instead."),
    ] = None,
) -> None:
    """Draw a run step by step: what was proposed, what was accepted, and how probable it was."""
    if width is not None and width < MINIMUM_WIDTH:
        raise ParameterError(f"--width is {width}; allowed is {MINIMUM_WIDTH} or more")
    if html is not None and (steps is not None or width is not None):
        raise ParameterError("--html has all steps in any width; leave --steps and --width out")
    if html is not None and not html.parent.is_dir():
        raise ParameterError(f"--html {html}: the folder {html.parent} does not exist")
    from decodery.viewer.steps import read_run

    run = read_run(file)
    if html is not None:
        from decodery.viewer.page import page

        html.write_text(page(run), encoding="utf-8")
        return
    from decodery.viewer.terminal import whole

    count = len(run.steps)
    numbers = range(1, min(MOST, count) + 1) if steps is None else chosen(steps, count)
    console = Console(width=width, highlight=False)
    for part in whole(run, [run.steps[number - 1] for number in numbers]):
        console.print(part)
    if steps is None and count > MOST:
        console.print(f"\n{count - MOST} more steps: --steps {MOST + 1}-{count}, or --html FILE")


def chosen(asked: str, count: int) -> list[int]:
    """The numbers of steps that a text such as 1,4-6 asks for, of `count` steps in all.

    >>> chosen("1,4-6", 10), chosen("all", 3), chosen("2-", 4)
    ([1, 4, 5, 6], [1, 2, 3], [2, 3, 4])
    """
    found: dict[int, None] = {}
    for part in asked.replace("all", "1-").split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(-\s*(\d*))?\s*", part)
        if ends is None:
            raise ParameterError(f"--steps is {asked!r}; allowed are 5, 3-7, 1,4-6 or all")
        first = int(ends[1])
        last = first if ends[2] is None else int(ends[3] or count)
        if not 1 <= first <= last <= count:
            raise ParameterError(f"--steps is {asked!r}; the run has steps 1 to {count}")
        found |= dict.fromkeys(range(first, last + 1))
    return sorted(found)
