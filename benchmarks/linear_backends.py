"""Linear layers: milliseconds for all matrices of the embedded model, by kind of weights and rows.

The crossing points between backends, measured: our compiled kernel with float32, bfloat16, 8-bit
and 4-bit weights, and torch's own (`F.linear`, and oneDNN with packed weights where this processor
has units for bfloat16), interleaved in one process. The lowest column says which to use for how
many new nodes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from decodery.models.codes import quantise
from decodery.models.linear import OneDnnLinear
from decodery.models.packed import PackedMatrix

WIDTH, QKV, GATE_UP, INNER = 576, 960, 3072, 1536
SHAPES = ((QKV, WIDTH), (WIDTH, WIDTH), (GATE_UP, WIDTH), (WIDTH, INNER))
LAYERS = 30
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)

Multiply = Callable[[Tensor], Tensor]


def backends() -> dict[str, Callable[[Tensor], Multiply]]:
    """Ways to make a layer from a float32 weight [outputs, inputs]."""
    found: dict[str, Callable[[Tensor], Multiply]] = {
        "ours int4": lambda weight: PackedMatrix(quantise(weight, 4), None),
        "ours int8": lambda weight: PackedMatrix(quantise(weight, 8), None),
        "ours bf16": lambda weight: PackedMatrix(weight.bfloat16(), None),
        "ours float32": lambda weight: PackedMatrix(weight, None),
        "torch float32": lambda weight: partial(F.linear, weight=weight),
        "torch bf16": lambda weight: _in_bfloat16(partial(F.linear, weight=weight.bfloat16())),
    }
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        found["oneDNN bf16"] = lambda weight: _in_bfloat16(OneDnnLinear(weight.bfloat16(), None))
    return found


def _in_bfloat16(multiply: Multiply) -> Multiply:
    return lambda x: multiply(x.bfloat16())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # A layer of its own each time, as in the model: weights come from memory, not from a cache.
    weights = [torch.randn(shape) / shape[1] ** 0.5 for _ in range(LAYERS) for shape in SHAPES]
    models = {name: [make(weight) for weight in weights] for name, make in backends().items()}
    print(f"{arguments.threads} threads, median of {arguments.repeats}, ms for {LAYERS} layers")
    print("rows".rjust(6), *(name.rjust(14) for name in models))
    for rows in ROWS:
        inputs = {inner: torch.randn(rows, inner) for inner in (WIDTH, INNER)}
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(arguments.repeats):
            for name, model in models.items():
                times[name].append(_seconds(model, weights, inputs))
        medians = (1000 * statistics.median(found) for found in times.values())
        print(str(rows).rjust(6), *(f"{median:14.2f}" for median in medians))


def _seconds(model: list[Multiply], weights: list[Tensor], inputs: dict[int, Tensor]) -> float:
    started = time.perf_counter()
    for multiply, weight in zip(model, weights, strict=True):
        multiply(inputs[weight.shape[1]])
    return time.perf_counter() - started


if __name__ == "__main__":
    with torch.inference_mode():
        main()
