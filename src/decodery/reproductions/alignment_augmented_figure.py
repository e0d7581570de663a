"""The figure of the alignment_augmented reproduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decodery.reproductions.alignment_augmented_settings import GREEDY, SWEEP, Setting
from decodery.reproductions.frame import Result
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {None: "tab:gray", "exact": "tab:blue", "constant": "tab:green", "adaptive": "tab:red"}


def draw(figure: Figure, result: Result) -> None:
    """Tokens per step of every setting, what they cost in the text, and the sweep."""
    panels: list[Any] = list(figure.subplots(1, 3, width_ratios=[1.5, 1.0, 1.0]))
    _draw_steps(panels[0], result)
    _draw_quality(panels[1], result)
    _draw_sweep(panels[2], result)
    for axes in panels:
        axes.grid(alpha=0.3)
    items = sum(result.measurements.facts["items"].values())
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode}, {items} items,"
        " 95 % bootstrap intervals"
    )


def _main(result: Result) -> list[Setting]:
    """The settings that are not of the sweep, in their order."""
    return [item for item in result.measurements.cells["tokens per step"] if item not in SWEEP]


def _draw_steps(axes: Axes, result: Result) -> None:
    chosen = _main(result)[::-1]
    estimates = [result.table["tokens per step", setting] for setting in chosen]
    axes.barh(
        [str(setting) for setting in chosen],
        [item.value for item in estimates],
        xerr=bars(estimates),
        color=[_COLOURS[setting.verify] for setting in chosen],
        alpha=0.7,
        capsize=3,
    )
    axes.set_title("tokens per step")
    axes.set_xlim(left=0)


def _draw_quality(axes: Axes, result: Result) -> None:
    greedy = result.table["rouge to reference", GREEDY].value
    axes.axhline(greedy, color="tab:gray", linestyle="--", linewidth=1, label="greedy")
    seen: set[Any] = set()
    for setting in _main(result)[1:]:
        steps = result.table["tokens per step", setting]
        worth = result.table["rouge to reference", setting]
        label = f"{setting.verify}, {'aligned' if setting.alignment else 'retrieval'}"
        axes.errorbar(
            [steps.value],
            [worth.value],
            yerr=bars([worth]),
            fmt="s" if setting.alignment else "o",
            markersize=4 if setting.nodes < 64 else 7,
            capsize=3,
            color=_COLOURS[setting.verify],
            alpha=0.8,
            label=None if label in seen else label,
        )
        seen.add(label)
    axes.set_title("ROUGE-L to the reference (small: few nodes)")
    axes.set_xlabel("tokens per step")
    axes.legend(fontsize="x-small")


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
    for setting in swept:
        place = (
            result.table["tokens per step", setting].value,
            result.table["rouge to greedy", setting].value,
        )
        axes.annotate(f"{setting.base:g}", place, (3, 5), textcoords="offset points", fontsize=8)
    axes.set_ylim(-0.05, 1.15)
    axes.set_title("threshold without slope, aligned")
    axes.set_xlabel("tokens per step")
    axes.legend(fontsize="x-small", loc="center left")
