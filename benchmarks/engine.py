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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.cases import Case, cases
from harness.field import Contestant, add_options, contestants
from harness.machine import facts, summary
from harness.process import Worker, rotated
from harness.prompts import Prompts
from harness.report import Found, print_bandwidth, print_case, print_field

WARM_UP_TOKENS = 4
BANDWIDTH_SECONDS = 60.0
CLOCKS = {"wall": "seconds", "cpu": "cpu"}  # names of what a worker's answer has


def main() -> None:
    options = _options()
    console = Console(width=max(132, Console().width))
    machine = facts()
    plan = f"{options.threads} threads, {options.rounds} rounds, on {options.device}"
    console.print(f"{summary(machine)}\n{plan}")
    field = contestants(options)
    probe: Worker | None = None
    try:
        for item in field:
            item.start(options.threads, options.timeout)
            console.print(f"  {item.name}: {item.error or 'loaded'}", highlight=False)
        probe = Worker(sys.executable, "bandwidth.py", options.threads)
        sizes = sorted({item.read_size for item in field if item.worker is not None})
        bandwidth: dict[int, list[float]] = {size: [] for size in sizes}
        prompts = Prompts()
        found = [
            _play(case, field, probe, bandwidth, prompts, options, console)
            for case in cases()
            if case.name in options.cases
        ]
    finally:
        for worker in [item.worker for item in field] + [probe]:
            if worker is not None:
                worker.close()
    print_field(console, field)
    print_bandwidth(console, bandwidth)
    if options.json:
        content = _content(options, machine, field, bandwidth, found)
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _play(
    case: Case,
    field: Sequence[Contestant],
    probe: Worker,
    bandwidth: dict[int, list[float]],
    prompts: Prompts,
    options: argparse.Namespace,
    console: Console,
) -> Found:
    """All rounds of a case; its table is printed when they are done."""
    found = Found(case, field, CLOCKS[options.clock])
    found.measure(prompts, options.timeout, most=WARM_UP_TOKENS, keep=False)
    for turn in range(options.rounds):
        found.load.append(os.getloadavg()[0])
        for size, speeds in bandwidth.items():
            order = {"op": "read", "bytes": size, "device": options.device, "clock": options.clock}
            answer = probe.ask(order, BANDWIDTH_SECONDS)
            speeds.append(answer["gigabytes_per_second"])
        found.measure(prompts, options.timeout, order=rotated(field, turn))
    print_case(console, found, bandwidth)
    if options.show_text:
        for name, made in found.texts.items():
            console.print(f"  {name}: {made!r}", markup=False, highlight=False)
    return found


def _content(
    options: argparse.Namespace,
    machine: dict[str, Any],
    field: Sequence[Contestant],
    bandwidth: dict[int, list[float]],
    found: Sequence[Found],
) -> dict[str, Any]:
    """Everything that was found, as JSON."""
    return {
        "benchmark": "engine",
        "machine": machine,
        "device": options.device,
        "threads": options.threads,
        "rounds": options.rounds,
        "clock": options.clock,
        "contestants": [
            {"name": item.name, "family": item.family, "error": item.error, **item.about}
            for item in field
        ],
        "bandwidth_gigabytes_per_second": {str(size): all for size, all in bandwidth.items()},
        "cases": [item.content() for item in found],
    }


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
