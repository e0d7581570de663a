"""Multi-draft speculative decoding near its optimum: greedy drafts, and a verifier that is optimal.

Below every node of a draft tree lie n candidates. How often any lossless verifier can accept one of
them is known (`bound.py`), and how they are drawn matters. Greedy drafting takes the n - 1 most
probable tokens A of the draft's q and one draw z from q' = q without A; its verifier

    accepts z with probability min(1, p(z) / q'(z)),
    else draws y from norm((p - q')_+) and accepts it where it lies in A

and so reaches the bound, p(A) + sum over the others of min(p, q'). Other drafters and other rules
stand behind the same two names, for comparison. `optimum` reports, at the nodes that were verified,
the bound beside what the rule accepts on average.

Hu, Zheng, Viswanathan, Chen, Rossi, Wu, Manocha, Huang: Towards Optimal Multi-draft Speculative
Decoding (2025), arXiv:2502.18779.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.source import Source
from decodery.methods.speculative.acceptance import Optimum
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.drafting import HELP, drafter_for
from decodery.methods.speculative.shapes import Branching
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.transport import MOST_TOKENS, Transport
from decodery.methods.speculative.verifiers import Greedy, Hub, KSeq, Match, Recursive, Rule
from decodery.methods.speculative.walks import NodeWise

DrafterName = Literal["greedy", "distinct", "iid", "hub"]
RuleName = Literal["recursive", "k_seq", "hub", "greedy", "match", "transport"]

CARD = Card(
    name="optimal_multi_draft",
    kind="decoder",
    family="speculative",
    summary="Draft trees whose candidates and verifier are matched; by default greedy and optimal.",
    guarantee="exact",
    law="the policy's own law, token by token",
    title="Towards Optimal Multi-draft Speculative Decoding",
    authors="Hu, Zheng, Viswanathan, Chen, Rossi, Wu, Manocha, Huang",
    year=2025,
    arxiv="2502.18779",
    needs=("draft",),
    calls_per_token="(1 of the policy's source + levels of the draft) / tokens a step",
    reductions=(Reduction({"rule": "match"}, "sample"),),
    deviations=(
        "the paper treats one position; trees apply its verifiers node by node",
        "Q of draws without replacement is an integral of our own, of the same value",
    ),
)


class Params(Parameters):
    draft: str | Source | None = parameter(None, help=HELP)
    branching: tuple[int, ...] = parameter(
        (), help="Candidates of a node, level by level; default 2,2,2."
    )
    drafter: DrafterName = parameter(
        "greedy",
        help="The top tokens and one draw; draws without replacement; i.i.d. draws; SpecHub's two.",
    )
    rule: RuleName | None = parameter(
        None, help="What verifies them; default the drafter's own (distinct, iid: recursive)."
    )
    optimum: bool = parameter(
        False, help="Report the bound on acceptance beside the rule's, at the nodes verified."
    )
    draft_temperature: float | None = parameter(
        None, gt=0.0, le=100.0, help="Temperature that drafts are drawn at; default: the run's own."
    )
    n: int = parameter(1, ge=1, le=1024, unit="sequences", help="How many sequences to draw.")


OWN: dict[DrafterName, RuleName] = {
    "greedy": "greedy",
    "distinct": "recursive",
    "iid": "recursive",
    "hub": "hub",
}
RULES: dict[RuleName, Callable[[Drawn], Rule]] = {
    "recursive": Recursive,
    "k_seq": lambda _: KSeq(),
    "hub": lambda _: Hub(),
    "greedy": lambda _: Greedy(),
    "match": lambda _: Match(),
    "transport": Transport,
}
# Why a rule is exact for these drafters only.
JUDGES: dict[RuleName, tuple[tuple[DrafterName, ...], str]] = {
    "recursive": (("iid", "distinct"), "its ratios are of candidates that are all drawn from q"),
    "k_seq": (("iid",), "it judges every candidate alike, so each must have the law q"),
    "hub": (("hub",), "it knows the law of SpecHub's pairs only"),
    "greedy": (("greedy",), "it knows which candidates are certain and which one is drawn"),
}


def rule_of(drafter: DrafterName, name: RuleName | None) -> Rule:
    """The rule by name for a drafter. Refuses what would not be exact."""
    name = OWN[drafter] if name is None else name
    judged, reason = JUDGES.get(name, (tuple(OWN), ""))
    if drafter not in judged:
        raise ParameterError(
            f"optimal_multi_draft: rule {name} cannot verify drafter {drafter} exactly: {reason};"
            f" take drafter {' or '.join(judged)}, or rule {OWN[drafter]}, match or transport"
            f" (at most {MOST_TOKENS} tokens)"
        )
    return RULES[name](drafter)


def build(params: Params) -> Speculation:
    rule = rule_of(params.drafter, params.rule)
    shape = Branching(params.branching or (2, 2, 2), params.drafter)
    return Speculation(
        drafter_for(params.draft, shape, temperature=params.draft_temperature),
        NodeWise(rule),
        params.n,
        watch=partial(Optimum, rule, params.drafter) if params.optimum else None,
    )


METHOD = Method(CARD, Params, build)
