"""Facts that a measurement is worth nothing without: processor, load, versions, date, command."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

INSTRUCTIONS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
)


def facts() -> dict[str, Any]:
    """The machine and the moment, as JSON."""
    model, flags = _processor()
    return {
        "processor": model,
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
    }


def summary(found: dict[str, Any]) -> str:
    """The facts in one line."""
    has = ", ".join(found["instructions"]) or "no vector instructions known here"
    return (
        f"{found['processor']} ({has}), {found['cores']} cores, {found['memory_gb']:.0f} GB, load"
        f" {found['load_average'][0]:.1f}, {found['date']}"
    )


def _processor() -> tuple[str, frozenset[str]]:
    """Model name and flags, from the kernel where it says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    flags = values.get("flags") or values.get("Features") or ""
    return values.get("model name", platform.machine()), frozenset(flags.split())
