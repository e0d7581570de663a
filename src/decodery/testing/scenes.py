"""Scenes: small tasks that every decoder must survive, each with an edge of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from decodery.core.decoder import Decoder, Task
from decodery.core.handle import Budget, Handle
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.sampler import chain
from decodery.core.source import Model, Policy, leaves
from decodery.core.stopping import FinishReason, Stopping
from decodery.models.table import TableModel
from decodery.testing.samplers import Coin, Heat, Shy, Surprised
from decodery.testing.tables import MixtureBlend, WatchedTable, edge_table

LETTERS = "abcdefghijkl"
# After its last 3, 2 and 1 tokens came 3, 1 and 0 before.
REPEATING = (2, 0, 1, 3, 0, 1, 1, 0, 2, 0, 1)


def spell(tokens: Sequence[int]) -> str:
    """The toy text of tokens: one letter each."""
    return "".join(LETTERS[token] for token in tokens)


@dataclass(frozen=True)
class Scene:
    """A label and a task whose tables count what lives in them."""

    label: str
    task: Task

    @property
    def models(self) -> list[Model]:
        return list(dict.fromkeys(leaves(self.task.policy.source)))

    def seeded(self, seed: int) -> Scene:
        return replace(self, task=replace(self.task, stream=Stream(seed)))


def _scene(label: str, policy: Policy, stopping: Stopping, prompt: Sequence[int] = (0,)) -> Scene:
    return Scene(label, Task(policy, tuple(prompt), stopping, prompt_text="x", decode=spell))


def _watched(seed: int, vocab_size: int, eos_ids: frozenset[int] = frozenset()) -> WatchedTable:
    table = TableModel.random(vocab_size, seed=seed)
    return WatchedTable(table.law, vocab_size, 2, eos_ids=eos_ids, name=f"table {seed}")


def scenes() -> list[Scene]:
    """All scenes, on fresh tables."""
    end = frozenset({2})
    stateful = chain(Shy(), Surprised(), Heat())
    two = MixtureBlend(_watched(6, 3, end), _watched(7, 3, end))
    same = _watched(8, 3, end)
    return [
        _scene("an end token", Policy(_watched(1, 3, end)), Stopping(5, end)),
        _scene("a longer prompt", Policy(_watched(2, 4)), Stopping(4), (1, 2, 0, 3)),
        _scene("ties and zeros", Policy(edge_table(3, 5)), Stopping(4)),
        _scene("one token in all", Policy(_watched(4, 1)), Stopping(3)),
        _scene("two tokens", Policy(edge_table(5, 2, eos_ids=frozenset({1}))), Stopping(4)),
        _scene("samplers with state", Policy(_watched(1, 3), stateful), Stopping(5)),
        _scene(
            "a sampler with noise", Policy(_watched(1, 3, end), chain(Coin())), Stopping(5, end)
        ),
        _scene("a blend", Policy(two), Stopping(4, end)),
        _scene("a blend of one model twice", Policy(MixtureBlend(same, same)), Stopping(4, end)),
        _scene("a stop id", Policy(_watched(9, 4)), Stopping(6, stop_ids=frozenset({3, 1}))),
        _scene(
            "a stop string", Policy(_watched(10, 3)), Stopping(6, stop=("ab", "cc"), decode=spell)
        ),
        _scene("a text that repeats", Policy(_watched(13, 4)), Stopping(6), REPEATING),
        _scene("one token to draw", Policy(_watched(1, 3, end)), Stopping(1, end)),
        _scene(
            "an end token ignored", Policy(_watched(1, 3, end)), Stopping(4, end, ignore_eos=True)
        ),
    ]


def ready(decoder: Decoder, task: Task) -> Decoder:
    """The decoder for a task: a model that it names is a table of the task's vocabulary."""

    def load(name: str) -> TableModel:
        return TableModel.random(task.policy.source.vocab_size, seed=sum(name.encode()), name=name)

    return decoder.equipped(load)


def submit(runner: Runner, decoder: Decoder, task: Task, budget: Budget | None = None) -> Handle:
    """Hand a task in, to the decoder made `ready` for it."""
    return runner.submit(ready(decoder, task), task, budget)


def run(decoder: Decoder, scene: Scene, seed: int = 0, budget: Budget | None = None) -> Handle:
    """One request, alone on a runner, to its end."""
    runner = Runner()
    handle = submit(runner, decoder, scene.seeded(seed).task, budget)
    runner.run()
    return handle


def expected_end(tokens: Sequence[int], stopping: Stopping) -> tuple[int, FinishReason] | None:
    """How many of `tokens` are kept and why, by reading them one after another."""
    for count in range(1, len(tokens) + 1):
        token = tokens[count - 1]
        if not stopping.ignore_eos and token in stopping.eos_ids:
            return count, "eos"
        if token in stopping.stop_ids:
            return count, "stop_id"
        if any(stop in spell(tokens[:count]) for stop in stopping.stop):
            return count, "stop_string"
        if count == stopping.max_tokens:
            return count, "max_tokens"
    return None
