"""Speculative Jacobi decoding: a window of guesses that the model itself makes better each step.

The window after a text is grown in one forward, P_1 .. P_w+1 its laws. Guess d_j was drawn from the
law Q_j of the step before, so it is verified as a draft: accepted with probability
min(1, P_j / Q_j), and the first that is not is replaced by a draw from norm((P_j - Q_j)_+). What
comes after it is guessed anew from the laws of this step:

    sjd   d'_j ~ P_j, independent of d_j
    mc    a maximal coupling: d_j stays with probability min(1, P_j / Q_j), else norm((P_j - Q_j)_+)
    gs    the Gumbel-max draw from P_j with noise that belongs to the position, the same every step

and in all of them Q'_j = P_j, whether the token stayed or not: that is what makes them exact. Given
all that happened at the positions before, position j is a Markov chain whose law at every step is
P_j. With `strength` below 1 a position is coupled with that probability, else redrawn.

Where laws are of one token each (greedy decoding) all three are classic Jacobi iteration. First
guesses of new places: `guesses.py`.

Teng et al.: Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative
Jacobi Decoding (2025), arXiv:2410.01699; So et al.: MC-SJD (2025), arXiv:2510.24211.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from decodery.core.branches import branch_footprint
from decodery.core.decoder import Completion, Decoder, Decoding, Task, completion
from decodery.core.errors import BudgetExhausted, RowError
from decodery.core.requests import Emit, Grow, Open, Request
from decodery.core.stopping import FinishReason
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.guesses import Guess, Random
from decodery.methods.speculative.law import Law, ratio
from decodery.methods.speculative.speculation import release_above
from decodery.methods.speculative.tally import KEY, Tally, totals

Coupling = Literal["sjd", "mc", "gs"]


@dataclass
class Window:
    """A sequence: its end, and for the places after it guessed tokens and the laws they had.

    `step` counts forwards: it keys the noise of a position that is drawn for again and again.
    """

    sequence: int
    tip: Node
    room: int
    guesses: list[int] = field(default_factory=list[int])
    laws: list[Law] = field(default_factory=list[Law])
    step: int = 0
    tally: Tally = field(default_factory=Tally)
    changed: int = 0  # of the guesses that were drawn for again, those that became other tokens
    redrawn: int = 0


@dataclass(frozen=True)
class Jacobi(Decoder):
    """At most `window` guesses; see the module for `coupling`, `guess` and `strength`.

    `greedy` takes the policy's most probable token everywhere.
    """

    window: int = 16
    coupling: Coupling = "mc"
    guess: Guess = Random()
    strength: float = 1.0
    n: int = 1
    greedy: bool = False

    @property
    def sequences(self) -> int:
        return self.n

    def certain(self) -> Jacobi:
        """The same for greedy decoding: guesses are verified against the most probable token."""
        return replace(self, greedy=True)

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return branch_footprint(self.n, prompt_length, max_tokens) + self.n * self.window

    def totals(self, completions: Sequence[Completion]) -> dict[str, Any]:
        return totals(completions)

    def decode(self, task: Task) -> Decoding:
        ended: dict[int, Completion] = {}
        live: list[Window] = []
        try:
            root: Node = yield Open(task.policy, task.prompt)
            most = task.stopping.max_tokens
            live = [Window(sequence, root, most) for sequence in range(self.n)]
            while live:
                steps = [Step(self, item, task) for item in live]
                waiting = [node for step in steps for node in step.chain if not node.grown]
                if waiting:
                    yield Grow(waiting, keep_rows=True)
                emits: list[Request] = []
                for item, step in zip(live, steps, strict=True):
                    emits.append(Emit(tuple(step.take()), item.sequence))
                    reason = task.stopping.reason(item.tip)
                    if reason is not None:
                        ended[item.sequence] = _ended(item, reason)
                        item.tip.abandon()
                for item in live:
                    release_above(item.tip)
                live = [item for item in live if item.sequence not in ended]
                yield tuple(emits)
        except BudgetExhausted as spent:
            for item in live:
                if item.sequence not in ended and not item.tip.is_root:
                    ended[item.sequence] = _ended(item, cast("FinishReason", spent.reason))
        return [ended[sequence] for sequence in sorted(ended)]


class Step:
    """One step of one window: its chain, to be grown, and what then becomes of it."""

    def __init__(self, decoder: Jacobi, item: Window, task: Task) -> None:
        self.decoder, self.item, self.task = decoder, item, task
        self.draft = Candidates(item.tip, item.sequence)
        self._fill()
        self.chain = [item.tip]
        for token, law in zip(item.guesses, item.laws, strict=True):
            self.chain += self.draft.add(self.chain[-1], [token], law)

    def _fill(self) -> None:
        """Cut the window to what there is room for, or fill it with first guesses."""
        item, guess = self.item, self.decoder.guess
        size = self.task.policy.source.vocab_size
        wanted = min(self.decoder.window, item.room - 1)
        known = item.tip.tokens
        instead = guess.instead(known, wanted)
        if instead:
            item.guesses, item.laws = instead, [Law.certain(token, size) for token in instead]
        del item.guesses[wanted:], item.laws[wanted:]
        known += item.guesses
        while len(item.guesses) < wanted:
            uniform = self.task.stream.uniform(item.sequence, len(known), "guess", item.step)
            token, law = guess.after(known, size, uniform)
            item.guesses.append(token)
            item.laws.append(law)
            known.append(token)

    def take(self) -> list[int]:
        """The tokens that the step adds; the window moves behind them."""
        item, chain = self.item, self.chain
        item.step += 1
        accepted = 0
        token: int | None = None
        for node, parent, law in zip(chain[1:], chain, item.laws, strict=False):
            token = self.verify(parent, law, node.token)
            if token != node.token:
                break
            accepted += 1
            token = None
            if self.task.stopping.reason(node) is not None:
                return self._move(accepted, None)
        return self._move(accepted, self._bonus(chain[-1]) if token is None else token)

    def _bonus(self, end: Node) -> int:
        """The token behind a window that was accepted: plain sampling, with its number."""
        row = end.policy_row(self.item.sequence)
        return row.argmax() if self.decoder.greedy else end.draw(self.item.sequence)

    def _move(self, accepted: int, token: int | None) -> list[int]:
        """Accept guesses and a token (None: the text has ended); guess anew what comes after."""
        item, chain = self.item, self.chain
        again = range(accepted + 2, len(chain)) if token is not None else ()
        redrawn = [self.again(place) for place in again]
        item.guesses = [guess for guess, _ in redrawn]
        item.laws = [law for _, law in redrawn]
        path = list(chain[1 : accepted + 1])
        if token is not None:
            path.append(chain[accepted].child(token, item.sequence))
        item.tally.note(self.draft, path)
        self.draft.prune(path)
        item.tip = path[-1]
        item.room -= len(path)
        return [node.token for node in path]

    def again(self, place: int) -> tuple[int, Law]:
        """A new guess for a place of the chain, and its law, which is this step's."""
        parent, guess = self.chain[place - 1], self.chain[place].token
        law = self.item.laws[place - 1]
        try:
            target = self.law(parent)
        except RowError:  # a guess above has left a grammar, say: no law comes after it
            return guess, law
        token = self.redraw(parent, target, law, guess)
        self.item.redrawn += 1
        self.item.changed += token != guess
        return token, target

    # -- laws and noise ------------------------------------------------------------------------

    def law(self, parent: Node) -> Law:
        """The law of the token after a node."""
        row = parent.policy_row(self.item.sequence)
        return Law.certain(row.argmax(), row.vocab_size) if self.decoder.greedy else Law.of(row)

    def verify(self, parent: Node, law: Law, guess: int) -> int:
        """The token after a node: the guess, where it is accepted."""
        noise = partial(self.uniform, parent)
        return maximal_coupling(self.law(parent), law, guess, noise)

    def redraw(self, parent: Node, target: Law, law: Law, guess: int) -> int:
        """A draw from `target`, coupled with a guess that was drawn from `law`."""
        step, strength = self.item.step, self.decoder.strength
        coupled = strength == 1.0 or self.uniform(parent, "coupled", step) < strength
        if self.decoder.coupling == "sjd" or not coupled:
            return target.draw(self.uniform(parent, "again", step))
        if self.decoder.coupling == "gs":
            return gumbel_max(target, self.gumbel(parent))
        return maximal_coupling(
            target, law, guess, lambda part: self.uniform(parent, f"couple {part}", step)
        )

    def uniform(self, parent: Node, purpose: str, index: int = 0) -> float:
        return self.task.stream.uniform(self.item.sequence, parent.depth, purpose, index)

    def gumbel(self, parent: Node) -> npt.NDArray[np.float64]:
        """The noise of the position after a node [size]: the same at every step."""
        size = self.task.policy.source.vocab_size
        noise = self.task.stream.generator(self.item.sequence, parent.depth, "gumbel")
        return noise.gumbel(size=size)


def maximal_coupling(target: Law, law: Law, token: int, noise: Callable[[str], float]) -> int:
    """A draw from `target` that is `token`, drawn from `law`, as often as that can be.

    It stays with probability min(1, target / law), so 1 - TV on average; else a draw from
    norm((target - law)_+) comes. `noise` gives fresh numbers in [0, 1), "accept" and "residual".
    """
    if noise("accept") < ratio(target[token], law[token]):
        return token
    return target.residual(law).draw(noise("residual"))


def gumbel_max(law: Law, noise: npt.NDArray[np.float64]) -> int:
    """The draw from a law that Gumbel noise of every token [size] makes."""
    own = noise if law.ids is None else noise[law.ids]
    with np.errstate(divide="ignore"):
        place = int(np.argmax(np.log(law.masses) + own))
    return place if law.ids is None else int(law.ids[place])


def _ended(item: Window, reason: FinishReason) -> Completion:
    changed = item.changed / item.redrawn if item.redrawn else None
    details = {KEY: item.tally.to_dict(), "guesses_changed": changed}
    return completion(item.tip, reason, details=details)
