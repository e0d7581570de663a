"""How much do the weights a model multiplies with change what it says?

Every kind of weights reads the same real text, about 2,000 tokens of the files of this repository,
and its law of each next token is compared with that of float32: Kullback-Leibler divergence from
float32 in nats, how often both find the same token the most probable, and the perplexity of the
text.

    python benchmarks/quality.py                     # the embedded model
    python benchmarks/quality.py --model FOLDER      # another one, of float weights

The embedded model comes as 4-bit codes (Q4_1). `auto` multiplies with them as they are, and float32
stands for the very same values: what is left is the rounding of inputs to 8 bits and of keys to
float16. `int8`, `int4` and `bf16` are made from that float32, so `int4` finds steps again that were
there before; on weights that never had 4 bits it costs more.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Decoder, Decoding, Task
from decodery.core.requests import Grow, Open
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.models import embedded
from harness.machine import facts, summary

ROOT = Path(__file__).parents[1]
TEXTS = ("LICENSE", "README.md", "docs/samplers.md", "docs/weights.md", "docs/architecture.md")
QUANTISED = ("int8", "int4", "bf16")

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Compared:
    """How one kind of weights differs from float32 over all positions."""

    weights: str
    megabytes: float
    mean_kl: float
    kl_99: float
    top_1: float
    perplexity: float


class _Reading(Decoder):
    """Grows a text as one chain of nodes and keeps their rows."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self.scores: list[Scores] = []

    def decode(self, task: Task) -> Decoding:
        tip = yield Open(task.policy, task.prompt)
        nodes = [tip]
        for token in self.tokens[1:-1]:
            tip = tip.child(token)
            nodes.append(tip)
        yield Grow(nodes[1:], keep_rows=True)
        self.scores = [node.row.scores for node in nodes]
        return []

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return len(self.tokens)


def _law(scores: Scores) -> npt.NDArray[np.float64]:
    """Log-probabilities."""
    exact = scores.astype(np.float64)
    exact -= exact.max()
    return exact - np.log(np.exp(exact).sum())


def read(lm: LanguageModel, tokens: Sequence[int]) -> list[Scores]:
    """The model's scores after each token of a text but the last, [vocab] each."""
    reading = _Reading(tokens)
    run_alone(reading, Task(Policy(lm), tuple(tokens[:1]), Stopping(1)))
    return reading.scores


class Comparison:
    """Sums up, text by text, how a model differs from float32."""

    def __init__(self, weights: str, lm: LanguageModel) -> None:
        self.weights = weights
        self.lm = lm
        self.divergences: list[float] = []
        self.agreements: list[bool] = []
        self.surprises: list[float] = []

    def add(self, tokens: Sequence[int], exact: Sequence[Scores]) -> None:
        found = read(self.lm, tokens)
        for theirs, ours, following in zip(exact, found, tokens[1:], strict=True):
            law, own = _law(theirs), _law(ours)
            self.divergences.append(float((np.exp(law) * (law - own)).sum()))
            self.agreements.append(bool(law.argmax() == own.argmax()))
            self.surprises.append(-float(own[following]))

    def result(self) -> Compared:
        return Compared(
            self.weights,
            getattr(self.lm.transformer, "weight_bytes", 0) / 1e6,
            float(np.mean(self.divergences)),
            float(np.percentile(self.divergences, 99)),
            float(np.mean(self.agreements)),
            float(np.exp(np.mean(self.surprises))),
        )


def main() -> None:
    options = _options()
    console = Console(width=max(100, Console().width))
    machine = facts()
    console.print(summary(machine), highlight=False)
    folder = options.model or embedded.embedded_folder("float32")
    exact = dc.load(folder, weights="float32", device="cpu")
    others = {name: dc.load(folder, weights=name, device="cpu") for name in QUANTISED}
    if options.model is None:
        others = {"auto": dc.load(device="cpu"), **others}
    texts = [
        exact.tokenizer.encode((ROOT / name).read_text())[: options.tokens // len(TEXTS) + 1]
        for name in TEXTS
    ]
    field = [Comparison("float32", exact), *(Comparison(*item) for item in others.items())]
    started = time.perf_counter()
    for tokens in texts:
        expected = read(exact, tokens)
        for comparison in field:
            comparison.add(tokens, expected)
    found = [comparison.result() for comparison in field]
    positions = len(field[0].divergences)
    name = embedded.NAME if options.model is None else exact.name
    _print(console, name, positions, found)
    console.print(f"{time.perf_counter() - started:.0f} s")
    if options.json:
        content = {
            "benchmark": "quality",
            "machine": machine,
            "model": name,
            "texts": list(TEXTS),
            "positions": positions,
            "weights": [asdict(item) for item in found],
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _print(console: Console, name: str, positions: int, found: Sequence[Compared]) -> None:
    shown = Table(title=f"{name}, {positions:,} tokens of text, beside float32")
    shown.add_column("weights")
    for column in ("MB", "mean KL", "99 % of KL below", "same top token", "perplexity", "change"):
        shown.add_column(column, justify="right")
    whole = found[0].perplexity
    for item in found:
        shown.add_row(
            item.weights,
            f"{item.megabytes:.0f}",
            f"{item.mean_kl:.2e}",
            f"{item.kl_99:.2e}",
            f"{item.top_1:.2%}",
            f"{item.perplexity:.3f}",
            f"{item.perplexity / whole - 1:+.2%}",
        )
    console.print(shown)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a folder of float weights")
    parser.add_argument("--tokens", type=int, default=2000, help="of text, in all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    options = parser.parse_args()
    if options.tokens < 2 * len(TEXTS):
        parser.error(f"--tokens must be at least {2 * len(TEXTS)}")
    return options


if __name__ == "__main__":
    main()
