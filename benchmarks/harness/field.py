"""The field of the engine benchmark: who runs, with which interpreter, in which variants."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from harness.process import Worker, WorkerError

OURS = "decodery"
WEIGHTS = ("auto", "int4", "int8", "bf16", "float32")
QUANTISED_AT_LOAD = ("int4", "int8")
DTYPES = ("float32", "bfloat16")
BYTES = {"float32": 4, "bfloat16": 2}
DEVICES = ("cpu", "cuda")
ON_CUDA = ("ours.py", "transformers_peer.py")


@dataclass
class Contestant:
    """One variant of one library. `error` says why it is not running."""

    family: str
    variant: str
    script: str
    python: str | None
    settings: Mapping[str, Any]
    error: str | None = None
    worker: Worker | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.family} {self.variant}".strip()

    @property
    def weight_bytes(self) -> int:
        return self.about.get("weight_bytes", 0)

    @property
    def read_size(self) -> int:
        """Its weights in whole megabytes, the size at which reading is timed."""
        return round(self.weight_bytes / 1e6) * 1_000_000

    def start(self, threads: int, timeout: float) -> None:
        """Start the worker and load the model; a failure is kept as `error`."""
        if self.python is None:
            return
        try:
            self.worker = Worker(self.python, self.script, threads)
            order = {"op": "load", "settings": {**self.settings, "threads": threads}}
            self.about = self.worker.ask(order, timeout)
        except WorkerError as error:
            self.error = f"did not load: {error}"
            self.stop()

    def run(self, job: Mapping[str, Any], tokens: int, timeout: float) -> dict[str, Any]:
        """The answer to a job; `WorkerError` also where it made another number of tokens."""
        if self.worker is None:
            raise WorkerError(self.error or "is not running")
        answer = self.worker.ask({"op": "run", "job": job}, timeout)
        self.about["peak_mb"] = answer["peak_mb"]
        if sum(answer["counts"]) != tokens:
            raise WorkerError(f"made {sum(answer['counts'])} tokens instead of {tokens}")
        return answer

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def contestants(options: argparse.Namespace) -> list[Contestant]:
    """Every variant that was asked for; those without an interpreter come with the reason."""
    from decodery.models import embedded, gguf

    path = embedded.gguf_path()
    folder = str(embedded.embedded_folder("float32"))
    with gguf.read(path) as file:
        stored = sum(item.nbytes for item in file.tensors.values())
        weights = sum(prod(item.shape) for item in file.tensors.values())
    coded = {"model": str(path), "weight_bytes": stored}
    found = [
        Contestant(
            OURS,
            kind,
            "ours.py",
            sys.executable,
            {"model": model_for(kind), "weights": kind, "device": options.device},
        )
        for kind in options.weights
    ]
    found += [
        Contestant(
            "transformers",
            dtype,
            "transformers_peer.py",
            options.transformers_python,
            {"folder": folder, "dtype": dtype, "device": options.device},
        )
        for dtype in options.dtypes
    ]
    found += [
        Contestant("llama.cpp", "", "llama_peer.py", options.llama_python, coded),
        Contestant("ik_llama.cpp", "", "ik_llama_peer.py", options.ik_python, coded),
    ]
    found += [
        Contestant(
            "vLLM",
            dtype,
            "vllm_peer.py",
            options.vllm_python,
            {"folder": folder, "dtype": dtype, "weight_bytes": BYTES[dtype] * weights}
            | {"compile": options.vllm_compile},
        )
        for dtype in options.dtypes
    ]
    for item in found:
        if options.device == "cuda" and item.script not in ON_CUDA:
            item.python, item.error = None, "not run: its worker is for a CPU"
        elif item.python is None:
            item.error = f"not run: no --{_option(item.script)}-python"
    return found


def model_for(weights: str) -> str | None:
    """The model to load: the embedded GGUF file, or its floats for what is quantised at load."""
    if weights not in QUANTISED_AT_LOAD:
        return None
    from decodery.models import embedded

    return str(embedded.embedded_folder("float32"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say who runs."""
    parser.add_argument("--device", default="cpu", choices=DEVICES, help="of ours and transformers")
    parser.add_argument(
        "--weights", nargs="*", default=list(WEIGHTS), choices=WEIGHTS, help="decodery's variants"
    )
    parser.add_argument(
        "--dtypes",
        nargs="*",
        default=list(DTYPES),
        choices=DTYPES,
        help="variants of transformers and vLLM; bfloat16 is slow where no instruction knows it",
    )
    parser.add_argument(
        "--transformers-python",
        default=sys.executable,
        metavar="PYTHON",
        help="interpreter with transformers, by default this one",
    )
    for name, package in (("llama", "xllamacpp"), ("ik", "ik-llama-cpp-python"), ("vllm", "vllm")):
        parser.add_argument(
            f"--{name}-python", type=_interpreter, metavar="PYTHON", help=f"one with {package}"
        )
    parser.add_argument(
        "--vllm-compile", action="store_true", help="let vLLM compile the model (minutes)"
    )


def _interpreter(text: str) -> str:
    """An absolute path, links kept: resolving one would leave a virtual environment."""
    return str(Path(text).expanduser().absolute())


def _option(script: str) -> str:
    return script.split("_")[0]
