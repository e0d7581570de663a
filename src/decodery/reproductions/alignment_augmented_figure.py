"""The figure of the alignment_augmented reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery.reproductions.alignment_augmented_settings import SWEEP, Setting
from decodery.reproductions.frame import Result
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {None: "tab:gray", "exact": "tab:blue", "constant": "tab:green", "adaptive": "tab:red"}


def draw(figure: Figure, result: Result) -> None:
    """Tokens per step and quality of every setting, and what a threshold trades."""
    panels: list[Any] = list(figure.subplots(1, 3, width_ratios=[1.2, 1.0, 1.2]))
    _draw_bars(panels[0], result, "tokens per step", "tokens per step")
    _draw_bars(panels[1], result, "rouge to reference", "ROUGE-L to the reference")
    panels[1].set_yticklabels([])
    _draw_sweep(panels[2], result)
    for axes in panels:
        axes.grid(alpha=0.3)
    items = sum(result.measurements.facts["items"].values())
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode}, {items} items,"
        " 95 % bootstrap intervals"
    )


def _draw_bars(axes: Axes, result: Result, quantity: str, title: str) -> None:
    """One bar for each setting that is not of the sweep."""
    settings = result.measurements.cells[quantity]
    chosen = [setting for setting in settings if setting not in SWEEP][::-1]
    estimates = [result.table[quantity, setting] for setting in chosen]
    axes.barh(
        [str(setting) for setting in chosen],
        [item.value for item in estimates],
        xerr=bars(estimates),
        color=[_COLOURS[setting.verify] for setting in chosen],
        alpha=0.7,
        capsize=3,
    )
    axes.set_title(title)
    axes.set_xlim(left=0)


def _draw_sweep(axes: Axes, result: Result) -> None:
    swept = [item for item in SWEEP if item in result.measurements.cells["tokens per step"]]
    for name, colour in (("not argmax", "tab:red"), ("rouge to greedy", "tab:blue")):
        estimates = [result.table[name, setting] for setting in swept]
        axes.errorbar(
            [result.table["tokens per step", setting].value for setting in swept],
            [item.value for item in estimates],
            yerr=bars(estimates),
            marker="o",
            markersize=4,
            capsize=3,
            color=colour,
            label={"not argmax": "share not the argmax"}.get(name, "ROUGE-L to greedy's text"),
        )
    for place, names in _places(result, swept).items():
        axes.annotate(names, place, (3, 5), textcoords="offset points", fontsize=8)
    axes.margins(x=0.12)
    axes.set_ylim(-0.05, 1.15)
    axes.set_title("threshold without slope, aligned")
    axes.set_xlabel("tokens per step")
    axes.legend(fontsize="x-small", loc="center left")


def _places(result: Result, swept: Sequence[Setting]) -> dict[tuple[float, float], str]:
    """Where thresholds lie, and their names; those that did the same share a place."""
    names: dict[tuple[float, float], list[str]] = {}
    for setting in swept:
        steps = result.table["tokens per step", setting].value
        alike = result.table["rouge to greedy", setting].value
        names.setdefault((round(steps, 6), round(alike, 6)), []).append(f"{setting.base:g}")
    return {place: " and ".join(found) for place, found in names.items()}
