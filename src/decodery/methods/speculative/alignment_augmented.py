"""Alignment-augmented decoding: copy from the context where the model finds it likely enough.

The last tokens of the text are looked for in the prompt, and what followed there is a tree of
candidates. Where the model itself would have gone on differently at that place of the prompt, a few
tokens of its law there are candidates too. One forward verifies the tree. A candidate x is accepted
where

    p(x) >= tau(p),   tau(p) = min(max p, max(b - a H(p), floor)),   H the entropy in nats,

so where the model is unsure, less is asked; of the paths of accepted candidates the longest is
taken. `constant` asks for max(b, p(end)) instead. A candidate that is less probable than an end
token is never accepted. These two are not exact: the text departs from the policy's, and each
answer says how far. `exact` accepts what plain decoding would have taken, and nothing else.

The alternatives need the model's law at every token of the prompt, one pass over it before the
first token. Where the model keeps prefixes only the prompt's last token is evaluated again after
it. On the embedded model, with one thread and prompts of 150 to 800 tokens, the pass and the prompt
take 1.6 to 2 times the processor time of the prompt alone: the projection on the vocabulary at
every token, and the draws. Where nothing is kept the prompt is evaluated twice.

Wang et al.: Alignment-Augmented Speculative Decoding with Alignment Sampling and Conditional
Verification (2025), arXiv:2505.13204. Retrieval follows the authors' earlier
github.com/Jikai0Wang/CASD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from decodery.core.card import Card, Method, Reduction
from decodery.core.decoder import Completion, Decoding, Task
from decodery.core.errors import BudgetExhausted, ParameterError
from decodery.core.params import Parameters, parameter
from decodery.methods.speculative.alignment_departure import Against, Departure
from decodery.methods.speculative.alignment_drafter import Retrieval
from decodery.methods.speculative.alignment_pool import Alignment
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match
from decodery.methods.speculative.walks import Conditional, NodeWise, Walk

NextToken = Literal["auto", "argmax", "draw"]

CARD = Card(
    name="alignment_augmented",
    kind="decoder",
    family="speculative",
    summary="Copy from the prompt, or from what the model would have said there, above a"
    " threshold.",
    guarantee="lossy",
    law="verify=exact: the policy's own, token by token (next_token=draw: the very tokens of"
    " method sample with the same seed; argmax: those of greedy). Otherwise no law: accepted tokens"
    " are above a threshold of the policy's, and details.departure says how far the answer went",
    title="Alignment-Augmented Speculative Decoding with Alignment Sampling and Conditional"
    " Verification",
    authors="Wang, Tian, Li, Xia, Duan, Wang, Huai, Zhang",
    year=2025,
    arxiv="2505.13204",
    calls_per_token="1 / (1 + candidates accepted a step), and once a pass over the prompt in"
    " chunks of 64 tokens",
    reductions=(
        Reduction({"verify": "exact", "next_token": "draw"}, "sample"),
        Reduction({"verify": "exact", "next_token": "argmax"}, "greedy"),
    ),
    deviations=(
        "no code of the paper is public: the threshold is from a third party's account of it, with"
        " a floor; what a badly aligned token is and how many alternatives it gets are this"
        " package's choices, as are the order of alternatives and their share of the tree",
        "alternatives are drawn from the model's law before samplers, at temperature 1: samplers'"
        " states belong to the answer; of a blend it is the law of its first model",
        "the first step has candidates too: the end of the prompt is looked for in the prompt",
        "a step without a match is a plain one; the authors' code drafts an arbitrary token there,"
        " and the paper a tree of alternatives alone",
        "the context does not grow by what was generated, prompts are not cut at 8,192 tokens, and"
        " the constant threshold has no top-k beside it",
    ),
    notes="An end token in the context is a candidate as any other, and ends the answer where it is"
    " accepted on the longest path.",
)


class Params(Parameters):
    verify: Literal["adaptive", "constant", "exact"] = parameter(
        "adaptive", help="Threshold by entropy, constant threshold, or the policy's own token only."
    )
    threshold: float | None = parameter(
        None, ge=0.0, le=1.0, help="b: least probability of a sure model's token; default 0.1."
    )
    threshold_slope: float | None = parameter(
        None, ge=0.0, unit="1/nat", help="a: threshold lost per nat of entropy; default 0.1."
    )
    threshold_floor: float | None = parameter(
        None, ge=0.0, le=1.0, help="The adaptive threshold is no lower; default 0.02."
    )
    next_token: NextToken = parameter(
        "auto",
        help="The token behind the accepted ones; auto: argmax unless a sampler, such as a"
        " temperature, would be idle under it.",
    )
    alignment: Literal["sample", "top", "off"] = parameter(
        "sample", help="Draw alternatives, take the most probable, or have none."
    )
    misaligned: float | None = parameter(
        None, ge=0.0, le=1.0, help="Alternatives to prompt tokens less probable; default 0.3."
    )
    alternatives: int | None = parameter(
        None, ge=1, le=64, unit="tokens", help="Alternatives of such a token; default 2."
    )
    retrieved_share: float | None = parameter(
        None, ge=0.0, le=1.0, help="Share of the tree filled before alternatives; default 0.75."
    )
    match_shortest: int = parameter(2, ge=1, le=64, unit="tokens", help="Shortest match.")
    match_longest: int = parameter(16, ge=1, le=64, unit="tokens", help="Longest match.")
    tree_depth: int = parameter(10, ge=1, le=64, unit="tokens", help="Levels of a tree.")
    tree_nodes: int = parameter(64, ge=1, le=512, unit="nodes", help="Candidates of a step.")
    skip_first: int = parameter(
        0, ge=0, unit="tokens", help="Tokens at the prompt's start that are no context."
    )
    skip_last: int = parameter(
        0, ge=0, unit="tokens", help="Tokens at the prompt's end that are no context."
    )
    n: int = parameter(1, ge=1, le=1024, unit="sequences", help="How many sequences.")


@dataclass(frozen=True)
class AlignmentAugmented(Speculation):
    """`next_token` decides `greedy` for each task, unless that is set."""

    next_token: NextToken = "auto"

    @property
    def reads_argmax_only(self) -> bool:  # type: ignore[override]
        return super().reads_argmax_only or (self.walk.lossless and self.next_token == "argmax")

    def decode(self, task: Task) -> Decoding:
        greedy = self.greedy or self._takes_argmax(task)
        session = cast("Retrieval", self.drafter).session(task)
        try:
            yield from session.open()  # before the prompt's own root, which then finds it cached
        except BudgetExhausted:
            return []
        against: Against = "itself" if self.walk.lossless else "argmax" if greedy else "draw"
        ready = replace(
            self,
            drafter=replace(cast("Retrieval", self.drafter), opened=session),
            greedy=greedy,
            watch=lambda: Departure(against, session.offered),
        )
        return (yield from Speculation.decode(ready, task))

    def totals(self, completions: Sequence[Completion]) -> dict[str, Any]:
        return {**super().totals(completions), **Departure.totals(completions)}

    def _takes_argmax(self, task: Task) -> bool:
        if self.next_token != "auto":
            return self.next_token == "argmax"
        return not any(stage.keeps_argmax for stage in task.policy.sampler.stages)


_OF_THRESHOLD = ("threshold", "threshold_slope", "threshold_floor")
_OF_ALIGNMENT = ("misaligned", "alternatives", "retrieved_share")


def build(params: Params) -> AlignmentAugmented:
    _refuse_idle(params)
    if params.match_shortest > params.match_longest:
        raise ParameterError(
            f"alignment_augmented: match_shortest is {params.match_shortest}; allowed is at most"
            f" match_longest = {params.match_longest}"
        )
    drafter = Retrieval(
        nodes=params.tree_nodes,
        depth=params.tree_depth,
        shortest=params.match_shortest,
        longest=params.match_longest,
        skip_first=params.skip_first,
        skip_last=params.skip_last,
        share=_or(params.retrieved_share, 0.75),
        alignment=None
        if params.alignment == "off"
        else Alignment(_or(params.misaligned, 0.3), params.alternatives or 2, params.alignment),
    )
    return AlignmentAugmented(drafter, _walk(params), params.n, next_token=params.next_token)


def _walk(params: Params) -> Walk:
    if params.verify == "exact":
        return NodeWise(Match())
    return Conditional(
        slope=_or(params.threshold_slope, 0.1),
        base=_or(params.threshold, 0.1),
        floor=_or(params.threshold_floor, 0.02),
        constant=params.verify == "constant",
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _refuse_idle(params: Params) -> None:
    """Values that would have no effect."""
    idle: list[str] = []
    if params.verify != "adaptive":
        idle += [name for name in _OF_THRESHOLD if name != "threshold" or params.verify == "exact"]
    reason = f"verify={params.verify}"
    for names, why in (
        (idle, reason),
        (_OF_ALIGNMENT * (params.alignment == "off"), "alignment=off"),
    ):
        for name in names:
            if getattr(params, name) is not None:
                raise ParameterError(f"alignment_augmented: {name} has no effect with {why}")
    if params.n > 1 and params.next_token == "argmax":
        raise ParameterError(
            f"alignment_augmented: n is {params.n}; with next_token=argmax all of them are the same"
        )


METHOD = Method(CARD, Params, build)
