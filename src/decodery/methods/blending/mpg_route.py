"""Routing: the sum of mpg by drawing, for each chunk, which attribute model writes it.

The target sum_i w_i pi_i(c) of a chunk c is a mixture, so no density ratio is needed to sample it:
draw i with probability w_i, then the chunk from pi_i. The scope of the blend says how long a draw
of i holds: a token, a chunk, or the whole answer. A model that was not asked for a while is shown
what the others wrote in one forward. This is the law that chunk-level rejection aims at, without
any rejection, and costs one forward of one model a token.

A source that is not an mpg sum is a mixture of one, itself.

The target of Chen, Li, Yuan, Xu, Shen: Multi-Personality Generation of LLMs at Decoding-time
(2026), arXiv:2511.01891.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from decodery.core.card import Card, Method
from decodery.core.decoder import Decoder, Decoding, Task, completion
from decodery.core.distribution import inverse_cdf
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters
from decodery.core.requests import Emit, Grow, Open
from decodery.core.source import Model, Policy, total
from decodery.core.tree import Node
from decodery.methods.blending.drafting import not_grown
from decodery.methods.blending.mpg import Mpg

CARD = Card(
    name="mpg_route",
    kind="decoder",
    family="blending",
    summary="Draw which attribute model of an mpg sum writes the next token, chunk or answer.",
    guarantee="exact",
    law="the policy's own law; a draw of the model and a draw from it are a draw from the mixture",
    title="Multi-Personality Generation of LLMs at Decoding-time",
    authors="Chen, Li, Yuan, Xu, Shen",
    year=2026,
    arxiv="2511.01891",
    calls_per_token="1 of one attribute model, and 1 where another one takes over",
    deviations=("The baseline that mpg_scr must be compared with, not a part of the paper.",),
    notes="On an mpg blend it takes no samplers: after them the joint row is no mixture of rows.",
)


class Params(Parameters):
    pass


@dataclass(frozen=True)
class MpgRoute(Decoder):
    def decode(self, task: Task) -> Decoding:
        policies, weights, length = _routes(task)
        opened: list[Node] = yield tuple(Open(policy, task.prompt) for policy in policies)
        tips = opened
        chosen: list[int] = []
        while True:
            position = tips[0].depth
            if (position - len(task.prompt)) % length == 0:
                chosen.append(inverse_cdf(weights, task.stream.uniform(0, position, "route")))
            which = chosen[-1]
            waiting = not_grown(tips[which])
            if waiting:
                yield Grow(waiting)
            token = tips[which].draw()
            tips = [tip.child(token) for tip in tips]
            yield Emit((token,))
            reason = task.stopping.reason(tips[0])
            if reason is not None:
                return [completion(tips[0], reason, details={"routes": chosen})]

    def slots(self, task: Task) -> dict[Model, int]:
        return total(
            policy.source.slots(task, task.prompt, self.footprint) for policy in _routes(task)[0]
        )


def _routes(task: Task) -> tuple[list[Policy], npt.NDArray[np.float64], int]:
    """The policies to draw from, their weights, and for how many tokens a draw of one holds."""
    source = task.policy.source
    if not isinstance(source, Mpg):
        return [task.policy], np.ones(1), task.stopping.max_tokens
    if source.aggregate == "product":
        raise ParameterError(
            f"mpg_route: {source.name} is a product, which is no mixture; use mpg_token or sample"
        )
    if task.policy.sampler.stages:
        raise ParameterError(
            f"mpg_route: {task.policy.sampler.stages[0]!r} acts on the blended row, and one model"
            " is drawn from at a time; leave it out, or use mpg_token"
        )
    used = np.flatnonzero(source.weights)
    lengths = {"token": 1, "chunk": source.chunk, "sequence": task.stopping.max_tokens}
    policies = [Policy(source.members[1 + index]) for index in used.tolist()]
    return policies, source.weights[used], lengths[source.scope]


def build(params: Params) -> MpgRoute:
    return MpgRoute()


METHOD = Method(CARD, Params, build)
