"""Recorded forwards on a CPU: a tape stands for the CUDA graph, all else is what runs on a device.

The tape replays operations on fixed memory and no Python (`tape.py`), so a shape, a number or a
list that was baked in at recording shows as a wrong hidden state. Hidden states reach 4 and are
held to 3e-5 of the eager forward over the plan of the same trees; 1e-5 is what float32 sums in
another order gave at the worst of some hundred forests. Attention alone is held to 1e-5 in
`test_static_attention.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from forests import Forest, Kind, cache_for, forest, tiny_model
from tape import record
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

import decodery as dc
from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.models import causal, graphs, linear
from decodery.models.attention import Attention
from decodery.models.cache_slots import SlotCache
from decodery.models.causal import CausalModel
from decodery.models.graphs import CudaRecorder, Graphs, unrecorded
from decodery.models.llama import LlamaTransformer
from decodery.models.static_attention import (
    SCRATCH_SLOTS,
    Bucket,
    Inputs,
    StaticAttention,
    visible,
)

CLOSE = 3e-5
SLOTS = 3000

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 9},
    "gemma3_text": {
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3": {},
    "smollm3": {"no_rope_layer_interval": 2},
}
KINDS = (
    Kind(rows=1),
    Kind(rows=7, requests=2),
    Kind(rows=12, requests=12, depth=200, block=300),
    Kind(rows=40, requests=9, prompts=5),
    Kind(rows=64, requests=20, prompts=20, depth=100),
)


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Matrices multiply as on CUDA, by torch alone; memory that nobody wrote is NaN."""
    monkeypatch.setattr(linear, "backend", lambda *_: linear.PlainLinear)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class Bench:
    """Recorded and eager forwards of one model over the same forests."""

    def __init__(self, model: LlamaTransformer, recorder: Callable[..., Any], **options: Any):
        self.model = model
        self.cache = self._cache(Forest())
        self.graphs = Graphs(model, self.cache, recorder, **options)

    def _cache(self, made: Forest) -> SlotCache:
        model = self.model
        return cache_for(
            made,
            layers=len(model.layers),
            kv_heads=model.kv_heads,
            head_dim=model.head_dim,
            slots=SLOTS,
            dtype=model.dtype,
        )

    def eager(self, made: Forest) -> Tensor:
        attention = Attention(self.model.layers, self._cache(made), made.slots, made.clumps)
        with torch.inference_mode():
            tokens, positions = torch.tensor(made.tokens), torch.tensor(made.positions)
            return self.model.hidden(tokens, positions, attention)

    def recorded(self, made: Forest) -> Tensor | None:
        """On the one cache, whose addresses the recordings know, filled anew."""
        filled = self._cache(made)
        self.cache.keys[:, :, :SLOTS] = filled.keys[:, :, :SLOTS]
        self.cache.values[:, :, :SLOTS] = filled.values[:, :, :SLOTS]
        attention = Attention(self.model.layers, self.cache, made.slots, made.clumps)
        return self.graphs.hidden(made.tokens, made.positions, attention)

    def error(self, made: Forest) -> float:
        found = self.recorded(made)
        assert found is not None
        assert found.shape == (len(made), self.model.width)
        return (found - self.eager(made)).abs().nan_to_num(torch.inf).max().item()


def draw(kind: Kind, seed: int) -> Forest:
    return forest(kind, SLOTS, np.random.default_rng(seed))


@pytest.mark.parametrize("recorder", [record, unrecorded])
@pytest.mark.parametrize("name", MODELS)
def test_recorded_forwards_equal_eager_ones(name: str, recorder: Callable[..., Any]) -> None:
    bench = Bench(tiny_model(name, **MODELS[name]), recorder)
    for seed in range(4):
        for kind in KINDS:
            assert bench.error(draw(kind, seed)) < CLOSE
    statistics = bench.graphs.statistics
    assert statistics.replays == 4 * len(KINDS)
    assert statistics.captures == len(bench.graphs.buckets) < statistics.replays
    assert {bucket.shared for bucket in bench.graphs.buckets} == {True, False}


def test_bfloat16_is_recorded_too() -> None:
    """Values reach 4, where neighbours are 1/64 apart: a few roundings that fall otherwise."""
    bench = Bench(tiny_model(dtype=torch.bfloat16), record)
    made = draw(KINDS[3], 1)
    found = bench.recorded(made)
    assert found is not None
    assert found.dtype == torch.bfloat16
    assert (found - bench.eager(made)).abs().float().mean() < 0.02
    assert bench.error(made) < 0.15


def test_the_least_recently_used_recordings_go() -> None:
    bench = Bench(tiny_model(), record, most=2)
    rows = [1, 2, 1, 4, 2, 1]  # 4 takes the place of 2, and 2 that of 1
    for seed, count in enumerate(rows):
        assert bench.error(draw(Kind(count, depth=30), seed)) < CLOSE
    statistics = bench.graphs.statistics
    assert (statistics.captures, statistics.evictions, statistics.replays) == (5, 3, 6)
    assert [bucket.rows for bucket in bench.graphs.buckets] == [2, 1]


def test_large_forwards_are_left_to_the_plan() -> None:
    small = Bench(tiny_model(), record, workspace=1 << 18)
    assert small.recorded(draw(Kind(65, requests=3), 0)) is None
    assert small.recorded(draw(Kind(64, requests=30, prompts=30), 0)) is None
    assert small.error(draw(Kind(2), 0)) < CLOSE
    statistics = small.graphs.statistics
    assert (statistics.eager, statistics.replays) == (2, 1)


def test_a_recording_that_fails_leaves_all_to_the_plan() -> None:
    def broken(body: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    bench = Bench(tiny_model(), broken)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs, slower: RuntimeError on rec"):
        assert bench.recorded(draw(Kind(2), 0)) is None
    assert bench.recorded(draw(Kind(2), 1)) is None
    statistics = bench.graphs.statistics
    assert (statistics.eager, statistics.captures, statistics.replays) == (2, 0, 0)
    assert statistics.failure is not None
    assert "operation not permitted when stream is capturing" in statistics.failure


# -- the whole engine ------------------------------------------------------------------------------


@contextlib.contextmanager
def engaged() -> Iterator[None]:
    """Models made inside record on the CPU, on the tape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal, "scratch_slots", lambda _: SCRATCH_SLOTS)
        patch.setattr(causal, "graphs_for", lambda model, cache: Graphs(model, cache, record))
        yield


def completions(model: CausalModel) -> list[list[tuple[int, ...]]]:
    """Requests of many kinds side by side; some share a prompt, one is longer than a chunk."""
    decoders = [dc.sample(), dc.sample(n=6), dc.greedy(), dc.beam(beams=4), dc.sample(n=3)]
    prompts = [
        range(3, 20),
        range(3, 30),
        range(3, 40),
        range(9, 14),
        [5 + i % 40 for i in range(600)],
    ]
    runner = Runner()
    handles = [
        runner.submit(decoder, Task(Policy(model), tuple(prompt), Stopping(20), Stream(seed)))
        for seed, (decoder, prompt) in enumerate(zip(decoders, prompts, strict=True))
    ]
    runner.run()
    return [[tuple(made.tokens) for made in handle.result()] for handle in handles]


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_text_is_that_of_the_eager_engine(name: str) -> None:
    """Requests come, share prompts, branch, finish, and come again to a warm prefix cache."""
    transformer = tiny_model(name, **MODELS[name])
    plain = CausalModel(transformer, name="plain", cache_tokens=SLOTS)
    assert plain.graphs is None
    with engaged():
        recorded = CausalModel(transformer, name="recorded", cache_tokens=SLOTS)
    assert recorded.graphs is not None
    for states in (recorded.cache.keys, recorded.cache.values):
        states[:, :, :SLOTS] = torch.nan
    for _ in range(2):
        assert completions(recorded) == completions(plain)
    statistics = recorded.graphs.statistics
    assert statistics.replays > 3 * statistics.captures
    assert statistics.eager > 0  # the long prompt
    recorded.prefixes.check(live=())


def test_only_our_models_on_cuda_are_recorded() -> None:
    model = tiny_model()
    assert not graphs.can_record(model)
    assert graphs.scratch_slots(model) == 0
    model.device = torch.device("cuda")
    assert graphs.can_record(model)
    assert graphs.scratch_slots(model) == SCRATCH_SLOTS
    assert not graphs.can_record(type("Foreign", (), {"device": torch.device("cuda")})())


# -- the order of calls around a capture -----------------------------------------------------------


class FakeCuda:
    """What of torch.cuda a recorder calls; writes down in which order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.graphs = 0

    def Stream(self) -> FakeStream:
        return FakeStream("side", self.log)

    def current_stream(self) -> FakeStream:
        return FakeStream("current", self.log)

    def graph_pool_handle(self) -> str:
        self.log.append("pool")
        return "the pool"

    def CUDAGraph(self) -> FakeGraph:
        self.graphs += 1
        return FakeGraph(self.graphs, self.log)

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        assert device == torch.device("cuda:1")
        yield

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.log.append(f"on {stream.name}")
        yield
        self.log.append(f"off {stream.name}")

    @contextlib.contextmanager
    def graph(self, graph: FakeGraph, **options: object) -> Iterator[None]:
        assert options["pool"] == "the pool"
        assert isinstance(options["stream"], FakeStream)
        assert options["capture_error_mode"] == "thread_local"
        self.log.append(f"capture {graph.number}")
        yield
        self.log.append("captured")


class FakeStream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self, number: int, log: list[str]) -> None:
        self.number = number
        self.log = log

    def replay(self) -> None:
        self.log.append(f"replay {self.number}")


def test_a_capture_is_warmed_up_beside_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    for name in dir(fake):
        if not name.startswith("_") and name not in ("log", "graphs"):
            monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    recorder = CudaRecorder(torch.device("cuda:1"))
    first = recorder(lambda: fake.log.append("body"))
    first()
    warmed = ["side waits for current", "on side", "body", "body", "off side"]
    warmed.append("current waits for side")
    one = [*warmed, "capture 1", "body", "captured"]
    assert fake.log == ["pool", *one, "replay 1"]
    fake.log.clear()
    recorder(lambda: fake.log.append("body"))()
    first()
    assert fake.log == [*warmed, "capture 2", "body", "captured", "replay 2", "replay 1"]


# -- negative controls: the tape sees what a graph cannot do ---------------------------------------


def _keeps_the_first_mask(self: Graphs, bucket: Bucket) -> None:
    """Made at recording, from numbers that the host sent: not part of the recording."""
    inputs = graphs.split(self._inputs, bucket)
    attention = StaticAttention(self._transformer.layers, self._cache, bucket, inputs)
    attention._visible = {None: _visible_once(inputs, bucket)}
    hidden = self._transformer.hidden(inputs.tokens, inputs.positions, attention)
    self._hidden[: bucket.rows].copy_(hidden)


def _visible_once(inputs: Inputs, bucket: Bucket) -> Tensor:
    with _disable_current_modes():
        return visible(inputs, bucket, None)


def _copies_inputs(self: Graphs, bucket: Bucket) -> None:
    """Reads other addresses than those that the next forward writes to."""
    given = self._inputs
    with _disable_current_modes():
        self._inputs = given.clone()
    try:
        _forward(self, bucket)
    finally:
        self._inputs = given


_forward = Graphs._forward


@pytest.mark.parametrize("wrong", [_keeps_the_first_mask, _copies_inputs])
def test_what_is_baked_in_at_recording_is_caught(
    wrong: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first forward of a bucket is right, the second is not."""
    monkeypatch.setattr(Graphs, "_forward", wrong)
    bench = Bench(tiny_model(), record)
    kind = Kind(rows=8, requests=8, prompts=8, depth=120)
    first, second = draw(kind, 1), draw(kind, 2)
    assert bench.error(first) < CLOSE
    assert bench.error(second) > 100 * CLOSE
    assert len(bench.graphs.buckets) == 1


def _looks_at_a_number(positions: Tensor) -> object:
    return positions.max().item()


def _makes_a_tensor(positions: Tensor) -> object:
    return torch.tensor([1, 2])


def _shapes_by_numbers(positions: Tensor) -> object:
    return positions[positions > 0]


@pytest.mark.parametrize("operation", [_looks_at_a_number, _makes_a_tensor, _shapes_by_numbers])
def test_what_cannot_be_captured_is_refused(
    operation: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward uses none of these: with one of them recording fails."""

    def body(self: Graphs, bucket: Bucket) -> None:
        operation(graphs.split(self._inputs, bucket).positions)

    monkeypatch.setattr(Graphs, "_forward", body)
    bench = Bench(tiny_model(), record)
    with pytest.warns(RuntimeWarning, match="is not permitted when a stream is capturing"):
        assert bench.recorded(draw(Kind(2), 0)) is None
