"""What does it cost to verify a tree of drafts, against one plain step?

Below one context, a forward of 1 node, of a chain and of trees of 8 and 16 nodes are timed in
turns, through the engine's own forward. A draft pays when it saves more steps than the ratio: a
tree of 16 nodes at 2.0 steps must have more than two tokens accepted on average.

    python benchmarks/tree_verify.py --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.field import WEIGHTS, model_for
from harness.machine import facts, summary
from harness.process import rotated, thread_environment
from harness.prompts import Prompts
from harness.spread import Spread, ratios

CONTEXTS = (128, 1024)
# The index of each node's parent among the nodes, or -1 for the context.
SHAPES: dict[str, tuple[int, ...]] = {
    "one node": (-1,),
    "chain of 4": (-1, 0, 1, 2),
    "chain of 8": tuple(range(-1, 7)),
    "tree of 8": (-1, -1, 0, 0, 1, 2, 2, 3),
    "tree of 16": (-1, -1, -1, 0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 9, 9),
}
Seconds = dict[tuple[str, int, str], list[float]]


class Bench:
    """A model with a prompt evaluated; times forwards of nodes that hang below it."""

    def __init__(self, weights: str, prompt: Sequence[int]) -> None:
        from decodery import Policy, load
        from decodery.core.row import Row
        from decodery.core.source import Growth
        from decodery.core.tree import Tree

        self.growth = Growth
        self.model = load(model_for(weights), weights=weights)
        self.tree = Tree(Policy(self.model), tuple(prompt), _no_draws())
        grown = self.model.forward([Growth(self.tree.root, self.tree.prompt)])
        self.tree.root.receive(Row(grown[0].scores, self.model.vocab_size))
        self.token = 1000

    def step(self, parents: Sequence[int]) -> float:
        """Seconds of one forward of new nodes with tokens never used before, then dropped."""
        nodes: list[Any] = []
        for parent in parents:
            self.token += 1
            above = self.tree.root if parent < 0 else nodes[parent]
            nodes.append(above.child(self.token % self.model.vocab_size))
        growths = [self.growth(node, (node.token,)) for node in nodes]
        started = time.perf_counter()
        self.model.forward(growths)
        seconds = time.perf_counter() - started
        for child in list(self.tree.root.children):
            child.drop()
        self.model.release(self.tree.abandoned)
        self.tree.abandoned = []
        return seconds


def _no_draws() -> Any:
    from decodery.core.rng import Stream

    return Stream(0)


def measure(weights: Sequence[str], rounds: int, repeats: int) -> Seconds:
    """The fastest of some repeats, for every round, kind of weights, context and shape."""
    prompts = Prompts()
    benches = {
        (kind, context): Bench(kind, prompts.next(context))
        for kind in weights
        for context in CONTEXTS
    }
    found: Seconds = {}
    for turn in range(-1, rounds):  # the first one warms up
        for (kind, context), bench in benches.items():
            for name in rotated(list(SHAPES), turn):
                seconds = min(bench.step(SHAPES[name]) for _ in range(repeats))
                if turn >= 0:
                    found.setdefault((kind, context, name), []).append(seconds)
    return found


def show(console: Console, found: Seconds) -> None:
    """Milliseconds of one node, and the cost of every other shape in steps of one node."""
    table = Table(title="cost in plain steps: median (range) of ratios of the same round")
    table.add_column("weights, context")
    table.add_column("one node, ms")
    shapes = [name for name in SHAPES if name != "one node"]
    for name in shapes:
        table.add_column(name)
    for kind, context in dict.fromkeys((kind, context) for kind, context, _ in found):
        one = found[kind, context, "one node"]
        costs = (ratios(found[kind, context, name], one).shown(2) for name in shapes)
        plain = Spread.of([1000 * seconds for seconds in one]).shown()
        table.add_row(f"{kind}, {context}", plain, *costs)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3, help="in a round; the fastest counts")
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), choices=WEIGHTS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    options = parser.parse_args()
    os.environ.update(thread_environment(options.threads))
    console = Console(width=max(132, Console().width))
    machine = facts()
    console.print(f"{summary(machine)}\n{options.threads} threads, {options.rounds} rounds")

    import torch

    import decodery  # noqa: F401  (sets how threads wait, which must be said before torch)

    torch.set_num_threads(options.threads)
    found = measure(options.weights, options.rounds, options.repeats)
    show(console, found)
    if options.json:
        content = {
            "benchmark": "tree_verify",
            "machine": machine,
            "threads": options.threads,
            "shapes": SHAPES,
            "seconds": [
                {"weights": kind, "context": context, "shape": name, "seconds": all_rounds}
                for (kind, context, name), all_rounds in found.items()
            ],
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
