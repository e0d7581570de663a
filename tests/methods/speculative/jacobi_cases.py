"""Toys of Jacobi decoding: tables whose every draw can be tried, and steps that are wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import run_alone
from decodery.core.sampler import Context, Sampler, State
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.methods.speculative.guesses import Guess, Lookup, Random, Repeat
from decodery.methods.speculative.jacobi import Coupling, Jacobi, Step, maximal_coupling
from decodery.methods.speculative.law import Law, ratio
from decodery.models.table import TableModel

Probabilities = Sequence[float]

COUPLINGS: tuple[Coupling, ...] = ("sjd", "mc", "gs")
GUESSES: dict[str, Guess] = {
    "random": Random(),
    "uniform": Random(spread=True),
    "repeat": Repeat(),
    "repeat two before": Repeat(2),
    "lookup": Lookup(1, 2),
}


def coins(seed: int, order: int = 2, sure: float = 0.35) -> TableModel:
    """Two tokens; a law is a fair coin, or, with probability `sure`, one of the tokens."""

    def law(context: tuple[int, ...]) -> list[float]:
        generator = np.random.default_rng([seed, len(context), *context])
        heads = generator.random() < 0.5
        certain = [1.0, 0.0] if heads else [0.0, 1.0]
        return certain if generator.random() < sure else [0.5, 0.5]

    return TableModel(law, 2, order, name="coins")


@dataclass(frozen=True)
class Toy:
    """A table with prompt 2, where its texts end, and the grid that all its chances fall on.

    Token 3 comes, then one of the law `right`, then one of `third`; after token 2 in the place of 3
    the law `wrong` holds. Guesses that repeat the token before are wrong at first, so the guess at
    the second place is drawn from `wrong` and verified by `right`. Without a third law the text
    ends there.
    """

    wrong: Probabilities
    right: Probabilities
    third: Probabilities | None = None
    grid: int = 4

    @property
    def stopping(self) -> Stopping:
        ends = frozenset({0, 1, 2}) if self.third is None else frozenset[int]()
        return Stopping(3 if self.third is None else 4, stop_ids=ends)

    def model(self) -> TableModel:
        return TableModel(self._law, 4, 8, name="turning")

    def _law(self, context: tuple[int, ...]) -> Probabilities:
        if len(context) == 2:
            return self.wrong if context[-1] == 2 else self.right
        sure = (0.0, 0.0, 0.0, 1.0)
        return self.third if self.third is not None and len(context) == 3 else sure


@dataclass(frozen=True)
class EveryThird(Sampler):
    """After two, five, ... tokens 1 the most probable token comes: the state counts them."""

    def start(self, context: Context) -> int:
        return 0

    def apply(self, row: Row, state: State, context: Context) -> Row:
        return row.keep(row.token_ids() == row.argmax()) if state % 3 == 2 else row

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> State:
        return state + token


class ScriptedStep(Step):
    """Noise of a position from one number, which can be tried in the cells of a grid.

    It draws by the inverse CDF instead of by the largest of Gumbel variables: another coupling, but
    of the same kind, so what holds and fails of `gs` is shown by it.
    """

    def uniform(self, parent: Node, purpose: str, index: int = 0) -> float:
        if parent.is_root and self.task.policy.source.name == "turning":
            return 0.5  # nothing depends on it: the first token is sure
        return super().uniform(parent, purpose, index)

    def shared(self, parent: Node, law: Law) -> int:
        return law.draw(self.uniform(parent, "gumbel"))

    def redraw(self, parent: Node, target: Law, law: Law, guess: int) -> int:
        if self.decoder.coupling == "gs":
            return self.shared(parent, target)
        return super().redraw(parent, target, law, guess)


def counted(decoder: Jacobi, policy: Policy, stopping: Stopping, runs: int) -> Counter:
    """The sequences that were drawn in so many runs, prompt 0."""
    counts: Counter = Counter()
    for seed in range(0, runs, 1000):
        many = replace(decoder, n=min(1000, runs - seed))
        items = run_alone(many, Task(policy, (0,), stopping, Stream(seed)))
        counts.update(item.tokens for item in items)
    return counts


# -- wrong steps -----------------------------------------------------------------------------------


class KeepsTheOldLaw(ScriptedStep):
    """A guess that stays keeps the law that it was drawn from: two of the authors' three codes."""

    def again(self, place: int) -> tuple[int, Law]:
        old, guess = self.item.laws[place - 1], self.chain[place].token
        token, law = super().again(place)
        return token, old if token == guess else law


class KeepsEveryLaw(ScriptedStep):
    """Guesses are drawn anew and verified against the law of the step before that."""

    def again(self, place: int) -> tuple[int, Law]:
        return super().again(place)[0], self.item.laws[place - 1]


class CouplesWithTheVerifiersNoise(ScriptedStep):
    """The number that couples a guess is the one that it is verified with later."""

    def redraw(self, parent: Node, target: Law, law: Law, guess: int) -> int:
        return maximal_coupling(target, law, guess, partial(self.uniform, parent))


class NoResidual(ScriptedStep):
    """After a refusal the token is drawn from the policy's law."""

    def verify(self, parent: Node, law: Law, guess: int) -> int:
        token, target = super().verify(parent, law, guess), self.law(parent)
        return guess if token == guess else target.draw(self.uniform(parent, "residual"))


class AcceptsAll(ScriptedStep):
    def verify(self, parent: Node, law: Law, guess: int) -> int:
        return guess


class ReplacesWithTheSharedNoise(ScriptedStep):
    """A refused guess is replaced with the noise that draws the guesses of its position."""

    def verify(self, parent: Node, law: Law, guess: int) -> int:
        target = self.law(parent)
        if self.uniform(parent, "accept") < ratio(target[guess], law[guess]):
            return guess
        return self.shared(parent, target.residual(law))


class AcceptsByTheSharedNoise(ScriptedStep):
    """A guess is accepted where the noise of its position draws it again; else the residual."""

    def verify(self, parent: Node, law: Law, guess: int) -> int:
        target = self.law(parent)
        if self.shared(parent, target) == guess:
            return guess
        return target.residual(law).draw(self.uniform(parent, "residual"))


class SharesNoiseBetweenNeighbours(ScriptedStep):
    """Two positions side by side are drawn for with the same noise."""

    def shared(self, parent: Node, law: Law) -> int:
        return law.draw(self.task.stream.uniform(0, parent.depth // 2, "gumbel"))


COIN = (0.5, 0.5, 0.0, 0.0)
TOYS = {
    "halves": Toy((0.5, 0.0, 0.5, 0.0), (0.75, 0.0, 0.25, 0.0)),
    "quarters": Toy((0.5, 0.25, 0.25, 0.0), (0.0, 0.5, 0.5, 0.0)),
    "coins": Toy(COIN, COIN, COIN, grid=2),
}

# What is wrong, with which coupling, and where it shows.
MUTANTS: dict[str, tuple[type[Step], Coupling, str]] = {
    "keeps the old law, mc": (KeepsTheOldLaw, "mc", "halves"),
    "keeps the old law, gs": (KeepsTheOldLaw, "gs", "halves"),
    "keeps every law, sjd": (KeepsEveryLaw, "sjd", "halves"),
    "couples with the verifier's noise": (CouplesWithTheVerifiersNoise, "mc", "halves"),
    "no residual, sjd": (NoResidual, "sjd", "halves"),
    "no residual, mc": (NoResidual, "mc", "halves"),
    "no residual, gs": (NoResidual, "gs", "halves"),
    "accepts all, sjd": (AcceptsAll, "sjd", "halves"),
    "accepts all, mc": (AcceptsAll, "mc", "halves"),
    "replaces with the shared noise": (ReplacesWithTheSharedNoise, "gs", "quarters"),
    "accepts by the shared noise": (AcceptsByTheSharedNoise, "gs", "quarters"),
    "shares noise between neighbours": (SharesNoiseBetweenNeighbours, "gs", "coins"),
}
