"""The engine: evaluates any set of new nodes, from any number of trees, in one forward.

A forward lays the new positions of all requests side by side (prompts, single tokens, draft
subtrees), gives each a slot in the key-value cache, and runs the transformer once over them; what
each position may see is an attention plan made from the trees. Positions come from depth. What is
known of a prompt is taken from the prefix cache; what is new and longer than a chunk takes several
forwards.

On compiled kernels a row is bitwise the same whoever shares its batch and however its path came to
be (`compiled.py`). On torch's, in float32 on a CPU, it is so alone and in any batch, with one
thread or two: every operation works row by row, the linear backends included (`linear.py`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from decodery.core.costs import StepCosts
from decodery.core.errors import ParameterError
from decodery.core.source import Grown, Growth, Model
from decodery.models.attention import Attention, Clump
from decodery.models.cache_slots import SlotCache
from decodery.models.graphs import graphs_for, scratch_slots
from decodery.models.prefix_cache import Place, PrefixCache
from decodery.models.transformer import Transformer

# What is new of a prompt is evaluated in pieces of this many positions. A fixed size, not a fixed
# budget a forward: the cut must not depend on what batch mates need.
PROMPT_CHUNK = 512


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some positions of one growth: tokens, where they start in the path, and their slots."""

    growth: int
    tokens: Sequence[int]
    start: int
    place: Place
    slots: Sequence[int]
    is_last: bool


class CausalModel(Model):
    """A causal language model as a source.

    `cache_tokens` is how many tokens may live in the key-value cache at once; with `prefix_cache`
    what is free of it keeps what requests evaluated, for later ones that begin alike. Rows are
    float32, hidden states float32 (the output of the last norm). Safe to use from several threads:
    forwards take turns.
    """

    def __init__(
        self,
        transformer: Transformer,
        *,
        name: str,
        eos_ids: frozenset[int] = frozenset(),
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
    ) -> None:
        if cache_tokens is not None and cache_tokens < 1:
            raise ParameterError(f"cache_tokens {cache_tokens} is below 1")
        self.name = name
        self.vocab_size = transformer.vocab_size
        self.context_length = transformer.context_length
        self.eos_ids = eos_ids
        capacity = cache_tokens or max(16384, 2 * transformer.context_length)
        self._run_on(transformer, capacity, prefix_cache)

    def _run_on(self, transformer: Transformer, capacity: int, prefix_cache: bool) -> None:
        """Take this transformer, with a cache of its own for all of its layers."""
        self.transformer = transformer
        self.capacity = capacity
        self.reserved = 0
        self.cache = SlotCache(
            layers=len(transformer.layers),
            kv_heads=transformer.kv_heads,
            head_dim=transformer.head_dim,
            slots=capacity,
            dtype=transformer.cache_dtype,
            device=str(transformer.device),
            scratch=scratch_slots(transformer),
        )
        self.graphs = graphs_for(transformer, self.cache)  # None but on CUDA
        self.prefixes = PrefixCache(self.cache, chunk=PROMPT_CHUNK, enabled=prefix_cache)
        self.costs = StepCosts()
        self._turn = threading.Lock()
        self._exits: dict[int, CausalModel] = {}

    # -- the source ------------------------------------------------------------------------------

    @property
    def depth(self) -> int:  # type: ignore[override]
        return len(self.transformer.layers)

    @property
    def parameters(self) -> int:  # type: ignore[override]
        return self.transformer.parameters

    def exit(self, layer: int) -> CausalModel:
        """This model left after its first `layer` layers: same weights, last norm and head.

        It has a cache of its own, and is made once: requests that leave at one layer share it.
        Raises `ParameterError` outside 1..depth, and for a model that cannot be left early.
        """
        if not 1 <= layer <= self.depth:
            raise ParameterError(
                f"{self.name} has {self.depth} layers to leave it at; allowed is 1..{self.depth},"
                f" not {layer}"
            )
        with self._turn:
            if layer not in self._exits:
                early = copy.copy(self)
                early.name = f"{self.name} after layer {layer}"
                early._run_on(self.transformer.exit(layer), self.cache.slots, self.prefixes.enabled)
                self._exits[layer] = early
            return self._exits[layer]

    @torch.inference_mode()
    def forward(self, growths: Sequence[Growth]) -> list[Grown]:
        with self._turn, self.prefixes.writing():
            rounds = self._rounds(growths)
            grown: list[Grown | None] = [None] * len(growths)
            for pieces in rounds:
                self._run(growths, pieces, grown)
            return [
                self._account(growth.node.handle, result)
                for growth, result in zip(growths, grown, strict=True)
                if result is not None
            ]

    def _account(self, place: Place, result: Grown) -> Grown:
        """Say what came from the cache, and keep out of it what is not a number."""
        if np.isnan(result.scores.max()):
            self.prefixes.reject(place)
        return replace(result, cached=place.cached) if place.cached else result

    def release(self, handles: Sequence[Place]) -> None:
        with self._turn:
            self.prefixes.release(handles)

    # -- one forward -----------------------------------------------------------------------------

    def _rounds(self, growths: Sequence[Growth]) -> list[list[_Piece]]:
        """Place every new node and cut what is new of long prompts into rounds.

        A node that shares a prefix with one of the same forward starts in the round that evaluates
        the end of it: in every layer all keys of a round are stored before any of them is read.
        """
        rounds: list[list[_Piece]] = [[]]
        for index, growth in enumerate(growths):
            node = growth.node
            parent = None if node.parent is None else node.parent.handle
            place = self.prefixes.place(growth.tokens, parent, node.tree.cache_salt)
            node.handle = place
            tokens = growth.tokens[place.cached :]
            start = node.depth - len(tokens)
            for number, cut in enumerate(range(0, len(tokens), PROMPT_CHUNK), place.round):
                end = min(cut + PROMPT_CHUNK, len(tokens))
                if number == len(rounds):
                    rounds.append([])
                piece = _Piece(
                    index,
                    tokens[cut:end],
                    start + cut,
                    place,
                    place.slots[cut:end],
                    end == len(tokens),
                )
                rounds[number].append(piece)
        return rounds

    def _run(
        self, growths: Sequence[Growth], pieces: Sequence[_Piece], grown: list[Grown | None]
    ) -> None:
        device = str(self.transformer.device)
        tokens = [token for piece in pieces for token in piece.tokens]
        positions = [
            piece.start + offset for piece in pieces for offset in range(len(piece.tokens))
        ]
        slots = [slot for piece in pieces for slot in piece.slots]
        attention = Attention(self.transformer.layers, self.cache, slots, _clumps(growths, pieces))
        hidden = None if self.graphs is None else self.graphs.hidden(tokens, positions, attention)
        if hidden is None:
            hidden = self.transformer.hidden(
                torch.tensor(tokens, device=device),
                torch.tensor(positions, device=device),
                attention,
            )
        ends: list[int] = []
        done = 0
        for piece in pieces:
            done += len(piece.tokens)
            if piece.is_last:
                ends.append(done - 1)
        if not ends:
            return
        whole = len(ends) == len(tokens)  # no prompt among them
        last = hidden if whole else hidden[torch.tensor(ends, device=device)]
        scores = self.transformer.logits(last).float().cpu().numpy()
        finished = [piece.growth for piece in pieces if piece.is_last]
        wanted = any(growths[index].hidden for index in finished)
        states = last.float().cpu().numpy() if wanted else None
        for row, index in enumerate(finished):
            state = states[row] if states is not None and growths[index].hidden else None
            grown[index] = Grown(scores[row], state)


def _clumps(growths: Sequence[Growth], pieces: Sequence[_Piece]) -> list[Clump]:
    """Group the new positions that hang together, each under the old path it hangs on."""
    clumps: list[Clump] = []
    where: dict[int, tuple[Clump, int]] = {}  # node id -> its clump and index in it
    row = 0
    for piece in pieces:
        node = growths[piece.growth].node
        known = where.get(id(node.parent)) if node.parent is not None else None
        if known is None:
            clump = Clump(_runs_before(piece))
            clumps.append(clump)
            parent = -1
        else:
            clump, parent = known
        for slot in piece.slots:
            clump.parents.append(parent)
            clump.rows.append(row)
            clump.slots.append(slot)
            parent = len(clump.parents) - 1
            row += 1
        where[id(node)] = (clump, parent)
    return clumps


def _runs_before(piece: _Piece) -> tuple[tuple[int, int], ...]:
    """The runs of the path above a piece: the place's own, cut before the piece starts."""
    runs: list[tuple[int, int]] = []
    left = piece.start
    for start, end in piece.place.runs:
        if left <= 0:
            break
        runs.append((start, min(end, start + left)))
        left -= end - start
    return tuple(runs)
