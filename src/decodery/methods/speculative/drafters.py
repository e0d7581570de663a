"""Drafters: who proposes the candidates below the ends of texts.

A `Drafter` is data: how its candidates are drawn, and how many it may put below one end. For each
request it makes a `Session`, which may have trees of its own (of a draft model) and is asked for
the candidates of all live streams at once, as a coroutine like any decoder, so drafts of many
streams and requests are one forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from decodery.core.decoder import Requests, Task
from decodery.core.source import Model, Source
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates, Drawn

Steps = Generator[Requests, Any, None]
Drafts = Generator[Requests, Any, list[Candidates]]


@dataclass
class Stream:
    """One sequence of a request: its last token, on the policy's tree, and how much room it has.

    `room` is how many tokens may come after the tip before the sequence ends at the latest; a
    candidate deeper than that could never be used.
    """

    sequence: int
    tip: Node
    room: int


class Session(ABC):
    """A drafter at work in one request."""

    def open(self) -> Steps:
        """What has to be grown before the first draft, such as the prompt on a draft model."""
        return
        yield  # makes this a generator

    @abstractmethod
    def draft(self, streams: Sequence[Stream], budget: int) -> Drafts:
        """Candidates for each stream, at most `budget` nodes below each tip."""

    def moved(self, stream: Stream, path: Sequence[Node]) -> None:
        """The stream has moved: these nodes were added below its old tip."""
        return

    def ended(self, stream: Stream) -> None:
        """The stream needs no more drafts."""
        return


class Drafter(ABC):
    """How candidates are made. Subclasses are frozen dataclasses of their parameters."""

    drawn: ClassVar[Drawn]
    width: ClassVar[int] = 1  # candidates of one node, at most
    nodes: int  # below one tip, at most
    hidden: ClassVar[bool] = False  # whether it reads hidden states of the policy's nodes

    @abstractmethod
    def session(self, task: Task) -> Session:
        """The drafter for one request. Raises `ParameterError` where it cannot work there."""

    def certain(self) -> Drafter:
        """This drafter for greedy decoding: with its most probable candidates in place of draws."""
        return self

    def equipped(self, load: Callable[[str], Source]) -> Drafter:
        """This drafter with the models that it names, loaded."""
        return self

    def slots(self, task: Task, streams: int) -> dict[Model, int]:
        """What its own trees need of each model's cache."""
        return {}
