"""Drawing texts for reproductions: many settings in one runner, with notes on every token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decodery.core.branches import branch_footprint
from decodery.core.decoder import Completion, Decoder, Decoding, Task, completion
from decodery.core.handle import Handle
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.sampler import Chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.reproductions.frame import SEED_LIMIT, Progress

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel

Note = Callable[[Node, int], float]  # a node and the token drawn there -> a number


@dataclass(frozen=True)
class NotedDraws(Decoder):
    """`n` draws, the same as `sample` makes; details[name] of each has one number a token."""

    n: int
    notes: Mapping[str, Note]

    @property
    def sequences(self) -> int:
        return self.n

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return branch_footprint(self.n, prompt_length, max_tokens)

    def decode(self, task: Task) -> Decoding:
        root: Node = yield Open(task.policy, task.prompt)
        tips = [root] * self.n
        noted: list[dict[str, Any]] = [{name: [] for name in self.notes} for _ in tips]
        ended: dict[int, Completion] = {}
        live = list(range(self.n))
        while live:
            for sequence in live:
                tip = tips[sequence]
                token = tip.draw(sequence)
                for name, note in self.notes.items():
                    noted[sequence][name].append(note(tip, token))
                tips[sequence] = tip.child(token, sequence)
            for sequence in live:
                tip = tips[sequence]
                reason = task.stopping.reason(tip)
                if reason is not None:
                    ended[sequence] = completion(tip, reason, details=noted[sequence])
                    tip.abandon()
            live = [sequence for sequence in live if sequence not in ended]
            if live:
                yield Grow([tips[sequence] for sequence in live])
        return [ended[sequence] for sequence in range(self.n)]


@dataclass(frozen=True)
class Draw:
    """What is drawn at one place: `n` texts through a chain, with a noise of its own."""

    sampler: Chain
    stream: Stream
    n: int = 1


def item_stream(seed: int, item: int) -> Stream:
    """Noise of a seed and an item: items must not share noise, or they would err together."""
    return Stream(seed * 2**16 + item)


def seeds_from(first: int, count: int) -> tuple[int, ...]:
    """The seeds of a run."""
    return tuple((first + offset) % SEED_LIMIT for offset in range(count))


def submit(
    runner: Runner,
    lm: LanguageModel,
    prompt: str,
    draw: Draw,
    notes: Mapping[str, Note],
    *,
    max_tokens: int,
    raw: bool = False,
    ignore_eos: bool = False,
) -> Handle:
    """Queue draws from one prompt."""
    read = lm.read(prompt, raw=raw)
    stopping = Stopping(max_tokens, eos_ids=lm.eos_ids, ignore_eos=ignore_eos)
    policy = Policy(lm, draw.sampler)
    task = Task(policy, read.tokens, stopping, draw.stream, read.text, lm.tokenizer.decode)
    return runner.submit(NotedDraws(draw.n, notes), task)


def run(runner: Runner, handles: Sequence[Handle], progress: Progress) -> None:
    """Run everything; what is known of its length tells how far it is."""
    total = sum(
        handle.decoder.sequences * handle.task.stopping.max_tokens + len(handle.task.prompt)
        for handle in handles
    )
    try:
        while runner.step():
            if runner.steps % 8 == 0:
                progress(sum(map(_done, handles)), total)
    finally:
        runner.close()
    progress(total, total)


def _done(handle: Handle) -> int:
    """Tokens evaluated, or all that could have been when it has ended."""
    if handle.done:
        return handle.decoder.sequences * handle.task.stopping.max_tokens + len(handle.task.prompt)
    return handle.report.tokens_evaluated + handle.report.cached_tokens
