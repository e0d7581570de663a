"""What every contestant speaks: JSON lines, orders on stdin and answers on stdout.

    {"op": "load", "settings": {...}}    ->  {"versions": {...}, "weight_bytes": 0, "note": ""}
    {"op": "run", "job": {...}}          ->  {"seconds": 0.0, "cpu": 0.0, "counts": [64, 64], ...}
    {"op": "quit"}                       ->  the end

Every answer also has `peak_mb`, the peak memory of the process and its children so far; one to an
order that failed has `error` instead. A job is `requests`, each a prompt of token ids and how many
new tokens it wants, with `samples`, `temperature` (0 is greedy), `places` (how many requests may
run at once), `seed` and `speculation` (a way of drafting that the contestant has; none: off). End
tokens do not end anything, so every contestant makes the same number of tokens. `counts` are the
tokens of each continuation, samples of one prompt one after another; `cpu` are seconds of all
threads of the process.

Standard library only: each contestant runs in an interpreter of its own.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclass(frozen=True)
class Request:
    """One prompt and the number of tokens wanted after it."""

    prompt: list[int]
    new_tokens: int


@dataclass(frozen=True)
class Job:
    """What is timed: requests that are all there at the start and are done when the last one is."""

    requests: list[Request]
    samples: int = 1
    temperature: float = 0.0
    places: int = 1
    seed: int = 0
    speculation: str = ""

    @classmethod
    def read(cls, values: dict[str, Any]) -> Job:
        requests = [Request(item["prompt"], item["new_tokens"]) for item in values["requests"]]
        return cls(**{**values, "requests": requests})

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, prompt included."""
        return max(len(item.prompt) + item.new_tokens for item in self.requests)


@dataclass(frozen=True)
class Loaded:
    """What a contestant says of itself once its model is ready.

    `weight_bytes` are read for each token of a single stream.
    """

    weight_bytes: int
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Made:
    """What a job made: tokens of each continuation, and the text or ids of the first one.

    `calls` are forwards of the model after the prompts, where the contestant counts them;
    `first_seconds` is the time until the first token, of all requests one after another, where it
    measures that.
    """

    counts: list[int]
    text: str = ""
    ids: list[int] = field(default_factory=list)
    calls: int = 0
    first_seconds: float | None = None


class Contestant(ABC):
    """Loads a model once and then runs jobs."""

    @abstractmethod
    def load(self, settings: dict[str, Any]) -> Loaded: ...

    @abstractmethod
    def run(self, job: Job) -> Made:
        """Runs a job; the time from call to return is what is measured."""

    def prepare(self, job: Job) -> None:
        """What a job needs once and no user waits for, such as a larger cache; not timed."""
        return


def installed(*names: str) -> dict[str, str]:
    """The versions of installed packages; one that is not there is left out."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def serve(contestant: Contestant) -> None:
    """Answer a contestant's orders until there are no more."""

    def load(order: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        loaded = contestant.load(order["settings"])
        return {**vars(loaded), "seconds": time.perf_counter() - started}

    def run(order: dict[str, Any]) -> dict[str, Any]:
        job = Job.read(order["job"])
        contestant.prepare(job)
        started, used = time.perf_counter(), time.process_time()
        made = contestant.run(job)
        times = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - used}
        return {**vars(made), **times}

    answer_orders({"load": load, "run": run})


def answer_orders(operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Answer each line of stdin by the operation it names, until one says quit."""
    answers = own_stdout()
    for line in sys.stdin:
        order = json.loads(line)
        if order["op"] == "quit":
            break
        try:
            answer = operations[order["op"]](order)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({**answer, "peak_mb": peak_mb()}), file=answers, flush=True)
    os._exit(0)  # libraries with threads of their own may hang in an orderly exit


def peak_mb() -> float:
    """Peak resident memory of this process, or of a finished child if that was larger."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage.ru_maxrss for usage in usages) / 1024


def own_stdout() -> Any:
    """Keep stdout for answers alone: what libraries print there goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers
