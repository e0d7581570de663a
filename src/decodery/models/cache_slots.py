"""The key-value cache: one slot a node, in areas that keep a path's slots side by side.

A path's keys are read fastest when they are contiguous, so a new branch claims an area a little
longer than it needs and its tokens follow each other there. A claim is a preference, not a
reservation: when the cache is nearly full, claimed but unused slots are given to whoever needs
them, and the only limit is the number of slots. Positions come from depth, never from slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from decodery.core.errors import CapacityError

_FREE, _USED, _CLAIMED = 0, 1, 2

Runs = tuple[tuple[int, int], ...]


class Area:
    """A stretch of slots [start, end) that the nodes of one branch fill in order."""

    __slots__ = ("end", "live", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.live = 0


class Place:
    """Where a node's keys live: its slots, its area, and the slots of its whole path as runs.

    `runs` are half-open slot ranges in path order; the last one ends with this node.
    """

    __slots__ = ("area", "runs", "slots")

    def __init__(self, slots: Sequence[int], area: Area | None, runs: Runs) -> None:
        self.slots = slots
        self.area = area
        self.runs = runs


class SlotCache:
    """Keys and values [layers, kv_heads, slots, head_dim], and who owns which slot."""

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        slots: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        shape = (layers, kv_heads, slots, head_dim)
        # Not initialised: on a CPU the memory is taken only as slots are first used.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.slots = slots
        self.free = slots
        self._state = bytearray(slots)

    @property
    def nbytes(self) -> int:
        """The size of keys and values in bytes when every slot is used."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def place(self, count: int, parent: Place | None) -> Place:
        """Give `count` new slots to a node that follows `parent` (None for a root)."""
        if count > self.free:
            raise CapacityError(
                f"the cache has {self.free} of {self.slots} slots free; {count} asked"
            )
        length = sum(end - start for start, end in parent.runs) if parent else 0
        slots, area = self._following(count, parent)
        if slots is None:
            area = self._claim(count, wanted=count + min(max(64, (length + count) // 4), 512))
            slots = range(area.start, area.start + count) if area else self._scattered(count)
        for slot in slots:
            self._state[slot] = _USED
        if area is not None:
            area.live += count
        self.free -= count
        return Place(slots, area, _extend(parent.runs if parent else (), slots))

    def release(self, places: Iterable[Place]) -> None:
        """Take slots back; an area without nodes gives up its claim."""
        for place in places:
            area = place.area
            for slot in place.slots:
                inside = area is not None and area.start <= slot < area.end
                self._state[slot] = _CLAIMED if inside else _FREE
            self.free += len(place.slots)
            if area is None:
                continue
            area.live -= len(place.slots)
            if area.live == 0:
                self._unclaim(area)

    def _following(
        self, count: int, parent: Place | None
    ) -> tuple[Sequence[int] | None, Area | None]:
        """The slots right after the parent's, if its area has them."""
        if parent is None or parent.area is None:
            return None, None
        start = parent.slots[-1] + 1
        if start + count > parent.area.end:
            return None, None
        if self._state.find(_USED, start, start + count) >= 0:
            return None, None
        return range(start, start + count), parent.area

    def _claim(self, count: int, wanted: int) -> Area | None:
        """A new area of `wanted` slots, or of fewer down to `count` when the cache is full."""
        while True:
            start = self._state.find(bytes(wanted))
            if start >= 0:
                self._state[start : start + wanted] = bytes([_CLAIMED]) * wanted
                return Area(start, start + wanted)
            if wanted == count:
                return None
            wanted = max(count, wanted // 2)

    def _unclaim(self, area: Area) -> None:
        # Slots of the area may have been given to others meanwhile: only claims are taken back.
        kept = self._state[area.start : area.end].replace(bytes([_CLAIMED]), bytes([_FREE]))
        self._state[area.start : area.end] = kept

    def _scattered(self, count: int) -> list[int]:
        """Any slots not in use, claimed or not."""
        slots = [slot for slot, state in enumerate(self._state) if state != _USED]
        return slots[:count]


def _extend(runs: Runs, slots: Sequence[int]) -> Runs:
    """`runs` with `slots` appended, joined where they are adjacent."""
    if isinstance(slots, range):
        return _append(runs, slots.start, slots.stop)
    for slot in slots:
        runs = _append(runs, slot, slot + 1)
    return runs


def _append(runs: Runs, start: int, end: int) -> Runs:
    if runs and runs[-1][1] == start:
        return (*runs[:-1], (runs[-1][0], end))
    return (*runs, (start, end))


def slots_of(runs: Runs) -> list[int]:
    """All slots of runs, in path order."""
    return [slot for start, end in runs for slot in range(start, end)]


def last(runs: Runs, count: int) -> Runs:
    """The runs of the last `count` slots."""
    kept: list[tuple[int, int]] = []
    for start, end in reversed(runs):
        if count <= 0:
            break
        kept.append((max(start, end - count), end))
        count -= end - start
    return tuple(reversed(kept))


def store(cache: SlotCache, layer: int, slots: Tensor | slice, key: Tensor, value: Tensor) -> None:
    """Write key and value [n, kv_heads, head_dim] of new nodes into `slots`."""
    cache.keys[layer][:, slots] = key.transpose(0, 1)
    cache.values[layer][:, slots] = value.transpose(0, 1)
