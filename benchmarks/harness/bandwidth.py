"""How fast this machine reads memory during a run, by size, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from harness.process import Worker, WorkerError

SECONDS = 60.0


class Bandwidth:
    """Gigabytes a second by size, one measurement a round; `error` says why there are no more."""

    def __init__(self, threads: int, device: str, clock: str) -> None:
        self.threads = threads
        self.order = {"op": "read", "device": device, "clock": clock}
        self.speeds: dict[int, list[float]] = {}
        self.error: str | None = None
        self.worker: Worker | None = None

    def measure(self, sizes: Iterable[int]) -> None:
        """Read every size; a failure ends these measurements and nothing else."""
        if self.error:
            return
        try:
            self.worker = self.worker or Worker(sys.executable, "bandwidth.py", self.threads)
            for size in sorted(set(sizes)):
                answer = self.worker.ask({**self.order, "bytes": size}, SECONDS)
                self.speeds.setdefault(size, []).append(answer["gigabytes_per_second"])
        except WorkerError as error:
            self.error = str(error)

    def floor(self, size: int) -> float | None:
        """Seconds to read so many bytes at the best speed found, if it was measured."""
        speeds = self.speeds.get(size)
        return size / max(speeds) / 1e9 if speeds else None

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None
