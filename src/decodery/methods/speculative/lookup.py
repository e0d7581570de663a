"""Lookup drafters: what came after the same tokens before, in the prompt or in the text itself.

The last `longest` tokens of a text, or fewer down to `shortest`, are looked for earlier in it; what
followed the last occurrence is the candidate path. No model, no training; good where an answer
repeats its prompt or itself.

Saxena: Prompt Lookup Decoding (2023); Yang et al.: Inference with Reference (2023),
arXiv:2304.04487.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from decodery.core.decoder import Task
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates, Drawn
from decodery.methods.speculative.drafters import Drafter, Drafts, Session, Stream


class Index:
    """Where n-grams of a growing text ended: for each, the place after its last occurrences."""

    def __init__(self, shortest: int, longest: int) -> None:
        self.sizes = range(longest, shortest - 1, -1)
        self.text: list[int] = []
        self._after: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens. An n-gram is found from the token after it on."""
        for token in tokens:
            place = len(self.text)
            for size in self.sizes:
                if size <= place:
                    self._after[tuple(self.text[place - size :])].append(place)
            self.text.append(token)

    def matches(self) -> tuple[int, list[int]]:
        """The longest n-gram at the end that came before: its length, and the places after it."""
        for size in self.sizes:
            if size <= len(self.text):
                found = self._after.get(tuple(self.text[-size:]))
                if found:
                    return size, found
        return 0, []


@dataclass(frozen=True)
class Lookup(Drafter):
    """Paths of at most `nodes` tokens, from n-grams of `shortest` to `longest` tokens."""

    drawn: ClassVar[Drawn] = "fixed"
    nodes: int = 8
    shortest: int = 2
    longest: int = 4
    prompt: bool = True

    def session(self, task: Task) -> LookupSession:
        return LookupSession(self, task)


class LookupSession(Session):
    def __init__(self, drafter: Lookup, task: Task) -> None:
        self.drafter = drafter
        self.prompt = task.prompt
        self._indices: dict[int, Index] = {}

    def draft(self, streams: Sequence[Stream], budget: int) -> Drafts:
        return [self._candidates(stream, budget) for stream in streams]
        yield  # a lookup asks for nothing

    def _candidates(self, stream: Stream, budget: int) -> Candidates:
        index = self._index(stream)
        draft = Candidates(stream.tip, stream.sequence)
        _, places = index.matches()
        if places:
            most = min(budget, self.drafter.nodes, stream.room - 1)
            draft.add_path(_following(index.text, places[-1], most))
        return draft

    def _index(self, stream: Stream) -> Index:
        if stream.sequence not in self._indices:
            index = Index(self.drafter.shortest, self.drafter.longest)
            index.extend(self.prompt if self.drafter.prompt else ())
            self._indices[stream.sequence] = index
        return self._indices[stream.sequence]

    def moved(self, stream: Stream, path: Sequence[Node]) -> None:
        self._index(stream).extend([node.token for node in path])

    def ended(self, stream: Stream) -> None:
        self._indices.pop(stream.sequence, None)


def _following(text: Sequence[int], place: int, most: int) -> list[int]:
    """What came after a place; where the text ends, it is taken to repeat itself from there.

    >>> _following([1, 2, 3, 1, 2], 2, 6)
    [3, 1, 2, 3, 1, 2]
    """
    found = list(text[place : place + most])
    while found and len(found) < most:
        found += found[: most - len(found)]
    return found
