"""What contrasting blends share: the ratio of two laws, the plausible head, a second prompt."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from decodery.core.decoder import Requests, Task
from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.source import Blend, Footprint, Model, Source

Logs = npt.NDArray[np.floating]
SecondPrompt = str | tuple[int, ...]


def log_probabilities(row: Row) -> Logs:
    """ln p over the whole vocabulary [vocab_size]."""
    return row.dense_scores() - row.log_normaliser


def head(row: Row, alpha: float) -> Row:
    """The tokens at least `alpha` times as probable as the best one; 0 keeps all."""
    if alpha == 0:
        return row
    return row.keep(row.scores >= row.maximum + math.log(alpha))


def ratio(own: Logs, other: Logs, own_exponent: float, other_exponent: float) -> Logs:
    """Scores of P^a / Q^b from ln P and ln Q [n]; a = own_exponent >= 0, any b.

    What P makes impossible stays so (unless a is 0). Where P allows tokens that Q makes impossible
    and b > 0, these win against all others; among each other they are left by P^a, which is the
    limit as Q goes to zero on them alike.
    """
    powered = own_exponent * own if own_exponent else np.zeros_like(own)
    if not other_exponent:
        return powered
    with np.errstate(invalid="ignore"):
        scores = np.where(powered > -np.inf, powered - other_exponent * other, -np.inf)
    endless = scores == np.inf
    return np.where(endless, powered, -np.inf) if endless.any() else scores


class Beside(Blend):
    """A blend of a source and a second one that sees a prompt of its own.

    `second_prompt` as token ids is taken as it is; as a text it stands in place of the last user
    message, or of the whole prompt where that is a plain text. Without it the second source sees
    the last `context` tokens of the prompt, all of them where that is None too.
    """

    def __init__(
        self,
        name: str,
        first: Source,
        second: Source,
        *,
        second_prompt: SecondPrompt | None = None,
        context: int | None = None,
    ) -> None:
        check_tokens(name, second_prompt)
        super().__init__(name, [first, second])
        self.second_prompt = second_prompt
        self.context = context

    def prompts(self, prompt: Sequence[int]) -> Sequence[Sequence[int]]:
        if isinstance(self.second_prompt, str):
            raise ParameterError(f"{self.name}: a prompt of text is read by a run; give token ids")
        if self.second_prompt is not None:
            return [prompt, self.second_prompt]
        return [prompt, prompt if self.context is None else prompt[-self.context :]]

    def slots(self, task: Task, prompt: Sequence[int], footprint: Footprint) -> dict[Model, int]:
        return Blend.slots(self._read(task), task, prompt, footprint)

    def prepare(self, task: Task) -> Generator[Requests, Any, Source]:
        prepared = cast("Beside", (yield from super().prepare(task)))
        return prepared._read(task)

    def _read(self, task: Task) -> Beside:
        """The same blend with its second prompt in tokens."""
        text = self.second_prompt
        if not isinstance(text, str):
            return self
        language = self.members[1].language or self.language
        if language is None:
            raise ParameterError(
                f"{self.name}: the tokens of {self.members[1].name} are numbers; give the second"
                " prompt as token ids"
            )
        read = copy.copy(self)
        if task.messages:
            read.second_prompt = language.chat(_with_user_text(task.messages, text))
        else:
            read.second_prompt = language.encode(text)
        return read


def check_tokens(owner: str, second_prompt: SecondPrompt | None) -> None:
    """Refuse a prompt of no tokens; what a text becomes is known inside a run."""
    if second_prompt == ():
        raise ParameterError(f"{owner}: the second prompt has no tokens; give at least one")


def _with_user_text(messages: Sequence[Any], text: str) -> list[dict[str, Any]]:
    """The conversation with another last user message."""
    changed: list[dict[str, Any]] = [dict(message) for message in messages]
    for message in reversed(changed):
        if message.get("role") == "user":
            message["content"] = text
            return changed
    raise ParameterError("a second prompt of text takes the place of a user message; there is none")
