"""Tables whose tokens are pieces of text, with a grammar engine: for structured output.

table = speller((b"a", b"b", b"ab", None))  # the last token ends a text
policy = Policy(table, dc.chain(dc.regex("[ab]+")))
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

from decodery.core.language import GrammarKind, Matcher
from decodery.models.grammar import GrammarEngine
from decodery.models.table import TableModel
from decodery.testing.toys import ToyLanguage

# Brackets, digits and white space come early: small vocabularies have the first few tokens.
_TEXTS = ("[", "a", " ", "1", "]", ",", "b", "ab", "{", "}", '"')
PIECES: tuple[bytes | None, ...] = (*(text.encode() for text in _TEXTS), None)


class Spelling(ToyLanguage):
    """Tokens are the pieces they stand for, and grammars are over them; None has no text."""

    @cached_property
    def _engine(self) -> GrammarEngine:
        return GrammarEngine(self.pieces())

    def matcher(self, kind: GrammarKind, text: str) -> Matcher:
        return self._engine.begin(kind, text)


def speller(
    pieces: Sequence[bytes | None] = PIECES,
    *,
    seed: int = 0,
    order: int = 3,
    eos_ids: Collection[int] | None = None,
) -> TableModel:
    """A random table over pieces. Its end tokens are `eos_ids`, by default the last token."""
    ends = frozenset({len(pieces) - 1} if eos_ids is None else eos_ids)
    table = TableModel.random(len(pieces), order, seed=seed, eos_ids=ends, name="speller")
    table.language = Spelling(pieces)
    return table
