"""Drives a model by hand: a generator function plays the decoder of one request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from decodery.core.decoder import Decoder, Decoding, Task
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.models.causal import CausalModel

Body = Callable[[Task], Iterator[object]]


class Script(Decoder):
    """A decoder made from a generator function, to drive the engine by hand in a test."""

    def __init__(self, body: Body, slots: int) -> None:
        self.body = body
        self.room = slots

    def decode(self, task: Task) -> Decoding:
        yield from self.body(task)  # type: ignore[misc]
        return []

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return self.room


def drive(
    model: CausalModel,
    prompt: Sequence[int],
    body: Body,
    *,
    slots: int = 2000,
    salt: str | None = None,
) -> None:
    """Run `body` as one request that may keep `slots` tokens alive."""
    task = Task(Policy(model), tuple(prompt), Stopping(1), cache_salt=salt)
    run_alone(Script(body, slots), task)
