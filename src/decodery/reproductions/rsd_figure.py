"""The figure of the rsd reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery.reproductions.frame import Result
from decodery.reproductions.plotting import bars
from decodery.reproductions.rsd_settings import (
    C_6,
    C_14,
    CHAIN_3,
    CHAIN_6,
    COOL,
    HOT,
    IID_6,
    IID_14,
    LABELS,
    NARROW_6,
    NARROW_14,
    S_6,
    S_12,
    S_14,
    Setting,
    Way,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS: dict[Way, str] = {
    "chain": "tab:gray",
    "iid": "tab:orange",
    "rsd_c": "tab:blue",
    "rsd_s": "tab:green",
}
_PANELS: tuple[tuple[str, tuple[Setting, ...]], ...] = (
    ("depth 3", (CHAIN_3, IID_14, C_14, S_12)),
    ("6 nodes", (CHAIN_6, IID_6, C_6, S_6, NARROW_6)),
    ("14 nodes", (IID_14, C_14, S_14, NARROW_14)),
)
_MARKS = {HOT: "o", COOL: "s"}


def draw(figure: Figure, result: Result) -> None:
    """Tokens a step at fixed depth and at fixed nodes, and acceptance at the first level."""
    panels: list[Any] = list(figure.subplots(1, 4))
    measured = result.measurements.cells["tokens"]
    heats = sorted({setting.temperature for setting in measured}, reverse=True)
    for axes, (title, shapes) in zip(panels, _PANELS, strict=False):
        shown = [item for item in shapes if item in measured]
        _draw_shapes(axes, result, "tokens", shown, heats)
        axes.set_title(title)
        axes.set_ylabel("tokens a step")
    firsts = [item for item in (CHAIN_3, IID_6, C_6, S_6, S_12, S_14) if item in measured]
    _draw_shapes(panels[3], result, "acceptance", firsts, heats)
    panels[3].set_title("first token of a draft")
    panels[3].set_ylabel("chance that one is accepted")
    panels[0].legend(fontsize="small", loc="upper left")
    facts = result.measurements.facts
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, draft its first"
        f" {facts['layers of the draft']} layers, {result.mode}, 95 % bootstrap intervals",
        fontsize="medium",
    )


def _draw_shapes(
    axes: Axes, result: Result, quantity: str, shapes: Sequence[Setting], heats: Sequence[float]
) -> None:
    for number, heat in enumerate(heats):
        for place, item in enumerate(shapes):
            found = result.table[quantity, item.at(heat)]
            axes.errorbar(
                [place + 0.16 * (number - (len(heats) - 1) / 2)],
                [found.value],
                yerr=bars([found]),
                fmt=_MARKS[heat],
                markersize=6,
                capsize=3,
                color=_COLOURS[item.way],
                markerfacecolor=_COLOURS[item.way] if heat == HOT else "white",
            )
        axes.plot(
            [],
            [],
            _MARKS[heat],
            color="black",
            label=f"T = {heat:g}",
            markerfacecolor="black" if heat == HOT else "white",
        )
    axes.set_xticks(
        range(len(shapes)), [f"{LABELS[item.way]}\n{item.size}" for item in shapes], fontsize=8
    )
    axes.set_xlim(-0.5, len(shapes) - 0.5)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))  # room for the legend
    axes.grid(alpha=0.3, axis="y")
