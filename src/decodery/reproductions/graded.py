"""Graded draws: many sampler chains answer one prompt on one tree, and every answer is judged.

The judge reads a prefix of the answer and says right, wrong or not decided yet. Only undecided
prefixes are grown, each once for all chains, seeds and draws that reached it, so a grid of a
hundred settings costs little more than one answer. What is drawn is unchanged: draw i of a chain
under a seed is sequence i of a plain `sample` run with that chain and seed, up to where the judge
has decided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from decodery.core.decoder import Completion, Decoder, Decoding, Task
from decodery.core.errors import CapacityError, ParameterError
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.sampler import Chain
from decodery.core.stopping import FinishReason
from decodery.core.tree import Node

Judge = Callable[[str, bool], bool | None]  # text so far, whether it ended -> right, wrong, open
Place = tuple[Node, int]  # a node and a chain's number
Step = tuple[Node, FinishReason | None, bool | None]  # a child, why it ended, what the judge said


@dataclass(frozen=True)
class GradedDraws(Decoder):
    """`draws` answers for each chain and stream; completion ((chain * streams) + stream) * draws +
    i has score 1 where the judge said right, else 0.

    The task's policy must be the bare source. Chains that ask for noise or hidden states are
    refused: here both would belong to the tree, not to a chain. Undecided prefixes of one answer
    are few; `most_nodes` of them are reserved, and more end the request with `CapacityError`.
    """

    chains: tuple[Chain, ...]
    streams: tuple[Stream, ...]
    draws: int
    judge: Judge
    most_nodes: int = 256

    def __post_init__(self) -> None:
        for chain in self.chains:
            if chain.needs_noise or chain.needs_hidden:
                raise ParameterError(f"{chain!r} needs noise or hidden states; draw it alone")

    @property
    def sequences(self) -> int:
        return len(self.chains) * len(self.streams) * self.draws

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return prompt_length + min(self.most_nodes, self.sequences * max_tokens)

    def decode(self, task: Task) -> Decoding:
        if task.policy.sampler.stages:
            raise ParameterError("graded draws bring their own chains; give the bare source")
        root: Node = yield Open(task.policy, task.prompt)
        each = len(self.streams) * self.draws
        standing: dict[Place, list[int]] = {
            (root, number): list(range(each)) for number in range(len(self.chains))
        }
        states = {
            (root, number): chain.start(root.context()) for number, chain in enumerate(self.chains)
        }
        ended: dict[int, Completion] = {}
        while standing:
            standing, states, reached = self._step(task, standing, states, ended)
            if root.tree.alive - 1 + len(reached) > self.most_nodes:
                raise CapacityError(
                    f"more than most_nodes {self.most_nodes} prefixes are undecided; raise it"
                )
            if reached:
                yield Grow(reached)
        return [ended[number] for number in sorted(ended)]

    def _step(
        self,
        task: Task,
        standing: dict[Place, list[int]],
        states: dict[Place, Any],
        ended: dict[int, Completion],
    ) -> tuple[dict[Place, list[int]], dict[Place, Any], list[Node]]:
        """Draw one token everywhere: who stands where next, the states there, what to grow."""
        moved: dict[Place, list[int]] = defaultdict(list)
        advanced: dict[Place, Any] = {}
        steps: dict[tuple[Node, int], Step] = {}
        for (node, number), members in standing.items():
            chain, state, context = self.chains[number], states[node, number], node.context()
            row = chain.apply(node.row, state, context)
            for member in members:
                stream = self.streams[member // self.draws]
                token = row.draw(stream.uniform(member % self.draws, node.depth, "token"))
                if (node, token) not in steps:
                    steps[node, token] = self._child(task, node, token)
                child, reason, right = steps[node, token]
                if right is None:
                    moved[child, number].append(member)
                    if (child, number) not in advanced:
                        seen = node.row if chain.observes_rows else None
                        advanced[child, number] = chain.advance(state, token, seen, context)
                else:
                    sequence = number * len(self.streams) * self.draws + member
                    ended[sequence] = Completion(
                        tuple(child.generated),
                        reason or "stop_string",
                        sequence,
                        score=float(right),
                    )
        grow = [child for child, _, right in steps.values() if right is None]
        return dict(moved), advanced, grow

    def _child(self, task: Task, node: Node, token: int) -> Step:
        child = node.child(token)
        reason = task.stopping.reason(child)
        said = child.generated[:-1] if reason == "eos" else child.generated
        right = self.judge(task.decode(said), reason is not None)
        if reason is not None:
            right = bool(right)
        if right is not None:
            child.drop()
        return child, reason, right
