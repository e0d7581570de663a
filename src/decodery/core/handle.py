"""A submitted request: its limits, its cost, what it emitted, and at the end its result."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from decodery.core.decoder import Completion, Decoder, Decoding, Task
from decodery.core.errors import ParameterError, TreeError
from decodery.core.requests import Emit, Request
from decodery.core.source import Model
from decodery.core.trace import Trace
from decodery.core.tree import Tree


@dataclass
class Cost:
    """What a request asked of one model.

    Seconds are wall time of the whole forwards that it took part in, others' share included.
    """

    calls: int = 0
    tokens_evaluated: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0


@dataclass
class Report:
    """What a request cost. Seconds are wall time from admission to the end.

    `models` has the share of each model by its name, `details` what the method counted over all of
    its sequences (`Decoder.totals`).
    """

    model_calls: int = 0  # forwards this request took part in
    tokens_evaluated: int = 0  # tokens that went through a model for it, the prompt included
    cached_tokens: int = 0  # prompt tokens that did not: another request had evaluated them
    tokens_emitted: int = 0
    score_calls: int = 0
    items_scored: int = 0
    seconds: float = 0.0
    queue_seconds: float = 0.0
    first_token_seconds: float | None = None
    models: dict[str, Cost] = field(default_factory=dict[str, Cost])
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    def cost(self, model: str) -> Cost:
        """The share of a model, begun with zeros."""
        return self.models.setdefault(model, Cost())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_emitted / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


@dataclass(frozen=True)
class Budget:
    """Limits of a whole request: forwards it takes part in, and wall seconds from admission."""

    max_calls: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_calls is not None and self.max_calls < 1:
            raise ParameterError(f"max_calls {self.max_calls} is below 1")
        if self.max_seconds is not None and not 0 < self.max_seconds < float("inf"):
            raise ParameterError(f"max_seconds {self.max_seconds} is not a positive number")


@dataclass(eq=False)
class Handle:
    """A submitted request: its state, what it emitted, and at the end its result."""

    task: Task
    decoder: Decoder
    budget: Budget
    trace: Trace | None
    needs: dict[Model, int]
    report: Report = field(default_factory=Report)
    completions: list[Completion] | None = None
    error: Exception | None = None
    emitted: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    unread: deque[Emit] = field(default_factory=deque[Emit])
    # internal to the runner
    decoding: Decoding | None = None
    requests: tuple[Request, ...] = ()
    single: bool = True  # the decoder yielded one request, not a tuple
    answers: list[Any] = field(default_factory=list[Any])
    trees: list[Tree] = field(default_factory=list[Tree])
    submitted: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0
    cancelled: bool = False
    spent: bool = False  # its budget was exhausted and it was told so

    @property
    def done(self) -> bool:
        return self.completions is not None or self.error is not None

    def cancel(self) -> None:
        """End the request at the next step; what was emitted is kept."""
        self.cancelled = True

    def result(self) -> list[Completion]:
        """The completions; raises what ended the request if it failed."""
        if self.error is not None:
            raise self.error
        if self.completions is None:
            raise TreeError("the request is still running; step the runner first")
        return self.completions
