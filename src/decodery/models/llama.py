"""The Llama family's forward pass: llama, mistral, qwen2, qwen3, gemma3 text and smollm3.

    x = embedding
    for each layer:  x = x + out(attend(rope(qkv(norm(x)))))
                     x = x + down(act(gate(norm(x))) * up(norm(x)))
    hidden = norm(x);  logits = head(hidden)

(Gemma 3 norms what each branch adds as well.) Plain dataclasses of weights and plain functions,
read top to bottom. The projections of query, key and value are one matrix, gate and up another.
Casts happen in the order of transformers, so float32 logits agree to about 1e-5. Every operation
works on rows alone and rounds without regard to the other rows: on CPU in float32 a node's hidden
state is the same, bit for bit, in any batch, as far as `attend` keeps to that too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from decodery.core.errors import ModelFileError
from decodery.models.activation import Activation, activation
from decodery.models.architecture import Architecture
from decodery.models.linear import Linear, pack
from decodery.models.rope import Rope, Rotation, rotate, rotation
from decodery.models.transformer import AttendLayer, LayerAttention
from decodery.models.weights import Shape, Weights, check_shapes


@dataclass(frozen=True, eq=False)
class Norm:
    """RMS norm over the last dimension, computed in float32.

    Llama rounds to the model's dtype before multiplying by the weight, Gemma after: here that is
    the dtype of `weight`.
    """

    weight: Tensor  # [width], or [heads + kv_heads, head_dim]
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        exact = x.float()
        scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (self.weight * (exact * scale).to(self.weight.dtype)).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Layer:
    """The weights of one layer. Norms this family member does not have are None."""

    rope: Rope | None
    attention_norm: Norm
    qkv: Linear  # width -> (heads + 2 kv_heads) * head_dim
    head_norm: Norm | None  # of queries and keys, [heads + kv_heads, head_dim]
    output: Linear  # heads * head_dim -> width
    after_attention_norm: Norm | None
    feed_forward_norm: Norm
    gate_up: Linear  # width -> 2 feed_forward
    down: Linear  # feed_forward -> width
    after_feed_forward_norm: Norm | None


class LlamaTransformer:
    """A `Transformer` of the Llama family. Raises `ModelFileError` for weights that do not fit.

    `tensors` are named as in transformers' files and only read here; on the embedding table alone
    memory may be shared with them. Gradients do not flow.
    """

    def __init__(
        self,
        architecture: Architecture,
        tensors: Weights,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.architecture = architecture
        self.dtype = dtype
        self.cache_dtype = dtype
        self.device = torch.device(device)
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

        loader = _Loader(architecture, tensors, dtype, self.device)
        self._embedding = loader.tensor("model.embed_tokens.weight")
        self._embedding_scale = _rounded(architecture.embedding_scale, dtype)
        self._layers = tuple(loader.layer(index) for index in range(len(architecture.layers)))
        self._norm = loader.norm("model.norm.weight")
        self._head = loader.head(self._embedding)
        self._activation: Activation = activation(architecture.activation, dtype, self.device)
        self._frequencies: Mapping[Rope, Tensor] = {
            layer.rope: layer.rope.frequencies(architecture.head_dim).to(self.device)
            for layer in architecture.layers
            if layer.rope is not None
        }

    @torch.no_grad()
    def hidden(self, tokens: Tensor, positions: Tensor, attend: AttendLayer) -> Tensor:
        """tokens, positions [n] int64 -> hidden states after the last norm [n, width]."""
        rotations = {
            rope: rotation(frequencies, positions, rope.magnitude, self.dtype)
            for rope, frequencies in self._frequencies.items()
        }
        x = F.embedding(tokens, self._embedding)
        if self._embedding_scale is not None:
            x = x * self._embedding_scale
        for index, layer in enumerate(self._layers):
            turn = None if layer.rope is None else rotations[layer.rope]
            x = x + self._attention(index, layer, x, turn, attend)
            x = x + self._feed_forward(layer, x)
        return self._norm(x)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """[m, width] -> float32 [m, vocab_size]."""
        logits = self._head(hidden)
        cap = self.architecture.logit_softcap
        return logits.float() if cap is None else (torch.tanh(logits / cap) * cap).float()

    def exit(self, layer: int) -> LlamaTransformer:
        """A view of the first `layer` layers with the same norm and head; weights are shared."""
        early = copy.copy(self)
        early.architecture = replace(self.architecture, layers=self.architecture.layers[:layer])
        early.layers = self.layers[:layer]
        early.parameters = parameter_count(early.architecture)
        early._layers = self._layers[:layer]
        return early

    def _attention(
        self, index: int, layer: Layer, x: Tensor, turn: Rotation | None, attend: AttendLayer
    ) -> Tensor:
        heads, kv_heads = self.architecture.heads, self.kv_heads
        states = layer.qkv(layer.attention_norm(x)).view(len(x), heads + 2 * kv_heads, -1)
        query_key, value = states.split([heads + kv_heads, kv_heads], dim=1)
        if layer.head_norm is not None:
            query_key = layer.head_norm(query_key)
        if turn is not None:
            query_key = rotate(query_key, turn)
        query, key = query_key.split([heads, kv_heads], dim=1)
        y = layer.output(attend(index, query, key, value))
        return y if layer.after_attention_norm is None else layer.after_attention_norm(y)

    def _feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        gate, up = layer.gate_up(layer.feed_forward_norm(x)).chunk(2, dim=-1)
        y = layer.down(self._activation(gate) * up)
        return y if layer.after_feed_forward_norm is None else layer.after_feed_forward_norm(y)


def expected_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every tensor a model of this architecture has, by its name in transformers' files."""
    width, vocab = architecture.width, architecture.vocab_size
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
    }
    if not architecture.tied_head:
        shapes["lm_head.weight"] = (vocab, width)
    layer = _layer_shapes(architecture)
    for index in range(len(architecture.layers)):
        shapes |= {f"{layer_prefix(index)}{name}": shape for name, shape in layer.items()}
    return shapes


def parameter_count(architecture: Architecture) -> int:
    """The number of trained weights; a tied head counts once."""
    return sum(torch.Size(shape).numel() for shape in expected_shapes(architecture).values())


def _layer_shapes(architecture: Architecture) -> dict[str, Shape]:
    width, ffn = architecture.width, architecture.feed_forward
    queries = architecture.heads * architecture.head_dim
    keys = architecture.kv_heads * architecture.head_dim
    matrices = {  # name -> (outputs, inputs, bias)
        "self_attn.q_proj": (queries, width, architecture.qkv_bias),
        "self_attn.k_proj": (keys, width, architecture.qkv_bias),
        "self_attn.v_proj": (keys, width, architecture.qkv_bias),
        "self_attn.o_proj": (width, queries, architecture.output_bias),
        "mlp.gate_proj": (ffn, width, architecture.feed_forward_bias),
        "mlp.up_proj": (ffn, width, architecture.feed_forward_bias),
        "mlp.down_proj": (width, ffn, architecture.feed_forward_bias),
    }
    shapes: dict[str, Shape] = {}
    for name, (outputs, inputs, bias) in matrices.items():
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if architecture.sandwich_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes |= {f"{name}.weight": (width,) for name in norms}
    if architecture.head_norms:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (
            architecture.head_dim,
        )
    return shapes


def layer_prefix(index: int) -> str:
    """How the tensors of a layer are named in transformers' files."""
    return f"model.layers.{index}."


def ignored_names(architecture: Architecture) -> frozenset[str]:
    """Tensors old files carry besides the weights: frequencies, and a copy of a tied head."""
    names = {
        f"{layer_prefix(i)}self_attn.rotary_emb.inv_freq" for i in range(len(architecture.layers))
    }
    return frozenset(names | ({"lm_head.weight"} if architecture.tied_head else set()))


def _rounded(scale: float | None, dtype: torch.dtype) -> float | None:
    return None if scale is None else torch.tensor(scale).to(dtype).item()


@dataclass(frozen=True)
class _Loader:
    """Reads tensors by name and packs them; each is dropped once packed."""

    architecture: Architecture
    tensors: Weights
    dtype: torch.dtype
    device: torch.device

    def tensor(self, name: str) -> Tensor:
        return self.tensors.tensor(name).to(self.device, self.dtype)

    def layer(self, index: int) -> Layer:
        prefix = layer_prefix(index)
        sandwich = self.architecture.sandwich_norms
        # The same file name is the norm after attention in Gemma and before the rest in Llama.
        feed_forward_norm = "pre_feedforward" if sandwich else "post_attention"
        after = ("post_attention", "post_feedforward") if sandwich else (None, None)
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        return Layer(
            rope=self.architecture.layers[index].rope,
            attention_norm=self.norm(f"{prefix}input_layernorm.weight"),
            qkv=self.linear(*(f"{attention}{part}_proj" for part in "qkv")),
            head_norm=self._head_norm(attention) if self.architecture.head_norms else None,
            output=self.linear(f"{attention}o_proj"),
            after_attention_norm=self._optional_norm(prefix, after[0]),
            feed_forward_norm=self.norm(f"{prefix}{feed_forward_norm}_layernorm.weight"),
            gate_up=self.linear(f"{mlp}gate_proj", f"{mlp}up_proj"),
            down=self.linear(f"{mlp}down_proj"),
            after_feed_forward_norm=self._optional_norm(prefix, after[1]),
        )

    def linear(self, *names: str) -> Linear:
        """One layer that computes several side by side."""
        weight = torch.cat([self.tensor(f"{name}.weight") for name in names])
        biased = f"{names[0]}.bias" in self.tensors.shapes
        bias = torch.cat([self.tensor(f"{name}.bias") for name in names]) if biased else None
        return pack(weight, bias, self.dtype, self.device)

    def head(self, embedding: Tensor) -> Linear:
        if not self.architecture.tied_head:
            return self.linear("lm_head")
        name = "lm_head.weight"
        if name in self.tensors.shapes and not torch.equal(self.tensor(name), embedding):
            raise ModelFileError(
                f"{self.tensors.source(name)}: tensor {name!r} differs from the embedding, but"
                " config.json ties the two (tie_word_embeddings should be false)"
            )
        return pack(embedding, None, self.dtype, self.device)

    def norm(self, name: str) -> Norm:
        return Norm(self._norm_weight(name), self.architecture.norm_epsilon)

    def _optional_norm(self, prefix: str, name: str | None) -> Norm | None:
        return None if name is None else self.norm(f"{prefix}{name}_layernorm.weight")

    def _head_norm(self, attention: str) -> Norm:
        query = self._norm_weight(f"{attention}q_norm.weight").expand(self.architecture.heads, -1)
        key = self._norm_weight(f"{attention}k_norm.weight").expand(self.architecture.kv_heads, -1)
        return Norm(torch.cat((query, key)), self.architecture.norm_epsilon)

    def _norm_weight(self, name: str) -> Tensor:
        weight = self.tensor(name)
        return 1.0 + weight.float() if self.architecture.norm_plus_one else weight
