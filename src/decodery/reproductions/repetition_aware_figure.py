"""The figure of the repetition-aware reproduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decodery.reproductions.frame import Estimate, Result
from decodery.reproductions.repetition_aware_measure import GREEDY, B, Rule, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES: tuple[tuple[Rule | None, str, str], ...] = (
    (None, "no RAS", "tab:red"),
    (B, "RAS B, K=10", "tab:blue"),
)


def draw(figure: Figure, result: Result) -> None:
    """Loops, variety and sureness over v, with and without RAS; other rules as points at v = 0."""
    panels: list[Any] = list(figure.subplots(1, 3))
    titles = {
        "loops": "share of texts that end in a loop",
        "distinct-3": "distinct-3",
        "log-prob": "log-probability, nats a token",
    }
    for axes, (quantity, title) in zip(panels, titles.items(), strict=True):
        _draw_quantity(axes, result, quantity)
        axes.set_title(title)
        axes.set_xlabel("v, mass of the nucleus")
        axes.grid(alpha=0.3)
    panels[0].set_ylim(-0.03, 1.03)
    panels[0].legend(fontsize="small")
    openings = result.measurements.cells["loops"][GREEDY].shape[0]
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode},"
        f" {openings} openings, 95 % bootstrap intervals"
    )


def _draw_quantity(axes: Axes, result: Result, quantity: str) -> None:
    cells: dict[Setting, Estimate] = {
        setting: estimate
        for (name, setting), estimate in result.table.items()
        if name == quantity and isinstance(setting, Setting)
    }
    for rule, label, colour in _LINES:
        line = sorted((item for item in cells if item.rule == rule), key=lambda item: item.top_p)
        _points(axes, [(item.top_p, cells[item]) for item in line], label, colour, "o-")
    others = [item for item in cells if item.rule not in (None, B)]
    for number, item in enumerate(others, 1):
        assert item.rule is not None
        place = item.top_p + 0.03 * number  # apart, so that their intervals can be seen
        _points(axes, [(place, cells[item])], f"RAS {item.rule.name}", f"C{number + 3}", "s")


def _points(
    axes: Axes, points: list[tuple[float, Estimate]], label: str, colour: str, style: str
) -> None:
    estimates = [estimate for _, estimate in points]
    axes.errorbar(
        [place for place, _ in points],
        [item.value for item in estimates],
        yerr=[
            [max(item.value - item.low, 0.0) for item in estimates],
            [max(item.high - item.value, 0.0) for item in estimates],
        ],
        fmt=style,
        label=label,
        color=colour,
        markersize=4,
        capsize=3,
    )
