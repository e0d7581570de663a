"""Table models: sources small enough to enumerate, on which laws are proved exactly.

The row at a path depends on its last `order` tokens only. A table model answers through the same
interface as a neural one, so a decoder proved here runs unchanged there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from decodery.core.errors import ParameterError
from decodery.core.source import Grown, Growth, Model

Probabilities = npt.NDArray[np.float64]


class TableModel(Model):
    """A source whose rows come from a function of the last `order` tokens.

    `law` maps at most `order` last tokens to probabilities [vocab_size] (float64, need not be
    normalised, zeros allowed). `capacity` bounds the tokens alive at once, for tests of admission.
    """

    def __init__(
        self,
        law: Callable[[tuple[int, ...]], npt.ArrayLike],
        vocab_size: int,
        order: int,
        *,
        eos_ids: frozenset[int] = frozenset(),
        context_length: int | None = None,
        capacity: int | None = None,
        name: str = "table",
    ) -> None:
        if vocab_size < 1 or order < 0:
            raise ParameterError(f"vocab_size {vocab_size} and order {order} must be >= 1 and >= 0")
        self.law = law
        self.vocab_size = vocab_size
        self.order = order
        self.eos_ids = eos_ids
        self.context_length = context_length
        self.capacity = capacity
        self.name = name
        self.calls = 0
        self.tokens_alive = 0
        self._rows: dict[tuple[int, ...], npt.NDArray[np.float64]] = {}

    @classmethod
    def random(
        cls,
        vocab_size: int,
        order: int = 2,
        *,
        seed: int = 0,
        concentration: float = 1.0,
        eos_ids: frozenset[int] = frozenset(),
        name: str = "random table",
    ) -> TableModel:
        """Independent Dirichlet(concentration) rows, one for each context."""

        def law(context: tuple[int, ...]) -> Probabilities:
            generator = np.random.default_rng([seed, len(context), *context])
            return generator.dirichlet(np.full(vocab_size, concentration))

        return cls(law, vocab_size, order, eos_ids=eos_ids, name=name)

    def scores(self, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
        """ln p of the next token after `tokens`, float64 [vocab_size]."""
        context = tuple(tokens[max(0, len(tokens) - self.order) :]) if self.order else ()
        if context not in self._rows:
            with np.errstate(divide="ignore", invalid="ignore"):
                row = np.log(np.asarray(self.law(context), dtype=np.float64))
            if row.shape != (self.vocab_size,):
                raise ParameterError(f"the law gave shape {row.shape} for {self.vocab_size} tokens")
            self._rows[context] = row
        return self._rows[context]

    def forward(self, growths: Sequence[Growth]) -> list[Grown]:
        self.calls += 1
        grown: list[Grown] = []
        for growth in growths:
            growth.node.handle = len(growth.tokens)
            self.tokens_alive += len(growth.tokens)
            scores = self.scores(growth.node.tokens)
            # The hidden state of a table is its row: enough to test what asks for one.
            grown.append(Grown(scores, scores if growth.hidden else None))
        return grown

    def release(self, handles: Sequence[int]) -> None:
        self.tokens_alive -= sum(handles)
