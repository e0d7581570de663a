"""Measuring for the reproduction of optimal multi-draft decoding: pairs of rows, and whole runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from decodery.core.decoder import Completion, Decoder, Decoding, Task, completion
from decodery.core.handle import Handle
from decodery.core.requests import Grow, Open
from decodery.core.row import Row
from decodery.core.runner import Runner
from decodery.core.sampler import Context
from decodery.core.source import Model, Policy, Source, total
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.speculative.acceptance import acceptance
from decodery.methods.speculative.bound import bound
from decodery.methods.speculative.law import Law, overlap
from decodery.methods.speculative.optimal_multi_draft import METHOD
from decodery.methods.speculative.verifiers import Greedy, KSeq, Recursive
from decodery.reproductions.drawing import item_stream, run, seeds_from
from decodery.reproductions.frame import Array, Measurements, Mode, Progress
from decodery.reproductions.optimal_multi_draft_settings import (
    EXIT,
    GREEDY,
    K_SEQ,
    RRS,
    RRS_W,
    WITH,
    WITHOUT,
    Name,
    Pair,
    Setting,
    Size,
    size,
)

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel

Laws = tuple[Law, Law]  # of the model and of its draft, after the same text
Rows = tuple[Row, Row]

SHARES: Mapping[Name, Callable[[Law, Law, int], float]] = {
    RRS: lambda p, q, n: acceptance(Recursive("iid"), p, q, n, "iid"),
    K_SEQ: lambda p, q, n: acceptance(KSeq(), p, q, n, "iid"),
    RRS_W: lambda p, q, n: acceptance(Recursive("distinct"), p, q, n, "distinct"),
    GREEDY: lambda p, q, n: acceptance(Greedy(), p, q, n, "greedy"),
    WITH: lambda p, q, n: bound(p, q, n, "iid"),
    WITHOUT: lambda p, q, n: bound(p, q, n, "distinct"),
}


@dataclass(frozen=True)
class PairedRows(Decoder):
    """A drawn text; details["rows"] has the rows of the source and of a draft at every
    `stride`-th token."""

    draft: Source
    stride: int

    def slots(self, task: Task) -> dict[Model, int]:
        mine = super().slots(task)
        return total([mine, self.draft.slots(task, task.prompt, self.footprint)])

    def decode(self, task: Task) -> Decoding:
        tips: Sequence[Node] = yield (
            Open(task.policy, task.prompt),
            Open(Policy(self.draft), task.prompt),
        )
        rows: list[Rows] = []
        while True:
            tip, shadow = tips
            if len(tip.generated) % self.stride == 0:
                rows.append((tip.row, shadow.row))
            token = tip.draw()
            tips = [node.child(token) for node in tips]
            reason = task.stopping.reason(tips[0])
            if reason is not None:
                return [completion(tips[0], reason, details={"rows": rows})]
            yield Grow(tips)


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Rows, then runs, of the embedded model and its own early exit."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    seeds = seeds_from(seed, todo.seeds)
    laws, works = len(todo.prompts) * todo.positions * len(todo.temperatures), len(todo.pairs)
    whole = 4 * laws + 100 * works  # in the time that each takes, about

    def told(start: int, length: int, done: int, of: int) -> None:
        """A part is so far; its forwards of the draft are not in what it was expected to do."""
        progress(start + length * min(done, of) // of, whole)

    rows = _rows(lm, todo, seeds[0], partial(told, 0, laws))
    cells: dict[str, Mapping[Any, Array]] = dict(
        shares(rows, todo, lambda done: told(laws, 3 * laws, done, laws))
    )
    cells["tokens per step"], cells["nodes per step"] = _runs(
        lm, todo, seeds, partial(told, 4 * laws, 100 * works)
    )
    return Measurements(lm.name, seeds, cells, _facts(todo))


def _task(lm: LanguageModel, policy: Policy, prompt: str, tokens: int, key: int, item: int) -> Task:
    read = lm.read(prompt)
    stopping = Stopping(tokens, eos_ids=lm.eos_ids, ignore_eos=True)
    return Task(policy, read.tokens, stopping, item_stream(key, item), read.text)


def _rows(lm: LanguageModel, todo: Size, key: int, progress: Progress) -> list[list[Rows]]:
    """The rows [prompts][positions] along texts of the model's own at temperature 1."""
    runner, length = Runner(), (todo.positions - 1) * todo.stride + 1
    decoder = PairedRows(lm.exit(EXIT), todo.stride)
    handles = [
        runner.submit(decoder, _task(lm, Policy(lm), prompt, length, key, item))
        for item, prompt in enumerate(todo.prompts)
    ]
    run(runner, handles, progress)
    return [handle.result()[0].details["rows"] for handle in handles]


def laws_at(rows: Rows, temperature: float) -> Laws:
    """The laws of a pair of rows at a temperature."""
    cooled = Temperature(temperature)
    target, draft = (Law.of(cooled.apply(row, None, Context((0,), 1))) for row in rows)
    return target, draft


def shares(
    rows: Sequence[Sequence[Rows]], todo: Size, progress: Callable[[int], None]
) -> dict[str, dict[Setting, Array]]:
    """Acceptance and bounds [prompts, 1], means over the positions of a prompt; and the overlap."""
    found: dict[Setting, list[list[float]]] = {item: [[] for _ in rows] for item in todo.settings}
    common: dict[float, list[list[float]]] = {t: [[] for _ in rows] for t in todo.temperatures}
    done = 0
    for place, pairs in enumerate(rows):
        for pair in pairs:
            for temperature in todo.temperatures:
                target, draft = laws_at(pair, temperature)
                common[temperature][place].append(overlap(target, draft))
                for item in todo.settings:
                    if item.temperature == temperature:
                        share = SHARES[item.name](target, draft, item.count)
                        found[item][place].append(share)
                done += 1
                progress(done)
    one = {Setting(RRS, t, 1): _means(values) for t, values in common.items()}
    return {
        "acceptance": {item: _means(values) for item, values in found.items()},
        "of one draft": one,
    }


def _means(values: Sequence[Sequence[float]]) -> Array:
    return np.array([[float(np.mean(row))] for row in values])


def _runs(
    lm: LanguageModel, todo: Size, seeds: Sequence[int], progress: Progress
) -> tuple[dict[Pair, Array], dict[Pair, Array]]:
    """Tokens and candidates per step [prompts, seeds] of whole runs."""
    policy, runner = Policy(lm) | Temperature(todo.run_temperature), Runner()
    prompts = todo.prompts[: todo.run_prompts]
    handles: dict[Pair, list[list[Handle]]] = {}
    for pair in todo.pairs:
        decoder = METHOD(
            draft=lm.exit(EXIT), branching=todo.branching, drafter=pair.drafter, rule=pair.rule
        )
        handles[pair] = [
            [
                runner.submit(decoder, _task(lm, policy, prompt, todo.run_tokens, key, item))
                for key in seeds
            ]
            for item, prompt in enumerate(prompts)
        ]
    run(runner, list(chain.from_iterable(chain.from_iterable(handles.values()))), progress)

    def table(name: str) -> dict[Pair, Array]:
        return {
            pair: np.array([[_of(handle.result()[0], name) for handle in row] for row in grid])
            for pair, grid in handles.items()
        }

    return table("tokens_per_step"), table("nodes_per_step")


def _of(item: Completion, name: str) -> float:
    return float(item.details["speculation"][name])


def _facts(todo: Size) -> dict[str, Any]:
    return {
        "draft": f"the model itself after {EXIT} layers",
        "prompts": len(todo.prompts),
        "rows": len(todo.prompts) * todo.positions,
        "branching of runs": list(todo.branching),
        "temperature of runs": todo.run_temperature,
        "tokens of a run": todo.run_tokens,
        "prompts of runs": todo.run_prompts,
    }
