"""Generated rows, and the comparison of a sampler with a processor of transformers.

10,048 rows over vocabularies of 1..64 tokens: smooth, tied, flat, peaked, with impossible tokens,
with one possible token. Every other row is given to the sampler truncated (ids and scores) while
the processor sees the same row with -inf. All scores are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from decodery.core.errors import RowError
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler

PER_SIZE = 157  # rows for each vocabulary size; 64 * 157 = 10,048
CLOSE = 1e-5  # nearer to a cut than this, float32 rounding decides in transformers


@dataclass(frozen=True)
class Batch:
    """Rows of one vocabulary size with one history length.

    `scores` is [rows, V] float32 with -inf for dropped tokens, `histories` [rows, length].
    """

    scores: np.ndarray
    rows: tuple[Row, ...]
    histories: np.ndarray
    prompt_length: int
    eos_ids: tuple[int, ...]
    number: int

    @property
    def vocab_size(self) -> int:
        return self.scores.shape[1]

    def context(self, index: int) -> Context:
        return Context(
            self.histories[index].tolist(), self.prompt_length, eos_ids=frozenset(self.eos_ids)
        )


Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Pair = Callable[[Batch], tuple[Sampler, Processor]]
Scores = npt.NDArray[np.float32]
Law = npt.NDArray[np.float64]
Compare = Callable[[Sampler, Scores, Scores, Scores], int]


@cache
def batches() -> tuple[Batch, ...]:
    """All generated batches, one for each vocabulary size."""
    generator = np.random.default_rng(20240701)
    return tuple(_batch(size, generator) for size in range(1, 65))


def _batch(size: int, generator: np.random.Generator) -> Batch:
    scores = np.stack([_scores(kind % 7, size, generator) for kind in range(PER_SIZE)])
    rows: list[Row] = []
    for index in range(PER_SIZE):
        if index % 2 == 0:
            rows.append(Row.dense(scores[index].copy()))
            continue
        alive = generator.random(size) < 0.6
        alive[generator.choice(np.flatnonzero(scores[index] > -np.inf))] = True
        scores[index, ~alive] = -np.inf
        ids = np.flatnonzero(alive)
        rows.append(Row(scores[index, ids], size, ids))
    length = int(generator.integers(2, 25))
    return Batch(
        scores=scores,
        rows=tuple(rows),
        histories=generator.integers(0, size, (PER_SIZE, length)),
        prompt_length=int(generator.integers(1, length)),
        eos_ids=tuple(sorted(set(generator.integers(0, size, 2).tolist()))),
        number=size,
    )


def _scores(kind: int, size: int, generator: np.random.Generator) -> np.ndarray:
    smooth = generator.normal(0.0, 3.0, size)
    if kind == 1:  # many ties
        smooth = np.round(smooth)
    if kind == 2:  # all tied
        smooth = np.full(size, smooth[0])
    if kind == 3:  # peaked
        smooth = 8.0 * smooth
    if kind in (4, 5):  # impossible tokens, smooth or tied
        smooth = np.round(smooth) if kind == 5 else smooth
        smooth[generator.permutation(size)[: generator.integers(0, size)]] = -np.inf
    if kind == 6:  # one possible token
        hot = generator.integers(0, size)
        smooth = np.where(np.arange(size) == hot, smooth, -np.inf)
    return smooth.astype(np.float32)


def compare_all(pair: Pair, compare: Compare) -> int:
    """Hold a sampler against a processor on every generated row; the number of undecided rows.

    `pair` makes both for a batch. `compare` gets the sampler and three arrays of scores [rows, V]:
    given, returned by the sampler, returned by the processor. It raises AssertionError, or counts
    the rows that rounding decides. A row that the processor empties must be refused with
    `RowError`.
    """
    undecided = 0
    for batch in batches():
        sampler, processor = pair(batch)
        expected = processor(
            torch.from_numpy(batch.histories), torch.from_numpy(batch.scores.copy())
        ).numpy()
        got = np.full_like(expected, -np.inf)
        for index, row in enumerate(batch.rows):
            try:
                got[index] = sampler.apply(row, None, batch.context(index)).dense_scores()
            except RowError:
                assert not (expected[index] > -np.inf).any(), f"{sampler} empties {row.scores}"
        given = np.stack([row.dense_scores() for row in batch.rows])
        assert np.array_equal(given, batch.scores), f"{sampler} changes its input"
        undecided += compare(sampler, given, got, expected)
    return undecided


def identical(sampler: Sampler, given: Scores, got: Scores, expected: Scores) -> int:
    """The same scores, bit for bit."""
    for index in np.flatnonzero((got != expected).any(axis=1)):
        raise AssertionError(f"{sampler} on {given[index]}: {got[index]}, {expected[index]}")
    return 0


def same_head(close: Callable[[Sampler, Law], npt.NDArray[np.bool_]]) -> Compare:
    """The same kept tokens, except for the rows where `close(sampler, law)` is true.

    Where tokens of equal score straddle the cut, which of them stay is the sort's choice: then the
    kept scores are the same as a multiset.
    """

    def compare(sampler: Sampler, given: Scores, got: Scores, expected: Scores) -> int:
        undecided = close(sampler, softmax(given.astype(np.float64), axis=1))
        for index in np.flatnonzero(~undecided & (got != expected).any(axis=1)):
            where = f"{sampler} on {given[index]}: {got[index]}, {expected[index]}"
            assert np.array_equal(np.sort(got[index]), np.sort(expected[index])), where
            kept = got[index] > -np.inf
            assert np.array_equal(got[index, kept], given[index, kept]), where
            tied = np.isin(given[index], given[index, ~kept]) & kept
            assert np.array_equal((expected[index] > -np.inf)[kept & ~tied], kept[kept & ~tied])
            assert tied.any(), where
        return int(undecided.sum())

    return compare
