"""The law under a grammar, by enumeration and without the engine.

The oracle knows a grammar as the finite set of its texts: a token may come when some text begins
with what is there and its piece, an end token when what is there is a text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from decodery.models.table import TableModel
from decodery.testing import Law


def spelled(table: TableModel, tokens: Sequence[int]) -> str:
    """The text of tokens without end tokens."""
    assert table.language is not None
    return table.language.decode([token for token in tokens if token not in table.eos_ids])


def of_texts(texts: Collection[str]) -> Callable[[bytes], tuple[bool, bool]]:
    """Whether bytes begin one of some texts, and whether they are one."""
    known = [text.encode() for text in texts]
    return lambda given: (any(text.startswith(given) for text in known), given in known)


def law_of(
    table: TableModel,
    says: Callable[[bytes], tuple[bool, bool]],
    length: int,
    prompt: Sequence[int] = (0,),
) -> Law:
    """The law of answers of at most `length` tokens, restricted token by token, by enumeration."""
    assert table.language is not None
    pieces = table.language.pieces()

    def may_come(token: int, text: bytes) -> bool:
        if token in table.eos_ids:
            return says(text)[1]
        piece = pieces[token]
        return piece is not None and says(text + piece)[0]

    def walk(
        path: tuple[int, ...], text: bytes, mass: float
    ) -> Iterator[tuple[tuple[int, ...], float]]:
        row = np.exp(table.scores([*prompt, *path]))
        kept = np.array([may_come(token, text) for token in range(table.vocab_size)])
        shares = row * kept / (row * kept).sum()
        for token in np.flatnonzero(shares > 0).tolist():
            longer = (*path, token)
            if token in table.eos_ids or len(longer) == length:
                yield longer, mass * float(shares[token])
            else:
                yield from walk(longer, text + (pieces[token] or b""), mass * float(shares[token]))

    return dict(walk((), b"", 1.0))
