"""How long does it take to have the model ready, in a fresh process, and how much memory?

Rows of decodery: with an empty cache folder, which is a user's first load and compiles the kernels;
with the kernels there; with everything there, which is every later load. transformers reads the
same GGUF file, model and tokenizer, and beside it the safetensors folder that decodery makes.
All files are in the memory of the operating system; reading them from disk for the first time is
not measured.

    python benchmarks/loading.py --rounds 3 --json found.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.machine import facts, summary
from harness.process import CONTESTANTS, rotated, thread_environment
from harness.spread import Spread

TIMEOUT = 600.0


@dataclass(frozen=True)
class Row:
    """One way of loading. `cache` is what decodery's cache folder has: empty, kernels, all."""

    name: str
    python: str
    module: str
    contestant: str
    settings: Mapping[str, Any]
    cache: str = ""


def rows(options: argparse.Namespace) -> list[Row]:
    """All ways of loading for which there is an interpreter."""
    from decodery.models import embedded

    path = embedded.gguf_path()
    coded = {"model": str(path), "threads": options.threads, "weight_bytes": 0, "check": False}
    found = [
        Row(f"decodery {kind}, {title}", sys.executable, "ours", "Ours", {"weights": kind}, cache)
        for kind in options.weights
        for title, cache in (
            ("empty cache", "empty"),
            ("kernels compiled", "kernels"),
            ("later loads", "all"),
        )
    ]
    sources = {
        "GGUF": {"folder": str(path.parent), "gguf_file": path.name},
        "safetensors": {"folder": str(embedded.embedded_folder("float32"))},
    }
    found += [
        Row(
            f"transformers {dtype}, {title}",
            options.transformers_python,
            "transformers_peer",
            "Transformers",
            {**source, "dtype": dtype, "tokenizer": True},
        )
        for title, source in sources.items()
        for dtype in ("float32", "bfloat16")
    ]
    if options.llama_python:
        found.append(Row("llama.cpp", options.llama_python, "llama_peer", "Llama", coded))
    if options.ik_python:
        found.append(Row("ik_llama.cpp", options.ik_python, "ik_llama_peer", "IkLlama", coded))
    return found


def measure(row: Row, threads: int, warm: Path) -> dict[str, Any]:
    """One fresh process; `total` is from its start to its first token."""
    command = [row.python, str(CONTESTANTS / "load_once.py"), row.module, row.contestant]
    with tempfile.TemporaryDirectory() as folder:
        cache = warm if row.cache == "all" else Path(folder)
        if row.cache == "kernels":
            shutil.copytree(warm / "native", cache / "native")
        environment = {**os.environ, **thread_environment(threads), "DECODERY_CACHE": str(cache)}
        started = time.perf_counter()
        done = subprocess.run(
            [*command, json.dumps(row.settings)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        total = time.perf_counter() - started
    if done.returncode:
        return {"error": " ".join(done.stderr.strip().splitlines()[-1:])}
    return {**json.loads(done.stdout.splitlines()[-1]), "total": total}


def show(console: Console, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    table = Table(title="seconds: median (range)", title_justify="left")
    columns = ("import", "load", "first token", "import and load", "whole process", "peak, MB")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column)
    for name, runs in found.items():
        errors = [run["error"] for run in runs if "error" in run]
        if errors:
            table.add_row(name, f"failed: {errors[0]}")
            continue
        parts = [
            [run[part] for run in runs] for part in ("import", "load", "first", "total", "peak_mb")
        ]
        both = [run["import"] + run["load"] for run in runs]
        cells = [Spread.of(values).shown(2) for values in (*parts[:3], both, parts[3])]
        table.add_row(name, *cells, Spread.of(parts[4]).shown(0))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", nargs="+", default=["auto", "float32"])
    parser.add_argument(
        "--transformers-python",
        default=sys.executable,
        metavar="PYTHON",
        help="one with transformers, accelerate and gguf, by default this one",
    )
    parser.add_argument("--llama-python", metavar="PYTHON", help="one with xllamacpp")
    parser.add_argument("--ik-python", metavar="PYTHON", help="one with ik-llama-cpp-python")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    options = parser.parse_args()
    console = Console(width=max(150, Console().width))
    machine = facts()
    console.print(f"{summary(machine)}\n{options.threads} threads, {options.rounds} rounds")
    field = rows(options)
    found: dict[str, list[dict[str, Any]]] = {row.name: [] for row in field}
    with tempfile.TemporaryDirectory() as folder:
        for (
            row
        ) in field:  # fills the caches: decodery's, Python's of modules, the system's of files
            measure(Row(**{**vars(row), "cache": "all"}), options.threads, Path(folder))
        for turn in range(options.rounds):
            for row in rotated(field, turn):
                found[row.name].append(measure(row, options.threads, Path(folder)))
    show(console, found)
    if options.json:
        content = {"benchmark": "loading", "machine": machine, "threads": options.threads}
        options.json.write_text(json.dumps({**content, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
