"""Measuring for the reproduction of `multi_sample`: samples drawn once, drafts tried on them.

Whatever is drafted, the samples are those of plain sampling. So they are drawn once, with the
probability of each token, and every setting is replayed on them: which drafts it would have made,
how many of their tokens would have been accepted, in how many steps. The method itself is run on
the first prompt, and has to agree with its replay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from decodery.core.decoder import Completion, Task
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.speculative.consensus import Consensus, Cuts, Samples
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match
from decodery.methods.speculative.walks import NodeWise
from decodery.reproductions.drawing import Draw, item_stream, run, submit
from decodery.reproductions.frame import Array, Measurements, Progress

TEMPERATURE = 0.7
CHANCE = "chance"  # of a token under the policy, in the details of a drawn sample

TEMPLATE = """Solve the problem in numbered steps, as in the example.

Problem: A box holds 6 pencils. Anna buys 4 boxes and gives 5 pencils away. How many does she have?
Step 1: Each box holds 6 pencils and Anna buys 4 boxes, so she has 6 * 4 = 24 pencils.
Step 2: She gives 5 pencils away, so she has 24 - 5 = 19 pencils.
Answer: 19

Problem: {}
"""
PROBLEMS = (
    "A baker makes 12 rolls in each tray and fills 5 trays. He sells 38 rolls. How many are left?",
    "A train has 8 coaches with 40 seats each. 275 people sit down. How many seats are free?",
    "Tom saves 15 dollars a week for 6 weeks. He buys a game for 49 dollars. How much is left?",
    "A farmer plants 9 rows of 14 trees. A storm breaks 17 trees. How many are still standing?",
    "A library has 320 books. It buys 5 boxes of 24 books. How many books does it have now?",
    "Mia reads 18 pages a day for 7 days. Her book has 200 pages. How many pages are left?",
    "A school buys 7 packs of 30 pens and hands out 185 pens. How many pens are left?",
    "A shop sells 26 cakes a day for 5 days. It baked 150 cakes. How many cakes are left?",
)

PAPER = Consensus(cuts=Cuts(0.3, 0.05))
TREE = Consensus(shortest=1, cuts=Cuts(0.05, 0.02), decay=0.3, shape="tree", own=True, prompt=True)


@dataclass(frozen=True)
class Setting:
    """A drafter by name, and how many samples it sees."""

    name: str
    n: int
    drafter: Consensus

    def __str__(self) -> str:
        return f"{self.name}, n={self.n}"


@dataclass(frozen=True)
class Size:
    """How much is measured: settings, problems, and tokens of a sample at most."""

    settings: tuple[Setting, ...]
    problems: tuple[str, ...]
    tokens: int

    @property
    def samples(self) -> int:
        """How many samples are drawn of each prompt."""
        return max(setting.n for setting in self.settings)


@dataclass
class Replayed:
    """What a setting came to on the samples of one prompt."""

    steps: int = 0
    emitted: int = 0
    accepted: int = 0
    drafted: int = 0
    rounds: int = 0
    matched: int = 0

    @property
    def quantities(self) -> dict[str, float]:
        return {
            "tokens per step": self.emitted / self.steps,
            "nodes per step": self.drafted / self.steps,
            "acceptance": self.accepted / max(1, self.drafted),
            "steps with a draft": self.matched / self.steps,
        }


def replay(
    texts: Sequence[Completion], drafter: Consensus, tokens: int, prompt: Sequence[int]
) -> Replayed:
    """Decode samples that are known, all at once, in rounds of one step for each."""
    samples = Samples(drafter, prompt)
    places = [0] * len(texts)
    found = Replayed()
    live = list(range(len(texts)))
    while live:
        found.rounds += 1
        moves = [(number, _step(samples, texts, places, number, tokens, found)) for number in live]
        for number, count in moves:
            start = places[number]
            chances = texts[number].details[CHANCE]
            for place in range(start, start + count):
                samples.append(number, texts[number].tokens[place], chances[place])
            places[number] += count
        live = [number for number in live if places[number] < len(texts[number].tokens)]
    return found


def _step(
    samples: Samples,
    texts: Sequence[Completion],
    places: Sequence[int],
    number: int,
    tokens: int,
    found: Replayed,
) -> int:
    """How many tokens a step adds to a sample."""
    text, start = texts[number].tokens, places[number]
    most = min(samples.drafter.tokens, tokens - start - 1)
    paths = set(samples.draft(number, most, samples.drafter.nodes))
    accepted = 0
    while start + accepted < len(text) and text[start : start + accepted + 1] in paths:
        accepted += 1
    count = min(accepted + 1, len(text) - start)
    found.steps += 1
    found.emitted += count
    found.accepted += accepted
    found.drafted += len(paths)
    found.matched += bool(paths)
    return count


def chance(node: Node, token: int) -> float:
    """The probability of a token under the policy."""
    return math.exp(node.policy_row().log_probability(token))


def measure(todo: Size, seed: int, progress: Progress) -> Measurements:
    """Draw the samples of every prompt, and replay all settings on them."""
    from decodery.api.load import load

    lm = load()
    runner, sampler = Runner(), chain(Temperature(TEMPERATURE))
    handles = [
        submit(
            runner,
            lm,
            TEMPLATE.format(problem),
            Draw(sampler, item_stream(seed, number), todo.samples),
            {CHANCE: chance},
            max_tokens=todo.tokens,
        )
        for number, problem in enumerate(todo.problems)
    ]
    run(runner, handles, progress)
    texts = [handle.result() for handle in handles]
    prompts = [handle.task.prompt for handle in handles]
    cells: dict[str, dict[Setting, Array]] = {}
    for setting in todo.settings:
        rows = [
            replayed(own, setting, todo.tokens, prompt).quantities
            for own, prompt in zip(texts, prompts, strict=True)
        ]
        for name in rows[0]:
            cells.setdefault(name, {})[setting] = np.array([[row[name]] for row in rows])
    task = Task(
        Policy(lm, sampler),
        prompts[0],
        Stopping(todo.tokens, eos_ids=lm.eos_ids),
        item_stream(seed, 0),
    )
    cells["agreement"] = agreement(task, texts[0], todo)
    facts = {
        "temperature": TEMPERATURE,
        "samples": todo.samples,
        "tokens of a sample, at most": todo.tokens,
        "problems": list(todo.problems),
        "a sample": lm.tokenizer.decode(texts[0][0].tokens),
    }
    return Measurements(lm.name, (seed,), cells, facts)


def replayed(
    texts: Sequence[Completion], setting: Setting, tokens: int, prompt: Sequence[int]
) -> Replayed:
    """A setting on the samples of a prompt, in groups of as many as it sees."""
    whole = Replayed()
    for start in range(0, len(texts) - setting.n + 1, setting.n):
        one = replay(texts[start : start + setting.n], setting.drafter, tokens, prompt)
        for name in vars(whole):
            setattr(whole, name, getattr(whole, name) + getattr(one, name))
    return whole


def agreement(task: Task, texts: Sequence[Completion], todo: Size) -> dict[Setting, Array]:
    """1 where the method itself gives the drawn samples in the replayed number of steps, else 0."""
    setting = max((item for item in todo.settings if item.n > 1), key=lambda item: item.n)
    decoder = Speculation(setting.drafter, NodeWise(Match()), setting.n)
    items = run_alone(decoder, task)
    found = replay(texts[: setting.n], setting.drafter, todo.tokens, task.prompt)
    tallies = [item.details["speculation"] for item in items]
    same = [item.tokens == text.tokens for item, text in zip(items, texts, strict=False)]
    steps = sum(tally["steps"] for tally in tallies) == found.steps
    nodes = sum(tally["nodes"] for tally in tallies) == found.drafted
    return {setting: np.array([[float(all(same) and steps and nodes)]])}


def with_budget(budget: int) -> Consensus:
    """The default tree with another budget."""
    return replace(TREE, budget=budget)
