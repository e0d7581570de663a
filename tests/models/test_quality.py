"""How near the embedded model's other weights come to float32, on a little real text.

float32 stands for the very values of the file's codes, so what is measured is the engine's own
rounding: inputs of products to 8 bits, keys to float16. `benchmarks/quality.py` measures more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from driving import drive

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Task
from decodery.core.requests import Grow, Open
from decodery.core.tree import Node
from decodery.models import native

TEXT = (Path(__file__).parents[2] / "LICENSE").read_text()
POSITIONS = 200


def laws(model: LanguageModel, tokens: list[int]) -> np.ndarray:
    """Probabilities after each token of a text, float64 [tokens, vocab]."""
    found: list[np.ndarray] = []

    def body(task: Task) -> Iterator[object]:
        tip: Node = yield Open(task.policy, task.prompt)
        nodes = [tip]
        for token in tokens[1:]:
            tip = tip.child(token)
            nodes.append(tip)
        yield Grow(nodes[1:], keep_rows=True)
        found.extend(node.row.probabilities() for node in nodes)

    drive(model, tokens[:1], body)
    return np.stack(found)


@pytest.fixture(scope="module")
def tokens(lm: LanguageModel) -> list[int]:
    return lm.tokenizer.encode(TEXT)[:POSITIONS]


@pytest.fixture(scope="module")
def exact(lm: LanguageModel, tokens: list[int]) -> np.ndarray:
    return laws(lm, tokens)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence in nats."""
    return float((p * (np.log(p) - np.log(q))).sum(1).mean())


def agreement(p: np.ndarray, q: np.ndarray) -> float:
    """How often both have the same most probable token."""
    return float((p.argmax(1) == q.argmax(1)).mean())


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler here: floats, not codes")
def test_default_codes_are_close_to_float32(
    default_lm: LanguageModel, tokens: list[int], exact: np.ndarray
) -> None:
    """Measured: 0.0058 nats, and 192 of 200 positions with the same most probable token."""
    found = laws(default_lm, tokens)
    assert 0 < divergence(exact, found) < 0.01
    assert agreement(exact, found) >= 0.93


def test_bfloat16_is_close_to_float32(tokens: list[int], exact: np.ndarray) -> None:
    """Measured: 0.0001 nats on compiled kernels; 0.002 on torch's, which round activations too."""
    found = laws(dc.load(weights="bf16"), tokens)
    assert 0 < divergence(exact, found) < (0.02 if native.library() is None else 5e-4)
    assert agreement(exact, found) > 0.97


def test_a_wrong_engine_is_noticed(lm: LanguageModel, tokens: list[int], exact: np.ndarray) -> None:
    """Negative controls: one wrong token at the start; the law of a position later."""
    other = laws(lm, [tokens[0] + 1, *tokens[1:]])
    assert divergence(exact, other) > 0.05
    assert divergence(exact[:-1], exact[1:]) > 1
