"""The figure of the reproduction of integrative decoding: gains over greedy decoding, over K."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decodery.reproductions.frame import Estimate, Result, bootstrap, cell_means, estimate
from decodery.reproductions.integrative_measure import GREEDY, Setting
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"sample": "tab:orange", "chosen": "tab:green"}
Gains = dict[Setting, Estimate]


def draw(figure: Figure, result: Result) -> None:
    """Accuracy on the left, agreement with the drawn answers on the right, both less greedy's."""
    panels = figure.subplots(1, 2)
    for axes, quantity in zip(panels, ("accuracy", "agreement"), strict=True):
        _draw(axes, gains(result, quantity), quantity)
    panels[0].legend(fontsize="small")
    count = len(result.measurements.seeds)
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode}, {count}"
        f" seed{'s' if count > 1 else ''}, 95 % bootstrap intervals over questions"
    )


def gains(result: Result, quantity: str) -> Gains:
    """What every setting has more than greedy decoding, paired by question."""
    means, resampled = cell_means(result.measurements), bootstrap(result.measurements)
    rival = quantity, GREEDY
    return {
        item: estimate(means[name, item] - means[rival], resampled[name, item] - resampled[rival])
        for name, item in means
        if name == quantity and isinstance(item, Setting) and item != GREEDY
    }


def _draw(axes: Axes, found: Gains, quantity: str) -> None:
    fused = sorted((item for item in found if item.way == "fused"), key=lambda it: it.answers)
    counts = [item.answers for item in fused]
    estimates = [found[item] for item in fused]
    axes.axhline(0, color="black", label="greedy")
    axes.errorbar(
        counts,
        [item.value for item in estimates],
        yerr=bars(estimates),
        label="fused",
        color="tab:blue",
        marker="o",
        capsize=3,
    )
    for item, gain in found.items():
        if item.way != "fused":
            colour = _COLOURS[item.way]
            axes.axhline(gain.value, color=colour, linestyle="--", label=str(item))
            axes.axhspan(gain.low, gain.high, color=colour, alpha=0.12)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("answers fused, K")
    axes.set_ylabel(f"{quantity} less that of greedy decoding")
    axes.grid(alpha=0.3)
