"""The figure of the language gate's reproduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decodery.reproductions.frame import Estimate, Result
from decodery.reproductions.language_gate_settings import TAUGHT, Name, Setting
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS: dict[Name, str] = {"none": "0.45", "gate": "tab:blue", "adjusted": "tab:cyan"}
_CONTROL = "tab:orange"
_SHARES = {
    "unchanged, plain": "clean text unchanged,\nplain prompts",
    "unchanged, openings": "clean text unchanged,\nall beginnings",
    "left by the gate": "Latin that is meant,\nleft by the gate",
    "left by own script": "Latin that is meant,\nleft by a ban of all\nother scripts",
}


def draw(figure: Figure, result: Result) -> None:
    """Wrong tokens under both ways of sampling, and what else is changed."""
    panels: list[Any] = list(figure.subplots(1, 3, width_ratios=(1.4, 0.8, 1)))
    _draw_wrong(panels[0], result, "cool", "as in the paper: T = 0.7, top-p 0.8, top-k 20")
    _draw_wrong(panels[1], result, "hot", "T = 1, top-p 0.9")
    _draw_shares(panels[2], result)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    facts = result.measurements.facts
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode},"
        f" {len(facts['prompts that provoke'])} prompts that provoke, 95 % bootstrap intervals"
    )


def _draw_wrong(axes: Axes, result: Result, heat: str, title: str) -> None:
    quantity = f"wrong tokens, {heat}"
    settings: list[Setting] = list(result.measurements.cells[quantity])
    estimates = [result.table[quantity, setting] for setting in settings]
    names = [_label(setting.name) for setting in settings]
    colours = [_COLOURS.get(setting.name, _CONTROL) for setting in settings]
    _bars(axes, names, estimates, colours)
    tenth = 10 * estimates[0].value
    axes.axvline(tenth, color="black", linestyle="--", linewidth=1, label="a tenth of none")
    axes.set_title(title)
    axes.set_xlabel("wrong-script tokens, %")
    axes.legend(fontsize="x-small")


def _draw_shares(axes: Axes, result: Result) -> None:
    found = {
        item.check.quantity: item.estimate
        for outcome in result.outcomes
        for item in outcome.findings
    }
    shown = [name for name in _SHARES if name in found]
    estimates = [found[name] for name in shown]
    colours = ["tab:blue" if name != "left by own script" else _CONTROL for name in shown]
    _bars(axes, [_SHARES[name] for name in shown], estimates, colours)
    axes.axvline(98, color="black", linestyle="--", linewidth=1, label="98 %")
    axes.set_title("what else is changed")
    axes.set_xlabel("%")
    axes.legend(fontsize="x-small", loc="lower left")


def _bars(axes: Axes, names: list[str], estimates: list[Estimate], colours: list[str]) -> None:
    places = list(range(len(names)))
    spread = [[100 * side for side in row] for row in bars(estimates)]
    values = [100 * item.value for item in estimates]
    axes.barh(places, values, xerr=spread, color=colours, height=0.6, capsize=3)
    axes.set_yticks(places, names)
    axes.invert_yaxis()


def _label(name: Name) -> str:
    return f"small training:\n{name}" if name in TAUGHT else name
