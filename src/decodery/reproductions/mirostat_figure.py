"""The figure of the mirostat reproduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decodery.reproductions.frame import Result
from decodery.reproductions.mirostat_settings import (
    NARROW,
    OWN,
    TARGETS,
    TOP_K,
    TOP_P,
    Name,
    Setting,
    settings,
)
from decodery.reproductions.plotting import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS: dict[Name, str] = {
    "top_k": "tab:green",
    "top_p": "tab:red",
    "v1": "tab:cyan",
    "v2": "tab:blue",
    "truncated": "tab:orange",
}
_NAMES: dict[Name, str] = {
    "top_k": "top-k",
    "top_p": "top-p",
    "v1": "mirostat 1",
    "v2": "mirostat 2",
    "truncated": "mirostat 2, truncated surprise",
}
# What the first panel follows along the text, and how each line looks.
_FOLLOWED: tuple[tuple[Setting, str], ...] = (
    (NARROW, "-"),
    (TOP_K[-1], "--"),
    (TOP_P[0], ":"),
    (OWN, "-"),
    *zip(settings("v2", TARGETS), ("--", "-"), strict=True),
)


def draw(figure: Figure, result: Result) -> None:
    """Surprise along the text, against the target, over k and p, and against repetition."""
    panels: list[Any] = list(figure.subplots(1, 4))
    _draw_windows(panels[0], result)
    _draw_targets(panels[1], result)
    _draw_strengths(panels[2], result)
    _draw_repetition(panels[3], result)
    for axes in panels:
        axes.grid(alpha=0.3)
    seeds = len(result.measurements.seeds)
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode},"
        f" {seeds} {'seed' if seeds == 1 else 'seeds'}, 95 % bootstrap intervals"
    )


def _draw_windows(axes: Axes, result: Result) -> None:
    width = result.measurements.facts["tokens of a window"]
    count = result.measurements.facts["tokens of a text"] // width
    highest = 0.0
    for setting, style in _FOLLOWED:
        estimates = [result.table[f"window {number}", setting] for number in range(count)]
        places = [(number + 0.5) * width for number in range(count)]
        colour = _COLOURS[setting.name]
        axes.plot(
            places, [item.value for item in estimates], style, color=colour, label=str(setting)
        )
        axes.fill_between(
            places,
            [item.low for item in estimates],
            [item.high for item in estimates],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
        highest = max(highest, *(item.high for item in estimates))
    axes.set_ylim(0, 1.3 * highest)  # room for the legend
    axes.set_title("along the text")
    axes.set_xlabel("position, tokens")
    axes.set_ylabel("surprise under the model, bits")
    axes.legend(fontsize="x-small", ncols=2, loc="upper left")


def _draw_targets(axes: Axes, result: Result) -> None:
    names: tuple[Name, ...] = ("v1", "v2", "truncated")
    reached: list[float] = []
    for number, name in enumerate(names):
        chosen = _of(result, name)
        taus = [setting.strength for setting in chosen]
        reached += taus
        estimates = [result.table["surprise", setting] for setting in chosen]
        axes.errorbar(
            [tau + 0.04 * (number - 1) for tau in taus],
            [item.value for item in estimates],
            yerr=bars(estimates),
            fmt="o",
            markersize=5,
            capsize=3,
            color=_COLOURS[name],
            label=_NAMES[name],
        )
    ends = [min(reached) - 0.2, max(reached) + 0.2]
    axes.plot(ends, ends, color="black", linestyle="--", linewidth=1, label="target")
    own = result.table["surprise", OWN].value
    axes.axhline(own, color=_COLOURS["top_p"], linewidth=1, label="the model's own text")
    axes.set_title("mean surprise and target")
    axes.set_xlabel("tau, bits")
    axes.legend(fontsize="x-small")


def _draw_strengths(axes: Axes, result: Result) -> None:
    for family, scale, label in (
        (TOP_K, TOP_K[-1].strength, "top-k, k / 200"),
        (TOP_P, 1, "top-p, p"),
    ):
        estimates = [result.table["surprise", setting] for setting in family]
        axes.errorbar(
            [setting.strength / scale for setting in family],
            [item.value for item in estimates],
            yerr=bars(estimates),
            marker="o",
            markersize=4,
            capsize=3,
            color=_COLOURS[family[0].name],
            label=label,
        )
    axes.set_title("mean surprise and strength")
    axes.set_xlabel("strength of the truncation")
    axes.legend(fontsize="x-small")


def _draw_repetition(axes: Axes, result: Result) -> None:
    for name in _COLOURS:
        chosen = _of(result, name)
        axes.scatter(
            [result.table["surprise", setting].value for setting in chosen],
            [result.table["repetition", setting].value for setting in chosen],
            color=_COLOURS[name],
            s=24,
            label=_NAMES[name],
        )
    axes.set_title("repetition, mean of n = 1 to 10")
    axes.set_xlabel("mean surprise, bits")
    axes.set_ylabel("share of n-grams seen before")
    axes.legend(fontsize="x-small")


def _of(result: Result, name: Name) -> list[Setting]:
    """All settings of one name that were measured, by strength."""
    measured = result.measurements.cells["surprise"]
    chosen: list[Setting] = [setting for setting in measured if setting.name == name]
    return sorted(chosen, key=lambda setting: setting.strength)
