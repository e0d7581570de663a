"""The figure of the min-p reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decodery.reproductions.frame import Result
from decodery.reproductions.min_p_settings import (
    CHANCE,
    MIN_P,
    OWN,
    STRENGTHS,
    TEMPERATURES,
    TOP_K,
    TOP_P,
    Setting,
    Truncation,
    family,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NONE: Truncation = ("none", 0.0)
_COLOURS = {"none": "0.45", "top_p": "tab:red", "min_p": "tab:blue", "top_k": "tab:green"}


def draw(figure: Figure, result: Result) -> None:
    """Accuracy in each order, coherence at T = 3, and in full mode accuracy over diversity."""
    panels: list[Any] = list(figure.subplots(1, 3 if result.mode == "quick" else 4))
    _draw_accuracy(panels[0], result, last=False)
    _draw_accuracy(panels[1], result, last=True)
    panels[1].sharey(panels[0])
    _draw_coherence(panels[2], result)
    if result.mode == "full":
        _draw_diversity(panels[3], result)
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode},"
        f" {len(result.measurements.seeds)} seeds, 95 % bootstrap intervals"
    )


def _draw_accuracy(axes: Axes, result: Result, *, last: bool) -> None:
    for number, cut in enumerate((_NONE, TOP_P, MIN_P, TOP_K)):
        # Without truncation, and with top-k, both orders are the same.
        ordered = last and cut[0] in ("top_p", "min_p")
        settings = [Setting(heat, *cut, ordered) for heat in TEMPERATURES]
        _draw_line(axes, result, settings, shift=0.02 * number)
    axes.set_title(f"temperature {'last' if last else 'first'}")
    axes.set_xlabel("temperature")
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_line(axes: Axes, result: Result, settings: Sequence[Setting], *, shift: float) -> None:
    """One truncation; `shift` keeps the intervals of several apart."""
    estimates = [result.table["accuracy", setting] for setting in settings]
    axes.errorbar(
        [setting.temperature + shift for setting in settings],
        [item.value for item in estimates],
        yerr=_bars(estimates),
        label=settings[0].truncation,
        color=_COLOURS[settings[0].sampler],
        marker="o",
        markersize=4,
        capsize=3,
    )


def _bars(estimates: Sequence[Any]) -> list[list[float]]:
    """Distances from values to interval ends, as matplotlib wants them; never below zero."""
    return [
        [max(item.value - item.low, 0.0) for item in estimates],
        [max(item.high - item.value, 0.0) for item in estimates],
    ]


def _draw_coherence(axes: Axes, result: Result) -> None:
    settings = {
        "own text\nT=1": OWN,
        "min_p 0.1\nT=3": Setting(3.0, *MIN_P),
        "top_p 0.9\nT=3": Setting(3.0, *TOP_P),
        "uniform\nnoise": CHANCE,
    }
    estimates = [result.table["log-prob", setting] for setting in settings.values()]
    axes.bar(
        list(settings),
        [item.value for item in estimates],
        yerr=_bars(estimates),
        color=["0.45", _COLOURS["min_p"], _COLOURS["top_p"], "0.75"],
        capsize=3,
    )
    middle = (estimates[0].value + estimates[-1].value) / 2
    axes.axhline(middle, color="black", linestyle="--", linewidth=1, label="middle")
    axes.set_title("coherence, temperature first")
    axes.set_ylabel("log-probability, nats a token")
    axes.tick_params(axis="x", labelsize="small")
    axes.legend(fontsize="small", loc="lower left")


def _draw_diversity(axes: Axes, result: Result) -> None:
    for sampler in STRENGTHS:
        settings = family(sampler)
        axes.scatter(
            [result.table["distinct-2", setting].value for setting in settings],
            [result.table["accuracy", setting].value for setting in settings],
            color=_COLOURS[sampler],
            s=16,
            alpha=0.7,
            label=sampler,
        )
    own = result.table["distinct-2", OWN].value
    axes.axvline(own, color="black", linestyle="--", linewidth=1, label="own text, T=1")
    axes.set_title("every setting, both orders")
    axes.set_xlabel("distinct-2")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower left")
