"""Measuring for the reproductions of `sjd` and `mc_sjd`: grids of codes, and text.

A run decodes one grid, or one answer of the embedded model; its tokens per step, how often a step
added one token only, and how many guesses changed come from the decoder's own details. Every item
is a grid with scores of its own, or a prompt, with noise of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from decodery.core.decoder import Completion, Task
from decodery.core.runner import Runner
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.speculative.guesses import Guess, Lookup, Random, Repeat
from decodery.methods.speculative.jacobi import Coupling, Jacobi
from decodery.reproductions.drawing import item_stream
from decodery.reproductions.frame import Array, Measurements, Progress
from decodery.reproductions.sjd_grid import Grid

Where = Literal["peaked", "flat", "copied", "text"]
GuessName = Literal["random", "uniform", "above", "lookup"]
TEMPERATURE = 0.7

GRIDS: dict[Where, Grid] = {
    "peaked": Grid(spread=1.4),
    "flat": Grid(spread=0.57),
    "copied": Grid(spread=1.4, copied=0.3),
}
PROMPTS = (
    "Write a short story about a fox and a crow.",
    "Explain why the sky is blue.",
    "List five fruits and say one thing about each of them.",
    "Repeat this sentence three times: The quick brown fox jumps over the lazy dog.",
)


@dataclass(frozen=True)
class Setting:
    """A decoder, and what it decodes: a grid by its name, or text."""

    where: Where
    coupling: Coupling
    window: int
    guess: GuessName = "random"
    strength: float = 1.0

    def __str__(self) -> str:
        more = "" if self.guess == "random" else f", guess {self.guess}"
        more += "" if self.strength == 1.0 else f", strength {self.strength:g}"
        return f"{self.where}: {self.coupling}, window {self.window}{more}"

    def decoder(self) -> Jacobi:
        guesses: dict[GuessName, Guess] = {
            "random": Random(),
            "uniform": Random(spread=True),
            "above": Repeat(Grid.width),
            "lookup": Lookup(),
        }
        return Jacobi(self.window, self.coupling, guesses[self.guess], self.strength)


@dataclass(frozen=True)
class Size:
    """How much is measured: settings, grids for each, tokens of a text, and prompts."""

    settings: tuple[Setting, ...]
    grids: int
    tokens: int = 48
    prompts: tuple[str, ...] = PROMPTS


def measure(todo: Size, seed: int, progress: Progress) -> Measurements:
    """Decode everything, one setting after another."""
    cells: dict[str, dict[Setting, Array]] = {}
    entropies: dict[str, float] = {}
    for number, setting in enumerate(todo.settings):
        progress(number, len(todo.settings))
        if setting.where == "text":
            found, quantity = _texts(setting, todo, seed), "tokens per step, text"
        else:
            found, quantity = _grids(setting, todo.grids, seed), "tokens per step"
            if setting.where not in entropies:
                entropies[setting.where] = _entropy(GRIDS[setting.where], found[0])
        values = [tokens_per_step(item) for item in found]
        cells.setdefault(quantity, {})[setting] = _column(values)
        if setting.where != "text":
            cells.setdefault("steps of one token", {})[setting] = _column(map(single, found))
            changed = [item.details["guesses_changed"] for item in found]
            cells.setdefault("guesses changed", {})[setting] = _column(changed)
    progress(len(todo.settings), len(todo.settings))
    facts: dict[str, Any] = {
        "nats of the grids' laws": entropies,
        "tokens of a grid": Grid.width**2,
        "tokens of a text": todo.tokens,
        "prompts": list(todo.prompts),
    }
    return Measurements("grids of 256 codes; SmolLM2-135M-Instruct on text", (seed,), cells, facts)


def _column(values: Any) -> Array:
    return np.array(list(values), dtype=np.float64)[:, None]


def tokens_per_step(item: Completion) -> float:
    return item.details["speculation"]["tokens_per_step"]


def single(item: Completion) -> float:
    """The share of steps that added one token: those that accepted no guess."""
    tally = item.details["speculation"]
    return 1.0 - sum(tally["taken"][:1]) / tally["steps"]


def _grids(setting: Setting, count: int, seed: int) -> list[Completion]:
    plan, stopping = GRIDS[setting.where], Stopping(Grid.width**2)
    models = [
        Grid(plan.codes, plan.width, plan.spread, plan.copied, number).model()
        for number in range(count)
    ]
    tasks = [
        Task(Policy(model), (0,), stopping, item_stream(seed, number))
        for number, model in enumerate(models)
    ]
    return _run(setting.decoder(), tasks)


def _entropy(plan: Grid, first: Completion) -> float:
    return Grid(plan.codes, plan.width, plan.spread, plan.copied, 0).entropy((0, *first.tokens))


def _texts(setting: Setting, todo: Size, seed: int) -> list[Completion]:
    from decodery.api.load import load

    lm = load()
    policy = Policy(lm, chain(Temperature(TEMPERATURE)))
    stopping = Stopping(todo.tokens, eos_ids=lm.eos_ids)
    tasks: list[Task] = []
    for number, prompt in enumerate(todo.prompts):
        read = lm.read(prompt)
        tasks.append(Task(policy, read.tokens, stopping, item_stream(seed, number), read.text))
    return _run(setting.decoder(), tasks)


def _run(decoder: Jacobi, tasks: Sequence[Task]) -> list[Completion]:
    runner = Runner()
    handles = [runner.submit(decoder, task) for task in tasks]
    runner.run()
    return [handle.result()[0] for handle in handles]
