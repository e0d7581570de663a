"""Forwards by hand: trees of new nodes over a cache, every slot and every row chosen by the test.

A slot nobody wrote holds NaN, so a key that is read out of place cannot go unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decodery.models.attention import Attention, Clump
from decodery.models.cache_slots import SlotCache, extend
from decodery.models.transformer import Transformer

SLOTS = 1000


@dataclass(frozen=True)
class Piece:
    """New nodes that hang together below an old path; without `parents` they are a chain."""

    tokens: Tensor  # [n]
    slots: Sequence[int]  # [n], where their keys go
    base: Sequence[int] = ()  # slots of the old path, in the order of depth
    parents: Sequence[int] | None = None  # [n], index inside the piece, -1 below the old path

    def chain(self) -> list[int]:
        return list(range(-1, len(self.tokens) - 1)) if self.parents is None else [*self.parents]

    def depths(self) -> list[int]:
        """Position of every node."""
        found: list[int] = []
        for parent in self.chain():
            found.append(len(self.base) if parent < 0 else found[parent] + 1)
        return found


def new_cache(model: Transformer, dtype: torch.dtype | None = None) -> SlotCache:
    cache = SlotCache(
        layers=len(model.layers),
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        slots=SLOTS,
        dtype=dtype or model.cache_dtype,
        device="cpu",
    )
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


def forward(
    model: Transformer, cache: SlotCache, pieces: Sequence[Piece], shuffle: int | None = None
) -> list[Tensor]:
    """Hidden states of each piece's nodes after one forward; rows in a random order on request."""
    count = sum(len(piece.tokens) for piece in pieces)
    rows = torch.arange(count)
    if shuffle is not None:
        rows = torch.randperm(count, generator=torch.Generator().manual_seed(shuffle))
    tokens = torch.empty(count, dtype=torch.int64)
    positions, slots = torch.empty_like(tokens), torch.empty_like(tokens)
    clumps: list[Clump] = []
    taken = rows.split([len(piece.tokens) for piece in pieces])
    for piece, places in zip(pieces, taken, strict=True):
        tokens[places] = piece.tokens
        positions[places] = torch.tensor(piece.depths())
        slots[places] = torch.tensor(list(piece.slots))
        clumps.append(
            Clump(extend((), piece.base), places.tolist(), list(piece.slots), piece.chain())
        )
    attention = Attention(model.layers, cache, slots.tolist(), clumps)
    hidden = model.hidden(tokens, positions, attention)
    return [hidden.index_select(0, places) for places in taken]


def fed(
    model: Transformer,
    tokens: Tensor,
    pieces: Sequence[int] | None = None,
    *,
    slots: Sequence[int] | None = None,
    cache: SlotCache | None = None,
) -> Tensor:
    """Hidden states of a text in a cache of its own, fed in pieces of these lengths or at once."""
    cache = cache or new_cache(model)
    places = list(slots or range(len(tokens)))
    rows: list[Tensor] = []
    start = 0
    for length in pieces or [len(tokens)]:
        end = start + length
        piece = Piece(tokens[start:end], places[start:end], places[:start])
        rows += forward(model, cache, [piece])
        start = end
    assert start == len(tokens)
    return torch.cat(rows)


def random_parents(count: int, seed: int) -> list[int]:
    """A random tree of `count` nodes with long paths and wide forks, parents first."""
    generator = torch.Generator().manual_seed(seed)
    parents: list[int] = []
    for node in range(count):
        nearest = max(-1, node - int(torch.randint(1, 6, (), generator=generator)))
        parents.append(nearest)
    return parents


def path_of(parents: Sequence[int], node: int) -> list[int]:
    """The nodes from below the old path down to `node`."""
    path: list[int] = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]
