"""The figure of the reproduction of `multi_sample`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decodery.reproductions.frame import Estimate, Result
from decodery.reproductions.multi_sample_measure import Setting
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = {
    "default": ("tab:blue", "default: a tree of 16"),
    "paper": ("tab:green", "paper: a path"),
}
_ONE = "tab:purple"


def draw(figure: Figure, result: Result) -> None:
    """Tokens a step over samples; the same over what it costs; acceptance over samples."""
    panels: list[Any] = list(figure.subplots(1, 3))
    _over_samples(panels[0], result, "tokens per step")
    panels[0].axhline(1.0, color="black", linewidth=1, linestyle=":", label="no drafts")
    _over_cost(panels[1], result)
    _over_samples(panels[2], result, "acceptance")
    panels[2].set_title("accepted share of drafted tokens")
    for axes in panels:
        axes.grid(alpha=0.3)
    for axes in (panels[0], panels[2]):
        axes.legend(fontsize="x-small")
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode},"
        " 95 % bootstrap intervals",
        fontsize="medium",
    )


def _settings(result: Result) -> list[Setting]:
    return list(result.measurements.cells["tokens per step"])


def _over_samples(axes: Axes, result: Result, quantity: str) -> None:
    counts = sorted({item.n for item in _settings(result)})
    for name, (colour, label) in _LINES.items():
        chosen = [item for item in _settings(result) if item.name == name]
        estimates = [result.table[quantity, item] for item in chosen]
        axes.errorbar(
            [item.n for item in chosen],
            [item.value for item in estimates],
            yerr=bars(estimates),
            fmt="o-",
            markersize=4,
            capsize=3,
            color=colour,
            label=label,
        )
    for item in _settings(result):
        if item.name == "one match":
            _point(axes, item.n, result.table[quantity, item], _ONE, "a path, one match")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("samples (1: the prompt and itself alone)")
    axes.set_title(f"{quantity} of a sample")


def _over_cost(axes: Axes, result: Result) -> None:
    """Settings of the largest number of samples."""
    most = max(item.n for item in _settings(result))
    for item in _settings(result):
        if item.n != most:
            continue
        place = result.table["nodes per step", item].value
        colour = _LINES[item.name][0] if item.name in _LINES else "tab:cyan"
        colour = _ONE if item.name == "one match" else colour
        estimate = result.table["tokens per step", item]
        _point(axes, place, estimate, colour, item.name)
        axes.annotate(
            item.name,
            (place, estimate.value),
            xytext=(5, 5 if item.name == "paper" else -9),
            textcoords="offset points",
            fontsize="x-small",
        )
    axes.set_xlabel("drafted tokens a step")
    axes.set_ylabel("tokens per step")
    axes.set_title(f"gain and cost, {most} samples")
    axes.margins(x=0.2)


def _point(axes: Axes, place: float, estimate: Estimate, colour: str, label: str) -> None:
    axes.errorbar(
        [place],
        [estimate.value],
        yerr=bars([estimate]),
        fmt="s",
        markersize=4,
        capsize=3,
        color=colour,
        label=label,
    )
