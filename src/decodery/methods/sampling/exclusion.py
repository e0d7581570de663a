"""Making tokens impossible, and token ids that a user wrote down.

Ids that come from the path or from the model are taken as they are. Ids that a user names must be
in the vocabulary: a ban that names a token of another tokenizer is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from decodery.core.errors import ParameterError
from decodery.core.row import Ids, Row


def without(row: Row, tokens: Ids) -> Row:
    """The row with the distinct `tokens` impossible; those it does not hold are no matter.

    >>> without(Row.dense([1.0, 2.0, 3.0]), np.array([2])).scores
    array([  1.,   2., -inf])
    """
    positions, _ = row.positions(tokens)
    if positions.size == 0:
        return row
    scores = row.scores.copy()
    scores[positions] = -np.inf
    return row.with_scores(scores)


def named_ids(tokens: Iterable[int], owner: str) -> tuple[int, ...]:
    """Distinct ids in ascending order; a negative one is refused."""
    ids = tuple(sorted(set(tokens)))
    if ids and ids[0] < 0:
        raise ParameterError(f"{owner} names token {ids[0]}; token ids are whole numbers from 0")
    return ids


def require_known(tokens: Ids, row: Row, owner: str) -> None:
    """Refuse ascending `tokens` that the vocabulary does not have."""
    if tokens.size and tokens[-1] >= row.vocab_size:
        raise ParameterError(
            f"{owner} names token {tokens[-1]}; the vocabulary has {row.vocab_size} tokens, "
            f"0..{row.vocab_size - 1}"
        )
