"""One interface for every causal transformer: tokens and positions in, hidden states out.

A transformer owns weights and nothing else: no cache, no mask. At each layer it hands the queries,
keys and values of the new nodes to `attend`, and the engine, which knows the token tree, answers
with the attention of every new node over its ancestors and itself. A sequence, a batch of
sequences and a tree of drafts are therefore the same call.

Two implementations: `LlamaTransformer` (ours: llama, mistral, qwen2, qwen3, gemma3 text, smollm3)
and `ForeignTransformer` (any other causal language model of transformers).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from decodery.core.errors import ModelFileError
from decodery.models.architecture import MODEL_TYPES, Architecture
from decodery.models.weights import SafetensorsFolder, read_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Attend(Protocol):
    """What a transformer calls at every layer, once, in layer order."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, /) -> Tensor:
        """Stores the new nodes' keys and values; attends each to its ancestors and itself.

        query: [n, heads, head_dim], key and value: [n, kv_heads, head_dim] of the n new nodes,
        positions already applied. Query head h reads key-value head h // (heads // kv_heads).
        Returns [n, heads * head_dim] in the dtype of `query`.
        """
        ...


@dataclass(frozen=True)
class LayerAttention:
    """What the engine must know of one layer to attend as the model was trained to."""

    window: int | None
    """A node sees itself and the window - 1 positions before it; None: all its ancestors."""
    scale: float
    """Factor on query . key before the softmax."""
    softcap: float | None
    """Scaled scores s become softcap * tanh(s / softcap); None: they stay."""


class Transformer(Protocol):
    """A causal language model without cache and mask. See the module's first lines."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def width(self) -> int:
        """Size of a hidden state."""
        ...

    @property
    def context_length(self) -> int:
        """Positions the model was made for; positions run from 0 to context_length - 1."""
        ...

    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def parameters(self) -> int:
        """Number of trained weights; a tied head counts once."""
        ...

    @property
    def layers(self) -> tuple[LayerAttention, ...]: ...

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the last norm, [n, width], of n >= 1 new nodes.

        tokens, positions: [n] int64 on the model's device; positions are depths in the tree, in
        any order, repeats allowed.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, width] -> float32 [m, vocab_size], before any sampler."""
        ...


def load_transformer(folder: Path, dtype: torch.dtype, device: str) -> Transformer:
    """Loads a folder in the Hugging Face layout (config.json and safetensors files).

    Raises `ModelFileError` when a file is missing, corrupt, or of an architecture that cannot be
    decoded faithfully. Nothing is unpickled, no code of the folder runs, nothing is downloaded.
    """
    config = read_json(folder / "config.json")
    _refuse_quantized(folder, config)
    if config.get("model_type") not in MODEL_TYPES:
        from decodery.models.foreign import (
            ForeignTransformer,
        )  # brings transformers: seconds

        return ForeignTransformer.load(folder, dtype, device)

    from decodery.models.llama import LlamaTransformer

    architecture = Architecture.from_config(config, source=str(folder / "config.json"))
    with SafetensorsFolder(folder) as tensors:
        return LlamaTransformer(architecture, tensors, dtype, device)


def _refuse_quantized(folder: Path, config: dict[str, Any]) -> None:
    if config.get("quantization_config") is None:
        return
    raise ModelFileError(
        f"{folder}: config.json has a quantization_config; only plain float weights can be"
        " loaded from safetensors (use the unquantized model, or a GGUF file)"
    )
