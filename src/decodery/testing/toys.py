"""A toy source with a language and trained parts: what samplers that must be bound are bound to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from decodery.core.errors import ParameterError
from decodery.core.language import Language, Message
from decodery.core.sampler import Sampler
from decodery.models.table import TableModel

# One token of every kind: a special one, Latin, Chinese, Japanese, Cyrillic, a digit, a stop,
# Hebrew, a cut-off ideograph, Hangul. The first letters of a small vocabulary are of two scripts.
_TEXTS = ("A", "я", "中", "ab", " 1", "カ", ".", "ж", "של", "한")
PIECES: tuple[bytes | None, ...] = (None, *(text.encode() for text in _TEXTS), b"\xe4\xb8")
WIDTH = len(PIECES)  # of hidden states: a table gives its row as one

# The shapes of the parts that methods of this package read.
PARTS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "language_gate": {"A1": (WIDTH, WIDTH), "A2": (4, WIDTH)},
}


class ToyLanguage(Language):
    """Tokens are the pieces they stand for; a text is encoded by the longest piece that fits."""

    def __init__(self, pieces: Sequence[bytes | None] = PIECES) -> None:
        self._pieces = tuple(pieces)

    def encode(self, text: str) -> tuple[int, ...]:
        rest, tokens = text.encode(), list[int]()
        known = {piece: index for index, piece in enumerate(self._pieces) if piece}
        while rest:
            fitting = [piece for piece in known if rest.startswith(piece)]
            if not fitting:
                raise ParameterError(f"the toy language has no token for {text!r}")
            longest = max(fitting, key=len)
            tokens.append(known[longest])
            rest = rest[len(longest) :]
        return tuple(tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(self._pieces[token] or b"" for token in tokens).decode(errors="replace")

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        raise ParameterError("the toy language has no chat template")

    @property
    def has_chat(self) -> bool:
        return False

    def pieces(self) -> Sequence[bytes | None]:
        return self._pieces

    def same_as(self, other: Language) -> bool:
        return self._pieces == tuple(other.pieces())


class ToySource(TableModel):
    """A random table of twelve tokens with a language; a part is random tensors, others a file."""

    def __init__(self, seed: int = 0) -> None:
        table = TableModel.random(len(PIECES), seed=seed)
        super().__init__(table.law, len(PIECES), table.order, name="toy")
        self.language = ToyLanguage()

    def part(self, name: str, file: str | None = None) -> Mapping[str, npt.NDArray[np.floating]]:
        if name not in PARTS:
            return super().part(name, file)
        generator = np.random.default_rng([*name.encode(), *(file or "").encode()])
        return {key: generator.normal(size=shape) for key, shape in PARTS[name].items()}


def bound(part: Any) -> Any:
    """A sampler bound to a toy source, as a policy binds it; anything else as it is.

    A sampler that the toy source does not suit, such as a grammar, is bound to a table that spells.
    """
    if not isinstance(part, Sampler):
        return part
    try:
        return part.bind(ToySource())
    except ParameterError:
        from decodery.testing.spelling import speller  # it is made of this module's language

        return part.bind(speller())
