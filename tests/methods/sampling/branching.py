"""Branches of one tree against separate runs: what a sampler with a state must keep apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.source import Policy
from decodery.core.tree import Node, Tree
from decodery.models.table import TableModel

Trace = list[tuple[Any, npt.NDArray[np.float64]]]  # state and law at each node of a path


def grown(node: Node) -> Node:
    """The node with the row its table gives it."""
    source = node.tree.policy.source
    assert isinstance(source, TableModel)
    node.receive(Row(source.scores(node.tokens), source.vocab_size))
    return node


def seen_at(node: Node) -> tuple[Any, npt.NDArray[np.float64]]:
    return node.state, node.policy_row().dense_probabilities()


def alone(policy: Policy, prompt: Sequence[int], path: Sequence[int]) -> Trace:
    """States and laws along one path, on a tree of its own."""
    node = grown(Tree(policy, tuple(prompt), Stream(0)).root)
    trace = [seen_at(node)]
    for token in path:
        node = grown(node.child(token))
        trace.append(seen_at(node))
    return trace


def interleaved(
    policy: Policy, prompt: Sequence[int], paths: Sequence[Sequence[int]]
) -> list[Trace]:
    """The same along several paths of one tree, all a token longer in turns; rows above let go."""
    root = grown(Tree(policy, tuple(prompt), Stream(0)).root)
    tips = [root] * len(paths)
    traces: list[Trace] = [[seen_at(root)] for _ in paths]
    for step in range(len(paths[0])):
        parents = list(tips)
        tips = [tip.child(path[step]) for tip, path in zip(tips, paths, strict=True)]
        for parent in parents:
            if parent.has_row:
                parent.release_row()
        for tip, trace in zip(tips, traces, strict=True):
            trace.append(seen_at(grown(tip)))
    return traces


def assert_branches_are_separate(
    policy: Policy, prompt: Sequence[int], paths: Sequence[Sequence[int]]
) -> None:
    for path, trace in zip(paths, interleaved(policy, prompt, paths), strict=True):
        for (state, law), (own, wanted) in zip(trace, alone(policy, prompt, path), strict=True):
            assert state == own
            assert np.array_equal(law, wanted)
