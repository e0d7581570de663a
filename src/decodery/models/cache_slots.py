"""The key-value cache: one slot a token, in areas that keep a path's slots side by side.

A path's keys are read fastest when they are contiguous, so a new branch claims an area a little
longer than it needs and its tokens follow each other there. A claim is a preference, not a
reservation: when the cache is nearly full, claimed but unused slots are given to whoever needs
them, and the only limit is the number of slots. Positions come from depth, never from slots.

A slot is unused (claimed or not), used by a live node, or cached: no live node needs it, and what
it holds may still serve a later request (`prefix_cache.py` says which). Cached slots count as free.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_FREE, _USED, _CLAIMED, _CACHED = 0, 1, 2, 3

Runs = tuple[tuple[int, int], ...]


class Area:
    """A stretch of slots [start, end) that the nodes of one branch fill in order.

    `live` counts its slots in use; at none the area gives up its claim.
    """

    __slots__ = ("end", "live", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.live = 0


class Stretch(NamedTuple):
    """Slots that were given out, and the area they lie in, if in any."""

    slots: Sequence[int]
    area: Area | None


class SlotCache:
    """Keys and values [layers, kv_heads, slots, head_dim], and the state of every slot.

    `free` is how many slots can be given out: unused ones and cached ones. `cached` is how many of
    those hold something to be evicted first. `scratch` slots more lie behind, never given out.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        slots: int,
        dtype: torch.dtype,
        device: str,
        scratch: int = 0,
    ) -> None:
        shape = (layers, kv_heads, slots + scratch, head_dim)
        # Not initialised: on a CPU the memory is taken only as slots are first used.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.slots = slots
        self.free = slots
        self.cached = 0
        self._state = bytearray(slots)

    @property
    def nbytes(self) -> int:
        """The size of keys and values in bytes when every slot is used."""
        return 2 * self.keys.numel() * self.keys.element_size()

    # -- finding slots ---------------------------------------------------------------------------

    def following(self, count: int, after: int, area: Area | None) -> range | None:
        """The slots right after one of an area, if the area has them and no live node does.

        Some may be cached: the caller evicts them, or places the branch elsewhere.
        """
        if area is None:
            return None
        start = after + 1
        if start + count > area.end or self._state.find(_USED, start, start + count) >= 0:
            return None
        return range(start, start + count)

    def claim(self, count: int, length: int, after: int | None) -> Area | None:
        """A new area of unclaimed slots for `count` tokens of a path of `length`, and room to grow.

        Right behind the slot `after` where that is possible. None when so many slots lie nowhere
        side by side.
        """
        wanted = count + min(max(64, length // 4), 512, self.slots // 16)
        if after is not None:
            behind = self._state[after + 1 : after + 1 + wanted]
            room = len(behind) - len(behind.lstrip(bytes([_FREE])))
            if room >= count:
                return self._claimed(after + 1, room)
        start = self._state.find(bytes(wanted))
        return None if start < 0 else self._claimed(start, wanted)

    def claim_longest(self, count: int) -> Area | None:
        """The longest stretch of unclaimed slots, if it has `count`."""
        start, end = max(self._stretches(_FREE), key=_length, default=(0, 0))
        return self._claimed(start, end - start) if end - start >= count else None

    def scattered(self, count: int) -> list[int]:
        """Any unused slots in few stretches, first of those that nobody claimed."""
        found: list[int] = []
        for state in (_FREE, _CLAIMED):
            for start, end in sorted(self._stretches(state), key=_length, reverse=True):
                found.extend(range(start, min(end, start + count - len(found))))
        return sorted(found)

    def _claimed(self, start: int, count: int) -> Area:
        self._state[start : start + count] = bytes([_CLAIMED]) * count
        return Area(start, start + count)

    def _stretches(self, state: int) -> list[tuple[int, int]]:
        """All stretches [start, end) of slots in a state."""
        return [match.span() for match in re.finditer(b"[\\x%02x]+" % state, self._state)]

    @property
    def unclaimed(self) -> int:
        """Slots that are unused and in no live branch's area."""
        return self._state.count(_FREE)

    # -- what a slot is --------------------------------------------------------------------------

    def take(self, slots: Sequence[int], area: Area | None) -> Stretch:
        """Unused slots become used."""
        for slot in slots:
            self._state[slot] = _USED
        if area is not None:
            area.live += len(slots)
        self.free -= len(slots)
        return Stretch(slots, area)

    def release(self, slot: int, area: Area | None) -> None:
        """A used slot becomes unused; inside its area it stays claimed."""
        self._state[slot] = _FREE if area is None else _CLAIMED
        self.free += 1
        self._leave(area)

    def keep(self, slot: int, area: Area | None) -> None:
        """A used slot becomes cached, and belongs to no area any more."""
        self._state[slot] = _CACHED
        self.free += 1
        self.cached += 1
        self._leave(area)

    def revive(self, slot: int) -> None:
        """A cached slot becomes used again."""
        self._state[slot] = _USED
        self.free -= 1
        self.cached -= 1

    def evict(self, slot: int) -> None:
        """A cached slot becomes unused."""
        self._state[slot] = _FREE
        self.cached -= 1

    def states(self) -> tuple[set[int], set[int]]:
        """The used slots and the cached ones, for checks."""
        used = {slot for slot, state in enumerate(self._state) if state == _USED}
        return used, {slot for slot, state in enumerate(self._state) if state == _CACHED}

    def _leave(self, area: Area | None) -> None:
        if area is None:
            return
        area.live -= 1
        if area.live:
            return
        # Slots of the area may have been given to others meanwhile: only claims are taken back.
        kept = self._state[area.start : area.end].replace(bytes([_CLAIMED]), bytes([_FREE]))
        self._state[area.start : area.end] = kept


def _length(stretch: tuple[int, int]) -> int:
    return stretch[1] - stretch[0]


def extend(runs: Runs, slots: Sequence[int]) -> Runs:
    """`runs` with `slots` appended, joined where they are adjacent.

    >>> extend(((3, 5),), [5, 6, 9])
    ((3, 7), (9, 10))
    """
    made = list(runs)
    for slot in slots:
        if made and made[-1][1] == slot:
            made[-1] = (made[-1][0], slot + 1)
        else:
            made.append((slot, slot + 1))
    return tuple(made)


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
