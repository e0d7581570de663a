"""A row: what a source says of the next token, whole or truncated, as one type.

A row holds scores, that is log-probabilities up to a constant, over the vocabulary (`ids` is None)
or over the surviving token ids after truncation. Both carry the same mathematics, so a sampler
after a truncation works on tens of numbers where the model gave a hundred thousand. A token that
was dropped cannot come back: no operation adds ids.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from decodery.core import distribution
from decodery.core.errors import RowError

Scores = npt.NDArray[np.floating]
Ids = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_T = TypeVar("_T", bound=np.generic)


class Row:
    """Scores [n] (float32 or float64) over `ids` [n] (ascending), or over 0..n-1 when ids is None.

    -inf means impossible. NaN, plus infinity and a row without any possible token are refused with
    `RowError`. The arrays are read-only; operations return new rows.
    """

    __slots__ = ("_log_normaliser", "ids", "maximum", "scores", "vocab_size")

    def __init__(self, scores: Scores, vocab_size: int, ids: Ids | None = None) -> None:
        if scores.dtype not in _DTYPES:
            raise RowError(f"scores are {scores.dtype}; rows are float32 or float64")
        expected = vocab_size if ids is None else ids.size
        if scores.ndim != 1 or scores.size != expected:
            raise RowError(f"scores of shape {scores.shape} do not fit {expected} tokens")
        # One pass finds every fault: the maximum of a row with NaN is NaN.
        maximum = float(scores.max()) if scores.size else -np.inf
        if not np.isfinite(maximum):
            raise RowError(_fault(maximum))
        self.scores = _readonly(scores)
        self.ids = None if ids is None else _readonly(ids)
        self.vocab_size = vocab_size
        self.maximum = maximum
        self._log_normaliser: float | None = None

    @classmethod
    def dense(cls, scores: npt.ArrayLike) -> Row:
        """A whole row from scores [vocab_size]; integers and lists become float64."""
        array = np.asarray(scores)
        if array.dtype not in _DTYPES:
            array = array.astype(np.float64)
        return cls(array, array.size)

    @classmethod
    def of_probabilities(cls, probabilities: npt.ArrayLike) -> Row:
        """A whole row from probabilities [vocab_size], which need not be normalised."""
        with np.errstate(divide="ignore"):
            return cls.dense(np.log(np.asarray(probabilities, dtype=np.float64)))

    def __len__(self) -> int:
        return self.scores.size

    def __repr__(self) -> str:
        kind = "whole" if self.ids is None else "truncated"
        return f"Row({kind}, {len(self)} of {self.vocab_size} tokens)"

    # -- reading ---------------------------------------------------------------------------------

    @property
    def log_normaliser(self) -> float:
        """ln of the sum of exp(scores): scores minus this are log-probabilities."""
        if self._log_normaliser is None:
            self._log_normaliser = distribution.log_sum_exp(self.scores)
        return self._log_normaliser

    def token_ids(self) -> Ids:
        """The token ids [n] that the scores belong to."""
        return np.arange(self.vocab_size) if self.ids is None else self.ids

    def position(self, token: int) -> int | None:
        """Where `token` stands in `scores`, or None when it was dropped."""
        if self.ids is None:
            return token if 0 <= token < self.vocab_size else None
        index = int(np.searchsorted(self.ids, token))
        return index if index < self.ids.size and self.ids[index] == token else None

    def log_probability(self, token: int) -> float:
        """ln p(token), -inf when it is impossible here."""
        index = self.position(token)
        return -np.inf if index is None else float(self.scores[index]) - self.log_normaliser

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Normalised probabilities [n] of `token_ids()`."""
        return distribution.softmax(self.scores)

    def dense_probabilities(self) -> npt.NDArray[np.float64]:
        """Normalised probabilities over the whole vocabulary [vocab_size]."""
        if self.ids is None:
            return self.probabilities()
        whole = np.zeros(self.vocab_size)
        whole[self.ids] = self.probabilities()
        return whole

    def dense_scores(self) -> Scores:
        """Scores over the whole vocabulary [vocab_size], -inf for dropped tokens."""
        if self.ids is None:
            return self.scores
        whole = np.full(self.vocab_size, -np.inf, dtype=self.scores.dtype)
        whole[self.ids] = self.scores
        return whole

    def possible(self) -> int:
        """How many tokens have a probability above zero."""
        return int(np.count_nonzero(self.scores > -np.inf))

    def entropy(self) -> float:
        """Shannon entropy in nats."""
        return distribution.entropy(self.probabilities())

    def argmax(self) -> int:
        """The most probable token; of tied ones, the lowest id."""
        index = int(self.scores.argmax())
        return index if self.ids is None else int(self.ids[index])

    def draw(self, uniform: float) -> int:
        """The token that `uniform` in [0, 1) draws, by inverse CDF in the order of ids."""
        weights = self.scores - self.scores.dtype.type(self.maximum)
        np.exp(weights, out=weights)
        index = distribution.inverse_cdf(weights, uniform)
        return index if self.ids is None else int(self.ids[index])

    # -- making new rows -------------------------------------------------------------------------

    def keep(self, mask: Mask) -> Row:
        """Only the entries where `mask` [n] is true."""
        if mask.all():
            return self
        kept = np.flatnonzero(mask)
        ids = kept if self.ids is None else self.ids[kept]
        return Row(self.scores[kept], self.vocab_size, ids)

    def keep_at(self, positions: Ids) -> Row:
        """Only the entries at `positions` into `scores`, in any order, each once."""
        kept = np.sort(positions)
        ids = kept if self.ids is None else self.ids[kept]
        return Row(self.scores[kept], self.vocab_size, ids)

    def with_scores(self, scores: Scores) -> Row:
        """The same tokens with other scores [n]."""
        return Row(scores, self.vocab_size, self.ids)

    def adjusted(self, tokens: Ids, change: npt.ArrayLike) -> Row:
        """The same row with `change` added to the scores of `tokens`; dropped ones stay dropped."""
        positions, present = self.positions(tokens)
        scores = self.scores.copy()
        scores[positions] += np.broadcast_to(np.asarray(change), tokens.shape)[present].astype(
            scores.dtype
        )
        return self.with_scores(scores)

    def positions(self, tokens: Ids) -> tuple[Ids, Mask]:
        """Where distinct `tokens` [m] stand: positions of those present, and which are [m]."""
        if self.ids is None:
            present = (tokens >= 0) & (tokens < self.vocab_size)
            return tokens[present], present
        index = np.minimum(np.searchsorted(self.ids, tokens), self.ids.size - 1)
        present = self.ids[index] == tokens
        return index[present], present


def _readonly(array: npt.NDArray[_T]) -> npt.NDArray[_T]:
    view = array.view()
    view.flags.writeable = False
    return view


def _fault(maximum: float) -> str:
    if np.isnan(maximum):
        return "the row holds NaN"
    if maximum > 0:
        return "the row holds plus infinity"
    return "the row allows no token"
