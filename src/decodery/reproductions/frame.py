"""The frame of reproductions: claims as data, a run that measures them, a verdict for each.

A reproduction measures cells: for each quantity and setting an array [items, seeds]. A claim is one
or several checks; a check is a statistic of cell means and the bound it must lie beyond. Its 95 %
interval comes from a bootstrap that resamples items, and seeds within each item, in the same way
for every setting, so differences between settings are paired. A check holds when its whole interval
lies beyond the bound; a claim is `confirmed` when all its checks hold, and otherwise
`not confirmed`, which means "not shown here", not "shown to be false". As all checks of a claim
must hold, no correction for their number is needed.

Efron: Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics 7 (1979).
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from decodery.core import registry
from decodery.core.errors import MissingPackageError, ParameterError, UnknownNameError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
Mode = Literal["quick", "full"]
Verdict = Literal["confirmed", "not confirmed"]
Key = tuple[str, Hashable]  # quantity and setting
Means = Mapping[Key, Array]  # one mean a cell, or one for each bootstrap replicate
Progress = Callable[[int, int], None]  # done, total

BOTH_MODES: tuple[Mode, ...] = ("quick", "full")
REPLICATES = 4000
LEVEL = 0.95
DPI = 150
SEED_LIMIT = 2**32
_PACKAGE = "decodery.reproductions"
_BOOTSTRAP_SEED = 0


# -- what a reproduction declares ---------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A statistic of cell means and where its whole interval must lie: above, below, or between.

    `statistic` works elementwise: it is given means [] and again means [replicates].
    """

    quantity: str
    statistic: Callable[[Means], Array]
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if self.above is None and self.below is None:
            raise ParameterError(f"the check {self.quantity!r} has no bound; give above or below")

    @property
    def bounds(self) -> str:
        """The bounds in words, such as 'above 0'."""
        low = None if self.above is None else f"above {self.above:g}"
        high = None if self.below is None else f"below {self.below:g}"
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True)
class Claim:
    """What a paper says, what would show it here in words, and the checks that decide."""

    id: str
    claim: str
    expected: str
    checks: tuple[Check, ...]
    modes: tuple[Mode, ...] = BOTH_MODES


@dataclass(frozen=True)
class Measurements:
    """What a run measured: `cells[quantity][setting]` is an array [items, seeds].

    All settings of a quantity share their items and seeds. `facts` is anything else a reader needs.
    """

    model: str
    seeds: tuple[int, ...]
    cells: Mapping[str, Mapping[Any, Array]]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Reproduction:
    """A method's reproduction: its claims, how to measure them and how to draw what was measured.

    `measure(mode, seed, progress)` runs the experiment; `draw(figure, result)` fills a figure of
    `size` inches. `columns` are the quantities that the table in the terminal shows.
    """

    method: str
    title: str
    claims: tuple[Claim, ...]
    measure: Callable[[Mode, int, Progress], Measurements]
    draw: Callable[[Figure, Result], None]
    columns: tuple[str, ...]
    size: tuple[float, float] = (11.0, 4.5)


# -- what comes out -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap standard error and its 95 % percentile interval."""

    value: float
    standard_error: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def to_dict(self) -> dict[str, float]:
        return {
            "estimate": self.value,
            "standard_error": self.standard_error,
            "low": self.low,
            "high": self.high,
        }


@dataclass(frozen=True)
class Finding:
    """A check with the number that was measured for it."""

    check: Check
    estimate: Estimate

    @property
    def holds(self) -> bool:
        """Whether the whole interval lies beyond the bounds."""
        above, below = self.check.above, self.check.below
        return (above is None or self.estimate.low > above) and (
            below is None or self.estimate.high < below
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "quantity": self.check.quantity,
            **self.estimate.to_dict(),
            "above": self.check.above,
            "below": self.check.below,
            "holds": self.holds,
        }


@dataclass(frozen=True)
class Outcome:
    """A claim and what was found."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        return "confirmed" if all(item.holds for item in self.findings) else "not confirmed"

    @property
    def measured(self) -> str:
        """All numbers in words."""
        return "; ".join(f"{item.check.quantity}: {item.estimate}" for item in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.claim.id,
            "claim": self.claim.claim,
            "expected": self.claim.expected,
            "measured": self.measured,
            "verdict": self.verdict,
            "checks": [item.to_dict() for item in self.findings],
        }


@dataclass(frozen=True)
class Result:
    """A finished reproduction."""

    reproduction: Reproduction
    mode: Mode
    measurements: Measurements
    table: Mapping[Key, Estimate]
    outcomes: tuple[Outcome, ...]
    seconds: float
    figure: Path

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "method": self.reproduction.method,
            "title": self.reproduction.title,
            "mode": self.mode,
            "model": self.measurements.model,
            "seconds": round(self.seconds, 2),
            "seeds": list(self.measurements.seeds),
            "claims": [outcome.to_dict() for outcome in self.outcomes],
            "table": [
                {"setting": str(setting), "quantity": quantity, **estimate.to_dict()}
                for (quantity, setting), estimate in self.table.items()
            ],
            "facts": dict(self.measurements.facts),
            "figure": str(self.figure),
        }


# -- finding ------------------------------------------------------------------------------------


def find(name: str) -> Reproduction:
    """The reproduction of a method; `UnknownNameError` names the nearest, or all there are."""
    found = _load(name) if name.isidentifier() else None
    if found is not None:
        return found
    known = reproducible()
    if name in registry.methods():
        raise UnknownNameError(
            f"the method {name!r} ships no reproduction; those that do: {', '.join(known)}"
        )
    raise UnknownNameError(f"there is no reproduction {name!r}; {nearest(name, known)}")


def reproducible() -> list[str]:
    """The methods that ship a reproduction."""
    package = importlib.import_module(_PACKAGE)
    names = (info.name for info in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in names if _load(name) is not None)


def _load(name: str) -> Reproduction | None:
    try:
        module = importlib.import_module(f"{_PACKAGE}.{name}")
    except ModuleNotFoundError as error:
        if error.name == f"{_PACKAGE}.{name}":
            return None
        raise
    found = getattr(module, "REPRODUCTION", None)
    return found if isinstance(found, Reproduction) else None


# -- running ------------------------------------------------------------------------------------


def reproduce(
    name: str,
    mode: Mode = "quick",
    *,
    seed: int = 0,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measure a method's claims; write results.json and figure.png into `out`.

    `seed` is the first of the run's seeds, below 2**32. `out` is by default
    ./reproductions/NAME-MODE. What could stop the run late (an unknown name, no matplotlib, a
    folder that cannot be written) is refused before anything is measured.
    """
    reproduction = find(name)
    if not 0 <= seed < SEED_LIMIT:
        raise ParameterError(f"seed is {seed}; allowed is a whole number in 0..{SEED_LIMIT - 1}")
    _figure_class()
    folder = _writable(out or Path("reproductions") / f"{name}-{mode}")
    started = time.perf_counter()
    measurements = reproduction.measure(mode, seed, progress or _silent)
    means, resampled = cell_means(measurements), bootstrap(measurements)
    result = Result(
        reproduction=reproduction,
        mode=mode,
        measurements=measurements,
        table={key: estimate(means[key], resampled[key]) for key in means},
        outcomes=tuple(
            judge(claim, means, resampled) for claim in reproduction.claims if mode in claim.modes
        ),
        seconds=time.perf_counter() - started,
        figure=folder / "figure.png",
    )
    _save(result, folder)
    return result


def _silent(_done: int, _total: int) -> None:
    return


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError(
            "the figure needs matplotlib, which is not installed; pip install 'decodery[reproduce]'"
        ) from None
    return Figure


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ParameterError(f"the folder {folder} cannot be written: {error.strerror}") from None
    return folder


def _save(result: Result, folder: Path) -> None:
    # A `Figure` made by itself, not through pyplot, draws with Agg and needs no display.
    figure = _figure_class()(figsize=result.reproduction.size, layout="constrained")
    result.reproduction.draw(figure, result)
    figure.savefig(result.figure, dpi=DPI)
    text = json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False, indent=2)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")


# -- statistics ---------------------------------------------------------------------------------


def cell_means(measurements: Measurements) -> dict[Key, Array]:
    """The mean of every cell over items and seeds."""
    return {
        (quantity, setting): np.asarray(values.mean())
        for quantity, settings in measurements.cells.items()
        for setting, values in settings.items()
    }


def bootstrap(measurements: Measurements, replicates: int = REPLICATES) -> dict[Key, Array]:
    """Means [replicates] of every cell, resampling items and seeds within each item.

    All settings of a quantity use the same indices; quantities of equal shape do too, so that those
    measured on the same items stay paired.
    """
    means: dict[Key, Array] = {}
    for quantity, settings in measurements.cells.items():
        shapes = {values.shape for values in settings.values()}
        if len(shapes) != 1:
            raise ParameterError(f"the settings of {quantity!r} have different shapes: {shapes}")
        count, draws = shapes.pop()
        if count == 0 or draws == 0:
            raise ParameterError(f"nothing was measured of {quantity!r}: no items or no seeds")
        items, seeds = _indices(count, draws, replicates)
        for setting, values in settings.items():
            means[quantity, setting] = values[items, seeds].mean(axis=(1, 2))
    return means


def _indices(
    items: int, seeds: int, replicates: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Item indices [replicates, items, 1] and seed indices [replicates, items, seeds]."""
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    return (
        generator.integers(items, size=(replicates, items, 1)),
        generator.integers(seeds, size=(replicates, items, seeds)),
    )


def estimate(value: Array, replicates: Array) -> Estimate:
    """A value with the spread of its bootstrap replicates."""
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(replicates.std()), float(low), float(high))


def judge(claim: Claim, means: Means, resampled: Means) -> Outcome:
    """Measure every check of a claim."""
    return Outcome(
        claim,
        tuple(
            Finding(check, estimate(check.statistic(means), check.statistic(resampled)))
            for check in claim.checks
        ),
    )


def pivot(result: Result) -> tuple[list[str], list[tuple[str, list[Estimate | None]]]]:
    """The table as people read it: the quantities, and for each setting its estimates."""
    quantities = [name for name in result.reproduction.columns if name in result.measurements.cells]
    settings = dict.fromkeys(setting for name, setting in result.table if name in quantities)
    rows = [
        (str(setting), [result.table.get((quantity, setting)) for quantity in quantities])
        for setting in settings
    ]
    return quantities, rows
