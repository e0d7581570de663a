"""One stream, greedy, 128 tokens after a prompt of 128: ours against transformers' generate.

Both run the embedded model's float32 weights, in float32 and in bfloat16, interleaved in one
process with the same number of threads. Prints milliseconds a token (prompt included) with their
range, and the ratio to the best of transformers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import decodery as dc

CONTEXT = 128


def ours(dtype: str, tokens: int) -> Callable[[], None]:
    lm = dc.load(dtype=dtype)
    prompt = [1, *range(1000, 1000 + CONTEXT - 1)]

    def run() -> None:
        lm.generate(prompt, method="greedy", max_tokens=tokens, ignore_eos=True)

    return run


def theirs(dtype: str, tokens: int) -> Callable[[], None]:
    import torch
    from transformers import AutoModelForCausalLM

    from decodery.models import embedded

    model = AutoModelForCausalLM.from_pretrained(
        embedded.embedded_folder("float32"), dtype=getattr(torch, dtype)
    ).eval()
    prompt = torch.tensor([[1, *range(1000, 1000 + CONTEXT - 1)]])

    def run() -> None:
        with torch.inference_mode():
            model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    runs = {
        (who.__name__, dtype): who(dtype, arguments.tokens)
        for who in (ours, theirs)
        for dtype in ("float32", "bfloat16")
    }
    found: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    for repeat in range(arguments.repeats + 1):  # the first round warms up
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if repeat:
                found[name].append(1000 * (time.perf_counter() - started) / arguments.tokens)
    best = min(statistics.median(found["theirs", dtype]) for dtype in ("float32", "bfloat16"))
    print(f"{arguments.threads} threads, {arguments.repeats} rounds, ms a token: median [range]")
    for (who, dtype), values in found.items():
        median = statistics.median(values)
        ratio = f"  {best / median:.2f}x of transformers' best" if who == "ours" else ""
        print(
            f"  {who:6s} {dtype:8s} {median:7.1f}  [{min(values):.1f} .. {max(values):.1f}]{ratio}"
        )


if __name__ == "__main__":
    main()
