"""How fast is the engine, beside transformers, llama.cpp, ik_llama.cpp and vLLM?

Every contestant runs the embedded model in a process of its own, loaded once and held to the same
number of threads. Rounds are interleaved: in each, every contestant does the same job once, and
only one works at a time; ratios are formed inside a round. Peers other than transformers need an
interpreter of an environment that has them (see `benchmarks/README.md`).

    python benchmarks/engine.py --threads 1
    python benchmarks/engine.py --cases stream-128 ragged --rounds 7 --json found.json
    python benchmarks/engine.py --device cuda --weights auto float32

The floor of a single stream is the time to read its weights once for each token, at the bandwidth
measured in the same run, with the same threads and for as many bytes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.bandwidth import Bandwidth
from harness.cases import Case, cases
from harness.field import add_options, contestants
from harness.machine import facts, summary
from harness.process import rotated
from harness.prompts import Prompts
from harness.report import Found, print_bandwidth, print_case, print_field

WARM_UP_TOKENS = 4
CLOCKS = {"wall": "seconds", "cpu": "cpu"}  # names of what a worker's answer has


class Run:
    """Who takes part, and what was found so far."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options = options
        self.console = console
        self.machine = facts()
        self.prompts = Prompts()
        self.field = contestants(options)
        self.bandwidth = Bandwidth(options.threads, options.device, options.clock)
        self.found: list[Found] = []
        plan = f"{options.threads} threads, {options.rounds} rounds, on {options.device}"
        console.print(f"{summary(self.machine)}\n{plan}")

    def start(self) -> None:
        """Load every contestant, one after another."""
        for item in self.field:
            item.start(self.options.threads, self.options.timeout)
            self.console.print(f"  {item.name}: {item.error or 'loaded'}", highlight=False)

    def play(self, case: Case) -> None:
        """All rounds of a case; its table is printed, and everything written, when it is done."""
        options = self.options
        found = Found(case, self.field, CLOCKS[options.clock])
        found.measure(self.prompts, options.timeout, most=WARM_UP_TOKENS, keep=False)
        for turn in range(options.rounds):
            found.load.append(os.getloadavg()[0])
            self.bandwidth.measure(item.read_size for item in self.field if item.about)
            found.measure(self.prompts, options.timeout, order=rotated(self.field, turn))
        self.found.append(found)
        print_case(self.console, found, self.bandwidth)
        if options.show_text:
            for name, made in found.texts.items():
                self.console.print(f"  {name}: {made!r}", markup=False, highlight=False)
        if options.json:
            options.json.write_text(json.dumps(self.content(), indent=1) + "\n")

    def content(self) -> dict[str, Any]:
        """Everything that was found, as JSON."""
        speeds = {str(size): all_rounds for size, all_rounds in self.bandwidth.speeds.items()}
        return {
            "benchmark": "engine",
            "machine": self.machine,
            "device": self.options.device,
            "threads": self.options.threads,
            "rounds": self.options.rounds,
            "clock": self.options.clock,
            "contestants": [
                {"name": item.name, "family": item.family, "error": item.error, **item.about}
                for item in self.field
            ],
            "bandwidth_gigabytes_per_second": speeds,
            "cases": [item.content() for item in self.found],
        }

    def close(self) -> None:
        for item in self.field:
            item.stop()
        self.bandwidth.close()


def main() -> None:
    options = _options()
    console = Console(width=max(132, Console().width))
    run = Run(options, console)
    try:
        run.start()
        for case in cases():
            if case.name in options.cases:
                run.play(case)
    finally:
        run.close()
    print_field(console, run.field)
    print_bandwidth(console, run.bandwidth)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [case.name for case in cases()]
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=names, choices=names)
    parser.add_argument(
        "--clock",
        default="wall",
        choices=CLOCKS,
        help="cpu: time of all threads, for one thread on a machine that others use too",
    )
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one job")
    parser.add_argument("--show-text", action="store_true", help="print what each one wrote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    add_options(parser)
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu adds up all threads; it needs --threads 1")
    if options.threads < 1 or options.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    return options


if __name__ == "__main__":
    main()
