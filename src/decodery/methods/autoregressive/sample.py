"""Plain sampling: draw the next token from the policy, append it, repeat.

With n above 1 the sequences share the prompt; each has its own noise, so sequence i is the same
whatever n is.
"""

from __future__ import annotations

from dataclasses import dataclass

from decodery.core.branches import branch_footprint, branches
from decodery.core.card import Card, Method
from decodery.core.decoder import Decoder, Decoding, Task
from decodery.core.params import Parameters, parameter

CARD = Card(
    name="sample",
    kind="decoder",
    family="autoregressive",
    summary="Draw every token from the policy; n sequences share the prompt.",
    guarantee="exact",
    law="the policy's own law, token by token",
    title="Ancestral sampling",
    authors="standard",
    year=1951,
    source="textbook",
)


class Params(Parameters):
    n: int = parameter(1, ge=1, le=1024, unit="sequences", help="How many sequences to draw.")


@dataclass(frozen=True)
class Sample(Decoder):
    n: int = 1

    @property
    def sequences(self) -> int:
        return self.n

    def decode(self, task: Task) -> Decoding:
        return (yield from branches(task, self.n))

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return branch_footprint(self.n, prompt_length, max_tokens)


def build(params: Params) -> Sample:
    return Sample(params.n)


METHOD = Method(CARD, Params, build)
