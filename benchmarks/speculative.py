"""How much faster is speculative decoding, on the kinds of text that people ask for?

Prompts of Spec-Bench (a file that you bring, see benchmarks/README.md; without it, two of our own
for each of its categories), one stream at a time, greedy and at temperature 0.7: ours without
drafts, with `speculation auto` and with prompt lookup, beside transformers and llama.cpp without
and with theirs. A category's time is that of all its prompts one after another, less the time until
the first token of each, so prompts do not count; ratios are formed inside a round, in which
everyone does the same once.

Every prompt gets as many new tokens as our own answer has before its end token, at most `--tokens`,
and end tokens end nothing: all write equally much, and nobody wins by what comes after an answer.

    python benchmarks/speculative.py --data spec_bench.jsonl --llama-python peers/llama/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.field import Contestant
from harness.machine import facts, summary
from harness.process import WorkerError, rotated
from harness.questions import CATEGORIES, questions
from harness.spread import Spread, ratios

OURS, TRANSFORMERS, LLAMA = "decodery", "transformers", "llama.cpp"
MODES: Mapping[str, Sequence[str]] = {
    OURS: ("", "auto", "prompt_lookup"),
    TRANSFORMERS: ("", "prompt lookup 3", "prompt lookup 10", "early exit 8"),
    LLAMA: ("", "ngram-simple", "ngram-simple 3, 4", "ngram-map 3, 4", "ngram-cache"),
}
QUICK: Mapping[str, Sequence[str]] = {OURS: ("", "auto")}
PLAIN, AUTO = (OURS, ""), (OURS, "auto")
TEMPERATURES = (0.0, 0.7)
LEAST_TOKENS = 16
WARM_UP_TOKENS = 8
ATTEMPTS = 3
CLOCKS = {"wall": "seconds", "cpu": "cpu"}
Who = tuple[str, str]  # a contestant's family and its way of drafting


@dataclass
class Found:
    """Seconds of a category after the first tokens, by who and round; tokens and forwards."""

    category: str
    temperature: float
    tokens: int
    seconds: dict[Who, list[float]] = field(default_factory=dict)
    calls: dict[Who, list[int]] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)

    def note(self, who: Who, seconds: float, calls: int) -> None:
        self.seconds.setdefault(who, []).append(seconds)
        self.calls.setdefault(who, []).append(calls)

    def content(self) -> dict[str, Any]:
        return {
            "category": self.category,
            "temperature": self.temperature,
            "tokens": self.tokens,
            "load_average": self.load,
            "found": [
                {"family": who[0], "speculation": who[1], "seconds": seconds}
                | {"calls": self.calls[who]}
                for who, seconds in self.seconds.items()
            ],
        }


def requests_of(
    model: Any, texts: Sequence[str], temperature: float, most: int
) -> list[dict[str, Any]]:
    """The prompts with the lengths of our own answers."""
    sampled = {"method": "sample", "temperature": temperature}
    answers = model.generate(
        list(texts), max_tokens=most, seed=0, **(sampled if temperature else {"method": "greedy"})
    )
    return [
        {
            "prompt": list(model.read(text).tokens),
            "new_tokens": max(LEAST_TOKENS, len(answer.tokens)),
        }
        for text, answer in zip(texts, answers, strict=True)
    ]


def field_of(options: argparse.Namespace) -> list[Contestant]:
    """Who takes part, each in a process of its own."""
    from decodery.models import embedded, gguf

    path = embedded.gguf_path()
    folder = str(embedded.embedded_folder("float32"))
    with gguf.read(path) as file:
        stored = sum(item.nbytes for item in file.tensors.values())
    ours = {"model": None, "weights": "auto", "prefix_cache": False}
    theirs = {"folder": folder, "dtype": "float32"}
    python = {TRANSFORMERS: options.transformers_python, LLAMA: options.llama_python}
    field = [Contestant(OURS, "", "ours.py", sys.executable, ours)]
    if not options.quick:
        field += [
            Contestant(TRANSFORMERS, "", "transformers_peer.py", python[TRANSFORMERS], theirs),
            Contestant(
                LLAMA,
                "",
                "llama_peer.py",
                python[LLAMA],
                {"model": str(path), "weight_bytes": stored},
            ),
        ]
    return field


class Race:
    """All rounds of one category at one temperature."""

    def __init__(
        self, found: Found, requests: Sequence[Mapping[str, Any]], field: Sequence[Contestant]
    ) -> None:
        self.found, self.requests = found, requests
        self.workers = {item.family: item for item in field}

    def run(self, who: Who, options: argparse.Namespace, *, keep: bool = True) -> None:
        """Everyone's job, without the time until the first tokens.

        Who does not measure that, and with the processor's clock, does the same with one new token
        each, whose time comes off. Where a hiccup leaves nothing, all is asked again.
        """
        clock = CLOCKS[options.clock]
        most = options.tokens if keep else WARM_UP_TOKENS
        for _ in range(ATTEMPTS):
            whole = self._ask(who, most, options.timeout)
            first = whole["first_seconds"]
            if first is None or options.clock == "cpu":
                first = self._ask(who, 1, options.timeout)[clock]
            if not keep:
                return
            if whole[clock] > first:
                self.found.note(who, whole[clock] - first, whole["calls"])
                return
        raise WorkerError(f"its first tokens took longer than all of them, {ATTEMPTS} times")

    def _ask(self, who: Who, most: int, timeout: float) -> dict[str, Any]:
        family, speculation = who
        cut = [{**item, "new_tokens": min(most, item["new_tokens"])} for item in self.requests]
        job = {
            "requests": cut,
            "temperature": self.found.temperature,
            "speculation": speculation,
        }
        tokens = sum(item["new_tokens"] for item in cut)
        return self.workers[family].run(job, tokens, timeout)


def show(console: Console, all_found: Sequence[Found]) -> None:
    """One table a temperature: tokens a second, and the ratio to our own plain decoding."""
    for temperature in dict.fromkeys(item.temperature for item in all_found):
        own = [item for item in all_found if item.temperature == temperature]
        title = f"temperature {temperature}: times our plain decoding, median (range) of rounds"
        table = Table(title=title)
        table.add_column("who", no_wrap=True)
        for item in own:
            table.add_column(item.category, no_wrap=True)
        table.add_column("geometric mean", no_wrap=True)
        for who in dict.fromkeys(key for item in own for key in item.seconds):
            cells, middle = [], []
            for item in own:
                if who not in item.seconds:
                    cells.append("left out")
                    continue
                ratio = ratios(item.seconds[PLAIN], item.seconds[who])
                speed = item.tokens / median(item.seconds[who])
                cells.append(f"{ratio.shown(2)}\n{speed:.0f}/s{_calls(item, who)}")
                middle.append(ratio.median)
            mean = f"{geometric_mean(middle):.2f}" if len(middle) == len(own) else ""
            table.add_row(" ".join(who).strip(), *cells, mean)
        console.print(table)


def _calls(found: Found, who: Who) -> str:
    calls = found.calls[who][0]
    return f", {found.tokens / calls:.2f} a step" if calls else ""


def show_goals(console: Console, all_found: Sequence[Found]) -> None:
    """Ours with speculation against the best way of each peer, category by category."""
    for family in (TRANSFORMERS, LLAMA):
        best: list[float] = []
        for item in all_found:
            theirs = [key for key in item.seconds if key[0] == family and key[1]]
            if not theirs or AUTO not in item.seconds:
                continue
            fastest = min(theirs, key=lambda key: median(item.seconds[key]))
            best.append(ratios(item.seconds[fastest], item.seconds[AUTO]).median)
        if best:
            spread = Spread.of(best)
            console.print(
                f"decodery auto over the fastest speculation of {family} in each category:"
                f" {geometric_mean(best):.2f}x ({spread.low:.2f}-{spread.high:.2f})"
            )


def left_out(found: Found, factor: float) -> list[Who]:
    """Ways of drafting that took so many times as long as the fastest way of the same peer."""
    middles = {who: median(seconds) for who, seconds in found.seconds.items()}
    best: dict[str, float] = {}
    for (family, _), middle in middles.items():
        best[family] = min(middle, best.get(family, middle))
    return [
        (family, mode)
        for (family, mode), middle in middles.items()
        if family != OURS and mode and middle > factor * best[family]
    ]


def main() -> None:
    options = _options()
    console = Console(width=max(190, Console().width))
    machine = facts()
    console.print(f"{summary(machine)}\n{options.threads} threads, {options.rounds} rounds")
    asked = questions(options.data, options.each)
    field = field_of(options)
    import decodery as dc

    model = dc.load()
    found: list[Found] = []
    try:
        for item in field:
            if item.python is not None:
                item.start(options.threads, options.timeout)
            console.print(f"  {item.name}: {item.error or 'ready'}", highlight=False)
        here = [item for item in field if item.worker is not None]
        modes = QUICK if options.quick else MODES
        everyone: list[Who] = [(item.family, mode) for item in here for mode in modes[item.family]]
        for temperature in options.temperatures:
            for category in options.categories:
                requests = requests_of(model, asked[category], temperature, options.tokens)
                tokens = sum(item["new_tokens"] - 1 for item in requests)
                race = Race(Found(category, temperature, tokens), requests, here)
                for turn in range(-1, options.rounds):
                    race.found.load.append(round(os.getloadavg()[0], 2))
                    for who in rotated(list(everyone), turn):
                        try:
                            race.run(who, options, keep=turn >= 0)
                        except WorkerError as error:
                            console.print(f"  {' '.join(who)}: {error}", highlight=False)
                            everyone.remove(who)
                            race.found.seconds.pop(who, None)
                found.append(race.found)
                for who in left_out(race.found, options.leave_out):
                    if who in everyone:
                        everyone.remove(who)
                        console.print(f"  {' '.join(who)}: too slow, left out from here on")
                console.print(f"  done: {category} at {temperature}, load {race.found.load}")
                if options.json:
                    _write(options, machine, field, found)
    finally:
        for item in field:
            item.stop()
    show(console, found)
    show_goals(console, found)


def _write(
    options: argparse.Namespace,
    machine: Mapping[str, Any],
    field: Sequence[Contestant],
    found: Sequence[Found],
) -> None:
    content = {
        "benchmark": "speculative",
        "machine": machine,
        "threads": options.threads,
        "rounds": options.rounds,
        "clock": options.clock,
        "data": options.data.name if options.data else "own",
        "prompts": options.each if options.data else 2,
        "tokens": options.tokens,
        "contestants": [{"name": item.name, "error": item.error, **item.about} for item in field],
        "found": [item.content() for item in found],
    }
    options.json.write_text(json.dumps(content, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="Spec-Bench's question.jsonl; default: our own")
    parser.add_argument("--each", type=int, default=4, help="prompts of a category of that file")
    parser.add_argument("--tokens", type=int, default=128, help="most new tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: with one thread")
    parser.add_argument("--temperatures", type=float, nargs="+", default=list(TEMPERATURES))
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES), choices=CATEGORIES)
    parser.add_argument(
        "--leave-out",
        type=float,
        default=3.0,
        metavar="FACTOR",
        help="after a category, ways of a peer so many times slower than its best are left out",
    )
    parser.add_argument("--quick", action="store_true", help="ours alone, plain and auto")
    parser.add_argument("--transformers-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--llama-python", metavar="PYTHON", help="one with xllamacpp")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one job")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu adds up all threads; it needs --threads 1")
    if min(options.threads, options.rounds, options.each) < 1:
        parser.error("--threads, --rounds and --each must be at least 1")
    return options


if __name__ == "__main__":
    main()
