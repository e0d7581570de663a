"""Guesses by lookup: what came most often after the same last tokens before.

The longest run of last tokens that occurred before decides, up to `longest`; of the tokens that
came after it, the most frequent is guessed, of equally frequent ones the latest. How sure that is
depends on how long the run is, how often it occurred, and whether the same token came every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decodery.core.decoder import Task
from decodery.core.tree import Node
from decodery.methods.speculative.drafters import Stream
from decodery.methods.speculative.proposers import Guess, Proposer, Watcher

MOST_OCCURRENCES = 4  # more count as so many
# Chances before anything is learnt, by the length of the run: where different tokens came after it,
# then where the same one came after all of 1, 2, 3, 4 or more occurrences.
_LAST = (0.50, 0.78, 0.91, 0.96, 0.99)
PRIORS: dict[int, tuple[float, ...]] = {
    1: (0.17, 0.28, 0.57, 0.67, 0.78),
    2: (0.28, 0.50, 0.73, 0.77, 0.86),
    3: (0.35, 0.59, 0.72, 0.85, 0.92),
    4: (0.37, 0.64, 0.78, 0.85, 0.95),
}


class Continuations:
    """What came after each run of 1 to `longest` tokens of a growing text, and how often."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.tail: tuple[int, ...] = ()
        self._after: dict[tuple[int, ...], dict[int, int]] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        for token in tokens:
            for size in range(1, len(self.tail) + 1):
                counts = self._after.setdefault(self.tail[-size:], {})
                counts[token] = counts.pop(token, 0) + 1  # the latest stands last
            self.tail = (*self.tail, token)[-self.longest :]

    def after(self, tail: tuple[int, ...]) -> tuple[int, dict[int, int]]:
        """The longest end of `tail` that came before, and what came after it, how often."""
        for size in range(len(tail), 0, -1):
            counts = self._after.get(tail[-size:])
            if counts is not None:
                return size, counts
        return 0, {}


@dataclass(frozen=True)
class LookupProposer(Proposer):
    """Looks in the prompt, in the answer as it grows, or in both."""

    longest: int = 8
    prompt: bool = True

    def watcher(self, task: Task) -> LookupWatcher:
        return LookupWatcher(self, task)


class LookupWatcher(Watcher):
    """A state is the last tokens of a place, and whose text they end."""

    def __init__(self, proposer: LookupProposer, task: Task) -> None:
        self.proposer = proposer
        self.prompt = task.prompt if proposer.prompt else ()
        self._texts: dict[int, Continuations] = {}

    def _text(self, sequence: int) -> Continuations:
        if sequence not in self._texts:
            self._texts[sequence] = Continuations(self.proposer.longest)
            self._texts[sequence].extend(self.prompt)
        return self._texts[sequence]

    def begin(self, stream: Stream) -> Any:
        text = self._text(stream.sequence)
        return text, text.tail

    def after(self, state: Any, token: int) -> Any:
        text, tail = state
        return text, (*tail, token)[-self.proposer.longest :]

    def guesses(self, state: Any) -> Sequence[Guess]:
        text, tail = state
        size, counts = text.after(tail)
        if not counts:
            return ()
        token = max(reversed(counts), key=counts.__getitem__)
        total = min(sum(counts.values()), MOST_OCCURRENCES)
        certainty = total if len(counts) == 1 else 0
        chance = PRIORS.get(size, _LAST)[certainty]
        return (Guess(token, ("lookup", size, certainty), chance),)

    def moved(self, stream: Stream, path: Sequence[Node]) -> None:
        self._text(stream.sequence).extend([node.token for node in path])

    def ended(self, stream: Stream) -> None:
        self._texts.pop(stream.sequence, None)
