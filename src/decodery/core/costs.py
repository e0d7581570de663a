"""What a forward of so many rows costs on this machine, in forwards of one row, as it is measured.

A model keeps one `StepCosts`; the runner notes every forward in it that evaluated only single
tokens. Before there are measurements a prior stands: a forward of one row reads all weights, and
each further row adds arithmetic.
"""

from __future__ import annotations

from collections import deque
from statistics import median

MOST_ROWS = 64  # beyond, a forward is arithmetic alone, and the last step's slope goes on
PRIOR_SLOPE = 0.2  # of a forward of one row, for each further row
RATE = 0.15  # how far one measurement moves an estimate
RECENT = 9  # forwards of one row whose median is the unit
OUTLIER = 2.0  # a measurement so many times off moves the estimate as this many times off does


class StepCosts:
    """Costs of forwards by rows.

    A forward of one row is the unit, taken as the median of the latest ones; others are measured
    against the unit of that moment, so that a busy machine slows both sides. Where two numbers of
    rows have been measured, those between them lie on a line.

    >>> costs = StepCosts()
    >>> for _ in range(100):
    ...     costs.note(1, 0.010)
    ...     costs.note(5, 0.015)
    >>> round(costs.of(1), 2), round(costs.of(3), 2), round(costs.of(5), 2)
    (1.0, 1.25, 1.5)
    """

    def __init__(self) -> None:
        self.rows = 0  # of the last forward
        self.seconds = 0.0  # of the last forward
        self._units: deque[float] = deque(maxlen=RECENT)
        self._measured: dict[int, float] = {}
        self._known: list[float] = []  # [rows]: the answer, until something new is noted

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
            before = self._measured.get(rows) or self._estimate(rows)
            seen = seconds / median(self._units)
            seen = min(max(seen, before / OUTLIER), before * OUTLIER)
            self._measured[rows] = before + RATE * (seen - before)
            self._known.clear()

    def of(self, rows: int) -> float:
        """The cost of a forward of so many rows; never falling with the rows."""
        if rows <= 1:
            return 1.0
        if not self._known:
            self._known = [1.0, 1.0]
        while len(self._known) <= rows:
            self._known.append(max(self._known[-1], self._estimate(len(self._known))))
        return self._known[rows]

    def _estimate(self, rows: int) -> float:
        """On the line between the nearest measured numbers of rows, or on from the last one."""
        below = max((number for number in self._measured if number <= rows), default=1)
        low = self._measured.get(below, 1.0)
        if below == rows:
            return low
        above = min((number for number in self._measured if number > rows), default=0)
        if above:
            return low + (self._measured[above] - low) * (rows - below) / (above - below)
        slope = (low - 1.0) / (below - 1) if below > 1 else PRIOR_SLOPE
        return low + max(slope, PRIOR_SLOPE) * (rows - below)
