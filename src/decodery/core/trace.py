"""The record of a run: every tree, node, choice and call in order, as plain data.

A trace can be replayed by a viewer without a model: nodes carry parent, token and the policy's
log-probability of the token; calls say which nodes were grown together and how long it took.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from decodery.core.row import Row
from decodery.core.tree import Node

FORMAT = 1


@dataclass
class Trace:
    """Events in the order they happened. `rows` also records that many top entries of each row."""

    rows: int = 0
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def add(self, kind: str, **values: Any) -> None:
        self.events.append({"event": kind, **values})

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "events": self.events}

    def save(self, path: Path) -> None:
        """Write JSON; -inf becomes null, so that every reader can parse it."""
        path.write_text(json.dumps(_finite(self.to_dict()), allow_nan=False) + "\n")


def record_node(trace: Trace, tree: int, node: Node) -> None:
    """Note a node that was just grown; `tree` is the number of its tree in the request."""
    values: dict[str, Any] = {
        "tree": tree,
        "node": node.index,
        "parent": None if node.parent is None else node.parent.index,
        "token": node.token,
        "depth": node.depth,
        "sequence": node.sequence,
    }
    if node.is_root:
        values["prompt"] = list(node.tree.prompt)
    if trace.rows:
        values["row"] = _top(node.row, trace.rows)
        values["policy_row"] = _top(node.policy_row(), trace.rows)
    trace.add("node", **values)


def _top(row: Row, count: int) -> list[list[float]]:
    order = np.argsort(-row.scores, kind="stable")[:count]
    ids, log_probabilities = row.token_ids()[order], row.scores[order] - row.log_normaliser
    return [[int(token), float(value)] for token, value in zip(ids, log_probabilities, strict=True)]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_finite(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value
