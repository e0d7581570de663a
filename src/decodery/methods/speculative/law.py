"""Laws of the next token as probabilities, and what speculative decoding does with them.

A `Law` is a vector of probabilities over all tokens or over the ids that a truncation left. The
target's law is written p, the draft's q. Everything here is float64 and makes new laws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from decodery.core.distribution import RESIDUAL_FLOOR, inverse_cdf
from decodery.core.row import Ids, Row

Masses = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """Probabilities `masses` [n] of the tokens `ids` [n] (ascending), or of all tokens without ids.

    `size` is the size of the vocabulary.
    """

    masses: Masses
    size: int
    ids: Ids | None = None

    @classmethod
    def of(cls, row: Row) -> Law:
        """The law that a row stands for."""
        return cls(row.probabilities(), row.vocab_size, row.ids)

    @classmethod
    def dense(cls, masses: npt.ArrayLike) -> Law:
        """A law of all tokens from probabilities [size], which need not be normalised."""
        array = np.asarray(masses, dtype=np.float64)
        return cls(array / array.sum(), array.size)

    @classmethod
    def certain(cls, token: int, size: int) -> Law:
        """The law of one token."""
        return cls(np.ones(1), size, np.array([token], dtype=np.intp))

    def __getitem__(self, token: int) -> float:
        """The probability of a token; 0 where it was dropped."""
        if self.ids is None:
            return float(self.masses[token])
        place = int(np.searchsorted(self.ids, token))
        inside = place < self.ids.size and self.ids[place] == token
        return float(self.masses[place]) if inside else 0.0

    def over(self, other: Law) -> Masses:
        """The probabilities [n] of the tokens that another law has masses of."""
        return self.whole() if other.ids is None else self._at(other.ids)

    def whole(self) -> Masses:
        """The probabilities of all tokens [size]."""
        if self.ids is None:
            return self.masses
        found = np.zeros(self.size)
        found[self.ids] = self.masses
        return found

    def _at(self, ids: Ids) -> Masses:
        if self.ids is None:
            return self.masses[ids]
        found = np.zeros(ids.size)
        places = np.minimum(np.searchsorted(self.ids, ids), self.ids.size - 1)
        present = self.ids[places] == ids
        found[present] = self.masses[places[present]]
        return found

    def argmax(self) -> int:
        """The most probable token; of tied ones, the lowest id."""
        return self._token(int(self.masses.argmax()))

    def top(self, count: int) -> list[int]:
        """The `count` most probable tokens with any probability, best first, lowest ids of ties."""
        count = min(count, int(np.count_nonzero(self.masses)))
        if count == 0:
            return []
        floor = np.partition(self.masses, -count)[-count]
        places = np.flatnonzero(self.masses >= floor)
        order = places[np.argsort(-self.masses[places], kind="stable")][:count]
        return [self._token(int(place)) for place in order]

    def draw(self, uniform: float) -> int:
        """The token that `uniform` in [0, 1) draws."""
        return self._token(inverse_cdf(self.masses, uniform))

    def _token(self, place: int) -> int:
        return place if self.ids is None else int(self.ids[place])

    # -- new laws --------------------------------------------------------------------------------

    def less(self, masses: Masses) -> Law:
        """norm((p - masses)_+), for masses [n] of this law's own tokens.

        Where nothing but rounding is left a rejection has no probability, and the law itself is
        the answer: 0/0 never reaches a draw.
        """
        left = np.maximum(self.masses - masses, 0.0)
        total = float(left.sum())
        return self if total <= RESIDUAL_FLOOR else Law(left / total, self.size, self.ids)

    def residual(self, draft: Law, share: float = 1.0) -> Law:
        """norm((p - share q)_+): the law of the token after a rejection."""
        own = draft.over(self)
        return self.less(own if share == 1.0 else share * own)

    def without(self, *tokens: int) -> Law | None:
        """This law given that none of `tokens` comes; None where no other has a probability."""
        left = self.masses.copy()
        left[self._places(tokens)] = 0.0
        total = float(left.sum())
        return Law(left / total, self.size, self.ids) if total > 0.0 else None

    def _places(self, tokens: tuple[int, ...]) -> Ids:
        wanted = np.array(tokens, dtype=np.intp)
        if self.ids is None:
            return wanted
        places = np.minimum(np.searchsorted(self.ids, wanted), self.ids.size - 1)
        return places[self.ids[places] == wanted]


def ratio(target: float, draft: float) -> float:
    """min(1, p / q), the chance that a token drawn from q is accepted; 0 where p is 0."""
    if target <= 0.0:
        return 0.0
    return 1.0 if target >= draft else target / draft


def overlap(target: Law, draft: Law, share: float = 1.0) -> float:
    """sum_x min(share q(x), p(x)): with share 1, the acceptance of one draft, 1 - TV(p, q)."""
    own = draft.over(target)
    return float(np.minimum(target.masses, share * own).sum())
