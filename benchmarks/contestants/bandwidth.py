"""How fast a device reads memory: sums float32 arrays of a size, on a CPU with torch's threads.

    {"op": "read", "bytes": 96000000, "device": "cpu", "clock": "wall"}
    ->  {"gigabytes_per_second": 24.1}

The best of several passes, so that a floor computed from it is one that nothing gets below.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from protocol import answer_orders

PASSES = 8
AT_ONCE = {"cpu": 1, "cuda": 32}  # reads to one wait, which takes as long as a read on CUDA


def read(order: dict[str, Any]) -> dict[str, Any]:
    values = torch.ones(order["bytes"] // 4, dtype=torch.float32, device=order["device"])
    clock = time.process_time if order.get("clock") == "cpu" else time.perf_counter
    fastest = min(_seconds(values, clock) for _ in range(PASSES))
    return {"gigabytes_per_second": values.nbytes / fastest / 1e9}


def _seconds(values: torch.Tensor, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(AT_ONCE[values.device.type]):
        total = values.sum()
    total.item()  # waits
    return (clock() - started) / AT_ONCE[values.device.type]


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    answer_orders({"read": read})
