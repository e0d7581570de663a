"""What the runner and the tree cost a step, apart from the model and the sampler.

Two measurements, each interleaved over its stream counts and repeated:

1. A source that answers at once over a vocabulary of 8: nearly all of a step is runner, tree and
   decoder. The goal is under 1 ms a step for one stream.
2. The embedded model: the share of a step that is spent outside the model's forward, with the draws
   from 49,152 tokens and without. The goal is under 10 % at 64 streams, draws not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

import decodery as dc
from decodery.core import tree
from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Grown, Growth, Model, Policy
from decodery.core.stopping import Stopping


class Instant(Model):
    """A source whose forward costs next to nothing."""

    name = "instant"
    vocab_size = 8

    def __init__(self) -> None:
        self.row = Grown(np.zeros(8, dtype=np.float32))

    def forward(self, growths: Sequence[Growth]) -> list[Grown]:
        return [self.row] * len(growths)


class Clock:
    """Adds up the time spent inside a function it replaces."""

    def __init__(self, owner: object, name: str) -> None:
        self.seconds = 0.0
        self.owner, self.name, self.function = owner, name, getattr(owner, name)

        def timed(*arguments: object, **named: object) -> object:
            started = time.perf_counter()
            try:
                return self.function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - started

        setattr(owner, name, timed)

    def stop(self) -> float:
        setattr(self.owner, self.name, self.function)
        return self.seconds


def steps(
    source: Model,
    prompt: tuple[int, ...],
    streams: int,
    tokens: int,
    clocks: Sequence[Clock] = (),
) -> tuple[float, int]:
    """Seconds and steps of `streams` plain samples of `tokens` tokens, prompt excluded.

    `clocks` are set to zero after the prompts.
    """
    runner = Runner()
    for seed in range(streams):
        stopping = Stopping(tokens, ignore_eos=True)
        runner.submit(dc.sample(), Task(Policy(source), prompt, stopping, Stream(seed)))
    runner.step()  # the prompts
    first = runner.steps
    for clock in clocks:
        clock.seconds = 0.0
    started = time.perf_counter()
    runner.run()
    return time.perf_counter() - started, runner.steps - first


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):8.3f}  [{min(values):.3f} .. {max(values):.3f}]"


def alone(repeats: int) -> None:
    print("runner, tree and plain decoder over an instant source, ms a step: median [range]")
    counts = (1, 4, 16, 64)
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            seconds, done = steps(Instant(), (1, 2, 3), count, 200)
            found[count].append(1000 * seconds / done)
    for count in counts:
        print(f"  {count:3d} streams  {spread(found[count])}")


def beside_a_model(repeats: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    lm = dc.load()
    prompt = lm.read("Tell me about the sea.").tokens
    print(f"embedded model, {threads} threads: median [range]")
    counts = (1, 64)
    found: dict[tuple[int, str], list[float]] = {}
    for _ in range(repeats):
        for count in counts:
            forward, draw = Clock(lm, "forward"), Clock(tree.Node, "draw")
            seconds, done = steps(lm, prompt, count, 12, clocks=(forward, draw))
            inside, drawing = forward.stop(), draw.stop()
            for name, value in (
                ("ms a step", 1000 * seconds / done),
                ("% outside the forward", 100 * (seconds - inside) / seconds),
                ("% of it runner, tree, decoder", 100 * (seconds - inside - drawing) / seconds),
            ):
                found.setdefault((count, name), []).append(value)
    for (count, name), values in found.items():
        print(f"  {count:3d} streams  {name:30s} {spread(values)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    alone(arguments.repeats)
    beside_a_model(arguments.repeats, arguments.threads)


if __name__ == "__main__":
    main()
