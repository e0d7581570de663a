"""Alignment: what a model would have said in the place of a prompt's own tokens.

At every position m of a context the model has a law P_m of the next token. Where the context's own
next token x_m+1 has a chance below a threshold, so where a copy of the context would go against the
model, a few other tokens of P_m are kept as alternatives to it: drawn without replacement, or the
most probable. They hang where x_m+1 does, below x_m.

The rows come from a tree of its own: the prompt's first token, then the others as a chain that is
grown in chunks. A chunk's rows are read and let go, so memory does not depend on the prompt's
length. When the prompt itself is opened after that, a model that keeps prefixes has all of it but
the last token: the pass costs the prompt's tokens once, and the vocabulary's projection at each of
them, which an ordinary prompt needs at its last token only.

Wang et al.: Alignment-Augmented Speculative Decoding with Alignment Sampling and Conditional
Verification (2025), arXiv:2505.13204.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from decodery.core.decoder import Requests, Task
from decodery.core.requests import Grow, Open
from decodery.core.row import Row
from decodery.core.source import Policy, leaves
from decodery.core.tree import Node
from decodery.methods.speculative.law import Law

Pick = Literal["sample", "top"]

CHUNK = 64  # rows held at once
PURPOSE = "alignment"


class Alternative(NamedTuple):
    """A token and its chance P_m(token)."""

    token: int
    chance: float


Alternatives = Mapping[int, tuple[Alternative, ...]]  # of the token after a position


@dataclass(frozen=True)
class Alignment:
    """`count` alternatives where the chance of the text's own token is below `below`."""

    below: float = 0.3
    count: int = 2
    pick: Pick = "sample"

    def alternatives(
        self, row: Row, following: int, uniform: Callable[[int], float]
    ) -> tuple[Alternative, ...]:
        """The alternatives to `following` under a row; `uniform(i)` is the number of draw i."""
        if math.exp(row.log_probability(following)) >= self.below:
            return ()
        law = Law.of(row)
        left = law.without(following)
        if left is None:
            return ()
        tokens = left.top(self.count) if self.pick == "top" else self._drawn(left, uniform)
        return tuple(Alternative(token, law[token]) for token in tokens)

    def _drawn(self, left: Law | None, uniform: Callable[[int], float]) -> list[int]:
        tokens: list[int] = []
        while left is not None and len(tokens) < self.count:
            tokens.append(left.draw(uniform(len(tokens))))
            left = left.without(tokens[-1])
        return tokens


def align(
    task: Task, span: range, rule: Alignment
) -> Generator[Requests, Any, dict[int, tuple[Alternative, ...]]]:
    """The alternatives at the positions of a span of the prompt whose next token is in it too.

    The law is the model's own, without samplers: their states belong to what is generated. Of a
    blend it is the first model's. The draws are keyed by the position and belong to no sequence.
    """
    prompt, found = task.prompt, dict[int, tuple[Alternative, ...]]()
    if len(span) < 2:
        return found

    def read(node: Node) -> None:
        place = node.depth - 1
        best = rule.alternatives(
            node.row,
            prompt[place + 1],
            lambda index: task.stream.uniform(0, node.depth, PURPOSE, index),
        )
        if best:
            found[place] = best

    root: Node = yield Open(Policy(leaves(task.policy.source)[0]), prompt[: span.start + 1])
    read(root)
    tip = root
    for start in range(span.start + 1, span.stop - 1, CHUNK):
        chunk: list[Node] = []
        for token in prompt[start : min(start + CHUNK, span.stop - 1)]:
            tip = tip.child(token)
            chunk.append(tip)
        yield Grow(chunk, keep_rows=True)
        for node in chunk:
            read(node)
        for node in (root, *chunk):
            node.release_row()
    root.drop()
    return found
