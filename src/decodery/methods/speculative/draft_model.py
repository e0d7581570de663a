"""Speculative decoding with a draft model: a chain of tokens from a small model, one forward to
verify it.

The draft model writes `draft_tokens` tokens, drawn from its law q; the policy's source scores them
all in one forward. Verification token by token accepts x with probability min(1, p(x) / q(x)) and
on the first refusal draws from norm((p - q)_+): a maximal coupling, the best a single position can
do. Block verification judges the chain as a whole, with the running product of the ratios, and
never accepts fewer tokens on average. Matching draws from p as plain sampling does and goes on
while the draft has the same token: fewer accepted, but the very tokens of plain sampling.

Leviathan, Kalman, Matias: Fast Inference from Transformers via Speculative Decoding (2022),
arXiv:2211.17192; Chen et al. (2023), arXiv:2302.01318; Sun et al.: Block Verification Accelerates
Speculative Decoding (2024), arXiv:2403.10444.
"""

from __future__ import annotations

from typing import Literal

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.source import Source
from decodery.methods.speculative.drafting import HELP, drafter_for
from decodery.methods.speculative.shapes import Branching
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match, Recursive
from decodery.methods.speculative.walks import Block, NodeWise, Walk

Verify = Literal["block", "token", "match"]

CARD = Card(
    name="draft_model",
    kind="decoder",
    family="speculative",
    summary="Draft a chain with a small model or an early exit; verify it in one forward.",
    guarantee="exact",
    law="the policy's own law, token by token; with verify=match the very tokens of method sample",
    title="Fast Inference from Transformers via Speculative Decoding",
    authors="Leviathan, Kalman, Matias",
    year=2022,
    arxiv="2211.17192",
    needs=("draft",),
    calls_per_token="(1 of the policy's source + draft_tokens of the draft) / tokens a step",
    reductions=(Reduction({"verify": "match"}, "sample"),),
    deviations=(
        "default is block verification (arXiv:2403.10444); verify=token is the paper's own",
    ),
)


class Params(Parameters):
    draft: str | Source | None = parameter(None, help=HELP)
    draft_tokens: int = parameter(4, ge=1, le=64, unit="tokens", help="Tokens of a draft.")
    verify: Verify = parameter(
        "block", help="The chain as a whole; token by token; or by matching plain draws."
    )
    draft_temperature: float | None = parameter(
        None, gt=0.0, le=100.0, help="Temperature that drafts are drawn at; default: the run's own."
    )
    n: int = parameter(1, ge=1, le=1024, unit="sequences", help="How many sequences to draw.")


def walk_of(verify: Verify) -> Walk:
    """The walk by its name."""
    if verify == "block":
        return Block()
    return NodeWise(Recursive("iid") if verify == "token" else Match())


def build(params: Params) -> Speculation:
    shape = Branching((1,) * params.draft_tokens, "iid")
    drafter = drafter_for(params.draft, shape, temperature=params.draft_temperature)
    return Speculation(drafter, walk_of(params.verify), params.n)


METHOD = Method(CARD, Params, build)
