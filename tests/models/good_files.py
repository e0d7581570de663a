"""Two small models that load, for tests that break them: a GGUF file and a safetensors folder.

Both are described by parts that a test can change one by one before they are written.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf_writing import (
    ARRAY,
    MERGES,
    TEMPLATE,
    TEXT,
    array,
    entry,
    gguf,
    tensor,
    value,
    vocabulary,
)

from decodery.models.gguf_architectures import ARCHITECTURES
from decodery.models.gguf_file import TENSOR_TYPES

U32, I32, F32 = 4, 5, 6
TYPE_IDS = {block.name: kind for kind, block in TENSOR_TYPES.items()}
# Where a block's scales lie: float16 at these bytes. Everything else may be any bytes.
SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
VOCABULARY, LAYERS, HEADS, PAIRS, WIDTH = 272, 2, 4, 2, 8


# -- GGUF ------------------------------------------------------------------------------------------


@dataclass
class Stored:
    """A tensor as it lies in a file: its dimensions fastest first, type, bytes, and where."""

    shape: list[int]
    kind: int
    data: bytes
    offset: int | None = None  # None: after the one before
    name: str | bytes | None = None


@dataclass
class GgufModel:
    """A GGUF file in parts."""

    entries: dict[str, bytes]  # key -> the whole entry
    tensors: dict[str, Stored]
    extra: list[bytes] = field(default_factory=list)  # entries that repeat a key
    twice: list[str] = field(default_factory=list)  # tensors that are listed twice

    def set(self, key: str, kind: int, content: Any) -> GgufModel:
        """Another value under a key; a list is an array of `kind`."""
        if isinstance(content, list):
            self.entries[key] = entry(key, ARRAY, array(kind, content))
        else:
            self.entries[key] = entry(key, kind, value(kind, content))
        return self

    def drop(self, *names: str) -> GgufModel:
        for name in names:
            (self.entries if name in self.entries else self.tensors).pop(name)
        return self

    def raw(self, **lies: Any) -> bytes:
        """The file; `lies` are those of `gguf_writing.gguf`."""
        listed, data = [], b""
        for name, stored in self.tensors.items():
            offset = len(data) if stored.offset is None else stored.offset
            written = tensor(stored.name or name, stored.shape, stored.kind, offset)
            listed += [written] * (1 + self.twice.count(name))
            data += stored.data + b"\0" * (-len(stored.data) % 32)
        return gguf([*self.entries.values(), *self.extra], listed, data, **lies)

    def write(self, folder: Path, **lies: Any) -> Path:
        path = folder / "model.gguf"
        path.write_bytes(self.raw(**lies))
        return path


def blocks(name: str, columns: int, rows: int, rng: np.random.Generator) -> bytes:
    """Random finite values of a storage type."""
    if name not in SCALES:
        values = rng.integers(-64, 65, rows * columns).astype(np.float32) / 128
        if name == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        return values.astype({"F32": np.float32, "F16": np.float16}[name]).tobytes()
    block = TENSOR_TYPES[TYPE_IDS[name]]
    stored = rng.integers(0, 256, (rows * columns // block.elements, block.nbytes), dtype=np.uint8)
    for place in SCALES[name]:
        scale = rng.integers(1, 9, len(stored)).astype(np.float16) / 512
        stored[:, place : place + 2] = scale.view(np.uint8).reshape(-1, 2)
    return stored.tobytes()


def gguf_model(matrices: str = "F32", kind: str = "llama", seed: int = 0) -> GgufModel:
    """A model that loads, its matrices stored as `matrices` as far as their rows allow."""
    rng = np.random.default_rng(seed)
    block = TENSOR_TYPES[TYPE_IDS[matrices]].elements
    hidden = inner = max(32, block)
    sizes = {
        "hidden": hidden,
        "inner": inner,
        "head": WIDTH,
        "query": HEADS * WIDTH,
        "key": PAIRS * WIDTH,
    }

    def stored(*shape: int) -> Stored:
        columns = shape[-1]
        name = matrices if len(shape) > 1 and columns % block == 0 else "F32"
        rows = shape[0] if len(shape) > 1 else 1
        return Stored(list(shape[::-1]), TYPE_IDS[name], blocks(name, columns, rows, rng))

    made = GgufModel({}, {})
    made.set("general.architecture", TEXT, kind)
    for key, (type_id, content) in {
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
    }.items():
        made.set(f"{kind}.{key}", type_id, content)
    if kind == "gemma3":
        made.set("gemma3.attention.sliding_window", U32, 8)
    _set_tokenizer(made)
    made.tensors["token_embd.weight"] = stored(VOCABULARY, hidden)
    made.tensors["output_norm.weight"] = stored(hidden)
    for layer in range(LAYERS):
        for name, (_, dimensions) in ARCHITECTURES[kind].layer.items():
            made.tensors[f"blk.{layer}.{name}"] = stored(*(sizes[size] for size in dimensions))
    return made


def _set_tokenizer(made: GgufModel) -> None:
    tokens = vocabulary()
    kinds = [3] * 3 + [1] * (len(tokens) - 4) + [4]
    made.set("tokenizer.ggml.model", TEXT, "gpt2").set("tokenizer.ggml.pre", TEXT, "smollm")
    made.set("tokenizer.ggml.tokens", TEXT, tokens).set("tokenizer.ggml.token_type", I32, kinds)
    made.set("tokenizer.ggml.merges", TEXT, MERGES)
    made.set("tokenizer.ggml.bos_token_id", U32, 1).set("tokenizer.ggml.eos_token_id", U32, 2)
    made.set("tokenizer.ggml.add_bos_token", 7, 1)
    made.set("tokenizer.chat_template", TEXT, TEMPLATE)


# -- safetensors -----------------------------------------------------------------------------------


@dataclass
class FolderModel:
    """A model folder in parts: JSON files by name, and tensors of one safetensors file."""

    files: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def set(self, **fields: Any) -> FolderModel:
        self.files["config.json"] |= fields
        return self

    def drop(self, *names: str) -> FolderModel:
        for name in names:
            home = next(
                h for h in (self.files, self.tensors, self.files["config.json"]) if name in h
            )
            home.pop(name)
        return self

    def write(self, folder: Path) -> Path:
        for name, content in self.files.items():
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            (folder / name).write_bytes(raw)
        if self.tensors:
            (folder / "model.safetensors").write_bytes(safetensors(*header_of(self.tensors)))
        return folder


def safetensors(header: Mapping[str, Any] | bytes, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file; `length` lies about the header's."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def header_of(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """The header and the data of float32 tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        raw = values.astype(np.float32).tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": place}
        data += raw
    return header, data


def folder_model(seed: int = 0) -> FolderModel:
    """A llama folder that loads, with the same tokenizer."""
    rng = np.random.default_rng(seed)
    hidden, inner = 32, 48

    def random(*shape: int) -> np.ndarray:
        return (rng.integers(-64, 65, shape) / 128).astype(np.float32)

    tensors = {"model.embed_tokens.weight": random(VOCABULARY, hidden)}
    tensors["model.norm.weight"] = random(hidden)
    for layer in range(LAYERS):
        for name, shape in {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (HEADS * WIDTH, hidden),
            "self_attn.k_proj": (PAIRS * WIDTH, hidden),
            "self_attn.v_proj": (PAIRS * WIDTH, hidden),
            "self_attn.o_proj": (hidden, HEADS * WIDTH),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = random(*shape)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": PAIRS,
        "head_dim": WIDTH,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    files = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": [2]},
        "tokenizer_config.json": settings,
        "tokenizer.json": tokenizer_json(),
    }
    return FolderModel(files, tensors)


def tokenizer_json() -> dict[str, Any]:
    """The vocabulary of `gguf_writing` as a tokenizer.json."""
    tokens = vocabulary()
    special = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, token in enumerate(tokens[:3])
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }
