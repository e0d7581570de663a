"""The record of a run: every tree, node, choice and call in order, as plain data.

A trace can be replayed by a viewer without a model. Its events:

    call        a forward: which model, how many nodes, how long it took
    node        a node that was grown; a root has its tree's prompt and source
    leaf        a node that was made and never grown, noted when it is dropped or the run ends
    drop        nodes that were given up
    emit        tokens of a sequence that became final
    score       what a scorer said
    completion  an answer

`step` counts the runner's rounds. `log_p` of a node is ln p of its token under the policy where it
was made, and `log_q` under the law that proposed it; it has neither where nobody knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from decodery.core.errors import DecoderyError
from decodery.core.language import Language
from decodery.core.row import Row
from decodery.core.tree import Node, Tree

FORMAT = 2


@dataclass
class Trace:
    """Events in the order they happened. `rows` also records that many top entries of each row.

    `about` says what was run, `report` what it cost, `texts` what the tokens of the run look like,
    where they have a language.
    """

    rows: int = 0
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    about: dict[str, Any] = field(default_factory=dict[str, Any])
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    texts: dict[int, str] = field(default_factory=dict[int, str])

    def add(self, kind: str, **values: Any) -> None:
        self.events.append({"event": kind, **values})

    def spell(self, language: Language) -> None:
        """Note the text of every token that occurs in the events."""
        for token in sorted({token for event in self.events for token in _tokens(event)}):
            self.texts[token] = language.shown(token)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "about": self.about,
            "report": self.report,
            "texts": {str(token): text for token, text in self.texts.items()},
            "events": self.events,
        }

    def save(self, path: Path) -> None:
        """Write JSON that every reader can parse: -inf becomes null, and what is no data a text."""
        path.write_text(json.dumps(_finite(self.to_dict()), allow_nan=False, default=str) + "\n")


def record_node(trace: Trace, step: int, tree: int, node: Node) -> None:
    """Note a node that was just grown; `tree` is the number of its tree in the request."""
    values = {**_known(tree, node), "step": step}
    if node.is_root:
        values["prompt"] = list(node.tree.prompt)
        values["source"] = node.tree.policy.source.name
    elif "log_p" not in values:  # its parent was grown together with it
        values |= _said(log_p=node.log_chance())
    if trace.rows:
        values["row"] = _top(node.row, trace.rows)
        values["policy_row"] = _policy_top(node, trace.rows)
    trace.add("node", **values)


def record_leaves(trace: Trace, tree: int, among: Tree) -> None:
    """Note the nodes of a tree that are dropped and were never grown."""
    remarks = among.remarks or {}
    for node in [node for node in remarks if node.dropped]:
        trace.add("leaf", **_known(tree, node))


def _known(tree: int, node: Node) -> dict[str, Any]:
    """What is known of a node; its remarks are noted with it."""
    remarks = {} if node.tree.remarks is None else node.tree.remarks.pop(node, {})
    return {
        "tree": tree,
        "node": node.index,
        "parent": None if node.parent is None else node.parent.index,
        "token": node.token,
        "depth": node.depth,
        "sequence": node.sequence,
        **_said(**remarks),
    }


def _said(**remarks: float | None) -> dict[str, float]:
    """What is known: an impossible token has -inf."""
    return {name: value for name, value in remarks.items() if value is not None}


def _tokens(event: Mapping[str, Any]) -> set[int]:
    """The tokens that an event names."""
    rows = [entry[0] for kind in ("row", "policy_row") for entry in event.get(kind) or ()]
    own = [event["token"]] if "token" in event else []
    return {*own, *event.get("prompt", ()), *event.get("tokens", ()), *rows}


def _policy_top(node: Node, count: int) -> list[list[float]] | None:
    """None where no policy row can be made: to record a run must not end it."""
    try:
        return _top(node.policy_row(), count)
    except DecoderyError:
        return None


def _top(row: Row, count: int) -> list[list[float]]:
    among = np.argpartition(-row.scores, count)[:count] if count < len(row) else np.arange(len(row))
    order = among[np.lexsort((among, -row.scores[among]))]
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
