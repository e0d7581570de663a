"""Recursive speculative decoding: draft trees without replacement, verified by recursive rejection.

A draft source proposes a tree whose siblings are all different. RSD-C draws so many siblings below
every node of a level, without replacement; RSD-S keeps so many branches of a level, drawn without
replacement as sequences by stochastic beam search. At each node the candidates are tried in the
order in which they were drawn, and after each refusal both laws move on:

    r <- norm((r - d)_+),    d <- d without the refused token,

r from the policy's law p, d from the draft's q. The text has exactly the policy's law.

Jeon, Gagrani, Goel, Park, Lee, Lott: Recursive Speculative Decoding: Accelerating LLM Inference via
Sampling Without Replacement (2024), arXiv:2402.14160.
"""

from __future__ import annotations

from typing import Literal

from decodery.core.card import Card, Method
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.source import Source
from decodery.methods.speculative.drafting import HELP, drafter_for
from decodery.methods.speculative.shapes import Beam, Branching
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Recursive
from decodery.methods.speculative.walks import NodeWise

CARD = Card(
    name="rsd",
    kind="decoder",
    family="speculative",
    summary="Draft trees whose siblings all differ; verify them by recursive rejection.",
    guarantee="exact",
    law="the policy's own law, token by token",
    title="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without"
    " Replacement",
    authors="Jeon, Gagrani, Goel, Park, Lee, Lott",
    year=2024,
    arxiv="2402.14160",
    needs=("draft",),
    calls_per_token="(1 of the policy's source + levels of the draft) / tokens a step",
    deviations=(
        "keys of stochastic beams are drawn from the largest down, each a Gumbel variable truncated"
        " at the one before: the same law as perturbing all tokens, for a few draws",
        "node_budget cuts a shape level by level: below every node of a level equally many, or"
        " fewer beams",
    ),
)


class Params(Parameters):
    draft: str | Source | None = parameter(None, help=HELP)
    tree: Literal["beam", "branching"] = parameter(
        "beam", help="RSD-S: so many branches a level; or RSD-C: so many children of every node."
    )
    beams: int | None = parameter(
        None, ge=1, le=64, unit="branches", help="Branches of a level (beam); default 3."
    )
    levels: int | None = parameter(None, ge=1, le=64, help="Levels of the tree (beam); default 3.")
    branching: tuple[int, ...] = parameter(
        (), help="Children of a node, level by level (branching); default 2,2,2."
    )
    node_budget: int | None = parameter(
        None, ge=1, le=4096, unit="nodes", help="Most candidates of a step; default: the shape's."
    )
    draft_temperature: float | None = parameter(
        None, gt=0.0, le=100.0, help="Temperature that drafts are drawn at; default: the run's own."
    )
    n: int = parameter(1, ge=1, le=1024, unit="sequences", help="How many sequences to draw.")


def build(params: Params) -> Speculation:
    if params.tree == "beam" and params.branching:
        raise ParameterError("rsd: branching has no effect on a tree of beams; give tree=branching")
    if params.tree == "branching" and (params.beams is not None or params.levels is not None):
        raise ParameterError("rsd: beams and levels are of tree=beam; give branching such as 2,2,2")
    beam = Beam(params.beams or 3, params.levels or 3)
    shape = beam if params.tree == "beam" else Branching(params.branching or (2, 2, 2))
    drafter = drafter_for(
        params.draft, shape, temperature=params.draft_temperature, most=params.node_budget
    )
    return Speculation(drafter, NodeWise(Recursive("distinct")), params.n)


METHOD = Method(CARD, Params, build)
