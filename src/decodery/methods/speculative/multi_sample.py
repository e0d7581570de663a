"""Speculative decoding for many samples of one prompt: drafts are what the other samples wrote.

The last tokens of a sample are looked for in the others; what came after them there is merged into
a graph, a draft is read from it and verified in one forward (`consensus.py`). No draft model, no
training. Each token is drawn as without drafts, with the same number, so the samples are
independent, and each is, token for token, that of method `sample`.

Li, Shi, Feng, Yuan, Wang, Zhang, Zhang, Tan, Pan, Hu, Li: Speculative Decoding for Multi-Sample
Inference (2025), arXiv:2503.05330.
"""

from __future__ import annotations

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.methods.speculative.consensus import Consensus, Cuts, Shape, Weights
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match
from decodery.methods.speculative.walks import NodeWise

CARD = Card(
    name="multi_sample",
    kind="decoder",
    family="speculative",
    summary="Many samples of one prompt; drafts are what the others wrote after the same tokens.",
    guarantee="exact",
    law="the policy's own, samples independent; the very samples of method sample, same seed",
    title="Speculative Decoding for Multi-Sample Inference",
    authors="Li, Shi, Feng, Yuan, Wang, Zhang, Zhang, Tan, Pan, Hu, Li",
    year=2025,
    arxiv="2503.05330",
    calls_per_token="1 / (1 + tokens accepted of a draft)",
    reductions=(Reduction({}, "sample", {"n": 8}), Reduction({"n": 1}, "sample")),
    deviations=(
        "by default a tree is drafted, matches may be of one token, shorter matches count less"
        " instead of not at all, and the sample itself and the prompt are looked through too:"
        " consensus_shape=greedy, consensus_shortest=2, consensus_decay=0, consensus_edge=0.3,"
        " consensus_path=0.05, consensus_own=false and consensus_prompt=false give the paper's"
        " drafts, so far as they are known",
        "an end token is an edge like any other; a text cut by its budget says nothing of ending",
        "viterbi maximises the tokens accepted on average, not the product of shares, which would"
        " prefer the shortest path",
    ),
)


class Params(Parameters):
    n: int = parameter(8, ge=1, le=1024, unit="sequences", help="How many sequences to draw.")
    consensus_tokens: int = parameter(
        8, ge=1, le=64, unit="tokens", help="Length of a draft, at most."
    )
    consensus_shortest: int = parameter(1, ge=1, le=64, unit="tokens", help="Shortest match.")
    consensus_longest: int = parameter(
        4, ge=1, le=64, unit="tokens", help="Longest match looked for."
    )
    consensus_decay: float = parameter(
        0.3,
        ge=0.0,
        le=1.0,
        help="What a match counts that is one token shorter than the longest; 0: the longest only.",
    )
    consensus_weights: Weights = parameter(
        "probability", help="What a token counts: the probability it was drawn with, or one."
    )
    consensus_edge: float = parameter(
        0.05, ge=0.0, le=1.0, unit="share", help="Least share of a token after the one before."
    )
    consensus_path: float = parameter(
        0.02, ge=0.0, le=1.0, unit="share", help="Least product of shares along a path."
    )
    consensus_shape: Shape = parameter(
        "tree",
        help="greedy: the heaviest path; viterbi: the path with most tokens accepted on average;"
        " tree: the most probable nodes.",
    )
    consensus_branches: int | None = parameter(
        None, ge=1, le=64, unit="tokens", help="Tokens after one node of a tree; default 4."
    )
    consensus_budget: int | None = parameter(
        None, ge=1, le=256, unit="nodes", help="Nodes of a tree, at most; default 16."
    )
    consensus_matches: int = parameter(
        64, ge=1, le=1024, help="Matches that are merged, at most: the longest, then the latest."
    )
    consensus_own: bool = parameter(True, help="Look in the sample itself too.")
    consensus_prompt: bool = parameter(True, help="Look in the prompt too.")


def build(params: Params) -> Speculation:
    if params.consensus_shortest > params.consensus_longest:
        raise ParameterError(
            f"multi_sample: consensus_shortest is {params.consensus_shortest}; allowed is at most"
            f" consensus_longest = {params.consensus_longest}"
        )
    if params.consensus_shape != "tree":
        for name in ("consensus_branches", "consensus_budget"):
            if getattr(params, name) is not None:
                raise ParameterError(
                    f"multi_sample: {name} has no effect on consensus_shape="
                    f"{params.consensus_shape}; give consensus_shape=tree"
                )
    drafter = Consensus(
        tokens=params.consensus_tokens,
        shortest=params.consensus_shortest,
        longest=params.consensus_longest,
        weights=params.consensus_weights,
        cuts=Cuts(params.consensus_edge, params.consensus_path),
        decay=params.consensus_decay,
        shape=params.consensus_shape,
        branches=params.consensus_branches or 4,
        budget=params.consensus_budget or 16,
        matches=params.consensus_matches,
        own=params.consensus_own,
        prompt=params.consensus_prompt,
    )
    return Speculation(drafter, NodeWise(Match()), params.n)


METHOD = Method(CARD, Params, build)
