"""The figure of the reproduction of optimal multi-draft decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decodery.reproductions.frame import Result
from decodery.reproductions.optimal_multi_draft_settings import (
    GREEDY,
    K_SEQ,
    RRS,
    RRS_W,
    WITH,
    WITHOUT,
    Name,
    Pair,
    Setting,
)
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour says how candidates are drawn; a dashed line is what no rule can exceed.
_LINES: dict[Name, tuple[str, str, str, str]] = {
    WITHOUT: ("tab:blue", "--", "", "bound, without replacement"),
    WITH: ("tab:orange", "--", "", "bound, i.i.d."),
    GREEDY: ("tab:green", "-", "o", "greedy drafts: rule and bound"),
    RRS_W: ("tab:blue", "-", "s", "recursive, without replacement"),
    K_SEQ: ("tab:orange", "-", "^", "K-SEQ, i.i.d."),
    RRS: ("tab:orange", "-", "v", "recursive, i.i.d."),
}
_PAIRS = {
    "iid": "tab:orange",
    "distinct": "tab:blue",
    "hub": "tab:gray",
    "greedy": "tab:green",
}


def draw(figure: Figure, result: Result) -> None:
    """Acceptance over the number of candidates, one panel a temperature; and tokens of a step.

    Rows differ far more among themselves than rules do on the same rows, so the lines have no bars:
    the claims have the intervals of differences, which are paired.
    """
    measured = result.measurements.cells["acceptance"]
    temperatures = sorted({item.temperature for item in measured})
    panels: list[Any] = list(
        figure.subplots(1, len(temperatures) + 1, width_ratios=[*[1.0] * len(temperatures), 1.1])
    )
    for axes, temperature in zip(panels, temperatures, strict=False):
        _draw_temperature(axes, result, temperature)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    panels[0].set_ylabel("chance that a candidate is accepted")
    _draw_runs(panels[-1], result)
    rows = result.measurements.facts["rows"]
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode},"
        f" means of {rows} rows; runs with 95 % bootstrap intervals"
    )


def _draw_temperature(axes: Axes, result: Result, temperature: float) -> None:
    measured = result.measurements.cells["acceptance"]
    counts = sorted({item.count for item in measured if item.temperature == temperature})
    one = result.table["of one draft", Setting(RRS, temperature, 1)]
    for name, (colour, style, marker, label) in _LINES.items():
        more = [result.table["acceptance", Setting(name, temperature, count)] for count in counts]
        axes.plot(
            [1, *counts],
            [item.value for item in (one, *more)],
            color=colour,
            linestyle=style,
            marker=marker,
            markersize=4.5,
            label=label,
        )
    axes.set_xticks([1, *counts])
    axes.set_xlabel("candidates of a node")
    axes.set_title(f"T = {temperature:g}")
    axes.grid(alpha=0.3)


def _draw_runs(axes: Axes, result: Result) -> None:
    pairs: list[Pair] = list(result.measurements.cells["tokens per step"])
    estimates = [result.table["tokens per step", pair] for pair in pairs]
    places = range(len(pairs))[::-1]
    axes.barh(
        places,
        [item.value - 1.0 for item in estimates],
        left=1.0,
        xerr=bars(estimates),
        color=[_PAIRS[pair.drafter] for pair in pairs],
        alpha=0.7,
        capsize=3,
    )
    axes.set_yticks(places, [f"{pair.drafter},\n{pair.rule}" for pair in pairs])
    axes.yaxis.tick_right()
    axes.set_xlim(left=1.0)
    axes.set_xlabel("tokens of a step")
    temperature = result.measurements.facts["temperature of runs"]
    axes.set_title(f"whole runs, T = {temperature:g}")
    axes.grid(alpha=0.3, axis="x")
