"""Random forests for tests of attention: old paths in a cache, and new nodes that hang on them.

Everything that no path of a forest uses is NaN in its cache, the slots of the new nodes included.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from decodery.models.architecture import Architecture
from decodery.models.attention import Clump
from decodery.models.cache_slots import SlotCache, extend
from decodery.models.llama import LlamaTransformer, expected_shapes
from decodery.models.static_attention import SCRATCH_SLOTS
from decodery.models.weights import Shape


@dataclass
class Forest:
    """One forward: what each row is, and the old slots that its rows may look at."""

    clumps: list[Clump] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    old: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Kind:
    """What forests are drawn: `prompts` of at most `depth` under `requests` with `rows` in all.

    `block` is how many slots lie side by side before a path goes on elsewhere.
    """

    rows: int
    requests: int = 1
    prompts: int = 1
    depth: int = 60
    block: int = 8


def forest(kind: Kind, slots: int, generator: np.random.Generator) -> Forest:
    """Prompts cut anywhere, old branches, new chains and trees, some on the new nodes of others."""
    blocks = np.arange(slots // kind.block * kind.block).reshape(-1, kind.block)
    supply = iter(generator.permutation(blocks).ravel().tolist())

    def take(count: int) -> list[int]:
        return [next(supply) for _ in range(count)]

    prompts = [take(int(generator.integers(1, kind.depth + 1))) for _ in range(kind.prompts)]
    paths: list[list[int]] = []
    new_paths: list[list[int]] = []
    made = Forest(tokens=[0] * kind.rows, positions=[0] * kind.rows, slots=[0] * kind.rows)
    places = generator.permutation(kind.rows).tolist()
    for size in _parts(kind.rows, kind.requests, generator):
        if new_paths and generator.random() < 0.2:
            path = new_paths[int(generator.integers(len(new_paths)))]
        else:
            prompt = prompts[int(generator.integers(len(prompts)))]
            cut = int(generator.integers(len(prompt) // 2, len(prompt) + 1))
            path = prompt[:cut] + take(int(generator.integers(0, 12)))
            made.old.update(path)
        paths.append(path)
        new_paths += _grow(made, path, take(size), [places.pop() for _ in range(size)], generator)
    return made


def _parts(total: int, count: int, generator: np.random.Generator) -> list[int]:
    """`total` cut into `count` positive parts."""
    cuts = np.sort(generator.permutation(total - 1)[: count - 1]) + 1
    return np.diff([0, *cuts, total]).tolist()


def _grow(
    made: Forest, path: list[int], slots: list[int], rows: list[int], generator: np.random.Generator
) -> list[list[int]]:
    """New nodes below a path, a chain or a tree; returns the paths that end with them."""
    chain = generator.random() < 0.4
    clump = Clump(extend((), path))
    below: list[list[int]] = []
    for index, (slot, row) in enumerate(zip(slots, rows, strict=True)):
        parent = index - 1 if chain else int(generator.integers(-1, index))
        clump.parents.append(parent)
        clump.rows.append(row)
        clump.slots.append(slot)
        below.append([*(path if parent < 0 else below[parent]), slot])
        made.tokens[row] = int(generator.integers(1, 60))
        made.positions[row] = len(below[-1]) - 1
        made.slots[row] = slot
    made.clumps.append(clump)
    return below


def cache_for(
    made: Forest,
    *,
    layers: int,
    kv_heads: int,
    head_dim: int,
    slots: int,
    dtype: torch.dtype = torch.float32,
) -> SlotCache:
    """A cache with numbers where old paths lie, zeros in the nothing slot and NaN elsewhere."""
    cache = SlotCache(
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        slots=slots,
        dtype=dtype,
        device="cpu",
        scratch=SCRATCH_SLOTS,
    )
    generator = torch.Generator().manual_seed(0)
    old = sorted(made.old)
    for states in (cache.keys, cache.values):
        states.fill_(torch.nan)
        shape = (layers, kv_heads, len(old), head_dim)
        states[:, :, old] = torch.randn(shape, generator=generator).to(dtype)
        states[:, :, slots + 1] = 0
    return cache


class RandomWeights:
    """A store of random weights for an architecture."""

    precision = "float32"

    def __init__(self, architecture: Architecture, seed: int = 3) -> None:
        self.shapes: dict[str, Shape] = expected_shapes(architecture)
        self._generator = torch.Generator().manual_seed(seed)

    def source(self, name: str) -> str:
        return "random"

    def codes(self, name: str) -> None:
        return None

    def tensor(self, name: str) -> torch.Tensor:
        shape = self.shapes[name]
        scale = 0.2 if len(shape) == 1 else shape[1] ** -0.5
        return torch.randn(shape, generator=self._generator) * scale + (len(shape) == 1)


def tiny_model(
    model_type: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **changes: object,
) -> LlamaTransformer:
    """A random model of the Llama family with three layers; the same weights on every device."""
    config: dict[str, object] = {
        "model_type": model_type,
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    architecture = Architecture.from_config(config | changes)
    return LlamaTransformer(architecture, RandomWeights(architecture), dtype, device)
