"""What does a blend of K contexts cost a token: one batched call of the model, or K calls?

Integrative decoding joins K prompts of one model, each with an earlier answer. It is measured
beside what it could cost: `K apart` continues the same K prompts one after another, each plainly,
and `K together` all at once in one runner, plainly. What a blend takes longer than K together is
its arithmetic on rows of 49,152 scores; it draws one token where they draw K. Guidance (cfg) and
contrastive decoding, where the model is its own amateur, have two contexts.

Prompts are evaluated before the clock starts. A round runs everything once, in an order that moves
on; ratios are formed inside a round. Calls and nodes are counted at the model's `forward`: nodes
are the tokens of all contexts that it evaluates. On a machine that others use too, `--threads 1
--clock cpu` counts the processor's time instead of the clock's.

    python benchmarks/blends.py --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

import decodery as dc
from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Grown, Growth, Policy, Source
from decodery.core.stopping import Stopping
from decodery.methods.blending.asking import TEMPLATES, again
from harness.machine import facts, summary
from harness.process import rotated, thread_environment
from harness.spread import Spread, ratios

Clock = Literal["wall", "cpu"]

COUNTS = (1, 2, 4, 8)
PLAIN = "plain"
QUESTION = "Why is the sea salty, and the water of most lakes is not?"
ANSWERS = (
    "Rivers carry salt into the sea, and only the water leaves it again, into the air.",
    "Rain dissolves a little salt from rocks, and all rivers take it to the sea in the end.",
    "The sea has no outlet. What rivers bring stays there, while lakes are rinsed by rivers.",
    "Salt comes from rocks on land and from vents in the sea floor, over millions of years.",
    "Water goes into the air and leaves the salt behind, so the sea slowly became salty.",
    "Most lakes have an outlet, and their water is new every few years; the sea has none.",
    "Volcanoes under the water and rivers from the land both bring minerals into the sea.",
    "Lakes without an outlet, such as the Dead Sea, are salty too, for the same reason.",
)


@dataclass(frozen=True)
class Run:
    """What the tokens after the first took, of which each of the texts has `tokens`."""

    seconds: float
    cpu: float
    tokens: int
    calls: int
    nodes: int

    def milliseconds(self, clock: Clock) -> float:
        """Of a token of one text; for several texts side by side or in turn, of all of them."""
        return 1000 * (self.seconds if clock == "wall" else self.cpu) / self.tokens


class Counted:
    """Counts the calls of a model's `forward` and the nodes in them, while it is entered."""

    def __init__(self, model: dc.LanguageModel) -> None:
        self.model, self.calls, self.nodes = model, 0, 0

    def __enter__(self) -> Counted:
        forward = self.model.forward

        def counting(growths: Sequence[Growth]) -> list[Grown]:
            self.calls += 1
            self.nodes += sum(len(growth.tokens) for growth in growths)
            return forward(growths)

        self.model.forward = counting  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self.model.forward


Job = Callable[[dc.LanguageModel], Run]


def run(model: dc.LanguageModel, asked: Sequence[tuple[Source, Task]]) -> Run:
    """Continue all texts side by side, and time what comes after their prompts."""
    runner = Runner()
    for _, task in asked:
        runner.submit(dc.sample(), task)
    runner.step()  # the prompts
    tokens = asked[0][1].stopping.max_tokens - 1
    with Counted(model) as counted:
        started = time.perf_counter(), time.process_time()
        runner.run()
        seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    runner.close()
    return Run(seconds, cpu, tokens, counted.calls, counted.nodes)


def one(source: Callable[[dc.LanguageModel], Source], new_tokens: int) -> Job:
    """A single text from a source, asked the question."""

    def job(model: dc.LanguageModel) -> Run:
        read = model.read(QUESTION)
        stopping = Stopping(new_tokens, ignore_eos=True)
        task = Task(Policy(source(model)), read.tokens, stopping, Stream(0), messages=read.messages)
        return run(model, [(task.policy.source, task)])

    return job


def same(model: dc.LanguageModel) -> Source:
    return model


def fused(count: int, model: dc.LanguageModel) -> Source:
    return dc.Integrative(model, answers=ANSWERS[:count], template="brief")


def guided(model: dc.LanguageModel) -> Source:
    return dc.Cfg(model, 1.5)


def contrasted(model: dc.LanguageModel) -> Source:
    return dc.Contrastive(model, model, amateur_context=1)


def contexts(model: dc.LanguageModel, count: int, new_tokens: int) -> list[tuple[Source, Task]]:
    """Plain texts after the prompts that integrative decoding joins."""
    read = model.read(QUESTION)
    prompts = [
        again(model.language, read.messages, read.tokens, TEMPLATES["brief"], answer)
        for answer in ANSWERS[:count]
    ]
    stopping = Stopping(new_tokens, ignore_eos=True)
    return [
        (model, Task(Policy(model), prompt, stopping, Stream(seed)))
        for seed, prompt in enumerate(prompts)
    ]


def apart(count: int, new_tokens: int, model: dc.LanguageModel) -> Run:
    """One after another; a token of all texts is a token of each."""
    runs = [run(model, [asked]) for asked in contexts(model, count, new_tokens)]
    return Run(
        sum(item.seconds for item in runs),
        sum(item.cpu for item in runs),
        runs[0].tokens,
        sum(item.calls for item in runs),
        sum(item.nodes for item in runs),
    )


def together(count: int, new_tokens: int, model: dc.LanguageModel) -> Run:
    return run(model, contexts(model, count, new_tokens))


def jobs(new_tokens: int) -> dict[str, Job]:
    """Everything that a round measures, by name."""
    made: dict[str, Job] = {PLAIN: one(same, new_tokens)}
    for count in COUNTS:
        made[f"integrative K={count}"] = one(partial(fused, count), new_tokens)
        if count > 1:
            made[f"{count} together"] = partial(together, count, new_tokens)
            made[f"{count} apart"] = partial(apart, count, new_tokens)
    made["cfg"] = one(guided, new_tokens)
    made["contrastive, same model"] = one(contrasted, new_tokens)
    return made


def measure(model: dc.LanguageModel, rounds: int, new_tokens: int) -> dict[str, list[Run]]:
    made = jobs(new_tokens)
    for job in jobs(4).values():  # warms up
        job(model)
    found: dict[str, list[Run]] = {name: [] for name in made}
    for turn in range(rounds):
        for name in rotated(list(made), turn):
            found[name].append(made[name](model))
    return found


def show(console: Console, found: dict[str, list[Run]], clock: Clock) -> None:
    table = Table(title="a token of each text, after the prompts: median (range)")
    for column in ("", "calls", "nodes", f"ms, {clock}", "times plain", "apart / this"):
        table.add_column(column, no_wrap=True)
    times = {name: [item.milliseconds(clock) for item in runs] for name, runs in found.items()}
    for name, runs in found.items():
        count = name.removeprefix("integrative K=").removesuffix(" together")
        beside = times.get(f"{count} apart")
        table.add_row(
            name,
            f"{runs[0].calls / runs[0].tokens:.2f}",
            f"{runs[0].nodes / runs[0].tokens:.2f}",
            Spread.of(times[name]).shown(),
            ratios(times[name], times[PLAIN]).shown(2),
            ratios(beside, times[name]).shown(2) if beside else "",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=33, help="of each text")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--weights", default="auto", help="as in decodery.load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    options = parser.parse_args()
    if options.tokens < 2:
        parser.error("--tokens must be at least 2, the first comes from the prompts")
    os.environ.update(thread_environment(options.threads))
    console = Console(width=max(120, Console().width))
    machine = facts()
    console.print(f"{summary(machine)}\n{options.threads} threads, {options.rounds} rounds")

    import torch

    torch.set_num_threads(options.threads)
    found = measure(dc.load(weights=options.weights), options.rounds, options.tokens)
    show(console, found, options.clock)
    if options.json:
        runs = {name: [asdict(item) for item in items] for name, items in found.items()}
        content = {"benchmark": "blends", "machine": machine, "threads": options.threads}
        content |= {"weights": options.weights, "tokens": options.tokens, "runs": runs}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
