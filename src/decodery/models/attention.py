"""Attention over a forest: every new node sees its ancestors and itself, in a few dense pieces.

A `Plan` is made once a forward, not once a layer. It cuts what the new nodes look at into parts:

- a run of slots that several nodes share (a prompt under many branches) is one part, read once;
- the new nodes of one request that hang together (a prompt, a draft subtree) look at each other in
  a part of their own, causal for a chain, masked for a tree.

Each part is ordinary attention that also returns its log-sum-exp; a node's parts are merged by it,
which is exact: softmax over a union is the log-sum-exp weighted mean of softmaxes over the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decodery.models.cache_slots import Runs, SlotCache, last, slots_of, store

if TYPE_CHECKING:
    from decodery.models.transformer import LayerAttention

# A run shorter than this is not worth a call of its own once a path has several: such runs are
# gathered into one part.
_SHORT_RUN = 64


@dataclass
class Clump:
    """New positions of one request that hang together: rows of the forward, and their parents.

    `base` are the runs of the old path above; `parents[i]` is the index inside the clump of the
    parent of position i, or -1 when it hangs on the base.
    """

    base: Runs
    rows: list[int] = field(default_factory=list[int])
    slots: list[int] = field(default_factory=list[int])
    parents: list[int] = field(default_factory=list[int])

    @property
    def is_chain(self) -> bool:
        return self.parents == list(range(-1, len(self.parents) - 1))


@dataclass(frozen=True)
class Part:
    """One dense piece: which rows look, at which slots, under which mask.

    `bias` [rows * group, keys] is 0 where a row may look and -inf elsewhere, each row repeated for
    the query heads of its group; None means everywhere. `first` says that none of the rows was in
    an earlier part, so that nothing needs to be merged.
    """

    rows: Tensor | slice
    keys: Tensor | slice
    bias: Tensor | None
    first: bool


Plan = list[Part]


@dataclass(frozen=True)
class Shape:
    """What a plan must know of the layers it is for."""

    window: int | None  # positions a layer looks back, itself included; None is all
    group: int  # query heads that share a key head
    dtype: torch.dtype
    device: str


def make_plan(clumps: Sequence[Clump], shape: Shape) -> Plan:
    """The parts of one forward for layers of this shape."""
    window, device = shape.window, shape.device
    shared: dict[tuple[int, int], list[int]] = {}
    gathered: list[tuple[list[int], list[int]]] = []
    own: list[Part] = []
    seen: set[int] = set()
    for clump in clumps:
        depth = sum(end - start for start, end in clump.base)
        if window is not None and depth + len(clump.rows) > window:
            own.append(_windowed(clump, window, shape))
            continue
        base = clump.base
        if len(clump.rows) == 1:
            # One node sees the base and itself; its slot usually just prolongs the last run.
            base = _joined(base, clump.slots[0])
        else:
            own.append(_inside(clump, shape))
            seen.update(clump.rows)
        long, short = _split(base)
        for run in long:
            shared.setdefault(run, []).extend(clump.rows)
        if short:
            gathered.append((clump.rows, short))
    plan = list(own)
    pieces: list[tuple[list[int], list[int] | range]] = [
        (rows, range(*run)) for run, rows in shared.items()
    ]
    for rows, slots in [*pieces, *gathered]:
        first = seen.isdisjoint(rows)
        seen.update(rows)
        plan.append(Part(_index(rows, device), _index(slots, device), None, first))
    return plan


def _joined(base: Runs, slot: int) -> Runs:
    if base and base[-1][1] == slot:
        return (*base[:-1], (base[-1][0], slot + 1))
    return (*base, (slot, slot + 1))


def _split(runs: Runs) -> tuple[list[tuple[int, int]], list[int]]:
    """Runs that become parts, and the slots of the short ones."""
    if len(runs) <= 2:
        return list(runs), []
    long = [run for run in runs if run[1] - run[0] >= _SHORT_RUN]
    short = slots_of(tuple(run for run in runs if run[1] - run[0] < _SHORT_RUN))
    return long, short


def _inside(clump: Clump, shape: Shape) -> Part:
    """The new nodes of a clump looking at each other."""
    rows, keys = _index(clump.rows, shape.device), _index(clump.slots, shape.device)
    count = len(clump.rows)
    mask = (
        torch.ones(count, count, dtype=torch.bool).tril()
        if clump.is_chain
        else _ancestors(clump.parents)
    )
    return Part(rows, keys, _bias(mask, shape), True)


def _windowed(clump: Clump, window: int, shape: Shape) -> Part:
    """A whole clump in one part, each row cut to its own last `window` positions."""
    ancestors = _ancestors(clump.parents)
    depths = ancestors.sum(1)  # of a row below the base, itself counted
    base = slots_of(last(clump.base, window))
    distance = torch.arange(len(base), 0, -1)  # of a base key from the end of the base, 1 nearest
    sees_base = distance[None, :] + depths[:, None] <= window
    sees_new = ancestors & (depths[:, None] - depths[None, :] < window)
    mask = torch.cat([sees_base, sees_new], dim=1)
    keys = _index([*base, *clump.slots], shape.device)
    return Part(_index(clump.rows, shape.device), keys, _bias(mask, shape), True)


def _bias(mask: Tensor, shape: Shape) -> Tensor:
    bias = torch.zeros(mask.shape, dtype=shape.dtype).masked_fill_(~mask, -torch.inf)
    return bias.repeat_interleave(shape.group, dim=0).to(shape.device)


def _ancestors(parents: Sequence[int]) -> Tensor:
    """Bool [n, n]: row i is True at i and at every ancestor of i."""
    count = len(parents)
    matrix = torch.eye(count, dtype=torch.bool)
    for index, parent in enumerate(parents):
        if parent >= 0:
            matrix[index] |= matrix[parent]
    return matrix


def _index(places: Sequence[int], device: str) -> Tensor | slice:
    """A slice where the places follow each other, else an index tensor."""
    start, count = places[0], len(places)
    if isinstance(places, range) or list(places) == list(range(start, start + count)):
        return slice(start, start + count)
    return torch.tensor(places, dtype=torch.long, device=device)


class Attention:
    """What the engine hands a transformer: the trees' new nodes, and the cache their keys go to.

    Calling it runs one layer in torch. A transformer that attends by itself (`compiled.py`) takes
    `slots`, `clumps` and `cache` instead.
    """

    def __init__(
        self,
        layers: Sequence[LayerAttention],
        cache: SlotCache,
        slots: Sequence[int],
        clumps: Sequence[Clump],
    ) -> None:
        self.cache = cache
        self.slots = slots
        self.clumps = clumps
        self._layers = layers
        self._plans: dict[int | None, Plan] = {}

    @cached_property
    def _places(self) -> Tensor | slice:
        return _index(self.slots, str(self.cache.keys.device))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, /) -> Tensor:
        """Stores the new keys and values, then attends: see `transformer.Attend`."""
        store(self.cache, layer, self._places, key, value)
        kind = self._layers[layer]
        if kind.window not in self._plans:
            group = query.shape[1] // key.shape[1]
            shape = Shape(kind.window, group, query.dtype, str(query.device))
            self._plans[kind.window] = make_plan(self.clumps, shape)
        plan = self._plans[kind.window]
        return attend(plan, self.cache, layer, query, scale=kind.scale, softcap=kind.softcap)


def attend(
    plan: Plan,
    cache: SlotCache,
    layer: int,
    query: Tensor,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Run a plan: query [n, heads, head_dim] -> [n, heads * head_dim].

    The keys of the new nodes must be in the cache already.
    """
    count, heads, head_dim = query.shape
    keys, values = cache.keys[layer], cache.values[layer]
    output = torch.empty_like(query)
    weight: Tensor | None = None
    if not all(part.first for part in plan):
        # A part may join rows that have one already with rows that have none: those start at
        # nothing, which is weight exp(-inf) = 0.
        output = torch.zeros_like(query, dtype=torch.float32)
        weight = torch.full((count, heads), -torch.inf, device=query.device)
    for part in plan:
        piece, log_sum = _attend_part(
            query[part.rows], keys[:, part.keys], values[:, part.keys], part, scale, softcap
        )
        if weight is None:
            output[part.rows] = piece
        elif part.first:
            output[part.rows], weight[part.rows] = piece.float(), log_sum
        else:
            _merge(output, weight, part.rows, piece.float(), log_sum)
    return output.to(query.dtype).reshape(count, heads * head_dim)


def _merge(
    output: Tensor, weight: Tensor, rows: Tensor | slice, piece: Tensor, log_sum: Tensor
) -> None:
    """Add a part to the rows that have one already: [r, heads, d] by log-sum-exp [r, heads]."""
    total = torch.logaddexp(weight[rows], log_sum)
    old = torch.exp(weight[rows] - total).unsqueeze(-1)
    new = torch.exp(log_sum - total).unsqueeze(-1)
    output[rows] = output[rows] * old + piece * new
    weight[rows] = total


def _attend_part(
    query: Tensor, keys: Tensor, values: Tensor, part: Part, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """One part: query [r, heads, d], keys and values [kv_heads, m, d].

    Returns [r, heads, d] and the log-sum-exp [r, heads]. The query heads that share a key head are
    folded into the query axis, so keys are never repeated.
    """
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    folded = query.reshape(rows, kv_heads, group, head_dim).transpose(0, 1)
    folded = folded.reshape(1, kv_heads, rows * group, head_dim)
    keys, values = keys.unsqueeze(0), values.unsqueeze(0)
    if query.device.type == "cpu" and softcap is None:
        out, log_sum = _flash(folded, keys, values, part.bias, scale)
    else:
        out, log_sum = _plain(folded, keys, values, part.bias, scale, softcap)
    out = out.view(kv_heads, rows, group, head_dim).transpose(0, 1)
    log_sum = log_sum.reshape(kv_heads, rows, group).transpose(0, 1)
    return out.reshape(rows, heads, head_dim), log_sum.reshape(rows, heads)


def _flash(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """torch's CPU kernel, called below its public face because it also gives the log-sum-exp."""
    if bias is not None:
        bias = bias.view(1, 1, *bias.shape)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, 0.0, False, attn_mask=bias, scale=scale
    )


def _plain(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention as written, in float32: any device, and models that cap their scores."""
    scores = query.float() @ keys.float().transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.float()
    log_sum = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - log_sum.unsqueeze(-1))
    return (weights @ values.float()).to(query.dtype), log_sum
