"""A `LogitsProcessor` of transformers as a sampler of a chain.

    policy = lm | dc.chain(dc.from_logits_processor(WatermarkLogitsProcessor(...)), dc.min_p(0.05))

It is given the path's tokens [1, length] and the row's scores [1, vocab_size], and what it returns
is the row. What was dropped before stays dropped.

A sampler is a pure function of row and path, or has a state that lives on the node; a processor may
be neither. One that changes between calls, or gives two answers to one question, is found out by
asking twice before the first token and by looking at its attributes after every call, and refused.
What cannot be seen is state outside of its attributes that the first calls do not show. With
`stateful=True` a processor has a copy of its own at every node, which was called once for each
token on the way there, as `generate` would have: exact on any tree, at two copies a node.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers.generation import logits_process as theirs

from decodery.api.transformers_bridge import SamplerProcessor
from decodery.core.errors import ParameterError, RowError
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State

Processor = Callable[[Tensor, Tensor], Tensor]

_TRUNCATING = (
    theirs.TopKLogitsWarper,
    theirs.TopPLogitsWarper,
    theirs.MinPLogitsWarper,
    theirs.TypicalLogitsWarper,
    theirs.EpsilonLogitsWarper,
    theirs.EtaLogitsWarper,
    theirs.TopHLogitsWarper,
)
_DEPTH = 4  # how deep in a processor's attributes state is looked for
_MOST_ENTRIES = 1000  # of a container that are compared; of a larger one, their number
_MOST_HASHED = 1 << 16  # bytes of an array that are compared; of a larger one, its identity


def from_logits_processor(
    processor: Processor | Iterable[Processor], *, stateful: bool = False, device: str = "cpu"
) -> TransformersProcessor:
    """A `LogitsProcessor`, a list of them, or any function of ids and scores, as a sampler.

    `device` is where it is given its tensors. With `stateful` it may change from call to call.
    """
    parts = tuple(processor) if isinstance(processor, Iterable) else (processor,)
    for part in parts:
        _refuse_what_cannot_be_called(part)
    return TransformersProcessor(parts, stateful, device)


def _refuse_what_cannot_be_called(part: Any) -> None:
    if not callable(part) or isinstance(part, type):
        raise ParameterError(f"{part!r} is no logits processor")
    if isinstance(part, SamplerProcessor):
        raise ParameterError(f"{part!r} was made of a chain; use the chain")
    wanted = [
        name
        for name, parameter in inspect.signature(part).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(wanted) > 2:
        raise ParameterError(
            f"{_name(part)} wants {', '.join(wanted[2:])} besides ids and scores, which only"
            " transformers' generate has"
        )


@dataclass(frozen=True)
class TransformersProcessor(Sampler):
    """Logits processors, one after another, as a sampler; made by `from_logits_processor`."""

    reads_logits: ClassVar[bool] = True  # it may; nothing says that it does not
    processors: tuple[Processor, ...]
    stateful: bool = False
    device: str = "cpu"

    def __repr__(self) -> str:
        return f"from_logits_processor({', '.join(map(_name, self.processors))})"

    @property
    def observes_rows(self) -> bool:  # type: ignore[override]
        return self.stateful

    @property
    def tempers(self) -> bool:  # type: ignore[override]
        return any(isinstance(part, theirs.TemperatureLogitsWarper) for part in self.processors)

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return any(isinstance(part, _TRUNCATING) for part in self.processors)

    def start(self, context: Context) -> State:
        if self.stateful:
            return _copied(self.processors)
        return None

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.stateful:
            return self._called(_copied(state), row, context)
        if context.position == context.prompt_length:
            self._refuse_state(row, context)
        before = _snapshot(self.processors)
        made = self._called(self.processors, row, context)
        if _snapshot(self.processors) != before:
            raise self._changes(self.processors)
        return made

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> State:
        if not self.stateful:
            return state
        assert row is not None
        processors = _copied(state)
        self._called(processors, row, context)
        return processors

    def _called(self, processors: tuple[Processor, ...], row: Row, context: Context) -> Row:
        """The row [vocab_size] after the processors; they are called, and may change."""
        given = row.dense_scores()
        ids = torch.tensor([list(context.tokens)], dtype=torch.long, device=self.device)
        scores = torch.from_numpy(given.copy())[None].to(self.device)
        for processor in processors:
            scores = processor(ids, scores)
            if scores.shape != (1, row.vocab_size):
                raise RowError(
                    f"{_name(processor)} returned {list(scores.shape)} for [1, {row.vocab_size}]"
                )
        made = scores[0].detach().cpu().numpy().astype(given.dtype)
        made[given == -np.inf] = -np.inf
        kept = made if row.ids is None else made[row.ids]
        return Row(kept, row.vocab_size, row.ids)

    def _refuse_state(self, row: Row, context: Context) -> None:
        """Ask three times before the first token: a function gives the same answer every time.

        What a processor prepares in its first call, which is not looked at, is no state.
        """
        for processor in self.processors:
            answers: list[tuple[Any, Any]] = []
            for _ in range(3):
                made = self._called((processor,), row, context)
                answers.append((made.scores.tobytes(), _snapshot(processor)))
            if answers[1] != answers[2] or answers[0][0] != answers[1][0]:
                raise self._changes((processor,))

    def _changes(self, processors: tuple[Processor, ...]) -> ParameterError:
        return ParameterError(
            f"{', '.join(map(_name, processors))} changes between calls, and the nodes of a tree"
            " share it; give each a copy of its own with stateful=True"
        )


def _snapshot(value: Any, depth: int = _DEPTH) -> Any:
    """What of a value would show that it changed: a hashable copy, cheap for tensors."""
    if isinstance(value, (str, bytes, int, float, complex, type(None))):
        return value
    if isinstance(value, Tensor):
        return (id(value), value._version)
    if isinstance(value, np.ndarray):
        return (id(value), value.tobytes() if value.nbytes <= _MOST_HASHED else None)
    if isinstance(value, (torch.Generator, torch.nn.Module)) or depth == 0:
        return id(value)
    if isinstance(value, (Mapping, AbstractSet, list, tuple)) and len(value) > _MOST_ENTRIES:
        return (id(value), len(value))
    if isinstance(value, Mapping):
        items = [(_snapshot(key, depth - 1), _snapshot(value[key], depth - 1)) for key in value]
        return ("mapping", *items)
    if isinstance(value, AbstractSet):
        return ("set", frozenset(_snapshot(item, depth - 1) for item in value))
    if isinstance(value, (list, tuple)):
        return ("list", *(_snapshot(item, depth - 1) for item in value))
    own = getattr(value, "__dict__", None)
    return (id(value), _snapshot(own, depth - 1) if own else None)


def _copied(processors: tuple[Processor, ...]) -> tuple[Processor, ...]:
    """Processors of their own, which share the models that they hold."""
    shared: dict[int, Any] = {}
    for processor in processors:
        for held in vars(processor).values() if hasattr(processor, "__dict__") else ():
            if isinstance(held, torch.nn.Module):
                shared[id(held)] = held
    try:
        return copy.deepcopy(processors, shared)
    except Exception as error:
        names = ", ".join(map(_name, processors))
        raise ParameterError(f"{names} cannot be copied for each node: {error}") from None


def _name(processor: Any) -> str:
    return getattr(processor, "__name__", type(processor).__name__)
