"""What the engine benchmark found in a case, and the tables that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.bandwidth import Bandwidth
from harness.cases import Case
from harness.field import OURS, Contestant
from harness.process import WorkerError
from harness.prompts import Prompts
from harness.spread import Spread, ratios

TEXT_SHOWN = 160


@dataclass
class Found:
    """The seconds of every round of a case, by contestant; `clock` is seconds (wall) or cpu.

    `whole` is the job; `first`, in cases of one prompt, a job of the first token alone. A
    contestant that fails once is out of the case, with the reason in `errors`.
    """

    case: Case
    contestants: Sequence[Contestant]
    clock: str = "seconds"
    whole: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)

    def measure(
        self,
        prompts: Prompts,
        timeout: float,
        *,
        order: Sequence[Contestant] | None = None,
        most: int | None = None,
        keep: bool = True,
    ) -> None:
        """One round: each contestant does the same job, one after another."""
        job, tokens = self.case.job(prompts, most), self.case.tokens(most)
        opening, openings = self.case.job(prompts, 1), self.case.tokens(1)
        for item in order or self.contestants:
            if item.name in self.errors:
                continue
            try:
                if self.case.is_single and keep:
                    answer = item.run(opening, openings, timeout)
                    self.first.setdefault(item.name, []).append(answer[self.clock])
                answer = item.run(job, tokens, timeout)
            except WorkerError as error:
                self._drop(item.name, str(error))
                continue
            if keep:
                self.whole.setdefault(item.name, []).append(answer[self.clock])
                text = answer["text"] or prompts.text(answer["ids"])
                self.texts[item.name] = text[:TEXT_SHOWN]

    def after(self, name: str) -> list[float]:
        """Seconds of a step after the first token, by round."""
        pairs = zip(self.whole[name], self.first[name], strict=True)
        return [(whole - first) / self.case.steps for whole, first in pairs]

    def content(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "title": self.case.title,
            "tokens": self.case.tokens(),
            "steps_after_first": self.case.steps if self.case.is_single else None,
            "seconds": self.whole,
            "first_token_seconds": self.first,
            "load_average": self.load,
            "errors": self.errors,
            "texts": self.texts,
        }

    def _drop(self, name: str, error: str) -> None:
        self.errors[name] = error
        self.whole.pop(name, None)
        self.first.pop(name, None)


def print_case(console: Console, found: Found, bandwidth: Bandwidth) -> None:
    """Two tables: what each contestant took, and how many times longer the peers took."""
    console.print(_seconds_table(found, bandwidth))
    for name, error in found.errors.items():
        console.print(f"  {name}: {error}", markup=False, highlight=False)
    if any(found.whole.get(item.name) for item in found.contestants if item.family != OURS):
        console.print(_ratio_table(found))


def print_field(console: Console, contestants: Sequence[Contestant]) -> None:
    """Versions, load times, memory, and what is not running and why."""
    table = Table(title="contestants", title_justify="left")
    for column in ("", "versions", "load, s", "peak, MB", "weights, MB", "note"):
        table.add_column(column, overflow="fold")
    for item in contestants:
        about = item.about
        versions = ", ".join(f"{name} {text}" for name, text in about.get("versions", {}).items())
        numbers = (about.get("seconds", 0.0), about.get("peak_mb", 0.0), item.weight_bytes / 1e6)
        shown = [f"{numbers[0]:.1f}", f"{numbers[1]:.0f}", f"{numbers[2]:.0f}"]
        note = item.error or about.get("note", "")
        table.add_row(item.name, versions, *(shown if about else [""] * 3), note)
    console.print(table)


def print_bandwidth(console: Console, bandwidth: Bandwidth) -> None:
    """Reading speeds by size."""
    if bandwidth.error:
        console.print(f"  reading memory was not measured to the end: {bandwidth.error}")
    for size, speeds in bandwidth.speeds.items():
        if speeds:
            shown = Spread.of(speeds).shown()
            console.print(f"  reading {size / 1e6:.0f} MB: {shown} GB/s", highlight=False)


def _seconds_table(found: Found, bandwidth: Bandwidth) -> Table:
    case = found.case
    loads = Spread.of(found.load) if found.load else Spread(0, 0, 0)
    title = f"{case.name}: {case.title} (load average {loads.low:.1f} to {loads.high:.1f})"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("whole job, s")
    table.add_column("tokens a second")
    if case.is_single:
        table.add_column("first token, s")
        table.add_column("ms a step after it")
        table.add_column("of floor" if case.samples == 1 else "")
    for item in found.contestants:
        whole = found.whole.get(item.name)
        if whole:
            table.add_row(item.name, *_numbers(found, item, whole, bandwidth))
        else:
            table.add_row(item.name, f"[dim]{'failed' if item.about else 'not run'}[/dim]")
    return table


def _numbers(
    found: Found,
    item: Contestant,
    whole: Sequence[float],
    bandwidth: Bandwidth,
) -> list[str]:
    case = found.case
    speeds = Spread.of([case.tokens() / seconds for seconds in whole])
    shown = [Spread.of(whole).shown(2), speeds.shown()]
    if not case.is_single:
        return shown
    steps = Spread.of([1000 * seconds for seconds in found.after(item.name)])
    shown += [Spread.of(found.first[item.name]).shown(2), steps.shown()]
    floor = bandwidth.floor(item.read_size) if case.samples == 1 else None
    if floor is not None:
        shown.append(f"{steps.median / (1000 * floor):.2f} x {1000 * floor:.1f} ms")
    return shown


def _ratio_table(found: Found) -> Table:
    """Columns are our variants, rows the best variant of each peer; above 1 ours is faster."""
    table = Table(title="peer / ours, of the same round: above 1 ours is faster")
    table.add_column("", no_wrap=True)
    ours = [item for item in found.contestants if item.family == OURS and item.name in found.whole]
    for item in ours:
        table.add_column(item.name)
    measures = {"whole job": found.whole}
    if found.case.is_single:
        measures["step"] = {name: found.after(name) for name in found.whole}
    for family in dict.fromkeys(item.family for item in found.contestants):
        for measure, values in measures.items():
            best = None if family == OURS else _best(found, family, values)
            if best is not None:
                cells = [ratios(values[best], values[item.name]) for item in ours]
                table.add_row(f"{best}, {measure}", *(cell.shown(2) for cell in cells))
    return table


def _best(found: Found, family: str, values: Mapping[str, Sequence[float]]) -> str | None:
    """The variant of a family with the lowest median, or None if all failed."""
    names = [item.name for item in found.contestants if item.family == family]
    running = [name for name in names if values.get(name)]
    return min(running, key=lambda name: Spread.of(values[name]).median, default=None)
