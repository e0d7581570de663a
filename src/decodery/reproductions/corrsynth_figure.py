"""The figure of the CorrSynth reproduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decodery.reproductions.corrsynth_settings import ALONG, FEW_SHOT, WINDOW, Setting
from decodery.reproductions.frame import Result
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "few-shot": "0.45",
    "cfg": "tab:red",
    "hybrid": "tab:blue",
    "cross": "tab:cyan",
    "intra": "tab:green",
}


def draw(figure: Figure, result: Result) -> None:
    """The contrast along the text, and diversity against quality in two measures."""
    panels: list[Any] = list(figure.subplots(1, 3))
    _draw_along(panels[0], result)
    _draw_trade(panels[1], result, "self-BLEU-2", "self-BLEU-2 (lower is more diverse)")
    _draw_trade(panels[2], result, "entities", "entropy of names, nats")
    panels[1].legend(fontsize="x-small")  # the colours of both panels
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{result.reproduction.title}; {result.measurements.model}, {result.mode},"
        f" {len(result.measurements.seeds)} seeds, 95 % bootstrap intervals"
    )


def _draw_along(axes: Axes, result: Result) -> None:
    for shift, setting in enumerate(ALONG):
        windows = [name for name, item in result.table if item == setting and "window" in name]
        estimates = [result.table[name, setting] for name in windows]
        places = [WINDOW * number + WINDOW / 2 + 0.3 * shift for number in range(len(windows))]
        axes.errorbar(
            places,
            [item.value for item in estimates],
            yerr=bars(estimates),
            label="guidance" if setting.name == "cfg" else "CorrSynth, cross",
            color=_COLOURS[setting.name],
            marker="o",
            markersize=4,
            capsize=3,
        )
    axes.set_title("the contrast along a text")
    axes.set_xlabel("position, tokens")
    axes.set_ylabel("mean |ln P - ln Q|, nats")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def _draw_trade(axes: Axes, result: Result, quantity: str, label: str) -> None:
    settings = [
        setting
        for name, setting in result.table
        if name == quantity and isinstance(setting, Setting)
    ]
    line = [setting for setting in FEW_SHOT if setting in settings]
    axes.plot(
        [result.table["log-prob", setting].value for setting in line],
        [result.table[quantity, setting].value for setting in line],
        color=_COLOURS["few-shot"],
        linestyle="--",
        linewidth=1,
    )
    for setting in settings:
        _draw_point(axes, result, quantity, setting)
    axes.set_title("diversity within a class")
    axes.set_xlabel("log-probability under the model, nats a token")
    axes.set_ylabel(label)


def _draw_point(axes: Axes, result: Result, quantity: str, setting: Setting) -> None:
    x, y = result.table["log-prob", setting], result.table[quantity, setting]
    axes.errorbar(
        [x.value],
        [y.value],
        xerr=bars([x]),
        yerr=bars([y]),
        label=str(setting),
        color=_COLOURS[setting.name],
        alpha=0.5 if setting.strength in (0.9, 1.2) else 1.0,
        marker="o",
        markersize=5,
        capsize=2,
    )
