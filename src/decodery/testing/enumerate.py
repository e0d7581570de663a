"""Exact laws by enumeration: of a policy, by walking its tree; of a decoder, by trying all noise.

Both answer in float64 and without the runner's help where they can, so that what is compared with
them was computed another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from decodery.core.decoder import Decoder, Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import run_alone
from decodery.core.source import Blend, Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node, Tree
from decodery.models.table import TableModel

Law = dict[tuple[int, ...], float]

_STREAM = Stream(0)


def enumerate_law(
    policy: Policy,
    prompt: Sequence[int],
    stopping: Stopping | int,
    *,
    stream: Stream = _STREAM,
    sequence: int = 0,
) -> Law:
    """The probability of every sequence after `prompt`, float64, for sources made of tables.

    `stopping` is the rule that ends a sequence, or a length in tokens. A sampler with noise of its
    own is taken at the noise of `stream` and `sequence`: the law is conditional on it.

    >>> law = enumerate_law(Policy(TableModel(lambda _: [0.25, 0.75], 2, 0)), [0], 2)
    >>> {path: round(p, 12) for path, p in law.items()}
    {(0, 0): 0.0625, (0, 1): 0.1875, (1, 0): 0.1875, (1, 1): 0.5625}
    """
    ends = Stopping(stopping) if isinstance(stopping, int) else stopping
    tree = _plant(policy, tuple(prompt), stream)
    tree.root.sequence = sequence
    _grow(tree.root)
    return dict(_paths(tree.root, 1.0, ends))


def _paths(
    node: Node, probability: float, ends: Stopping
) -> Iterator[tuple[tuple[int, ...], float]]:
    row = node.policy_row()
    for token, share in zip(row.token_ids().tolist(), row.probabilities().tolist(), strict=True):
        if share == 0.0:
            continue
        child = node.child(token)
        if ends.reason(child) is not None:
            yield tuple(child.generated), probability * share
        else:
            _grow(child)
            yield from _paths(child, probability * share, ends)
        child.drop()


def _plant(policy: Policy, prompt: tuple[int, ...], stream: Stream) -> Tree:
    source = policy.source
    if not isinstance(source, Blend):
        return Tree(policy, prompt, stream)
    prompts = source.prompts(prompt)
    members = [
        _plant(Policy(member), tuple(own), stream)
        for member, own in zip(source.members, prompts, strict=True)
    ]
    return Tree(policy, prompt, stream, tuple(members))


def _grow(node: Node) -> None:
    source = node.tree.policy.source
    if isinstance(source, TableModel):
        scores = source.scores(node.tokens)
        node.receive(Row(scores, source.vocab_size), scores)
    elif isinstance(source, Blend):
        for member in node.members:
            _grow(member)
        rows = [member.row for member in node.members]
        row = source.combine(rows, node.blend_state, node.context())
        node.receive(row, node.members[0].hidden)
    else:
        raise ParameterError(f"{source.name} cannot be enumerated; use tables and blends of them")


@dataclass(frozen=True, eq=False)
class _Script(Stream):
    """Noise read from a list of choices: key i is answered by the middle of cell `choices[i]`."""

    grid: int = 2
    choices: list[int] = field(default_factory=list[int])
    keys: dict[tuple[int, int, str, int], int] = field(
        default_factory=dict[tuple[int, int, str, int], int]
    )

    def uniform(self, sequence: int, position: int, purpose: str, index: int = 0) -> float:
        place = self.keys.setdefault((sequence, position, purpose, index), len(self.keys))
        if place == len(self.choices):
            self.choices.append(0)
        return (self.choices[place] + 0.5) / self.grid

    def generator(
        self, sequence: int, position: int, purpose: str, index: int = 0
    ) -> np.random.Generator:
        raise ParameterError("a decoder that draws whole arrays cannot be enumerated")


def decoder_law(
    decoder: Decoder,
    policy: Policy,
    prompt: Sequence[int],
    stopping: Stopping | int,
    *,
    grid: int,
    max_runs: int = 200_000,
) -> Law:
    """The exact law of a decoder's first completion: it is run once for every outcome of its noise.

    Each number that the decoder draws is tried in the middle of each of `grid` equal cells. That
    is exact when every threshold a draw is compared with is a multiple of 1 / grid: tables whose
    probabilities are multiples of it, acceptance ratios too.
    """
    ends = Stopping(stopping) if isinstance(stopping, int) else stopping
    law: Law = {}
    choices: list[int] = []
    for run in count():
        if run == max_runs:
            raise ParameterError(f"the decoder has more than {max_runs} outcomes of its noise")
        script = _Script(0, grid, choices)
        task = Task(policy, tuple(prompt), ends, stream=script)
        tokens = run_alone(decoder, task)[0].tokens
        law[tokens] = law.get(tokens, 0.0) + float(grid) ** -len(script.keys)
        if not _advance(choices, grid):
            return law
    raise AssertionError("unreachable")


def _advance(choices: list[int], grid: int) -> bool:
    """The next list of choices in order; False after the last one."""
    while choices and choices[-1] == grid - 1:
        choices.pop()
    if not choices:
        return False
    choices[-1] += 1
    return True
