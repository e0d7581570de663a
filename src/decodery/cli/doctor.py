"""`decodery doctor`: what is installed, what the machine can do, and how fast it is right now."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from decodery.cli.output import err, out, print_json, table
from decodery.core.errors import DecoderyError

_REQUIRED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "jinja2")
_EXTRAS = {"scipy": "testing", "matplotlib": "reproduce", "mkdocs": "docs"}
SPEED_SECONDS = 5.0


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    speed: Annotated[bool, typer.Option(help="Run the five-second speed test.")] = True,
) -> None:
    """Check the installation and the machine; end with a five-second speed test."""
    findings: dict[str, Any] = {
        "packages": {name: _version(name) for name in _REQUIRED},
        "extras": {name: _version(name) for name in _EXTRAS},
        "machine": _machine(),
        "embedded_model": _embedded(),
        "cache": _cache(),
    }
    findings["advice"] = _advice(findings)
    if speed and "error" not in findings["embedded_model"]:
        with err.status("speed test"):
            findings["speed"] = _speed()
    if as_json:
        print_json(findings)
    else:
        _show(findings)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    import torch

    from decodery.models import native

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "onednn": torch.backends.mkldnn.is_available(),
        "compiled_kernels": native.why_not() or f"ready ({native.instructions()})",
    }


def _embedded() -> dict[str, Any]:
    from decodery.models import embedded

    try:
        path = embedded.gguf_path()
    except DecoderyError as error:
        return {"name": embedded.NAME, "error": str(error)}
    return {"name": embedded.NAME, "file": str(path), "licence": embedded.LICENCE}


def _cache() -> dict[str, Any]:
    from decodery.models.cache import cache_entries, cache_folder

    folder = cache_folder()
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    writable = place.is_dir() and os.access(place, os.W_OK)
    return {
        "folder": str(folder),
        "writable": writable,
        "models": len(cache_entries()) if writable else 0,
    }


def _advice(findings: dict[str, Any]) -> list[str]:
    """What a user should change, most important first; empty when all is well."""
    advice: list[str] = []
    machine = findings["machine"]
    missing = [name for name, found in findings["packages"].items() if found is None]
    if missing:
        advice.append(f"packages are missing: pip install {' '.join(missing)}")
    if "error" in findings["embedded_model"]:
        advice.append(findings["embedded_model"]["error"])
    if not findings["cache"]["writable"]:
        advice.append(
            f"the cache folder {findings['cache']['folder']} cannot be written; set DECODERY_CACHE"
        )
    cores, threads = machine["cores"], machine["torch_threads"]
    if threads > cores:
        advice.append(f"{threads} threads on {cores} cores: set OMP_NUM_THREADS={cores}")
    load = machine["load_average"]
    if load is not None and threads > 1 and load > cores - 0.5:
        advice.append(
            f"the load average is {load} on {cores} cores: other work takes them, and"
            " OMP_NUM_THREADS=1 is likely to be faster now"
        )
    if machine["omp_wait_policy"] != "PASSIVE":
        advice.append("OMP_WAIT_POLICY is not PASSIVE: threads spin for long while they wait")
    if os.environ.get("DECODERY_NATIVE") == "portable":
        advice.append(
            "DECODERY_NATIVE=portable keeps the compiled kernels from this processor's special"
            " instructions: decoding is slower; unset it"
        )
    if not machine["compiled_kernels"].startswith("ready"):
        advice.append(
            f"the compiled kernels are not in use ({machine['compiled_kernels']}): decoding is"
            " about 1.5 times slower; install g++ or clang++"
        )
    return advice


def _speed() -> dict[str, Any]:
    """Greedy decoding of the embedded model for about five seconds, loading not counted."""
    from decodery.api.load import load
    from decodery.models import embedded
    from decodery.models.transformer import resolved_weights

    started = time.perf_counter()
    lm = load()
    loaded = time.perf_counter()
    generation = lm.generate(
        "Tell me about the sea.",
        method="greedy",
        max_tokens=1000,
        max_seconds=SPEED_SECONDS,
        ignore_eos=True,
    )
    return {
        "load_seconds": round(loaded - started, 2),
        "weights": resolved_weights(embedded.prepared_folder(), "auto", str(lm.transformer.device)),
        "tokens": generation.report.tokens_emitted,
        "tokens_per_second": round(generation.report.tokens_per_second, 1),
        "first_token_seconds": round(generation.report.first_token_seconds or 0.0, 3),
    }


def _show(findings: dict[str, Any]) -> None:
    for section in ("packages", "extras", "machine", "embedded_model", "cache", "speed"):
        if section not in findings:
            continue
        out.print(f"[bold]{section.replace('_', ' ')}[/]")
        shown = table("", "")
        shown.show_header = False
        for name, value in findings[section].items():
            absent = f"not installed (extra: {_EXTRAS[name]})" if name in _EXTRAS else "none"
            shown.add_row(name.replace("_", " "), absent if value is None else str(value))
        out.print(shown)
        out.print()
    for line in findings["advice"]:
        out.print(f"advice: {line}", markup=False)
    if not findings["advice"]:
        out.print("all is well")
