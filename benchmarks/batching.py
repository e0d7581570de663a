"""What does batching give, when every stream decodes in its own way and they come and go?

The same requests, of ten methods and samplers side by side, with ragged prompts and lengths, are
run with 1, 4, 16 and 64 at once: when one leaves, the next joins at the next step. `joining` has
them come one by one instead, each some steps after the one before, whoever is still there.

    python benchmarks/batching.py --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import decodery as dc
from decodery.core.decoder import Decoder, Task
from decodery.core.handle import Handle
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.sampler import Chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from harness.machine import facts, summary
from harness.process import rotated, thread_environment
from harness.prompts import Prompts
from harness.spread import Spread, ratios

PLACES = (1, 4, 16, 64)
JOIN_EVERY = 3  # steps
PROMPTS = (16, 48)
NEW_TOKENS = (32, 96)
Joins = Callable[[Runner], bool]  # whether the next request joins now


@dataclass(frozen=True)
class Wanted:
    """A request of the mix: how it decodes, its prompt and its length."""

    name: str
    decoder: Decoder
    sampler: Chain
    prompt: tuple[int, ...]
    new_tokens: int
    seed: int


@dataclass(frozen=True)
class Run:
    """What a run took, and the tokens of all answers."""

    seconds: float
    steps: int
    tokens: int


def mix() -> list[tuple[str, Decoder, Chain]]:
    """The ways of decoding that take turns."""
    plain = dc.chain()
    return [
        ("greedy", dc.greedy(), plain),
        ("sample", dc.sample(), plain),
        ("temperature", dc.sample(), dc.chain(dc.temperature(0.7))),
        ("top_k", dc.sample(), dc.chain(dc.temperature(0.8), dc.top_k(50))),
        ("top_p", dc.sample(), dc.chain(dc.temperature(0.8), dc.top_p(0.95))),
        ("min_p", dc.sample(), dc.chain(dc.temperature(1.5), dc.min_p(0.1))),
        ("typical", dc.sample(), dc.chain(dc.typical(0.95))),
        ("penalty", dc.greedy(), dc.chain(dc.repetition_penalty(1.2))),
        ("4 samples", dc.sample(n=4), dc.chain(dc.temperature(0.7))),
        ("beam", dc.beam(beams=4), plain),
    ]


def wanted(prompts: Prompts, count: int) -> list[Wanted]:
    """Requests of new prompts; lengths and methods are the same in every round."""
    ways = mix()
    return [
        Wanted(
            *ways[index % len(ways)],
            prompt=tuple(prompts.next(_between(PROMPTS, index, 7))),
            new_tokens=_between(NEW_TOKENS, index, 11),
            seed=index,
        )
        for index in range(count)
    ]


def at_most(places: int) -> Joins:
    """The next request joins when fewer than `places` are there."""
    return lambda runner: len(runner.live) + len(runner.waiting) < places


def one_by_one() -> Joins:
    """The next request joins `JOIN_EVERY` steps after the one before."""
    last = -JOIN_EVERY

    def joins(runner: Runner) -> bool:
        nonlocal last
        if runner.steps - last < JOIN_EVERY:
            return False
        last = runner.steps
        return True

    return joins


def run(
    model: dc.LanguageModel, requests: Sequence[Wanted], joins: Callable[[Runner], bool]
) -> Run:
    """Run all requests on one runner, each submitted when `joins` says so."""
    runner = Runner()
    waiting = deque(requests)
    handles: list[Handle] = []
    started = time.perf_counter()
    while waiting or runner.live or runner.waiting:
        while waiting and joins(runner):
            handles.append(_submit(runner, model, waiting.popleft()))
        runner.step()
    seconds = time.perf_counter() - started
    tokens = sum(len(item.tokens) for handle in handles for item in handle.result())
    return Run(seconds, runner.steps, tokens)


def _submit(runner: Runner, model: dc.LanguageModel, item: Wanted) -> Handle:
    stopping = Stopping(item.new_tokens, ignore_eos=True)
    task = Task(Policy(model, item.sampler), item.prompt, stopping, Stream(item.seed))
    return runner.submit(item.decoder, task)


def _between(bounds: tuple[int, int], index: int, stride: int) -> int:
    low, high = bounds
    return low + index * stride % (high - low + 1)


def measure(model: dc.LanguageModel, rounds: int, count: int) -> dict[str, list[Run]]:
    """Every way of joining, once a round, on prompts that are new to each of them."""
    prompts = Prompts()
    found: dict[str, list[Run]] = {}
    names = [f"{places} at once" for places in PLACES] + ["joining"]
    run(model, wanted(prompts, len(mix())), at_most(4))  # warms up
    for turn in range(rounds):
        for name in rotated(names, turn):
            joins = one_by_one() if name == "joining" else at_most(int(name.split()[0]))
            found.setdefault(name, []).append(run(model, wanted(prompts, count), joins))
    return {name: found[name] for name in names}


def show(console: Console, found: dict[str, list[Run]]) -> None:
    alone = [item.seconds for item in found["1 at once"]]
    table = Table(title="the same requests, by how many run at once: median (range)")
    for column in (
        "",
        "seconds",
        "tokens a second",
        "tokens a step",
        "ms a step",
        "times 1 at once",
    ):
        table.add_column(column)
    for name, runs in found.items():
        seconds = [item.seconds for item in runs]
        table.add_row(
            name,
            Spread.of(seconds).shown(2),
            Spread.of([item.tokens / item.seconds for item in runs]).shown(),
            Spread.of([item.tokens / item.steps for item in runs]).shown(),
            Spread.of([1000 * item.seconds / item.steps for item in runs]).shown(),
            ratios(alone, seconds).shown(2),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--weights", default="auto", help="as in decodery.load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    options = parser.parse_args()
    os.environ.update(thread_environment(options.threads))
    console = Console(width=max(120, Console().width))
    machine = facts()
    console.print(f"{summary(machine)}\n{options.threads} threads, {options.rounds} rounds")

    import torch

    torch.set_num_threads(options.threads)
    found = measure(dc.load(weights=options.weights), options.rounds, options.requests)
    show(console, found)
    if options.json:
        runs = {
            name: [{"seconds": r.seconds, "steps": r.steps, "tokens": r.tokens} for r in items]
            for name, items in found.items()
        }
        content = {"benchmark": "batching", "machine": machine, "threads": options.threads}
        content |= {"weights": options.weights, "requests": options.requests, "runs": runs}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
