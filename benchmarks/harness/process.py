"""A worker process: one contestant in its own interpreter, asked by JSON lines.

Only the worker that is being asked runs; the others are stopped, so that a library whose threads
spin after its work is done takes nothing from the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONTESTANTS = Path(__file__).parents[1] / "contestants"
LOG_LINES = 3


class WorkerError(Exception):
    """A worker answered with an error, died, or took too long."""


class Worker:
    """A running script of `contestants/`; `ask` it, and `close` it."""

    def __init__(
        self, python: str, script: str, threads: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self.ended = ""  # why there is nothing more to ask
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        try:
            self.process = subprocess.Popen(
                [python, "-u", str(CONTESTANTS / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                env={**os.environ, **thread_environment(threads), **(environment or {})},
                # A group of its own in the same session: if this process dies while the group is
                # stopped, the kernel ends it.
                process_group=0,
            )
        except OSError as error:
            raise WorkerError(f"{python} was not started: {error.strerror}") from None

    def ask(self, order: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The answer to an order; `WorkerError` if there is none in time, or it is an error."""
        if self.ended:
            raise WorkerError(self.ended)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], timeout)
            line = self.process.stdout.readline() if ready else None
        except OSError:
            line = ""
        if not line:
            self.ended = (
                self._death() if line == "" else f"no answer to {order['op']} in {timeout:.0f} s"
            )
            self.close()
            raise WorkerError(self.ended)
        self._signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process and all it started."""
        if self.log.closed:
            return
        self.ended = self.ended or "closed"
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.log.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _death(self) -> str:
        time.sleep(0.2)  # the last lines are still on their way
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()[-LOG_LINES:]
        return f"ended with {self.process.poll()}: " + " | ".join(line.strip() for line in lines)


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that hold every library to this many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    counts = {name: str(threads) for name in names}
    return {**counts, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """The items from another start: who goes first changes from round to round."""
    start = by % len(items) if items else 0
    return [*items[start:], *items[:start]]
