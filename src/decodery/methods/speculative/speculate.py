"""Speculation that only ever helps: drafts from whatever predicts the text, as far as they pay.

Guesses come from a lookup in the prompt and the answer, and from a small head distilled from the
model where one comes with it. A tree of the likeliest is verified in one forward, as large as its
expected gain over its measured cost is best, which is often nothing at all (`adaptive.py`). Each
token is drawn as without drafts, with the same number, so the answer is, token for token, that of
plain decoding.

This is what `speculation auto` stands for.
"""

from __future__ import annotations

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.methods.speculative.adaptive import Adaptive
from decodery.methods.speculative.distilled import HeadProposer
from decodery.methods.speculative.lookup_proposer import LookupProposer
from decodery.methods.speculative.proposers import Proposer
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match
from decodery.methods.speculative.walks import NodeWise

CARD = Card(
    name="speculate",
    kind="decoder",
    family="speculative",
    summary="Draft what lookups and a distilled head predict, as many tokens as measurably pay.",
    guarantee="exact",
    law="the policy's own, token by token; the very tokens of method sample with the same seed",
    title="Adaptive drafts by expected gain and measured cost",
    authors="decodery",
    year=2026,
    source="decodery; lookup: Saxena (2023), head: as in EAGLE, arXiv:2401.15077",
    calls_per_token="1 / (1 + tokens accepted of a draft)",
    reductions=(Reduction({}, "sample"),),
    inert=("head",),
)


class Params(Parameters):
    most_nodes: int = parameter(
        8, ge=1, le=64, unit="tokens", help="Most tokens that are drafted below one text a step."
    )
    suffix: int = parameter(
        8, ge=0, le=64, unit="tokens", help="Longest run of last tokens looked up; 0: no lookup."
    )
    suffix_prompt: bool = parameter(True, help="Look in the prompt too.")
    head: bool = parameter(
        True, help="Guess with the head that was distilled from the model, where one comes with it."
    )
    n: int = parameter(1, ge=1, le=1024, unit="sequences", help="How many sequences to draw.")


def build(params: Params) -> Speculation:
    proposers: list[Proposer] = []
    if params.suffix:
        proposers.append(LookupProposer(params.suffix, params.suffix_prompt))
    elif not params.suffix_prompt:
        raise ParameterError("speculate: suffix_prompt has no effect with suffix 0: no lookup")
    if params.head:
        proposers.append(HeadProposer(optional=True))
    if not proposers:
        raise ParameterError("speculate: suffix 0 without head leaves nobody to draft")
    return Speculation(Adaptive(tuple(proposers), params.most_nodes), NodeWise(Match()), params.n)


METHOD = Method(CARD, Params, build)
