"""What the runner writes into the trace of a request, where one is kept."""

from __future__ import annotations

from collections.abc import Sequence

from decodery.core.decoder import Completion
from decodery.core.errors import DecoderyError
from decodery.core.handle import Handle
from decodery.core.requests import Emit
from decodery.core.scorer import Scorer
from decodery.core.source import Model
from decodery.core.trace import record_leaves, record_node
from decodery.core.tree import Node, Tree


def watch(handle: Handle, tree: Tree) -> None:
    """Let a new tree keep what its nodes are said to be until the trace has noted it."""
    if handle.trace is not None:
        tree.remarks = {}


def note_call(
    handle: Handle, step: int, model: Model, nodes: int, batch_nodes: int, seconds: float
) -> None:
    if handle.trace is not None:
        handle.trace.add(
            "call",
            step=step,
            model=model.name,
            nodes=nodes,
            batch_nodes=batch_nodes,
            seconds=seconds,
        )


def note_grown(handle: Handle, step: int, node: Node) -> None:
    if handle.trace is not None:
        record_node(handle.trace, step, handle.trees.index(node.tree), node)


def note_dropped(handle: Handle) -> None:
    """The nodes that were dropped since the last time."""
    for number, tree in enumerate(handle.trees):
        if handle.trace is not None and tree.pruned:
            record_leaves(handle.trace, number, tree)
            handle.trace.add("drop", tree=number, nodes=tree.pruned)
        tree.pruned = []


def note_emitted(handle: Handle, request: Emit) -> None:
    if handle.trace is not None:
        handle.trace.add("emit", sequence=request.sequence, tokens=list(request.tokens))


def note_scores(handle: Handle, scorer: Scorer, values: Sequence[float]) -> None:
    if handle.trace is not None:
        handle.trace.add("score", scorer=scorer.name, values=list(values))


def note_end(handle: Handle) -> None:
    """The answers, what they cost, and what the tokens look like; all nodes are dropped by now."""
    trace, language = handle.trace, handle.task.policy.source.language
    if trace is None:
        return
    for number, tree in enumerate(handle.trees):
        record_leaves(trace, number, tree)
    for item in handle.completions or ():
        trace.add(
            "completion",
            sequence=item.sequence,
            tokens=list(item.tokens),
            finish_reason=item.finish_reason,
            score=item.score,
            text=_text(handle, item),
        )
    trace.report = handle.report.to_dict()
    if language is not None:
        trace.spell(language)


def _text(handle: Handle, item: Completion) -> str | None:
    """None for tokens that no text belongs to: to record a run must not end it."""
    try:
        return handle.task.decode(item.tokens)
    except DecoderyError:
        return None
