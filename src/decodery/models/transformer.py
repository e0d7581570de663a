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

from decodery.core.errors import ModelFileError, ParameterError, nearest
from decodery.models.architecture import MAX_LAYERS, MODEL_TYPES, Architecture
from decodery.models.bounds import shown
from decodery.models.weights import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from decodery.models.attention import Clump
    from decodery.models.cache_slots import SlotCache

_BITS = {"int4": 4, "int8": 8}
# In the config of a model that is not ours; above any published one.
MAX_NUMBER = 1 << 30
_WEIGHTS = ("codes", "int4", "int8", "bf16", "float32")


class AttendLayer(Protocol):
    """What a transformer calls at every layer, once, in layer order."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, /) -> Tensor:
        """Stores the new nodes' keys and values; attends each to its ancestors and itself.

        query: [n, heads, head_dim], key and value: [n, kv_heads, head_dim] of the n new nodes,
        positions already applied. Query head h reads key-value head h // (heads // kv_heads).
        Returns [n, heads * head_dim] in the dtype of `query`.
        """
        ...


class Attend(AttendLayer, Protocol):
    """What the engine hands a transformer.

    One that attends by itself, in all layers, is told instead where the n new nodes go (`slots`),
    what they hang on (`clumps`) and where the keys are (`cache`).
    """

    @property
    def slots(self) -> Sequence[int]: ...
    @property
    def clumps(self) -> Sequence[Clump]: ...
    @property
    def cache(self) -> SlotCache: ...


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
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        ...

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are kept in."""
        ...

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

    def exit(self, layer: int) -> Transformer:
        """The same weights without the layers after the first `layer`, 1 to all of them.

        What these make goes through the last norm and the head. Raises `ParameterError` for a
        transformer that cannot be left early.
        """
        ...


def load_transformer(
    folder: Path, weights: str, device: str, exact: bool = False, adapter: Path | None = None
) -> Transformer:
    """Loads a folder in the Hugging Face layout (config.json, weights in files or in a GGUF file).

    `weights` is codes (as the GGUF file has them), int4 or int8 (quantised here), bf16 or float32.
    `exact` asks for rows that are bitwise independent of the batch. `adapter` is the folder of a
    low-rank adapter that is merged into the weights; matrices that are codes and that it adds to
    are quantised again, in 8 bits. Raises `ModelFileError` when a
    file is missing, corrupt, or of an architecture that cannot be decoded faithfully, and
    `ParameterError` for a combination that no backend has. Nothing is unpickled, no code of the
    folder runs, nothing is downloaded.
    """
    import torch

    config = read_json(folder / "config.json")
    _refuse_quantized(folder, config)
    kind = torch.device(device).type
    _refuse_impossible(weights, kind)
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    if config.get("model_type") not in MODEL_TYPES:
        _refuse_foreign(folder, config, weights, exact, adapter)
        _refuse_absurd(folder / "config.json", config)
        from decodery.models.foreign import (
            ForeignTransformer,
        )  # brings transformers: seconds

        return ForeignTransformer.load(folder, dtype, device)

    from decodery.models.adapters import AdaptedWeights, read_adapter
    from decodery.models.compiled import CompiledTransformer, can_compile
    from decodery.models.llama import LlamaTransformer
    from decodery.models.quantised_weights import QuantisedWeights
    from decodery.models.weight_store import open_weights

    architecture = Architecture.from_config(config, source=str(folder / "config.json"))
    compiled = kind == "cpu" and can_compile(architecture)
    if exact and not compiled:
        _refuse_inexact(weights, kind)
    with open_weights(folder) as store:
        bits = _BITS.get(weights)
        merged = store if adapter is None else AdaptedWeights(store, read_adapter(adapter))
        tensors = merged if bits is None else QuantisedWeights(merged, bits)
        if compiled:
            use_codes = weights in ("codes", *_BITS)
            return CompiledTransformer(architecture, tensors, dtype, use_codes=use_codes)
        return LlamaTransformer(architecture, tensors, dtype, device)


def resolved_weights(folder: Path, asked: str, device: str) -> str:
    """What `load_transformer` is to make of a folder's weights: `asked`, and what auto means.

    auto: the codes of a quantised GGUF file on a CPU, and bf16 elsewhere; for float weights their
    own precision, where float16 becomes float32. Raises `ParameterError` for int4 and int8 of a
    file that is quantised already, `ModelFileError` for a folder without weights.
    """
    import torch

    from decodery.models.weight_store import stored_precision

    if asked in ("bf16", "float32"):
        return asked
    _refuse_quantized(folder, read_json(folder / "config.json"))
    stored = stored_precision(folder)
    if asked in _BITS and stored == "codes":
        raise ParameterError(
            f"weights is {asked!r}, and the file is quantised already: auto uses its codes as they"
            " are; or give bf16 or float32"
        )
    if asked in _BITS:
        return asked
    return "bf16" if stored == "codes" and torch.device(device).type != "cpu" else stored


def _refuse_impossible(weights: str, device: str) -> None:
    if weights not in _WEIGHTS:
        raise ParameterError(f"weights is {weights!r}; {nearest(weights, _WEIGHTS)}")
    if device != "cpu" and weights in ("codes", *_BITS):
        raise ParameterError(
            f"weights is {weights!r}, which only a CPU multiplies with; on {device} use bf16 or"
            " float32"
        )


def _refuse_inexact(weights: str, device: str) -> None:
    """Raises where torch's kernels do not keep a row apart from the batch."""
    if device != "cpu" or weights == "bf16":
        raise ParameterError(
            f"exact is True, and no backend for {weights} on {device} has rows that are bitwise"
            " independent of the batch; use device cpu, with float32 where there is no C++ compiler"
        )


def _refuse_foreign(
    folder: Path, config: dict[str, Any], weights: str, exact: bool, adapter: Path | None
) -> None:
    name = (
        f"{folder}: model type {shown(config.get('model_type'))} runs through transformers' forward"
    )
    if weights in ("codes", *_BITS):
        raise ParameterError(f"{name}, which has no {weights} weights; use auto, bf16 or float32")
    if exact:
        raise ParameterError(f"{name}, whose rows depend on the batch; leave exact out")
    if adapter is not None:
        raise ParameterError(f"{name}, into which no adapter is merged; merge {adapter} before")


def _refuse_absurd(path: Path, config: dict[str, Any]) -> None:
    """Refuse numbers of layers and experts that transformers would set out to make lists of."""
    for name, value in config.items():
        if isinstance(value, dict):
            _refuse_absurd(path, value)
        elif isinstance(value, int) and not -MAX_NUMBER <= value <= _most(name):
            raise ModelFileError(f"{path}: {shown(name)} is {shown(value)}; at most {_most(name)}")


def _most(name: str) -> int:
    return MAX_LAYERS if "layer" in name or "expert" in name else MAX_NUMBER


def _refuse_quantized(folder: Path, config: dict[str, Any]) -> None:
    if config.get("quantization_config") is None:
        return
    raise ModelFileError(
        f"{folder}: config.json has a quantization_config; only plain float weights can be"
        " loaded from safetensors (use the unquantized model, or a GGUF file)"
    )
