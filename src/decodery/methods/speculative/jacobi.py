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

New positions get guesses from an initialiser, with the law of one token, or with the uniform law
where guesses are uniform.

Teng et al.: Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative
Jacobi Decoding (2025), arXiv:2410.01699; So et al.: MC-SJD (2025), arXiv:2510.24211.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from decodery.core.branches import branch_footprint
from decodery.core.decoder import Completion, Decoder, Decoding, Task, completion
from decodery.core.errors import BudgetExhausted
from decodery.core.requests import Emit, Grow, Open, Request
from decodery.core.stopping import FinishReason
from decodery.core.tree import Node
from decodery.methods.speculative.law import Law, ratio
from decodery.methods.speculative.speculation import release_above

Coupling = Literal["sjd", "mc", "gs"]
Guess = Literal["random", "uniform", "repeat"]


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
    emitted: int = 0
    changed: int = 0  # of the guesses that were drawn for again, those that became other tokens
    redrawn: int = 0


@dataclass(frozen=True)
class Jacobi(Decoder):
    """At most `window` guesses; see the module for `coupling`, `guess` and `strength`."""

    window: int = 16
    coupling: Coupling = "mc"
    guess: Guess = "random"
    strength: float = 1.0
    n: int = 1

    @property
    def sequences(self) -> int:
        return self.n

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return branch_footprint(self.n, prompt_length, max_tokens) + self.n * self.window

    def decode(self, task: Task) -> Decoding:
        ended: dict[int, Completion] = {}
        live: list[Window] = []
        try:
            root: Node = yield Open(task.policy, task.prompt)
            most = task.stopping.max_tokens
            live = [Window(sequence, root, most) for sequence in range(self.n)]
            while live:
                chains = [self._chain(item, task) for item in live]
                waiting = [node for chain in chains for node in chain if not node.grown]
                if waiting:
                    yield Grow(waiting, keep_rows=True)
                emits: list[Request] = []
                for item, chain in zip(live, chains, strict=True):
                    path = _Step(self, item, chain, task).path()
                    emits.append(Emit(tuple(node.token for node in path), item.sequence))
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

    def _chain(self, item: Window, task: Task) -> list[Node]:
        """The tip and a node for every guess, the window filled up first."""
        self._fill(item, task)
        chain = [item.tip]
        for token in item.guesses:
            chain.append(chain[-1].child(token, item.sequence))
        return chain

    def _fill(self, item: Window, task: Task) -> None:
        size = task.policy.source.vocab_size
        wanted = min(self.window, item.room - 1)
        del item.guesses[wanted:], item.laws[wanted:]
        while len(item.guesses) < wanted:
            if self.guess == "repeat":
                token = item.guesses[-1] if item.guesses else item.tip.token
            else:
                position = item.tip.depth + len(item.guesses)
                token = int(size * task.stream.uniform(item.sequence, position, "guess", item.step))
            uniform = self.guess == "uniform"
            law = Law(np.full(size, 1.0 / size), size) if uniform else Law.certain(token, size)
            item.guesses.append(token)
            item.laws.append(law)


class _Step:
    """One step of one window, whose chain is grown."""

    def __init__(self, decoder: Jacobi, item: Window, chain: Sequence[Node], task: Task) -> None:
        self.decoder, self.item, self.chain, self.task = decoder, item, chain, task

    def path(self) -> list[Node]:
        """The nodes that the step adds; the window moves behind them."""
        item, chain = self.item, self.chain
        item.step += 1
        accepted = 0
        for node, parent, law in zip(chain[1:], chain, item.laws, strict=False):
            target = self._law(parent)
            if not self._uniform(parent, "accept") < ratio(target[node.token], law[node.token]):
                token = target.residual(law).draw(self._uniform(parent, "residual"))
                return self._moved(accepted, token)
            accepted += 1
            if self.task.stopping.reason(node) is not None:
                return self._moved(accepted, None)
        return self._moved(accepted, chain[-1].draw(item.sequence))

    def _moved(self, accepted: int, token: int | None) -> list[Node]:
        """Accept guesses and a token (None: the text has ended); guess anew what comes after."""
        item, chain = self.item, self.chain
        again = range(accepted + 2, len(chain)) if token is not None else ()
        redrawn = [self._again(place) for place in again]
        item.guesses = [guess for guess, _ in redrawn]
        item.laws = [law for _, law in redrawn]
        if accepted + 1 < len(chain):
            chain[accepted + 1].drop()
        path = list(chain[1 : accepted + 1])
        if token is not None:
            path.append(chain[accepted].child(token, item.sequence))
        item.tip = path[-1]
        item.room -= len(path)
        item.emitted += len(path)
        return path

    def _again(self, place: int) -> tuple[int, Law]:
        """A new guess for a place of the chain, and its law, which is this step's."""
        parent, guess, law = (
            self.chain[place - 1],
            self.chain[place].token,
            self.item.laws[place - 1],
        )
        target = self._law(parent)
        token = self._redraw(parent, target, law, guess)
        self.item.redrawn += 1
        self.item.changed += token != guess
        return token, target

    def _redraw(self, parent: Node, target: Law, law: Law, guess: int) -> int:
        step, strength = self.item.step, self.decoder.strength
        coupled = strength == 1.0 or self._uniform(parent, "coupled", step) < strength
        if self.decoder.coupling == "sjd" or not coupled:
            return target.draw(self._uniform(parent, "again", step))
        if self.decoder.coupling == "gs":
            return _gumbel_max(target, self._gumbel(parent))
        if self._uniform(parent, "couple", step) < ratio(target[guess], law[guess]):
            return guess
        return target.residual(law).draw(self._uniform(parent, "couple residual", step))

    def _law(self, parent: Node) -> Law:
        return Law.of(parent.policy_row(self.item.sequence))

    def _uniform(self, parent: Node, purpose: str, index: int = 0) -> float:
        return self.task.stream.uniform(self.item.sequence, parent.depth, purpose, index)

    def _gumbel(self, parent: Node) -> npt.NDArray[np.float64]:
        size = self.task.policy.source.vocab_size
        noise = self.task.stream.generator(self.item.sequence, parent.depth, "gumbel")
        return noise.gumbel(size=size)


def _gumbel_max(law: Law, noise: npt.NDArray[np.float64]) -> int:
    """The draw from a law that Gumbel noise of every token [size] makes."""
    own = noise if law.ids is None else noise[law.ids]
    with np.errstate(divide="ignore"):
        place = int(np.argmax(np.log(law.masses) + own))
    return place if law.ids is None else int(law.ids[place])


def _ended(item: Window, reason: FinishReason) -> Completion:
    details = {
        "steps": item.step,
        "tokens_per_step": item.emitted / max(1, item.step),
        "guesses_changed": item.changed / max(1, item.redrawn),
    }
    return completion(item.tip, reason, details=details)
