"""Prompt lookup: drafts are what came after the same tokens before, in the prompt or the answer.

The last tokens of the text are looked for earlier in it, the longest match first, and what followed
there is verified in one forward. Each token is drawn as without drafts, with the same number, so
the answer is, token for token, that of plain decoding.

Saxena: Prompt Lookup Decoding (2023); Yang et al.: Inference with Reference (2023),
arXiv:2304.04487.
"""

from __future__ import annotations

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.methods.speculative.lookup import Lookup
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match
from decodery.methods.speculative.walks import NodeWise

CARD = Card(
    name="prompt_lookup",
    kind="decoder",
    family="speculative",
    summary="Draft what came after the same tokens before, in the prompt or in the answer.",
    guarantee="exact",
    law="the policy's own, token by token; the very tokens of method sample with the same seed",
    title="Prompt Lookup Decoding",
    authors="Saxena",
    year=2023,
    source="github.com/apoorvumang/prompt-lookup-decoding",
    calls_per_token="1 / (1 + tokens accepted of a draft)",
    reductions=(Reduction({}, "sample"),),
)


class Params(Parameters):
    lookup_tokens: int = parameter(8, ge=1, le=64, unit="tokens", help="Tokens of a draft.")
    lookup_shortest: int = parameter(2, ge=1, le=64, unit="tokens", help="Shortest match.")
    lookup_longest: int = parameter(4, ge=1, le=64, unit="tokens", help="Longest match looked for.")
    lookup_prompt: bool = parameter(True, help="Look in the prompt too.")
    n: int = parameter(1, ge=1, le=1024, unit="sequences", help="How many sequences to draw.")


def build(params: Params) -> Speculation:
    if params.lookup_shortest > params.lookup_longest:
        raise ParameterError(
            f"prompt_lookup: lookup_shortest is {params.lookup_shortest}; allowed is at most"
            f" lookup_longest = {params.lookup_longest}"
        )
    drafter = Lookup(
        params.lookup_tokens, params.lookup_shortest, params.lookup_longest, params.lookup_prompt
    )
    return Speculation(drafter, NodeWise(Match()), params.n)


METHOD = Method(CARD, Params, build)
