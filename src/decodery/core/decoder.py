"""Decoders: coroutines that say which nodes they want grown, get them, and decide.

A decoder never touches a model. It is given a `Task`, yields requests (`core/requests.py`), and
returns completions. That is all the runner needs to batch any decoders together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from decodery.core.errors import ParameterError
from decodery.core.language import Message
from decodery.core.requests import Request
from decodery.core.rng import Stream
from decodery.core.source import Model, Policy, Source
from decodery.core.stopping import FinishReason, Stopping
from decodery.core.tree import Node

Requests = Request | tuple[Request, ...]


def _no_text(_tokens: Sequence[int]) -> str:
    return ""


@dataclass(frozen=True)
class Task:
    """What a decoder is given. `decode` turns tokens into text, for scorers.

    `prompt_text` is the prompt as the model reads it; `messages` is the conversation it was made
    of, empty where it was a plain text or token ids.

    Models share what they keep of prompts only between tasks of equal `cache_salt`; give each
    tenant its own. A model that keeps nothing, such as a table, has no use for it.
    """

    policy: Policy
    prompt: tuple[int, ...]
    stopping: Stopping
    stream: Stream = Stream(0)
    prompt_text: str = ""
    decode: Callable[[Sequence[int]], str] = _no_text
    cache_salt: str | None = None
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if self.cache_salt == "":
            raise ParameterError(
                "cache_salt is empty; give each tenant a text of its own, or leave it out"
            )


@dataclass(frozen=True)
class Completion:
    """One answer: tokens after the prompt, why it ended, and what is known of its worth.

    `log_probability` (nats) is the sum of ln p of its tokens under the policy, where the decoder
    keeps it; `score` is what a scorer or search gave it.
    """

    tokens: tuple[int, ...]
    finish_reason: FinishReason
    sequence: int = 0
    log_probability: float | None = None
    score: float | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])


Decoding = Generator[Requests, Any, list[Completion]]


class Decoder(ABC):
    """Subclasses are frozen dataclasses of their parameters."""

    reads_argmax_only: ClassVar[bool] = False  # nothing of a policy row but its most probable token

    @property
    def sequences(self) -> int:
        """How many completions it returns, unless a budget cuts it short."""
        return 1

    def certain(self) -> Decoder:
        """This decoder taking the policy's most probable token everywhere, as greedy decoding does.

        Raises `ParameterError` for one that has no such form.
        """
        raise ParameterError(f"{self!r} has no greedy form")

    def equipped(self, load: Callable[[str], Source]) -> Decoder:
        """This decoder with the models that it names, loaded; `load` gets one by its name."""
        return self

    @abstractmethod
    def decode(self, task: Task) -> Decoding:
        """The coroutine. It may catch `BudgetExhausted` to return the best it has."""

    def totals(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """What the report says of all completions together, as data for JSON."""
        return {}

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        """The most tokens of the task's source this decoder keeps alive at once.

        The runner reserves them before the first forward, so a cache never fills half way.
        """
        return prompt_length + max_tokens

    def slots(self, task: Task) -> dict[Model, int]:
        """The most cache slots of each model that the task may need.

        A decoder that plants trees of other prompts than the task's says so here, and raises what
        speaks against them.
        """
        return task.policy.source.slots(task, task.prompt, self.footprint)


def completion(tip: Node, reason: FinishReason, **known: Any) -> Completion:
    """The completion that ends at `tip`."""
    return Completion(tuple(tip.generated), reason, sequence=tip.sequence, **known)
