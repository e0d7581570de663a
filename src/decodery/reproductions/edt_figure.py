"""The figure of the EDT reproduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decodery.reproductions.edt_settings import (
    EDT,
    FAINT,
    FIXED,
    MILD,
    PARSE,
    SEQUENCE,
    Family,
)
from decodery.reproductions.frame import Result
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS: dict[Family, str] = {
    FIXED: "0.35",
    EDT: "tab:blue",
    MILD: "tab:cyan",
    FAINT: "tab:green",
    SEQUENCE: "tab:orange",
}


def draw(figure: Figure, result: Result) -> None:
    """Quality over diversity on both tasks, and the temperature that was used."""
    panels: list[Any] = list(figure.subplots(1, 3))
    _draw_curves(panels[0], result, "diversity", "ROUGE-L")
    panels[0].set_title("answers of the model")
    panels[0].set_xlabel("diversity, 1 - self-BLEU")
    panels[0].set_ylabel("ROUGE-L")
    _draw_curves(panels[1], result, "slots", "parse")
    panels[1].axhline(PARSE, color="black", linestyle="--", linewidth=1)
    panels[1].set_title("lines with free slots")
    panels[1].set_xlabel("different slot values in a line drawn")
    panels[1].set_ylabel("share of lines that parse")
    _draw_used(panels[2], result)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode},"
        " 95 % bootstrap intervals"
    )


def _draw_curves(axes: Axes, result: Result, across: str, up: str) -> None:
    for family, colour in _COLOURS.items():
        chosen = family.among(result.measurements.cells[up])
        if not chosen:
            continue
        x = [result.table[across, setting] for setting in chosen]
        y = [result.table[up, setting] for setting in chosen]
        axes.errorbar(
            [item.value for item in x],
            [item.value for item in y],
            xerr=bars(x),
            yerr=bars(y),
            color=colour,
            label=str(family),
            marker="o",
            markersize=3,
            linewidth=1.2,
            elinewidth=0.5,
        )


def _draw_used(axes: Axes, result: Result) -> None:
    for family, colour in _COLOURS.items():
        chosen = family.among(result.measurements.cells["T/T0"])
        if family is FIXED or not chosen:
            continue
        axes.plot(
            [setting.temperature for setting in chosen],
            [result.table["T/T0", setting].value for setting in chosen],
            color=colour,
            label=str(family),
            marker="o",
            markersize=3,
        )
    axes.set_ylim(0, 1.03)
    axes.set_title("temperature used, mean over tokens of answers")
    axes.set_xlabel("T0")
    axes.set_ylabel("T / T0")
