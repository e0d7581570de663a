"""Recorded forwards: on CUDA a step of few nodes is one replay of a graph, not a thousand launches.

A forward of at most 64 new nodes is padded to a bucket of fixed shapes (`static_attention.py`). The
first one of each bucket is recorded; every one copies its inputs to the addresses that the
recording reads, all in one copy, and replays it. Prompts, and forwards whose attention would take
too much memory, run as they do on a CPU, over the plan of their trees.

Only `CudaRecorder` needs a device. With `unrecorded` in its place everything else runs on a CPU,
which is how it is tested.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decodery.models.attention import Attention
from decodery.models.cache_slots import SlotCache
from decodery.models.llama import LlamaTransformer
from decodery.models.static_attention import (
    MOST_ROWS,
    SCRATCH_SLOTS,
    Bucket,
    Packer,
    Sizes,
    StaticAttention,
    split,
)
from decodery.models.transformer import Transformer

MOST_GRAPHS = 48
WORKSPACE = 1 << 30  # bytes that the attention of one layer may take in a recorded forward
_WARM_UPS = 2

Body = Callable[[], None]
# Takes a body that reads and writes fixed addresses; returns what repeats it.
Recorder = Callable[[Body], Body]

# torch: one capture at a time in a process.
_capturing = threading.Lock()


@dataclass
class Statistics:
    """What was done so far. `eager` counts forwards that no bucket was for."""

    captures: int = 0
    replays: int = 0
    evictions: int = 0
    eager: int = 0
    failure: str | None = None


def can_record(transformer: Transformer) -> bool:
    """Whether forwards of this transformer are to be recorded: our own, on CUDA."""
    return isinstance(transformer, LlamaTransformer) and transformer.device.type == "cuda"


def scratch_slots(transformer: Transformer) -> int:
    """How many slots nobody owns the cache of this transformer needs."""
    return SCRATCH_SLOTS if can_record(transformer) else 0


def graphs_for(transformer: Transformer, cache: SlotCache) -> Graphs | None:
    """The recorded forwards of a model whose cache has `scratch_slots`, where it has any."""
    if not isinstance(transformer, LlamaTransformer) or not can_record(transformer):
        return None
    memory = torch.cuda.get_device_properties(transformer.device).total_memory
    recorder = CudaRecorder(transformer.device)
    return Graphs(transformer, cache, recorder, workspace=min(WORKSPACE, memory // 16))


class Graphs:
    """The recorded forwards of one model, the least recently used of which go first.

    `cache` has `SCRATCH_SLOTS` slots that nobody owns. Callers take turns.
    """

    def __init__(
        self,
        transformer: LlamaTransformer,
        cache: SlotCache,
        recorder: Recorder,
        *,
        most: int = MOST_GRAPHS,
        workspace: int = WORKSPACE,
    ) -> None:
        self.statistics = Statistics()
        self._transformer = transformer
        self._cache = cache
        self._recorder = recorder
        self._most = most
        self._packer = Packer(_sizes(transformer, cache), workspace)
        self._replays: OrderedDict[Bucket, Body] = OrderedDict()
        device = cache.keys.device
        self._inputs = torch.zeros_like(self._packer.buffer, device=device)
        self._hidden = torch.zeros(
            (MOST_ROWS, transformer.width), dtype=transformer.dtype, device=device
        )
        for states in (cache.keys, cache.values):
            states[:, :, cache.slots :] = 0

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Of the recordings that are kept, the next to go first."""
        return tuple(self._replays)

    @torch.inference_mode()
    def hidden(
        self, tokens: Sequence[int], positions: Sequence[int], attention: Attention
    ) -> Tensor | None:
        """Hidden states after the last norm [n, width], valid until the next call.

        None where the forward is to run over the plan of its trees. Warns, once, when recording
        fails; then all forwards do.
        """
        bucket = None
        if len(tokens) <= MOST_ROWS and self.statistics.failure is None:
            bucket = self._packer.bucket(attention.clumps)
        if bucket is None:
            self.statistics.eager += 1
            return None
        packed = self._packer.pack(bucket, tokens, positions, attention.slots, attention.clumps)
        self._inputs[: len(packed)].copy_(packed)
        replay = self._replay_of(bucket)
        if replay is None:
            self.statistics.eager += 1
            return None
        replay()
        self.statistics.replays += 1
        return self._hidden[: len(tokens)]

    def _replay_of(self, bucket: Bucket) -> Body | None:
        """The recording of a bucket, made now if need be; None when that fails."""
        replay = self._replays.get(bucket)
        if replay is not None:
            self._replays.move_to_end(bucket)
            return replay
        try:
            replay = self._recorder(lambda: self._forward(bucket))
        except RuntimeError as error:  # all that torch and CUDA raise, out of memory included
            self._give_up(bucket, error)
            return None
        self.statistics.captures += 1
        self._replays[bucket] = replay
        if len(self._replays) > self._most:
            self._replays.popitem(last=False)
            self.statistics.evictions += 1
        return replay

    def _forward(self, bucket: Bucket) -> None:
        """What is recorded: fixed shapes, fixed addresses in and out, no look at any number."""
        inputs = split(self._inputs, bucket)
        attention = StaticAttention(self._transformer.layers, self._cache, bucket, inputs)
        hidden = self._transformer.hidden(inputs.tokens, inputs.positions, attention)
        self._hidden[: bucket.rows].copy_(hidden)

    def _give_up(self, bucket: Bucket, error: RuntimeError) -> None:
        reason = " ".join(str(error).split())[:300]
        self.statistics.failure = f"{type(error).__name__} on recording {bucket}: {reason}"
        self._replays.clear()
        warnings.warn(
            f"from here on forwards run without CUDA graphs, slower: {self.statistics.failure}",
            RuntimeWarning,
            stacklevel=2,
        )


class CudaRecorder:
    """Records a body as a CUDA graph. All graphs share one pool of memory.

    They may: each reads and writes between replays only addresses that were allocated before it,
    and no two are replayed at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, body: Body) -> Body:
        with _capturing, torch.cuda.device(self._device):
            self._warm_up(body)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",  # other threads may go on with their own work
            ):
                body()

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay

    def _warm_up(self, body: Body) -> None:
        """Runs the body beside the current stream, so that libraries set up what they need.

        It writes what the replay will write once more.
        """
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                body()
        current.wait_stream(self._stream)


def unrecorded(body: Body) -> Body:
    """A recorder that records nothing: the body runs each time."""
    return body


def _sizes(transformer: LlamaTransformer, cache: SlotCache) -> Sizes:
    windows = [layer.window for layer in transformer.layers]
    bounded = [window for window in windows if window is not None]
    return Sizes(
        heads=transformer.architecture.heads,
        kv_heads=transformer.kv_heads,
        head_dim=transformer.head_dim,
        item=cache.keys.element_size(),
        slots=cache.slots,
        reach=max(bounded) if len(bounded) == len(windows) else None,
    )
