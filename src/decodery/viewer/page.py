"""A run as one page that needs nothing else: open the file in any browser."""

from __future__ import annotations

import html
import json
from importlib import resources
from typing import Any

from decodery.viewer.facts import (
    calls,
    chance,
    depths,
    gained,
    headline,
    models,
    others,
    parameters,
    summary,
)
from decodery.viewer.steps import FATES, Step, TracedNode, TracedRun

_CONTEXT = 60  # characters of the text before a step
_OTHERS = 4  # tokens that were not proposed, at one node
_PLACE = "{{ %s }}"


def page(run: TracedRun) -> str:
    """The page as HTML, with the run's data inside."""
    template = resources.files("decodery.viewer").joinpath("page.html").read_text(encoding="utf-8")
    filled = template.replace(_PLACE % "title", html.escape(f"Trace: {headline(run)}"))
    return filled.replace(_PLACE % "data", _embedded(data(run)))


def _embedded(value: Any) -> str:
    """JSON that can stand inside a script element whatever texts are in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def data(run: TracedRun) -> dict[str, Any]:
    """What the page draws."""
    prompt = run.about.get("prompt") or "".join(map(run.text, run.prompt))
    return {
        "headline": headline(run),
        "parameters": parameters(run),
        "prompt": str(prompt),
        "promptTokens": len(run.prompt),
        "kind": "step" if run.streams else "round",
        "summary": summary(run),
        "depths": depths(run),
        "models": models(run),
        "fates": FATES,
        "sequences": [
            {
                "number": number,
                "tokens": [
                    [
                        run.text(item.token),
                        item.step if run.streams or item.node is None else item.node.step,
                        item.fate,
                        None if item.node is None else item.node.p,
                    ]
                    for item in items
                ],
            }
            for number, items in run.sequences.items()
        ],
        "steps": [_step(run, step) for step in run.steps],
    }


def _step(run: TracedRun, step: Step) -> dict[str, Any]:
    return {
        "gained": gained(step),
        "accepted": step.count("accepted"),
        "drawn": step.count("drawn", "chosen"),
        "notes": [
            *calls(step),
            *(
                f"{item.scorer}: {' '.join('-' if v is None else f'{v:.3g}' for v in item.values)}"
                for item in step.scores
            ),
        ],
        "trees": [_tree(run, step, top, sequence) for top, sequence in step.tops],
    }


def _tree(run: TracedRun, step: Step, top: TracedNode, sequence: int) -> dict[str, Any]:
    """The nodes of a tree, parents first: parent's place, text, fate, p, q; -1 is the top."""
    nodes: list[list[Any]] = []
    waiting = [(top, -1)]
    while waiting:
        node, place = waiting.pop(0)
        for child in step.below(node, sequence):
            waiting.append((child, len(nodes)))
            nodes.append(
                [place, run.text(child.token), child.fate, _short(child.p), _short(child.q)]
            )
        for token, p in others(step, node, sequence)[:_OTHERS]:
            nodes.append([place, run.text(token), "other", _short(p), None])
    return {"sequence": sequence, "context": run.context(top, _CONTEXT), "nodes": nodes}


def _short(value: float | None) -> list[Any] | None:
    """A probability and how it is written."""
    return None if value is None else [round(value, 4), chance(value)]
