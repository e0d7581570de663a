"""The Llama family's forward pass as one call of the compiled kernels.

The same architectures and files as `llama.py`, on a CPU: everything between tokens and the last
norm happens in `native/kernels.cpp`, where all threads walk through the layers together, so a step
of one token costs little more than reading the weights. Weights are float32, bfloat16 or integer
codes; activations and sums are float32, keys and values float32 with float32 weights and float16
otherwise. Attention is given the token tree itself, not a mask: see `native/attention.h`.

Every step works on one row in a fixed order, and attention goes by depth: a node's hidden state is
bitwise the same in any batch, with any number of threads, wherever its keys lie and however its
prompt was cut.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from decodery.core.errors import ModelFileError
from decodery.models import native
from decodery.models.architecture import Architecture
from decodery.models.attention import Clump
from decodery.models.codes import Codes, concatenated
from decodery.models.llama import (
    expected_shapes,
    ignored_names,
    layer_prefix,
    parameter_count,
)
from decodery.models.native import structures
from decodery.models.packed import PackedMatrix, library
from decodery.models.rope import Rope
from decodery.models.transformer import Attend, LayerAttention
from decodery.models.weights import Weights, check_shapes

_LANES = 8


def can_compile(architecture: Architecture) -> bool:
    """Whether the compiled kernels are there and fit the architecture's sizes."""
    sizes = (architecture.head_dim, architecture.feed_forward)
    return native.library() is not None and not any(size % _LANES for size in sizes)


class CompiledTransformer:
    """A `Transformer` of the Llama family on the compiled kernels.

    `dtype` is the one matrices of floats are packed in, float32 or bfloat16; matrices that
    `tensors` has as codes stay codes where `use_codes` is True. Raises `ModelFileError` for weights
    that do not fit. Only for architectures that `can_compile`.
    """

    def __init__(
        self,
        architecture: Architecture,
        tensors: Weights,
        dtype: torch.dtype,
        *,
        use_codes: bool,
    ) -> None:
        self.architecture = architecture
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self.vocab_size = architecture.vocab_size
        self.width = architecture.width
        self.context_length = architecture.context_length
        self.kv_heads = architecture.kv_heads
        self.head_dim = architecture.head_dim
        self.layers = tuple(
            LayerAttention(layer.window, architecture.attention_scale, softcap=None)
            for layer in architecture.layers
        )
        check_shapes(tensors, expected_shapes(architecture), ignored=ignored_names(architecture))
        self.parameters = parameter_count(architecture)
        builder = _Builder(architecture, tensors, dtype, use_codes)
        self._stack = builder.stack()
        self._head = builder.head
        self._kept = builder.kept  # what the structures point to
        self._whole: CompiledTransformer | None = None  # of a view: the one it is a view of
        self.weight_bytes = sum(item.nbytes for item in self._kept)
        plain = dtype == torch.float32 and not builder.has_codes
        self.cache_dtype = torch.float32 if plain else torch.float16

    @torch.no_grad()
    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions [n] int64 -> hidden states after the last norm, float32 [n, width]."""
        hidden = torch.empty((len(tokens), self.width), dtype=torch.float32)
        slots = torch.tensor(attend.slots)
        tree = _flat(attend.clumps)
        forest = structures.Forest(
            count=len(tokens),
            tokens=tokens.data_ptr(),
            positions=positions.data_ptr(),
            slots=slots.data_ptr(),
            clumps=len(attend.clumps),
            **{name: values.data_ptr() for name, values in tree.items()},
        )
        keys, values = attend.cache.keys, attend.cache.values
        cache = structures.Cache(
            keys.data_ptr(), values.data_ptr(), keys.shape[2], keys.dtype == torch.float16
        )
        failed = library().decodery_hidden(
            self._stack, forest, cache, hidden.data_ptr(), torch.get_num_threads()
        )
        if failed:
            raise MemoryError(f"no memory for a forward of {len(tokens)} nodes")
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """[m, width] -> float32 [m, vocab_size]."""
        logits = self._head(hidden)
        cap = self.architecture.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def exit(self, layer: int) -> CompiledTransformer:
        """A view of the first `layer` layers with the same norm and head; weights are shared."""
        early = copy.copy(self)
        early.architecture = replace(self.architecture, layers=self.architecture.layers[:layer])
        early.layers = self.layers[:layer]
        early.parameters = parameter_count(early.architecture)
        early._stack = structures.Stack.from_buffer_copy(self._stack)
        early._stack.count = layer
        early._whole = self  # a copied structure does not keep alive what it points to
        return early


def _flat(clumps: Sequence[Clump]) -> dict[str, Tensor]:
    """The arrays of a `Forest` that say how new nodes hang together, int64."""
    lists = {
        "sizes": [len(clump.rows) for clump in clumps],
        "rows": list(chain.from_iterable(clump.rows for clump in clumps)),
        "parents": list(chain.from_iterable(clump.parents for clump in clumps)),
        "run_counts": [len(clump.base) for clump in clumps],
        "runs": list(chain.from_iterable(run for clump in clumps for run in clump.base)),
    }
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in lists.items()}


class _Builder:
    """Reads tensors by name and packs them into the structures of the compiled kernels."""

    def __init__(
        self, architecture: Architecture, tensors: Weights, dtype: torch.dtype, use_codes: bool
    ) -> None:
        self.architecture = architecture
        self.tensors = tensors
        self.dtype = dtype
        self.use_codes = use_codes
        self.kept: list[PackedMatrix | Tensor] = []
        self.has_codes = False
        self._frequencies: dict[Rope, Tensor] = {}

    def stack(self) -> structures.Stack:
        architecture = self.architecture
        embedding = self.matrices("model.embed_tokens")[0]
        self.head = embedding if architecture.tied_head else self.matrices("lm_head")[0]
        self._check_tied()
        count = len(architecture.layers)
        self._layers = (structures.Layer * count)(*map(self.layer, range(count)))
        return structures.Stack(
            count=count,
            layers=self._layers,
            embedding=embedding.structure,
            norm=self.norm("model.norm.weight"),
            width=architecture.width,
            heads=architecture.heads,
            kv_heads=architecture.kv_heads,
            head_dim=architecture.head_dim,
            feed_forward=architecture.feed_forward,
            embedding_scale=architecture.embedding_scale or 1.0,
            epsilon=architecture.norm_epsilon,
            attention_scale=architecture.attention_scale,
            activation=structures.ACTIVATIONS[architecture.activation],
        )

    def layer(self, index: int) -> structures.Layer:
        prefix = layer_prefix(index)
        sandwich = self.architecture.sandwich_norms
        # The same file name is the norm after attention in Gemma and before the rest in Llama.
        before = "pre_feedforward" if sandwich else "post_attention"
        after = ("post_attention", "post_feedforward") if sandwich else (None, None)
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        rope = self.architecture.layers[index].rope
        qkv = self.matrices(*(f"{attention}{part}_proj" for part in "qkv"))
        gate_up = self.matrices(f"{mlp}gate_proj", f"{mlp}up_proj")
        return structures.Layer(
            attention_norm=self.norm(f"{prefix}input_layernorm.weight"),
            qkv=tuple(part.structure for part in qkv),
            head_norm=self._head_norm(attention) if self.architecture.head_norms else None,
            output=self.matrices(f"{attention}o_proj")[0].structure,
            after_attention_norm=self._optional_norm(prefix, after[0]),
            feed_forward_norm=self.norm(f"{prefix}{before}_layernorm.weight"),
            gate_up=tuple(part.structure for part in gate_up),
            down=self.matrices(f"{mlp}down_proj")[0].structure,
            after_feed_forward_norm=self._optional_norm(prefix, after[1]),
            frequencies=None if rope is None else self._frequency(rope),
            magnitude=1.0 if rope is None else rope.magnitude,
            window=self.architecture.layers[index].window or 0,
        )

    def matrices(self, *names: str) -> list[PackedMatrix]:
        """Several matrices of the same inputs side by side, as one where they are of one kind."""
        parts = [self._weight(name) for name in names]
        biases = [self._bias(name) for name in names]
        packed: list[PackedMatrix] = []
        if len({_kind(part) for part in parts}) == 1:
            bias = None if biases[0] is None else torch.cat([b for b in biases if b is not None])
            packed.append(PackedMatrix(_joined(parts), bias))
        else:
            packed += [PackedMatrix(part, bias) for part, bias in zip(parts, biases, strict=True)]
        self.kept += packed
        return packed

    def norm(self, name: str) -> int:
        return self._keep(self._norm_weight(name))

    def _weight(self, name: str) -> Tensor | Codes:
        codes = self.tensors.codes(f"{name}.weight") if self.use_codes else None
        if codes is None:
            return self.tensors.tensor(f"{name}.weight").to(self.dtype)
        self.has_codes = True
        return codes

    def _bias(self, name: str) -> Tensor | None:
        biased = f"{name}.bias" in self.tensors.shapes
        return self.tensors.tensor(f"{name}.bias") if biased else None

    def _norm_weight(self, name: str) -> Tensor:
        weight = self.tensors.tensor(name).float()
        return 1.0 + weight if self.architecture.norm_plus_one else weight

    def _optional_norm(self, prefix: str, name: str | None) -> int | None:
        return None if name is None else self.norm(f"{prefix}{name}_layernorm.weight")

    def _head_norm(self, attention: str) -> int:
        query = self._norm_weight(f"{attention}q_norm.weight").expand(self.architecture.heads, -1)
        key = self._norm_weight(f"{attention}k_norm.weight").expand(self.architecture.kv_heads, -1)
        return self._keep(torch.cat((query, key)))

    def _frequency(self, rope: Rope) -> int:
        if rope not in self._frequencies:
            self._frequencies[rope] = rope.frequencies(self.architecture.head_dim).contiguous()
            self.kept.append(self._frequencies[rope])
        return self._frequencies[rope].data_ptr()

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _check_tied(self) -> None:
        name = "lm_head.weight"
        if not self.architecture.tied_head or name not in self.tensors.shapes:
            return
        if not torch.equal(
            self.tensors.tensor(name), self.tensors.tensor("model.embed_tokens.weight")
        ):
            raise ModelFileError(
                f"{self.tensors.source(name)}: tensor {name!r} differs from the embedding, but"
                " config.json ties the two (tie_word_embeddings should be false)"
            )


def _kind(part: Tensor | Codes) -> object:
    if isinstance(part, Tensor):
        return part.dtype
    return part.bits, part.group, part.scale.dtype, part.offset is None


def _joined(parts: Sequence[Tensor | Codes]) -> Tensor | Codes:
    codes = [part for part in parts if isinstance(part, Codes)]
    if codes:
        return concatenated(codes)
    return torch.cat([part for part in parts if isinstance(part, Tensor)])
