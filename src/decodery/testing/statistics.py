"""Pearson's chi-square test of counts against an exact law, cells merged where they are thin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from decodery.core.errors import MissingPackageError
from decodery.testing.observe import require

THIN = 5.0  # a cell expected less often than this is merged with others


class ChiSquare(NamedTuple):
    """The statistic, its degrees of freedom, and the chance of one at least as large."""

    statistic: float
    degrees: int
    p_value: float


def chi_square(counts: Mapping[Any, int], law: Mapping[Any, float]) -> ChiSquare:
    """Test `counts` of outcomes against `law`, their probabilities.

    Outcomes expected fewer than 5 times are merged, rarest first, until each cell has 5. An
    outcome that the law does not allow is a certain rejection (p_value 0).

    >>> chi_square({"a": 48, "b": 52}, {"a": 0.5, "b": 0.5}).degrees
    1
    """
    total = sum(counts.values())
    if any(law.get(outcome, 0.0) <= 0.0 for outcome, seen in counts.items() if seen):
        return ChiSquare(float("inf"), max(1, len(law) - 1), 0.0)
    cells = _merged(counts, law, total)
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    degrees = len(cells) - 1
    return ChiSquare(statistic, degrees, _tail(statistic, degrees) if degrees else 1.0)


def _merged(
    counts: Mapping[Any, int], law: Mapping[Any, float], total: int
) -> list[tuple[float, float]]:
    """(seen, expected) of each cell, none thin unless it is the only one."""
    cells: list[tuple[float, float]] = []
    seen = expected = 0.0
    for outcome in sorted(law, key=lambda outcome: law[outcome]):
        seen += counts.get(outcome, 0)
        expected += law[outcome] * total
        if expected >= THIN:
            cells.append((seen, expected))
            seen = expected = 0.0
    if expected > 0 and cells:
        last = cells.pop()
        cells.append((last[0] + seen, last[1] + expected))
    return cells or [(seen, expected)]


def _tail(statistic: float, degrees: int) -> float:
    try:
        from scipy.special import chdtrc
    except ImportError:
        raise MissingPackageError(
            "the statistics of decodery.testing need scipy: pip install 'decodery[testing]'"
        ) from None
    return float(chdtrc(degrees, statistic))


def require_law(
    counts: Mapping[Any, int], law: Mapping[Any, float], alpha: float, name: str
) -> ChiSquare:
    """Raise `LawBroken` when the counts would be this far from the law with chance below alpha."""
    test = chi_square(counts, law)
    require(
        test.p_value >= alpha,
        f"{name} does not follow its law: chi-square {test.statistic:.1f} at {test.degrees}"
        f" degrees of freedom, p = {test.p_value:.1e} < {alpha:g}, N = {sum(counts.values())}",
    )
    return test
