"""What a decoder may ask of the runner. A decoder yields one request or several at once.

    root = yield Open(policy, prompt)             -> the root of a new tree, grown
    yield Grow(nodes)                             -> the same nodes, grown, in one forward
    numbers = yield Score(scorer, candidates)     -> float64 [len(candidates)]
    value = yield Call(model, function)           -> function(model), run alone
    yield Emit(tokens, sequence)                  -> None: these tokens are final

Several requests in a tuple are answered by a list in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from decodery.core.scorer import Candidate, Scorer
from decodery.core.source import Model, Policy
from decodery.core.tree import Node


@dataclass(frozen=True, slots=True)
class Open:
    """Plant a tree: evaluate a prompt under a policy. Answer: its root."""

    policy: Policy
    prompt: Sequence[int]


@dataclass(frozen=True, slots=True)
class Grow:
    """Evaluate nodes made by `node.child`; a parent not grown yet comes earlier in `nodes`."""

    nodes: Sequence[Node]
    hidden: bool = False
    keep_rows: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Put numbers on candidates; items of many decoders are scored in one call."""

    scorer: Scorer
    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class Call:
    """Run a function on a model alone: gradients, hidden layers, anything else."""

    model: Model
    function: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Emit:
    """Say that tokens of a sequence are final; they can be streamed."""

    tokens: Sequence[int]
    sequence: int = 0


Request = Open | Grow | Score | Call | Emit
