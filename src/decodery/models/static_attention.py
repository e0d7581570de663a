"""Attention over a forest in fixed shapes, so that a recorded forward can be replayed.

A CUDA graph repeats the same kernels on the same addresses: no shape, no slice and no number of
parts in it may follow the trees, as those of a `Plan` do. Here a forward of few new nodes is padded
to a `Bucket`, and all that is known of its trees are integers in one flat buffer: tokens, positions
and slots of the rows, and the slots they look at, in one of two layouts:

- apart: the path of each row, nearest first, so that an index is a distance. For requests that have
  little in common.
- shared: every slot that any row looks at, once, with its position and a word of 64 bits that says
  which rows look. For a prompt under many branches.

Two slots behind the cache's own serve the padding. Padded rows write to the waste slot, which
nobody reads; padded keys are the nothing slot, which is zero and which nobody writes. So padding
reads no memory that was not written, and a padded row sees zeros alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from decodery.models.attention import Clump
from decodery.models.cache_slots import Runs, SlotCache, last, store
from decodery.models.transformer import LayerAttention

MOST_ROWS = 64  # one bit each in the word of a shared key
FEWEST_KEYS = 128  # more than rows: the new nodes of a path always fit

SCRATCH_SLOTS = 2
_WASTE, _NOTHING = 0, 1  # behind the slots that can be given out


@dataclass(frozen=True)
class Bucket:
    """The shapes of one recorded forward: `keys` are those of a row, or of all when `shared`."""

    rows: int
    keys: int
    shared: bool

    @property
    def gathered(self) -> int:
        """How many keys are read from the cache."""
        return self.keys if self.shared else self.rows * self.keys

    @property
    def numbers(self) -> int:
        """The length of its inputs laid flat."""
        return 3 * self.rows + (3 if self.shared else self.rows) * self.keys


class Inputs(NamedTuple):
    """What a recorded forward reads, views of one flat int64 buffer."""

    tokens: Tensor  # [rows]
    positions: Tensor  # [rows]
    slots: Tensor  # [rows], where the new keys go
    key_slots: Tensor  # [keys] when shared, else [rows, keys], nearest first
    key_positions: Tensor  # [keys], or [0] when apart: there the index is the distance
    lookers: Tensor  # [keys], bit r is set where row r looks; or [0] when apart


def split(buffer: Tensor, bucket: Bucket) -> Inputs:
    """The inputs of a bucket in a flat buffer of at least `bucket.numbers`."""
    rows, keys = bucket.rows, bucket.keys
    extra = keys if bucket.shared else 0
    sizes = [rows, rows, rows, bucket.gathered, extra, extra]
    tokens, positions, slots, key_slots, key_positions, lookers = buffer[: sum(sizes)].split(sizes)
    if not bucket.shared:
        key_slots = key_slots.view(rows, keys)
    return Inputs(tokens, positions, slots, key_slots, key_positions, lookers)


@dataclass(frozen=True)
class Sizes:
    """What a packer must know of the model."""

    heads: int
    kv_heads: int
    head_dim: int
    item: int  # bytes of a number in the cache
    slots: int  # that can be given out
    reach: int | None  # the longest window when every layer has one: no row looks further back

    def workspace(self, bucket: Bucket) -> int:
        """About how many bytes the attention of one layer takes and moves."""
        wide = self.item if self.item == 4 else self.item + 4  # as gathered, and in float32
        states = 2 * bucket.gathered * self.kv_heads * self.head_dim * wide
        scores = 2 * bucket.rows * self.heads * bucket.keys * 4
        return states + scores

    def most_numbers(self, workspace: int) -> int:
        """No bucket within a workspace has more numbers than this."""
        most = workspace // self.workspace(Bucket(1, 1, shared=False))
        keys = _power(self.slots + 1, FEWEST_KEYS)  # of a row, or of all of them
        return 3 * MOST_ROWS + max(min(most, MOST_ROWS * keys), 3 * min(most, keys))


class Packer:
    """The host's side: chooses the bucket of a forward and lays its inputs out.

    A forward whose attention would take more than `workspace` bytes has no bucket.
    """

    def __init__(self, sizes: Sizes, workspace: int) -> None:
        self.sizes = sizes
        self.workspace = workspace
        self.buffer = torch.zeros(sizes.most_numbers(workspace), dtype=torch.int64)
        self._looks = np.zeros(sizes.slots, dtype=np.uint64)
        self._positions = np.zeros(sizes.slots, dtype=np.int64)

    def bucket(self, clumps: Sequence[Clump]) -> Bucket | None:
        """The bucket that moves the fewest bytes; None for forwards that no bucket is for."""
        if sum(len(clump.rows) for clump in clumps) > MOST_ROWS:
            return None
        best = min(self.choices(clumps), key=self.sizes.workspace)
        return best if self.sizes.workspace(best) <= self.workspace else None

    def choices(self, clumps: Sequence[Clump]) -> tuple[Bucket, Bucket]:
        """The smallest bucket of either layout that a forward fits in, apart and shared."""
        rows = _power(sum(len(clump.rows) for clump in clumps), 1)
        longest = max(_length(clump.base) + max(_heights(clump.parents)) for clump in clumps)
        if self.sizes.reach is not None:
            longest = min(longest, self.sizes.reach)
        # One key more than the rows look at, so that a shared bucket always has padding.
        distinct = _distinct([run for clump in clumps for run in self._runs(clump)]) + 1
        return (
            Bucket(rows, _power(longest, FEWEST_KEYS), shared=False),
            Bucket(rows, _power(distinct, FEWEST_KEYS), shared=True),
        )

    def pack(
        self,
        bucket: Bucket,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        clumps: Sequence[Clump],
    ) -> Tensor:
        """The flat inputs of a forward, int64 [bucket.numbers]; valid until the next call."""
        inputs, count = split(self.buffer, bucket), len(tokens)
        padding = (0, 0, self.sizes.slots + _WASTE)
        given = (tokens, positions, slots)
        for into, values, padded in zip(inputs[:3], given, padding, strict=True):
            array = into.numpy()
            array[:count] = values
            array[count:] = padded
        pack_keys = self._pack_shared if bucket.shared else self._pack_apart
        pack_keys(inputs, clumps, count)
        return self.buffer[: bucket.numbers]

    def _pack_apart(self, inputs: Inputs, clumps: Sequence[Clump], count: int) -> None:
        keys = inputs.key_slots.numpy()
        keys[:] = self.sizes.slots + _NOTHING
        room = keys.shape[1]
        for clump in clumps:
            base = _nearest_first(self._base(clump))
            for index, row in enumerate(clump.rows):
                own = [clump.slots[i] for i in _upwards(clump.parents, index)]
                end = min(room, len(own) + len(base))
                keys[row, : len(own)] = own
                keys[row, len(own) : end] = base[: end - len(own)]

    def _pack_shared(self, inputs: Inputs, clumps: Sequence[Clump], count: int) -> None:
        looks, positions = self._looks, self._positions
        runs = self._lookers(clumps)
        low, high = min(start for start, _, _ in runs), max(end for _, end, _ in runs)
        for (start, end, position), rows in runs.items():
            looks[start:end] |= np.uint64(rows)
            positions[start:end] = np.arange(position, position + end - start)
        found = np.flatnonzero(looks[low:high]) + low
        used = len(found)
        key_slots, key_positions, lookers = (values.numpy() for values in inputs[3:])
        key_slots[:used] = found
        key_slots[used:] = self.sizes.slots + _NOTHING
        key_positions[:used] = positions[found]
        key_positions[used:] = 0
        lookers[:used] = looks[found].view(np.int64)
        lookers[used:] = -(1 << count) if count < MOST_ROWS else 0  # the padded rows
        looks[found] = 0

    def _lookers(self, clumps: Sequence[Clump]) -> dict[tuple[int, int, int], int]:
        """(start, end, position of start) of runs -> the rows that look there, as bits."""
        lookers: dict[tuple[int, int, int], int] = {}
        for clump in clumps:
            everyone = sum(1 << row for row in clump.rows)
            depth = _length(clump.base)
            base = self._base(clump)
            position = depth - _length(base)
            for start, end in base:
                run = (start, end, position)
                lookers[run] = lookers.get(run, 0) | everyone
                position += end - start
            heights = _heights(clump.parents)
            for index, row in enumerate(clump.rows):
                for above in _upwards(clump.parents, index):
                    slot = clump.slots[above]
                    run = (slot, slot + 1, depth + heights[above] - 1)
                    lookers[run] = lookers.get(run, 0) | 1 << row
        return lookers

    def _base(self, clump: Clump) -> Runs:
        """What of the path above a clump any of its rows can see."""
        reach = self.sizes.reach
        return clump.base if reach is None else last(clump.base, reach - 1)

    def _runs(self, clump: Clump) -> list[tuple[int, int]]:
        return [*self._base(clump), *((slot, slot + 1) for slot in clump.slots)]


def _power(count: int, least: int) -> int:
    """The smallest power of two that is at least `count` and `least`."""
    return max(least, 1 << (count - 1).bit_length())


def _length(runs: Runs) -> int:
    return sum(end - start for start, end in runs)


def _distinct(runs: Sequence[tuple[int, int]]) -> int:
    """How many slots lie in any of the runs.

    >>> _distinct([(4, 9), (0, 2), (7, 10)])
    8
    """
    count, covered = 0, 0
    for start, end in sorted(set(runs)):
        count += max(0, end - max(start, covered))
        covered = max(covered, end)
    return count


def _upwards(parents: Sequence[int], index: int) -> list[int]:
    """A new node and its new ancestors, nearest first."""
    path: list[int] = []
    while index >= 0:
        path.append(index)
        index = parents[index]
    return path


def _heights(parents: Sequence[int]) -> list[int]:
    """How many new nodes end with each, itself counted; parents come first."""
    heights: list[int] = []
    for parent in parents:
        heights.append(1 if parent < 0 else heights[parent] + 1)
    return heights


def _nearest_first(runs: Runs) -> np.ndarray:
    """The slots of runs from the end of the path to its beginning, int64."""
    if not runs:
        return np.empty(0, dtype=np.int64)
    return np.concatenate([np.arange(end - 1, start - 1, -1) for start, end in reversed(runs)])


class StaticAttention:
    """An `AttendLayer` over the inputs of a bucket. One is made for each run of a forward.

    Nothing here asks what a number is: the same operations run whatever the trees are.
    """

    def __init__(
        self, layers: Sequence[LayerAttention], cache: SlotCache, bucket: Bucket, inputs: Inputs
    ) -> None:
        self._layers = layers
        self._cache = cache
        self._bucket = bucket
        self._inputs = inputs
        self._visible: dict[int | None, Tensor] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, /) -> Tensor:
        """Stores the new keys and values, then attends: see `transformer.AttendLayer`."""
        store(self._cache, layer, self._inputs.slots, key, value)
        kind = self._layers[layer]
        if kind.window not in self._visible:
            self._visible[kind.window] = visible(self._inputs, self._bucket, kind.window)
        key_slots = self._inputs.key_slots
        keys, values = (
            states[layer][:, key_slots].float() for states in (self._cache.keys, self._cache.values)
        )
        fault = None
        if self._bucket.shared:
            # Requests look at each other's values with weight 0, and 0 * NaN is NaN: values that
            # are no numbers become zero, and the rows that do look at them get NaN as a score.
            fault = (values * 0).sum(-1)
            keys, values = keys.unsqueeze(1), values.nan_to_num(0.0, 0.0, 0.0).unsqueeze(1)
        return _attend(query, keys, values, self._visible[kind.window], fault, kind)


def visible(inputs: Inputs, bucket: Bucket, window: int | None) -> Tensor:
    """Who looks where, bool [rows, keys], in layers that look back over `window` positions."""
    positions = inputs.positions.unsqueeze(1)
    if bucket.shared:
        rows = torch.arange(bucket.rows, device=positions.device).unsqueeze(1)
        looks = (inputs.lookers >> rows & 1).bool()
        distance = positions - inputs.key_positions
    else:
        distance = torch.arange(bucket.keys, device=positions.device)
        looks = distance <= positions
    return looks if window is None else looks & (distance < window)


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    looks: Tensor,
    fault: Tensor | None,
    kind: LayerAttention,
) -> Tensor:
    """Attention as written, in float32.

    query [n, heads, d]; keys and values [kv_heads, 1, keys, d] for all rows or [kv_heads, n, keys,
    d], one set a row; looks [n, keys]; fault [kv_heads, keys] is added to the scores.
    """
    count, heads, head_dim = query.shape
    kv_heads, sets = keys.shape[:2]
    grouped = (kv_heads, count, heads // kv_heads)  # of the query heads that share a key head
    folded = query.float().view(count, kv_heads, -1, head_dim).transpose(0, 1)
    folded = folded.reshape(kv_heads, sets, -1, head_dim)
    scores = (folded @ keys.transpose(-1, -2) * kind.scale).view(*grouped, -1)
    if kind.softcap is not None:
        scores = kind.softcap * torch.tanh(scores / kind.softcap)
    if fault is not None:
        scores = scores + fault[:, None, None]
    scores = scores.masked_fill(~looks.unsqueeze(1), -torch.inf)
    weights = scores.softmax(dim=-1).view(kv_heads, sets, -1, scores.shape[-1])
    output = (weights @ values).view(*grouped, head_dim)
    return output.transpose(0, 1).reshape(count, heads * head_dim).to(query.dtype)
