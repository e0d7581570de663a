"""What a forward of so many rows costs on this machine, in forwards of one row, as it is measured.

A model keeps one `StepCosts`; the runner notes every forward in it that evaluated only single
tokens. Before there are measurements a prior stands: a forward of one row reads all weights, and
each further row adds arithmetic.
"""

from __future__ import annotations

from collections import deque
from statistics import median

MOST_ROWS = 64  # forwards of more say nothing
PRIOR_SLOPE = 0.18  # of a forward of one row, for each further row
PRIOR_WEIGHT = 4  # measurements that the prior counts for
RECENT = 9  # forwards of one row whose median is the unit
REMEMBERED = 41  # measured slopes whose median is the common one
OWN = 15  # measured slopes of a number of rows that are remembered
SHRINK = 12  # rows measured beyond the first at which a number of rows believes its own slope half


class StepCosts:
    """Costs of forwards by rows: 1 + slope (rows - 1), a slope that hardly depends on the rows.

    A forward of one row is the unit, taken as the median of the latest ones; others are measured
    against the unit of that moment, so that a busy machine slows both sides. Single measurements
    are noisy, so slopes are medians: one of all measurements, from which a number of rows departs
    as far as it has measurements of its own; the slope of many rows needs few to be known.

    >>> costs = StepCosts()
    >>> for _ in range(100):
    ...     costs.note(1, 0.010)
    ...     costs.note(5, 0.016)
    >>> round(costs.of(1), 2), round(costs.of(3), 2), round(costs.of(5), 2)
    (1.0, 1.3, 1.6)
    """

    def __init__(self) -> None:
        self.rows = 0  # of the last forward
        self.seconds = 0.0  # of the last forward
        self._units: deque[float] = deque(maxlen=RECENT)
        self._slopes: deque[float] = deque([PRIOR_SLOPE] * PRIOR_WEIGHT, maxlen=REMEMBERED)
        self._own: dict[int, deque[float]] = {}
        self._known: list[float] = []  # [rows]: the answers, until something new is noted

    @property
    def unit(self) -> float | None:
        """Seconds of a forward of one row; None before one was measured."""
        return median(self._units) if self._units else None

    def note(self, rows: int, seconds: float) -> None:
        """A forward of so many rows took so long."""
        self.rows, self.seconds = rows, seconds
        if rows == 1:
            self._units.append(seconds)
        elif self._units and rows <= MOST_ROWS:
            slope = max(0.0, seconds / median(self._units) - 1.0) / (rows - 1)
            self._slopes.append(slope)
            self._own.setdefault(rows, deque(maxlen=OWN)).append(slope)
            self._known.clear()

    def of(self, rows: int) -> float:
        """The cost of a forward of so many rows; never falling with the rows."""
        if rows <= 1:
            return 1.0
        if not self._known:
            self._known = [1.0, 1.0]
            self._common = median(self._slopes)
        while len(self._known) <= rows:
            self._known.append(max(self._known[-1], self._estimate(len(self._known))))
        return self._known[rows]

    def _estimate(self, rows: int) -> float:
        slope, own = self._common, self._own.get(rows)
        if own:
            measured = len(own) * (rows - 1)
            slope += (median(own) - slope) * measured / (measured + SHRINK)
        return 1.0 + slope * (rows - 1)
