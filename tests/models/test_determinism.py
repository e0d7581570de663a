"""What `docs/determinism.md` promises of the embedded model on compiled kernels, bit for bit.

Both for float32 and for what `load()` gives by default, the codes of the model's own file. The laws
of single forwards are in `test_bitwise.py`, with every kind of weights; here they pass through
requests, the runner and the prefix cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import drive

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Task
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.models import causal, native
from decodery.models.causal import CausalModel

compiled = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
TEXT = (Path(__file__).parents[2] / "LICENSE").read_text()
ENDS = (131, 140, 150)  # lengths of the paths whose rows are compared
SALTS = iter(range(10**6))


@pytest.fixture(params=["lm", "default_lm"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return request.getfixturevalue(request.param)


@pytest.fixture
def tokens(model: LanguageModel) -> list[int]:
    return model.tokenizer.encode(TEXT)[:150]


# -- tokens ---------------------------------------------------------------------------------------


def run_batch(lm: LanguageModel, jobs: Sequence[tuple[str, int]], length: int) -> list[tuple]:
    runner = Runner()
    handles = []
    for prompt, seed in jobs:
        ids = lm.read(prompt).tokens
        task = Task(Policy(lm), ids, Stopping(length, ignore_eos=True), Stream(seed))
        handles.append(runner.submit(dc.sample(), task))
    runner.run()
    return [handle.result()[0].tokens for handle in handles]


def jobs(count: int) -> list[tuple[str, int]]:
    topics = ("sea", "moon", "bread", "wolves", "trains", "glass", "rain")
    return [
        (f"Tell me {'a little ' * (i % 5)}about {topics[i % 7]}.", 100 + i) for i in range(count)
    ]


def check_batch_invariance(lm: LanguageModel, count: int, length: int) -> None:
    alone = [run_batch(lm, [job], length)[0] for job in jobs(count)]
    generator = np.random.default_rng(5)
    start = 0
    while start < count:
        size = int(generator.integers(2, 65))
        chosen = list(range(start, min(start + size, count)))
        generator.shuffle(chosen)
        found = run_batch(lm, [jobs(count)[i] for i in chosen], length)
        assert found == [alone[i] for i in chosen]
        start += size


def test_same_seed_same_tokens_in_any_batch(model: LanguageModel) -> None:
    """12 requests alone and in shuffled batches: bitwise equal rows give equal tokens."""
    check_batch_invariance(model, count=12, length=6)


@pytest.mark.slow
def test_same_seed_same_tokens_in_any_batch_over_1000_rows(model: LanguageModel) -> None:
    """125 requests of 8 tokens: 1,000 rows, alone and in shuffled batches of 2 to 64."""
    check_batch_invariance(model, count=125, length=8)


def test_sequence_is_the_same_whatever_n(model: LanguageModel) -> None:
    """The first sequences of many samples are those of few, and of one alone."""
    options = {"method": "sample", "max_tokens": 8, "seed": 3}
    found = [model.generate("Name an animal.", n=n, **options) for n in (1, 2, 5)]
    sequences = [[sample.tokens for sample in generation.samples] for generation in found]
    for few, many in pairwise(sequences):
        assert many[: len(few)] == few
    assert len(set(sequences[-1])) > 1


# -- rows -----------------------------------------------------------------------------------------

Rows = dict[int, np.ndarray]  # the row at the end of the first n tokens of the text, by n


def prompts(model: CausalModel, tokens: list[int], salt: str | None = None) -> Rows:
    """Each path as a prompt of its own; without a salt, later ones begin in the cache."""
    found: Rows = {}

    def body(task: Task) -> Iterator[object]:
        root: Node = yield Open(task.policy, task.prompt)
        found[len(task.prompt)] = root.row.scores

    for end in ENDS:
        drive(model, tokens[:end], body, slots=200, salt=salt or str(next(SALTS)))
    return found


def from_the_cache(model: CausalModel, tokens: list[int]) -> Rows:
    prompts(model, tokens, salt="shared")
    return prompts(model, tokens, salt="shared")


def chain(model: CausalModel, tokens: list[int], start: int, *, at_once: bool) -> Rows:
    """The text after a prompt of `start` tokens, token by token or in one request."""
    found: Rows = {}

    def body(task: Task) -> Iterator[object]:
        tip: Node = yield Open(task.policy, task.prompt)
        nodes: list[Node] = []
        for token in tokens[start:]:
            tip = tip.child(token)
            nodes.append(tip)
            if not at_once:
                yield Grow([tip], keep_rows=True)
        if at_once:
            yield Grow(nodes)
        found.update({node.depth: node.row.scores for node in nodes if node.depth in ENDS})

    drive(model, tokens[:start], body, slots=200, salt=str(next(SALTS)))
    return found


def among_branches(model: CausalModel, tokens: list[int]) -> Rows:
    """Six branches below a shared prompt, which fork and die; ours is the third."""
    found: Rows = {}

    def body(task: Task) -> Iterator[object]:
        tip: Node = yield Open(task.policy, task.prompt)
        for number, token in enumerate(tokens[125:]):
            others = [tip.child(10 + other) for other in range(number % 5)]
            tip = tip.child(token)
            late = [tip.parent.child(90)]
            yield Grow([*others, tip, *late, *(node.child(7) for node in others)])
            for node in others[::2] + late:
                node.drop()
            if tip.depth in ENDS:
                found[tip.depth] = tip.row.scores

    drive(model, tokens[:125], body, slots=400, salt=str(next(SALTS)))
    return found


def equal(found: Rows, expected: Rows) -> bool:
    assert found.keys() == expected.keys() == set(ENDS)
    return all(np.array_equal(found[end], expected[end]) for end in ENDS)


@compiled
def test_rows_do_not_depend_on_how_a_path_was_made(model: LanguageModel, tokens: list[int]) -> None:
    expected = prompts(model, tokens)
    assert equal(chain(model, tokens, 125, at_once=False), expected)
    assert equal(chain(model, tokens, 1, at_once=True), expected)
    assert equal(among_branches(model, tokens), expected)
    assert equal(from_the_cache(model, tokens), expected)
    other = [*tokens[:100], tokens[100] + 1, *tokens[101:]]
    assert not equal(prompts(model, other), expected)


@compiled
def test_rows_do_not_depend_on_chunks_or_slots(
    model: LanguageModel, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of 7 tokens; and a cache of 300 slots whose free ones lie between used ones."""
    expected = prompts(model, tokens)
    monkeypatch.setattr(causal, "PROMPT_CHUNK", 7)
    assert equal(prompts(CausalModel(model.transformer, name="chunks"), tokens), expected)
    monkeypatch.undo()
    tight = CausalModel(model.transformer, name="tight", cache_tokens=300, prefix_cache=False)
    found: Rows = {}

    def body(task: Task) -> Iterator[object]:
        root: Node = yield Open(task.policy, task.prompt)
        children = [root.child(token) for token in range(299)]
        yield Grow(children)
        for child in children[::2]:
            child.drop()
        inner: Node = yield Open(task.policy, tokens[: ENDS[0]])
        assert len(inner.handle.runs) > 10
        found[ENDS[0]] = inner.row.scores

    drive(tight, [5], body, slots=300)
    assert np.array_equal(found[ENDS[0]], expected[ENDS[0]])


@compiled
def test_rows_do_not_depend_on_threads(model: LanguageModel, tokens: list[int]) -> None:
    expected = prompts(model, tokens)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            assert equal(prompts(model, tokens), expected)
            assert equal(chain(model, tokens, 128, at_once=False), expected)
    finally:
        torch.set_num_threads(threads)
