"""Greedy decoding: take the most probable token of the policy; of tied ones, the lowest id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from decodery.core.card import Card, Method
from decodery.core.decoder import Decoder, Decoding, Task, completion
from decodery.core.params import Parameters
from decodery.core.requests import Emit, Grow, Open
from decodery.core.tree import Node

CARD = Card(
    name="greedy",
    kind="decoder",
    family="autoregressive",
    summary="Take the most probable token of the policy at every step.",
    guarantee="law",
    law="the argmax of the policy's row, ties to the lowest id, with probability one",
    title="Greedy decoding",
    authors="standard",
    year=1951,
    source="textbook",
)


class Params(Parameters):
    pass


@dataclass(frozen=True)
class Greedy(Decoder):
    reads_argmax_only: ClassVar[bool] = True

    def decode(self, task: Task) -> Decoding:
        tip: Node = yield Open(task.policy, task.prompt)
        while True:
            token = tip.policy_row().argmax()
            tip = tip.child(token)
            reason = task.stopping.reason(tip)
            if reason is not None:
                yield Emit((token,))
                return [completion(tip, reason)]
            yield Emit((token,)), Grow([tip])


def build(params: Params) -> Greedy:
    return Greedy()


METHOD = Method(CARD, Params, build)
