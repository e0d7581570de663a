"""Measuring for the rsd reproduction: trees drafted along plain texts, and what they would gain."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from decodery.core.decoder import Completion, Decoder, Decoding, Requests, Task, completion
from decodery.core.requests import Grow, Open
from decodery.core.runner import Runner
from decodery.core.sampler import chain
from decodery.core.source import Model, Policy, Source, total
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.drafters import Session, Stream
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.verifiers import Rule
from decodery.reproductions.drawing import item_stream, run, seeds_from
from decodery.reproductions.frame import Array, Measurements, Mode, Progress
from decodery.reproductions.rsd_settings import DRAFT_LAYERS, Setting, Size, size


class Gain(NamedTuple):
    """What a drafted tree gives: tokens of the step on average, the chance that it gives more than
    one, and its nodes."""

    tokens: float
    acceptance: float
    nodes: int


def gain(draft: Candidates, rule: Rule) -> Gain:
    """Over all outcomes of the tests, of a tree that is drawn and grown: no end of the text in it.

    A step gives the accepted candidates and one token more.
    """
    accepted, first = _accepted(draft, rule, draft.tip)
    return Gain(1.0 + accepted, first, len(draft.nodes()))


def _accepted(draft: Candidates, rule: Rule, node: Node) -> tuple[float, float]:
    """Candidates accepted below a node on average, and the chance of one at least."""
    children = draft.children.get(node, [])
    if not children:
        return 0.0, 0.0
    tokens = [child.token for child in children]
    trial = rule.trial(Law.of(node.policy_row(draft.sequence)), draft.laws.get(node), tokens)
    found, alive = 0.0, 1.0
    below: dict[Node, float] = {}
    for number, chance in _tests(trial):
        if chance > 0.0:
            child = children[number]
            if child not in below:
                below[child] = _accepted(draft, rule, child)[0]
            found += alive * chance * (1.0 + below[child])
        alive *= 1.0 - chance
    return found, 1.0 - alive


def _tests(trial: Generator[tuple[int, float], None, Law]) -> Generator[tuple[int, float]]:
    yield from trial


@dataclass(frozen=True)
class Probe(Decoder):
    """A plain text; after every so many tokens each setting drafts a tree, which is then dropped.

    The text is the same whatever is drafted. details[setting] has a `Gain` for each place.
    """

    draft: Source
    settings: tuple[Setting, ...]
    every: int
    drafters: dict[Setting, Drawing] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        drafters = {item: Drawing(self.draft, item.shape) for item in self.settings}
        object.__setattr__(self, "drafters", drafters)

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return prompt_length + max_tokens + max(item.nodes for item in self.drafters.values())

    def slots(self, task: Task) -> dict[Model, int]:
        drafts = (item.slots(task, 1) for item in self.drafters.values())
        return total([super().slots(task), *drafts])

    def decode(self, task: Task) -> Decoding:
        root: Node = yield Open(task.policy, task.prompt)
        sessions = {key: drafter.session(task) for key, drafter in self.drafters.items()}
        for session in sessions.values():
            yield from session.open()
        gains: dict[Setting, list[Gain]] = {key: [] for key in sessions}
        tip = root
        while True:
            if (tip.depth - root.depth) % self.every == self.every // 2:
                for setting, session in sessions.items():
                    gains[setting].append((yield from self._probe(setting, session, tip)))
            child = tip.child(tip.draw())
            for session in sessions.values():
                session.moved(Stream(0, tip, 0), [child])
            tip = child
            reason = task.stopping.reason(tip)
            if reason is not None:
                return [completion(tip, reason, details={"gains": gains})]
            yield Grow([tip], keep_rows=True)
            if tip.parent is not None:
                tip.parent.release_row()

    def _probe(
        self, setting: Setting, session: Session, tip: Node
    ) -> Generator[Requests, Any, Gain]:
        drafter = self.drafters[setting]
        stream = Stream(0, tip, drafter.shape.depth + 1)
        (draft,) = yield from session.draft([stream], drafter.nodes)
        yield Grow(draft.nodes(), keep_rows=True)
        found = gain(draft, setting.rule)
        draft.prune([])
        return found


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Draw the texts of a mode from the embedded model, its early exit drafting along them."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    draft, runner = lm.exit(DRAFT_LAYERS), Runner()
    stopping = Stopping(todo.tokens, lm.eos_ids, ignore_eos=True)
    handles = [
        [
            runner.submit(
                Probe(draft, _at(todo.settings, heat), todo.every),
                Task(
                    Policy(lm, chain(Temperature(heat))),
                    lm.read(prompt).tokens,
                    stopping,
                    item_stream(seed, item),
                ),
            )
            for heat in todo.temperatures
        ]
        for item, prompt in enumerate(todo.prompts)
    ]
    run(runner, [handle for row in handles for handle in row], progress)
    texts = [[handle.result()[0] for handle in row] for row in handles]
    return Measurements(lm.name, seeds_from(seed, 1), cells(texts), _facts(todo, lm.depth))


def _at(settings: Sequence[Setting], heat: float) -> tuple[Setting, ...]:
    return tuple(setting for setting in settings if setting.temperature == heat)


def cells(texts: Sequence[Sequence[Completion]]) -> dict[str, dict[Setting, Array]]:
    """Arrays [prompts, 1] of tokens a step, first acceptance and nodes, means over places."""
    found: dict[str, dict[Setting, list[float]]] = {}
    for row in texts:
        gains: Mapping[Setting, list[Gain]] = {
            setting: one for text in row for setting, one in text.details["gains"].items()
        }
        for setting, places in gains.items():
            means = np.mean(np.array(places, dtype=np.float64), axis=0)
            for name, value in zip(Gain._fields, means, strict=True):
                found.setdefault(name, {}).setdefault(setting, []).append(float(value))
    return {
        name: {setting: np.array(values)[:, None] for setting, values in settings.items()}
        for name, settings in found.items()
    }


def _facts(todo: Size, depth: int | None) -> dict[str, Any]:
    return {
        "prompts": len(todo.prompts),
        "tokens of a text": todo.tokens,
        "drafts of a setting and text": len(range(todo.every // 2, todo.tokens, todo.every)),
        "layers of the draft": f"{DRAFT_LAYERS} of {depth}",
    }
