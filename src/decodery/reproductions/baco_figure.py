"""The figure of the reproduction of base-aligned collaboration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery.reproductions.baco_planes import covered, families
from decodery.reproductions.baco_settings import DIVERSITY, LEXICAL, SEMANTIC
from decodery.reproductions.frame import Result, cell_means
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "aligned": "black",
    "base": "0.6",
    "rand": "tab:orange",
    "p": "tab:green",
    "h": "tab:purple",
    "p_punc": "tab:blue",
}


def draw(figure: Figure, result: Result) -> None:
    """Quality over kinds, kinds over the base model's share, and the coverage of every family."""
    left, middle, right = figure.subplots(1, 3)
    _draw_curves(left, result, "kinds", "log-prob")
    _draw_curves(middle, result, "base share", "kinds")
    left.set_ylabel("log-probability under aligned, nats a token")
    left.set_xlabel("kinds of answers to a prompt")
    middle.set_ylabel("kinds of answers to a prompt")
    middle.set_xlabel("share of tokens that base wrote")
    left.legend(fontsize="small")
    _draw_coverage(right, result)
    count = len(result.measurements.seeds)
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode}, {count}"
        f" seed{'s' if count > 1 else ''}, 95 % bootstrap intervals over prompts"
    )


def _draw_curves(axes: Axes, result: Result, across: str, up: str) -> None:
    for name, settings in families(cell_means(result.measurements)).items():
        x = [result.table[across, item] for item in settings]
        y = [result.table[up, item] for item in settings]
        axes.errorbar(
            [item.value for item in x],
            [item.value for item in y],
            xerr=bars(x),
            yerr=bars(y),
            label=name,
            color=_COLOURS[name],
            marker="o",
            markersize=4,
            linewidth=1.2,
            elinewidth=0.5,
        )
    axes.grid(alpha=0.3)


def _draw_coverage(axes: Axes, result: Result) -> None:
    means = cell_means(result.measurements)
    names = list(families(means))
    groups = {"lexical": LEXICAL, "semantic": SEMANTIC, "all": DIVERSITY}
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        axes.bar(
            [group + (place - (len(names) - 1) / 2) * width for group in range(len(groups))],
            [float(covered(means, name, metrics)) for metrics in groups.values()],
            width=width,
            color=_COLOURS[name],
        )
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_title("coverage")
    axes.set_ylim(0, 1)  # colours as on the left
