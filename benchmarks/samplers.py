"""How long does sampling one step take, here and with transformers' processors?

Ours: a `Row` made from each float32 numpy row, the samplers, and one keyed draw. Theirs: the
processors on the batch, softmax, `torch.multinomial`. Both start from the same scores, one thread
each, measured in turns so that a busy machine slows both.

The laws are Zipf's, p ~ rank^-exponent in a random order. The default has the entropy of a language
model's (about 3 nats); exponent 0.5 is flat, the worst case for sorting survivors only.

    python benchmarks/samplers.py            # about a minute
    python benchmarks/samplers.py --repeats 31
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.sampler import Chain, Context, Sampler, chain
from decodery.methods.sampling.min_p import MinP
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_k import TopK
from decodery.methods.sampling.top_p import TopP
from decodery.methods.sampling.typical import Typical

SHAPES = ((1, 49152), (16, 151936))
STANDARD = "temperature, top_k, top_p, min_p"
PARTS: dict[str, tuple[list[Sampler], list[Callable[..., torch.Tensor]]]] = {
    STANDARD: (
        [Temperature(0.8), TopK(50), TopP(0.95), MinP(0.05)],
        [
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(50),
            TopPLogitsWarper(0.95),
            MinPLogitsWarper(0.05),
        ],
    ),
    "nothing but the draw": ([], []),
    "temperature 0.8": ([Temperature(0.8)], [TemperatureLogitsWarper(0.8)]),
    "top_k 50": ([TopK(50)], [TopKLogitsWarper(50)]),
    "top_p 0.95": ([TopP(0.95)], [TopPLogitsWarper(0.95)]),
    "min_p 0.05": ([MinP(0.05)], [MinPLogitsWarper(0.05)]),
    "typical 0.95": ([Typical(0.95)], [TypicalLogitsWarper(0.95)]),
}


def ours(samplers: Chain, scores: np.ndarray, stream: Stream) -> list[int]:
    """One step of every row: Row, samplers, keyed draw."""
    context = Context((0,), 1, stream=stream)
    state = samplers.start(context)
    return [
        samplers.apply(Row(row, row.size), state, context).draw(stream.uniform(index, 1, "token"))
        for index, row in enumerate(scores)
    ]


def theirs(processors: LogitsProcessorList, scores: torch.Tensor) -> torch.Tensor:
    """One step of the batch: processors, softmax, multinomial."""
    ids = torch.zeros((scores.shape[0], 1), dtype=torch.long)
    return torch.multinomial(torch.softmax(processors(ids, scores), dim=-1), 1)


def milliseconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def in_turns(
    left: Callable[[], object], right: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Times in milliseconds of both, alternating, after one unmeasured round."""
    left(), right()
    pairs = [(milliseconds(left), milliseconds(right)) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="rounds for each line, at least 7")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--exponent", type=float, default=1.5, help="of the laws; lower is flatter")
    parser.add_argument("--seed", type=int, default=7, help="seed of the scores and draws")
    options = parser.parse_args()
    if options.repeats < 7:
        parser.error("--repeats must be at least 7, or the median says little")
    torch.set_num_threads(options.threads)
    generator = np.random.default_rng(options.seed)
    print(
        f"Median ms a step over {options.repeats} rounds; torch {torch.__version__} with "
        f"{options.threads} thread(s), numpy {np.__version__}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}.\nRatio: transformers / decodery of the same round, median "
        "(quarter .. three quarters); above 1 decodery is faster."
    )
    for batch, vocabulary in SHAPES:
        ranks = np.tile(np.arange(1.0, vocabulary + 1), (batch, 1))
        scores = generator.permuted(-options.exponent * np.log(ranks), axis=1).astype(np.float32)
        tensor = torch.from_numpy(scores.copy())
        shape = f"[{batch}, {vocabulary}], entropy {Row.dense(scores[0]).entropy():.1f} nats"
        print(f"\n{shape:34}  decodery  transformers   ratio")
        for name, (samplers, processors) in PARTS.items():
            own, peer = in_turns(
                partial(ours, chain(samplers), scores, Stream(options.seed)),
                partial(theirs, LogitsProcessorList(processors), tensor),
                options.repeats,
            )
            ratios = [theirs_ms / ours_ms for ours_ms, theirs_ms in zip(own, peer, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"{name:34} {statistics.median(own):9.3f} {statistics.median(peer):13.3f}"
                f" {middle:7.1f} ({low:.1f} .. {high:.1f})"
            )


if __name__ == "__main__":
    main()
