"""The figures of the reproductions of `sjd` and `mc_sjd`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from decodery.reproductions.frame import Result
from decodery.reproductions.plotting import bars
from decodery.reproductions.sjd_measure import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"sjd": "tab:gray", "mc": "tab:blue", "gs": "tab:orange"}
_STYLES: dict[str, str] = {"peaked": "-", "flat": "--"}
TEXT = "tokens per step, text"


def draw_windows(figure: Figure, result: Result) -> None:
    """Tokens a step over the window; first guesses compared; text."""
    panels: list[Any] = list(figure.subplots(1, 3, width_ratios=(2, 1.4, 1)))
    _over_windows(panels[0], result, "tokens per step")
    settings = [item for item in _measured(result, "tokens per step") if item.window == 16]
    wanted = [item for item in settings if item.where != "flat"]
    _bars(panels[1], result, "tokens per step", wanted, lambda item: f"{item.where},\n{item.guess}")
    panels[1].set_title("first guesses, window 16")
    texts = _measured(result, TEXT)
    _bars(panels[2], result, TEXT, texts, lambda item: item.guess)
    panels[2].set_title("text, window 8")
    _head(figure, result)


def draw_couplings(figure: Figure, result: Result) -> None:
    """Tokens a step and changed guesses over the window; strengths; text."""
    panels: list[Any] = list(figure.subplots(1, 4, width_ratios=(2, 1.6, 1.2, 0.8)))
    _over_windows(panels[0], result, "tokens per step")
    _over_windows(panels[1], result, "guesses changed")
    panels[1].set_ylim(0, 1.05)
    settings = _measured(result, "tokens per step")
    strengths = sorted(
        (item for item in settings if item.coupling == "mc" and item.strength < 1.0),
        key=lambda item: item.strength,
    )
    redrawn, coupled = Setting("peaked", "sjd", 32), Setting("peaked", "mc", 32)
    _bars(
        panels[2],
        result,
        "tokens per step",
        [redrawn, *strengths, coupled],
        lambda item: "0" if item.coupling == "sjd" else f"{item.strength:g}",
    )
    panels[2].set_title("strength of mc, window 32")
    _bars(panels[3], result, TEXT, _measured(result, TEXT), lambda item: item.coupling)
    panels[3].set_title("text, window 8")
    _head(figure, result)


def _measured(result: Result, quantity: str) -> list[Setting]:
    return list(result.measurements.cells[quantity])


def _over_windows(axes: Axes, result: Result, quantity: str) -> None:
    plain = [
        item
        for item in _measured(result, quantity)
        if item.where in _STYLES and item.guess == "random" and item.strength == 1.0
    ]
    nats = result.measurements.facts["nats of the grids' laws"]
    for where, coupling in dict.fromkeys((item.where, item.coupling) for item in plain):
        chosen = [item for item in plain if (item.where, item.coupling) == (where, coupling)]
        estimates = [result.table[quantity, item] for item in chosen]
        axes.errorbar(
            [item.window for item in chosen],
            [item.value for item in estimates],
            yerr=bars(estimates),
            fmt=f"o{_STYLES[where]}",
            markersize=4,
            capsize=3,
            color=_COLOURS[coupling],
            label=f"{coupling}, {nats[where]:.1f} nats",
        )
    axes.set_xscale("log", base=2)
    windows = sorted({item.window for item in plain})
    axes.set_xticks(windows, [str(window) for window in windows])
    axes.set_xlabel("window, guesses")
    axes.set_title(f"{quantity}, grids")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", handlelength=4)


def _bars(
    axes: Axes,
    result: Result,
    quantity: str,
    settings: Sequence[Setting],
    label: Callable[[Setting], str],
) -> None:
    estimates = [result.table[quantity, item] for item in settings]
    axes.bar(
        [label(item) for item in settings],
        [item.value for item in estimates],
        yerr=bars(estimates),
        color=[_COLOURS[item.coupling] for item in settings],
        capsize=3,
    )
    axes.axhline(1.0, color="black", linewidth=1, linestyle=":")
    axes.tick_params(axis="x", labelsize="small")
    axes.set_ylabel("tokens per step")


def _head(figure: Figure, result: Result) -> None:
    figure.suptitle(
        f"{result.reproduction.title}, {result.mode}, 95 % bootstrap intervals", fontsize="medium"
    )
