"""What a Llama-like model is made of, read from its config.json and checked field by field.

Llama, Mistral, Qwen 2 and 3, Gemma 3 (text) and SmolLM 3 share one forward; they differ in the
switches below. A value this package would not reproduce exactly is refused, never approximated.
Field names and defaults are those of transformers 5, whose older spellings (`rope_theta` with
`rope_scaling` in place of `rope_parameters`) are read too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from decodery.core.errors import ModelFileError, nearest
from decodery.models.bounds import shown
from decodery.models.rope import ROPE_KINDS, Rope

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "smollm3")
_ACTIVATIONS = {  # name in config.json -> name in decodery.models.activation
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
}

# Far above any published model, low enough that a hostile file cannot ask for absurd tables.
MAX_LAYERS = 4096
MAX_SIZE = 1 << 24
MAX_HEAD_DIM = 4096

_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class LayerShape:
    """What differs from layer to layer."""

    window: int | None
    """Positions a node sees, itself included; None: all its ancestors."""
    rope: Rope | None
    """None: this layer knows no positions (SmolLM 3)."""


@dataclass(frozen=True)
class Architecture:
    """Sizes and switches of one model; every field is checked by `from_config`."""

    model_type: str
    vocab_size: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    layers: tuple[LayerShape, ...]
    activation: str
    """A name of `decodery.models.activation.ACTIVATIONS`."""
    norm_epsilon: float
    attention_scale: float
    qkv_bias: bool
    output_bias: bool
    feed_forward_bias: bool
    head_norms: bool
    """RMS norms on every query and key head (Qwen 3, Gemma 3)."""
    norm_plus_one: bool
    """Norm weights are stored minus one and applied in float32 (Gemma)."""
    sandwich_norms: bool
    """Norms also after attention and feed-forward (Gemma 3)."""
    embedding_scale: float | None
    """Factor on embeddings, rounded to their dtype (Gemma)."""
    logit_softcap: float | None
    """Logits x become softcap * tanh(x / softcap)."""
    tied_head: bool
    """The embedding table is also the head."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config.json") -> Architecture:
        """Reads a config.json of one of `MODEL_TYPES`.

        `source` names the file in messages. Raises `ModelFileError` for a missing or impossible
        value and for a feature this forward does not reproduce.
        """
        fields = _Fields(config, source)
        model_type = fields.choice("model_type", MODEL_TYPES)
        gemma = model_type == "gemma3_text"
        _refuse_unknown_features(fields, model_type)

        width = fields.integer("hidden_size")
        heads = fields.integer("num_attention_heads")
        head_dim = _head_dim(fields, model_type, width, heads)
        attention_bias = model_type not in ("mistral", "qwen2") and fields.flag("attention_bias")
        scalar = fields.number("query_pre_attn_scalar", 256) if gemma else float(head_dim)
        activation = "hidden_activation" if gemma else "hidden_act"
        default_activation = "gelu_pytorch_tanh" if gemma else "silu"
        return cls(
            model_type=model_type,
            vocab_size=fields.integer("vocab_size"),
            width=width,
            feed_forward=fields.integer("intermediate_size"),
            heads=heads,
            kv_heads=_kv_heads(fields, model_type, heads),
            head_dim=head_dim,
            context_length=fields.integer("max_position_embeddings"),
            layers=_layers(fields, model_type, head_dim),
            activation=_ACTIVATIONS[fields.choice(activation, _ACTIVATIONS, default_activation)],
            norm_epsilon=fields.number("rms_norm_eps", 1e-6),
            attention_scale=scalar**-0.5,
            qkv_bias=model_type == "qwen2" or attention_bias,
            output_bias=attention_bias,
            feed_forward_bias=model_type in ("llama", "smollm3") and fields.flag("mlp_bias"),
            head_norms=gemma or model_type == "qwen3",
            norm_plus_one=gemma,
            sandwich_norms=gemma,
            embedding_scale=math.sqrt(width) if gemma else None,
            logit_softcap=fields.optional_number("final_logit_softcapping") if gemma else None,
            tied_head=fields.flag("tie_word_embeddings", gemma or model_type == "smollm3"),
        )


@dataclass(frozen=True)
class _Fields:
    """Typed access to a JSON object; every refusal names file, field, value and what is allowed."""

    values: Mapping[str, Any]
    source: str
    prefix: str = ""

    def fail(self, name: str, allowed: str) -> NoReturn:
        found = shown(self.values[name]) if name in self.values else "nothing"
        raise ModelFileError(
            f"{self.source}: {self.prefix}{name} should be {allowed}, found {found}"
        )

    def given(self, name: str) -> bool:
        """Present and not null."""
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        value = self.values[name] if self.given(name) else default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            self.fail(name, f"an integer from 1 to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values[name] if self.given(name) else default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(name, "a positive number")
        # Compared, not converted: JSON has integers that no float holds.
        if not 0 < value <= sys.float_info.max:
            self.fail(name, "a positive number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return self.number(name) if self.given(name) else None

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values[name] if self.given(name) else default
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def choice(self, name: str, allowed: Iterable[str], default: str | None = None) -> str:
        value = self.values[name] if self.given(name) else default
        if value not in tuple(allowed):
            hint = f" ({nearest(value[:80], allowed)})" if isinstance(value, str) else ""
            self.fail(name, f"one of {', '.join(allowed)}{hint}")
        return str(value)

    def mapping(self, name: str) -> _Fields | None:
        """A nested object, or None when it is absent or null."""
        if not self.given(name):
            return None
        if not isinstance(self.values[name], dict):
            self.fail(name, "an object")
        return _Fields(self.values[name], self.source, f"{self.prefix}{name}.")


def _refuse_unknown_features(fields: _Fields, model_type: str) -> None:
    if fields.given("partial_rotary_factor") and fields.number("partial_rotary_factor") != 1.0:
        fields.fail("partial_rotary_factor", "1.0 (partial rotation is not supported here)")
    if model_type != "gemma3_text":
        return
    if fields.flag("use_bidirectional_attention"):
        fields.fail("use_bidirectional_attention", "false (decoding is causal)")
    if fields.given("attn_logit_softcapping"):
        # The reference implementation reads the field and never applies it.
        fields.fail("attn_logit_softcapping", "null for gemma3_text")


def _head_dim(fields: _Fields, model_type: str, width: int, heads: int) -> int:
    default = {"qwen3": 128, "gemma3_text": 256}.get(model_type)
    if not fields.given("head_dim") and default is None:
        if width % heads:
            fields.fail("hidden_size", f"a multiple of num_attention_heads ({heads})")
        default = width // heads
    head_dim = fields.integer("head_dim", default, most=MAX_HEAD_DIM)
    if head_dim % 2:
        raise ModelFileError(
            f"{fields.source}: heads of size {head_dim}; rotation needs an even one"
        )
    return head_dim


def _kv_heads(fields: _Fields, model_type: str, heads: int) -> int:
    if model_type == "llama" and not fields.given("num_key_value_heads"):
        return heads
    kv_heads = fields.integer("num_key_value_heads")
    if heads % kv_heads:
        fields.fail("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    return kv_heads


def _layers(fields: _Fields, model_type: str, head_dim: int) -> tuple[LayerShape, ...]:
    count = fields.integer("num_hidden_layers", most=MAX_LAYERS)
    ropes = _ropes(fields, model_type)
    for rope in ropes.values():
        _refuse_broken(fields, rope, head_dim)
    turned = _turned_layers(fields, count) if model_type == "smollm3" else [True] * count
    windowed = _windowed_layers(fields, model_type, turned)
    window = fields.integer("sliding_window", 4096) if any(windowed) else None
    return tuple(
        LayerShape(
            window if slides else None,
            ropes[_SLIDING if slides else _FULL] if turns else None,
        )
        for slides, turns in zip(windowed, turned, strict=True)
    )


def _turned_layers(fields: _Fields, count: int) -> list[bool]:
    """Which layers of a SmolLM 3 rotate; by default all but every fourth."""
    if not fields.given("no_rope_layers"):
        interval = fields.integer("no_rope_layer_interval", 4)
        return [(layer + 1) % interval != 0 for layer in range(count)]
    flags = fields.values["no_rope_layers"]
    if not isinstance(flags, list) or len(flags) < count or any(f not in (0, 1) for f in flags):
        fields.fail("no_rope_layers", f"a list of {count} zeros and ones")
    return [bool(value) for value in flags[:count]]


def _windowed_layers(fields: _Fields, model_type: str, turned: list[bool]) -> list[bool]:
    """Which layers see a window only."""
    count = len(turned)
    if model_type == "llama":
        return [False] * count
    if model_type == "mistral":
        return [fields.values.get("sliding_window", 4096) is not None] * count
    listed = _layer_types(fields, count)
    if model_type == "gemma3_text":
        pattern = fields.integer("sliding_window_pattern", 6)
        return listed or [(layer + 1) % pattern != 0 for layer in range(count)]
    default = None if model_type == "smollm3" else 4096
    uses = fields.flag("use_sliding_window") and fields.values.get("sliding_window", default)
    if not uses:
        if listed and any(listed):
            fields.fail("layer_types", f"all {_FULL} where no sliding window is used")
        return [False] * count
    if listed:
        return listed
    if model_type == "smollm3":
        return [not turns for turns in turned]
    first = fields.integer("max_window_layers", 28)
    return [layer >= first for layer in range(count)]


def _layer_types(fields: _Fields, count: int) -> list[bool] | None:
    """Which layers are listed as windowed; None when the file lists no layers."""
    if not fields.given("layer_types"):
        return None
    listed = fields.values["layer_types"]
    if not isinstance(listed, list) or len(listed) != count:
        fields.fail("layer_types", f"a list of {count} names")
    if any(name not in (_SLIDING, _FULL) for name in listed):
        fields.fail("layer_types", f"made of {_SLIDING} and {_FULL}")
    return [name == _SLIDING for name in listed]


def _ropes(fields: _Fields, model_type: str) -> dict[str, Rope]:
    """The rotation of windowed and of full layers; the same one except for Gemma 3."""
    if model_type == "gemma3_text":
        return _gemma_ropes(fields)
    theta = fields.number("rope_theta", 2e6 if model_type == "smollm3" else 1e4)
    # An old-style `rope_scaling` wins over `rope_parameters`, as in transformers.
    rope = _rope(
        fields,
        fields.mapping("rope_scaling") or fields.mapping("rope_parameters"),
        theta,
    )
    return {_SLIDING: rope, _FULL: rope}


def _refuse_broken(fields: _Fields, rope: Rope, head_dim: int) -> None:
    """Each number of a rotation may be fine, and yet all of them together no rotation."""
    try:
        frequencies = rope.frequencies(head_dim)
    except (ArithmeticError, ValueError, RuntimeError):  # a float's range; torch's
        frequencies = torch.tensor(math.nan)
    largest = max(frequencies.max().item(), rope.magnitude)
    if not largest <= torch.finfo(torch.float32).max:  # NaN neither
        raise ModelFileError(
            f"{fields.source}: the rotary embedding has values that are not finite"
        )


def _gemma_ropes(fields: _Fields) -> dict[str, Rope]:
    nested = fields.mapping("rope_parameters") or _Fields({}, fields.source, "rope_parameters.")
    scaling = fields.mapping("rope_scaling")
    if scaling is not None and nested.given(_FULL):
        fields.fail("rope_scaling", "absent where rope_parameters is given")
    full_theta = fields.number("rope_theta", 1e6)
    local_theta = fields.number("rope_local_base_freq", 1e4)
    return {
        _FULL: _rope(fields, scaling or nested.mapping(_FULL), full_theta),
        _SLIDING: _rope(fields, nested.mapping(_SLIDING), local_theta),
    }


def _rope(fields: _Fields, given: _Fields | None, theta: float) -> Rope:
    if given is None:
        return Rope(theta)
    kind_field = "rope_type" if given.given("rope_type") else "type"
    kind = given.choice(kind_field, ROPE_KINDS, "default")
    theta = given.number("rope_theta", theta)
    if given.given("partial_rotary_factor") and given.number("partial_rotary_factor") != 1.0:
        given.fail("partial_rotary_factor", "1.0 (partial rotation is not supported here)")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, given.number("factor"))
    name = "original_max_position_embeddings"  # beside the rope fields it wins, as in transformers
    original = (fields if fields.given(name) else given).integer(
        name, fields.integer("max_position_embeddings")
    )
    if kind == "llama3":
        return _llama3_rope(given, theta, original)
    return _yarn_rope(given, theta, original, fields.integer("max_position_embeddings"))


def _llama3_rope(given: _Fields, theta: float, original: int) -> Rope:
    low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
    if high <= low:
        given.fail("high_freq_factor", f"more than low_freq_factor ({low})")
    return Rope(
        theta,
        "llama3",
        given.number("factor"),
        original_context=original,
        low_frequency=low,
        high_frequency=high,
    )


def _yarn_rope(given: _Fields, theta: float, original: int, context: int) -> Rope:
    factor = given.number("factor", context / original)
    magnitude = given.optional_number("attention_factor")
    if magnitude is None:
        magnitude = _yarn_magnitude(
            factor,
            given.optional_number("mscale"),
            given.optional_number("mscale_all_dim"),
        )
    return Rope(
        theta,
        "yarn",
        factor,
        original_context=original,
        beta_fast=given.number("beta_fast", 32.0),
        beta_slow=given.number("beta_slow", 1.0),
        truncate=given.flag("truncate", True),
        magnitude=magnitude,
    )


def _yarn_magnitude(factor: float, scale: float | None, scale_all: float | None) -> float:
    """Peng et al. 2023, eq. 22, with DeepSeek's two multipliers where both are given."""

    def magnitude(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    if scale and scale_all:
        return magnitude(scale) / magnitude(scale_all)
    return magnitude(1.0)
