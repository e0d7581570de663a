"""Samplers: pure maps from a row to a row, with an immutable state that lives on the node.

A sampler sees a row, its own state and a `Context` (the path's tokens, the noise of this place) and
returns a new row. When a child is made, `advance` gives the child's state from the parent's; a
rejected branch takes its state with it, so nothing is ever rolled back. `chain` composes samplers
and is a sampler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.row import Row

if TYPE_CHECKING:
    from decodery.core.source import Source

State = Any


@dataclass(frozen=True, slots=True)
class Context:
    """What a sampler may know of the place it works at.

    `tokens` is the whole path, prompt included; the row is the law of the token after it. `hidden`
    is the last hidden state [width], only for a sampler that needs it. `sequence` tells the
    branches of one request apart.
    """

    tokens: Sequence[int]
    prompt_length: int
    eos_ids: frozenset[int] = frozenset()
    hidden: npt.NDArray[np.floating] | None = None
    stream: Stream = Stream(0)
    sequence: int = 0

    @property
    def position(self) -> int:
        """The absolute position of the token to be drawn."""
        return len(self.tokens)

    @property
    def generated(self) -> Sequence[int]:
        """The tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    def uniform(self, purpose: str, index: int = 0) -> float:
        """Noise of this place and purpose, in [0, 1)."""
        return self.stream.uniform(self.sequence, self.position, purpose, index)


class Sampler(ABC):
    """A pure map from row to row. Subclasses are frozen dataclasses.

    Class attributes declare what a sampler asks for; the core provides nothing it did not declare.
    """

    needs_hidden: ClassVar[bool] = False  # the last hidden state of the source
    needs_noise: ClassVar[bool] = False  # random draws of its own, keyed by place
    observes_rows: ClassVar[bool] = False  # `advance` reads the row the token was drawn from
    keeps_argmax: ClassVar[bool] = False  # the most probable token stays the most probable
    reads_logits: ClassVar[bool] = False  # depends on where zero is: meant for raw logits
    tempers: ClassVar[bool] = False  # sets a temperature: divides all scores
    truncates: ClassVar[bool] = False  # drops tokens for being improbable
    most_tokens: ClassVar[int | None] = None  # a row has no more after it (ties at a cut aside)

    def check_chain(self, before: Sequence[Sampler], after: Sequence[Sampler]) -> None:
        """Raise `ParameterError` where the other stages of a chain leave this one without effect,
        or make what it promises impossible. A chain asks each stage when it is made.
        """
        return

    def bind(self, source: Source) -> Sampler:
        """This sampler for one source: where it needs to know the source's vocabulary or model.

        A policy binds its samplers when it is made. Raises `ParameterError` where they do not fit.
        """
        return self

    def start(self, context: Context) -> State:
        """The state at the root; the context's tokens are the prompt."""
        return None

    @abstractmethod
    def apply(self, row: Row, state: State, context: Context) -> Row:
        """The reshaped row."""

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> State:
        """The state of the child that `token` makes.

        `row` is what `apply` was given, or None unless the sampler `observes_rows`; `context` is
        the parent's.
        """
        return state


@dataclass(frozen=True)
class Chain(Sampler):
    """Samplers applied one after another; the state is the tuple of their states."""

    stages: tuple[Sampler, ...] = field(default=())

    def __post_init__(self) -> None:
        for place, stage in enumerate(self.stages):
            stage.check_chain(self.stages[:place], self.stages[place + 1 :])

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.stages))})"

    # The declarations of a chain follow from its stages.
    @property
    def needs_hidden(self) -> bool:  # type: ignore[override]
        return any(stage.needs_hidden for stage in self.stages)

    @property
    def needs_noise(self) -> bool:  # type: ignore[override]
        return any(stage.needs_noise for stage in self.stages)

    @property
    def observes_rows(self) -> bool:  # type: ignore[override]
        return any(stage.observes_rows for stage in self.stages)

    @property
    def keeps_argmax(self) -> bool:  # type: ignore[override]
        return all(stage.keeps_argmax for stage in self.stages)

    @property
    def reads_logits(self) -> bool:  # type: ignore[override]
        return any(stage.reads_logits for stage in self.stages)

    @property
    def tempers(self) -> bool:  # type: ignore[override]
        return any(stage.tempers for stage in self.stages)

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return any(stage.truncates for stage in self.stages)

    @property
    def most_tokens(self) -> int | None:  # type: ignore[override]
        known = [stage.most_tokens for stage in self.stages if stage.most_tokens is not None]
        return min(known, default=None)

    def bind(self, source: Source) -> Chain:
        stages = tuple(stage.bind(source) for stage in self.stages)
        same = all(new is old for new, old in zip(stages, self.stages, strict=True))
        return self if same else Chain(stages)

    def start(self, context: Context) -> tuple[State, ...]:
        return tuple(stage.start(context) for stage in self.stages)

    def apply(self, row: Row, state: State, context: Context) -> Row:
        for stage, own in zip(self.stages, state, strict=True):
            row = stage.apply(row, own, context)
        return row

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> State:
        if not self.observes_rows:
            row = None
        states: list[State] = []
        for stage, own in zip(self.stages, state, strict=True):
            seen = row if stage.observes_rows else None
            states.append(stage.advance(own, token, seen, context))
            if row is not None:
                row = stage.apply(row, own, context)
        return tuple(states)


def chain(*samplers: Sampler | Iterable[Sampler]) -> Chain:
    """Compose samplers, first applied first; nested chains are flattened.

    >>> chain()
    chain()
    """
    stages: list[Sampler] = []
    for part in samplers:
        if isinstance(part, Chain):
            stages.extend(part.stages)
        elif isinstance(part, Sampler):
            stages.append(part)
        elif isinstance(part, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            stages.extend(chain(*part).stages)
        else:
            raise ParameterError(f"chain takes samplers, not {type(part).__name__}")
    return Chain(tuple(stages))
