"""The figure of the mpg reproduction: voices of every setting, acceptance and calls over length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery.reproductions.frame import Result
from decodery.reproductions.mpg_settings import (
    BLENDED,
    CHUNK,
    TOKEN,
    Setting,
    curve,
    scr,
    settings,
)
from decodery.reproductions.mpg_texts import ATTRIBUTES
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"pirate": "tab:blue", "formal": "tab:orange", "both": "tab:green"}


def draw(figure: Figure, result: Result) -> None:
    """Voices, acceptance with the bound, and calls."""
    panels: list[Any] = list(figure.subplots(1, 3, width_ratios=(1.5, 1, 1)))
    _draw_voices(panels[0], result)
    _draw_acceptance(panels[1], result)
    _draw_calls(panels[2], result)
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode},"
        f" {len(result.measurements.seeds)} seeds, 95 % bootstrap intervals"
    )


def _draw_voices(axes: Axes, result: Result) -> None:
    shown = [
        setting
        for setting in settings(result.mode)
        if setting.way != "scr" or setting in (scr(1), scr(CHUNK), scr(CHUNK, 0.8))
    ]
    for place, name in enumerate((*ATTRIBUTES, "both")):
        estimates = [result.table[name, setting] for setting in shown]
        axes.errorbar(
            [item.value for item in estimates],
            [row + 0.22 * (place - 1) for row in range(len(shown))],
            xerr=bars(estimates),
            fmt="o",
            markersize=4,
            capsize=2,
            color=_COLOURS[name],
            label=name,
        )
    axes.set_yticks(range(len(shown)), [str(setting) for setting in shown], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("share of answers in the voice")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper center")  # models alone are at 0 or 1


def _draw_acceptance(axes: Axes, result: Result) -> None:
    chosen = curve(result.mode)
    _line(axes, result, "accepted", chosen, "drafts kept whole", "tab:blue")
    axes.set_xlabel("draft length L")
    axes.set_ylabel("share of drafts kept whole")
    axes.set_ylim(-0.03, 1.03)
    other: Any = axes.twinx()
    _line(other, result, "ln M", chosen, "ln of the bound M", "tab:red")
    other.set_ylabel("ln M", color="tab:red")
    axes.set_title("acceptance")


def _draw_calls(axes: Axes, result: Result) -> None:
    _line(axes, result, "calls", curve(result.mode), "mpg_scr", "tab:blue")
    for setting, label, style in (
        (BLENDED, "token by token", "--"),
        (TOKEN, f"mpg_token L={CHUNK}", ":"),
    ):
        axes.axhline(
            result.table["calls", setting].value, color="black", linestyle=style, label=label
        )
    axes.set_xlabel("draft length L")
    axes.set_ylabel("forwards a token, all models")
    axes.set_title("cost")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _line(
    axes: Axes, result: Result, quantity: str, chosen: Sequence[Setting], label: str, colour: str
) -> None:
    estimates = [result.table[quantity, setting] for setting in chosen]
    axes.errorbar(
        [setting.length for setting in chosen],
        [item.value for item in estimates],
        yerr=bars(estimates),
        marker="o",
        markersize=4,
        capsize=3,
        color=colour,
        label=label,
    )
    axes.set_xscale("log", base=2)
    lengths = [setting.length for setting in chosen]
    axes.set_xticks(lengths, [str(length) for length in lengths])
