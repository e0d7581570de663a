"""Small whole models as GGUF files, for tests of what reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf as peer
import numpy as np
import torch
from gguf_writing import TEXT, entry, gguf, tensor, text, tokenizer_entries, value

from decodery.models.gguf_architectures import ARCHITECTURES

U32, F32 = 4, 6
VOCABULARY, HIDDEN, INNER, LAYERS, HEADS, PAIRS, WIDTH = 272, 16, 24, 2, 4, 2, 16


@dataclass
class Model:
    """A small model as GGUF: metadata by key and tensors by stored name.

    `types` says how a tensor is stored, by its name or the last part of it; float32 else.
    """

    kind: str
    metadata: dict[str, tuple[int, Any]]
    tensors: dict[str, torch.Tensor]
    extra: list[bytes] = field(default_factory=tokenizer_entries)
    types: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        entries = [entry("general.architecture", TEXT, text(self.kind))]
        entries += [entry(k, kind, value(kind, v)) for k, (kind, v) in self.metadata.items()]
        listed, data = [], b""
        for name, values in self.tensors.items():
            kind = peer.GGMLQuantizationType[self.type_of(name)]
            listed.append(tensor(name, list(values.shape)[::-1], kind.value, len(data)))
            raw = peer.quantize(values.numpy(), kind).tobytes()
            data += raw + b"\0" * (-len(raw) % 32)
        path.write_bytes(gguf([*entries, *self.extra], listed, data))
        return path

    def type_of(self, name: str) -> str:
        short = ".".join(name.split(".")[-2:])
        return self.types.get(name, self.types.get(short, "F32"))


def model(kind: str, tied: bool = True, seed: int = 0, hidden: int = HIDDEN) -> Model:
    """Random weights under llama.cpp's names; all values have few bits, so sums are exact."""
    inner = hidden * INNER // HIDDEN
    metadata = {
        f"{kind}.{key}": pair
        for key, pair in {
            "block_count": (U32, LAYERS),
            "context_length": (U32, 64),
            "embedding_length": (U32, hidden),
            "feed_forward_length": (U32, inner),
            "attention.head_count": (U32, HEADS),
            "attention.head_count_kv": (U32, PAIRS),
            "attention.key_length": (U32, WIDTH),
            "attention.value_length": (U32, WIDTH),
            "attention.layer_norm_rms_epsilon": (F32, 1e-6),
            "rope.freq_base": (F32, 5000.0),
        }.items()
    }
    if kind == "gemma3":
        metadata["gemma3.attention.sliding_window"] = (U32, 8)
    sizes = {
        "hidden": hidden,
        "inner": inner,
        "head": WIDTH,
        "query": HEADS * WIDTH,
        "key": PAIRS * WIDTH,
    }
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(-64, 65, shape).astype(np.float32) / 128)

    tensors = {
        "token_embd.weight": random(VOCABULARY, hidden),
        "output_norm.weight": random(hidden),
    }
    if not tied:
        tensors["output.weight"] = random(VOCABULARY, hidden)
    for index in range(LAYERS):
        for stored, (_, names) in ARCHITECTURES[kind].layer.items():
            tensors[f"blk.{index}.{stored}"] = random(*(sizes[name] for name in names))
    return Model(kind, metadata, tensors)


def to_llama_cpp(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's own reordering, as `convert_hf_to_gguf.py` writes it."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )
