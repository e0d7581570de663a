"""Loads one contestant in a fresh process, makes one token, and says how long each part took.

python load_once.py ours Ours '{"weights": "auto"}'
-> {"import": 1.2, "load": 0.4, "first": 0.1, "peak_mb": 400.0, ...}
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module

from protocol import Job, Request, own_stdout, peak_mb

PROMPT = list(range(1000, 1016))


def main() -> None:
    answers = own_stdout()
    module, name, settings = sys.argv[1:]
    started = time.perf_counter()
    contestant = getattr(import_module(module), name)()
    imported = time.perf_counter()
    about = contestant.load(json.loads(settings))
    loaded = time.perf_counter()
    contestant.run(Job([Request(PROMPT, 1)]))
    parts = {
        "import": imported - started,
        "load": loaded - imported,
        "first": time.perf_counter() - loaded,
        "peak_mb": peak_mb(),
        "versions": about.versions,
    }
    print(json.dumps(parts), file=answers, flush=True)


if __name__ == "__main__":
    main()
