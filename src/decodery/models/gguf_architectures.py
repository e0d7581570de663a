"""What a GGUF file calls things and what transformers calls them, for each architecture we convert.

An architecture is data: which stored tensors make which parameters, of which shape, what llama.cpp
did to their values on the way in, and how the metadata becomes a `config.json`. Names and changes
are those of llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from decodery.core.errors import ModelFileError, nearest
from decodery.models.architecture import MAX_HEAD_DIM
from decodery.models.bounds import shown
from decodery.models.gguf_file import GgufFile
from decodery.models.gguf_quants import dequantise_tensor

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the transformers model and the tensor it comes from.

    `heads` is above 0 for query and key projections whose rows llama.cpp reordered for its rotary
    embedding; `minus_one` says that it stored `1 + weight`.
    """

    stored: str
    shape: tuple[int, ...]
    heads: int = 0
    minus_one: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """`layer` maps a stored suffix to a parameter suffix and the names of its dimensions."""

    model_type: str
    class_name: str
    layer: Mapping[str, tuple[str, tuple[str, ...]]]
    reordered: bool = False
    minus_one_norms: bool = False
    unused: tuple[str, ...] = ()
    details: Callable[[GgufFile], Config] | None = None


_ATTENTION = {
    "attn_norm.weight": ("input_layernorm.weight", ("hidden",)),
    "attn_q.weight": ("self_attn.q_proj.weight", ("query", "hidden")),
    "attn_k.weight": ("self_attn.k_proj.weight", ("key", "hidden")),
    "attn_v.weight": ("self_attn.v_proj.weight", ("key", "hidden")),
    "attn_output.weight": ("self_attn.o_proj.weight", ("hidden", "query")),
}
_ATTENTION_BIAS = {
    "attn_q.bias": ("self_attn.q_proj.bias", ("query",)),
    "attn_k.bias": ("self_attn.k_proj.bias", ("key",)),
    "attn_v.bias": ("self_attn.v_proj.bias", ("key",)),
}
_HEAD_NORMS = {
    "attn_q_norm.weight": ("self_attn.q_norm.weight", ("head",)),
    "attn_k_norm.weight": ("self_attn.k_norm.weight", ("head",)),
}
_FEED_FORWARD = {
    "ffn_gate.weight": ("mlp.gate_proj.weight", ("inner", "hidden")),
    "ffn_up.weight": ("mlp.up_proj.weight", ("inner", "hidden")),
    "ffn_down.weight": ("mlp.down_proj.weight", ("hidden", "inner")),
}
_TWO_NORMS = {"ffn_norm.weight": ("post_attention_layernorm.weight", ("hidden",))}
_FOUR_NORMS = {
    "post_attention_norm.weight": ("post_attention_layernorm.weight", ("hidden",)),
    "ffn_norm.weight": ("pre_feedforward_layernorm.weight", ("hidden",)),
    "post_ffw_norm.weight": ("post_feedforward_layernorm.weight", ("hidden",)),
}


def _llama_details(file: GgufFile) -> Config:
    if "llama.attention.sliding_window" not in file.metadata:
        return {"attention_bias": False, "mlp_bias": False}
    # llama.cpp files Mistral under llama; a window is what tells the two apart.
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": whole(file, "attention.sliding_window"),
    }


def _gemma3_details(file: GgufFile) -> Config:
    heads, hidden = whole(file, "attention.head_count"), whole(file, "embedding_length")
    # llama.cpp scales the 27B model's queries by its width over its heads, all others by the
    # head's width (`llama_model::load_hparams`, LLM_ARCH_GEMMA3).
    largest = whole(file, "block_count") == 62
    return {
        "query_pre_attn_scalar": hidden // heads if largest else _head_width(file, hidden, heads),
        "sliding_window": whole(file, "attention.sliding_window"),
        "rope_local_base_freq": 10_000.0,
        "hidden_activation": "gelu_pytorch_tanh",
    }


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture(
            "llama",
            "LlamaForCausalLM",
            _ATTENTION | _FEED_FORWARD | _TWO_NORMS,
            reordered=True,
            unused=("rope_freqs.weight",),
            details=_llama_details,
        ),
        "qwen2": Architecture(
            "qwen2", "Qwen2ForCausalLM", _ATTENTION | _ATTENTION_BIAS | _FEED_FORWARD | _TWO_NORMS
        ),
        "qwen3": Architecture(
            "qwen3", "Qwen3ForCausalLM", _ATTENTION | _HEAD_NORMS | _FEED_FORWARD | _TWO_NORMS
        ),
        "gemma3": Architecture(
            "gemma3_text",
            "Gemma3ForCausalLM",
            _ATTENTION | _HEAD_NORMS | _FEED_FORWARD | _FOUR_NORMS,
            minus_one_norms=True,
            details=_gemma3_details,
        ),
    }
)


def architecture(file: GgufFile) -> Architecture:
    """The file's architecture; `ModelFileError` for one we do not convert."""
    name = file.text("general.architecture")
    if name is None or name not in ARCHITECTURES:
        raise ModelFileError(
            f"{file.path}: cannot convert the architecture {shown(name)}; "
            f"{nearest(str(name), ARCHITECTURES)}"
        )
    experts = file.metadata.get(f"{name}.expert_count", 0)
    if type(experts) is not int or experts:
        raise ModelFileError(
            f"{file.path}: is a mixture of experts, which is not converted from GGUF; "
            "give the model's safetensors folder"
        )
    return ARCHITECTURES[name]


def whole(file: GgufFile, key: str, default: int | None = None) -> int:
    """A positive integer under the architecture's prefix, such as `block_count`."""
    name = f"{file.metadata['general.architecture']}.{key}"
    value = file.metadata.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        said = "is missing" if value is None else f"is {shown(value)}"
        raise ModelFileError(f"{file.path}: {name} {said}; it has to be a positive whole number")
    return value


def real(file: GgufFile, key: str, default: float | None = None) -> float:
    """A positive, finite number under the architecture's prefix, such as `rope.freq_base`."""
    name = f"{file.metadata['general.architecture']}.{key}"
    value = file.metadata.get(name, default)
    if isinstance(value, (int, float)) and math.isfinite(value) and value > 0:
        return float(value)
    said = "is missing" if value is None else f"is {shown(value)}"
    raise ModelFileError(f"{file.path}: {name} {said}; it has to be a positive number")


def config(file: GgufFile) -> Config:
    """The `config.json` of the file's model, without token ids and dtype."""
    kind = architecture(file)
    heads = whole(file, "attention.head_count")
    hidden = whole(file, "embedding_length")
    if "token_embd.weight" not in file.tensors:
        raise ModelFileError(f"{file.path}: has no tensor 'token_embd.weight'")
    made: Config = {
        "architectures": [kind.class_name],
        "model_type": kind.model_type,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": whole(file, "feed_forward_length"),
        "num_hidden_layers": whole(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": whole(file, "attention.head_count_kv", heads),
        "head_dim": _head_width(file, hidden, heads),
        "max_position_embeddings": whole(file, "context_length"),
        "rms_norm_eps": real(file, "attention.layer_norm_rms_epsilon"),
        "rope_theta": real(file, "rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    scaling = _rope_scaling(file, made)
    if scaling is not None:
        made["rope_scaling"] = scaling
    return made | kind.details(file) if kind.details else made


def parameters(file: GgufFile, config: Config) -> dict[str, Parameter]:
    """Every parameter of the model by its transformers name, checked against the file.

    Raises `ModelFileError` for a tensor that is missing, of another shape than the metadata says,
    or not part of the architecture.
    """
    kind = architecture(file)
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    made = {
        "model.embed_tokens.weight": Parameter("token_embd.weight", (vocabulary, hidden)),
        "model.norm.weight": Parameter(
            "output_norm.weight", (hidden,), minus_one=kind.minus_one_norms
        ),
    }
    if not config["tie_word_embeddings"]:
        made["lm_head.weight"] = Parameter("output.weight", (vocabulary, hidden))
    _check(file, made)
    for index in range(config["num_hidden_layers"]):  # it ends at the first that is not there
        layer = _layer(kind, config, index)
        _check(file, layer)
        made |= layer
    known = {parameter.stored for parameter in made.values()} | set(kind.unused)
    if extra := sorted(set(file.tensors) - known):
        raise ModelFileError(
            f"{file.path}: tensor {shown(extra[0])} is not part of {kind.model_type}, "
            f"nor are {len(extra) - 1} others"
        )
    return made


def _layer(kind: Architecture, config: Config, index: int) -> dict[str, Parameter]:
    heads, pairs = config["num_attention_heads"], config["num_key_value_heads"]
    sizes = {
        "hidden": config["hidden_size"],
        "inner": config["intermediate_size"],
        "head": config["head_dim"],
        "query": heads * config["head_dim"],
        "key": pairs * config["head_dim"],
    }
    reordered = {"attn_q.weight": heads, "attn_k.weight": pairs} if kind.reordered else {}
    return {
        f"model.layers.{index}.{target}": Parameter(
            f"blk.{index}.{stored}",
            tuple(sizes[name] for name in dimensions),
            heads=reordered.get(stored, 0),
            minus_one=kind.minus_one_norms and "norm" in stored,
        )
        for stored, (target, dimensions) in kind.layer.items()
    }


def _check(file: GgufFile, parameters: Mapping[str, Parameter]) -> None:
    for name, parameter in parameters.items():
        stored = parameter.stored
        if stored not in file.tensors:
            raise ModelFileError(f"{file.path}: tensor {stored!r} (for {name}) is missing")
        shape = file.tensors[stored].shape
        if shape != parameter.shape:
            raise ModelFileError(
                f"{file.path}: tensor {stored!r} has the shape {list(shape)}; "
                f"the metadata says {list(parameter.shape)}"
            )


def _head_width(file: GgufFile, hidden: int, heads: int) -> int:
    width = whole(file, "attention.key_length", max(1, hidden // heads))
    rotated = whole(file, "rope.dimension_count", width)
    value_width = whole(file, "attention.value_length", width)
    if not rotated == value_width == width <= MAX_HEAD_DIM or width % 2:
        raise ModelFileError(
            f"{file.path}: heads of key width {width}, value width {value_width} and rotary "
            f"width {rotated} are not supported; the three have to be one even number up to "
            f"{MAX_HEAD_DIM}"
        )
    return width


def _rope_scaling(file: GgufFile, config: Config) -> dict[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        return _llama3_scaling(file, config)
    prefix = f"{file.metadata['general.architecture']}.rope.scaling"
    kind = file.text(f"{prefix}.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelFileError(
            f"{file.path}: {prefix}.type is {shown(kind)}; allowed are none, linear and yarn"
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": real(file, "rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = whole(
            file, "rope.scaling.original_context_length"
        )
    return scaling


def _llama3_scaling(file: GgufFile, config: Config) -> dict[str, Any]:
    """Llama 3's scaling, which GGUF holds only as the divisor of each frequency, `(head / 2,)`.

    Published models differ in the factor alone, which is the largest divisor; what that predicts
    has to be what the file holds.
    """
    name, half = "rope_freqs.weight", config["head_dim"] // 2
    if file.tensors[name].shape != (half,):
        raise ModelFileError(f"{file.path}: tensor {name!r} should have the shape [{half}]")
    divisors = dequantise_tensor(file, name).double().numpy()
    if not (np.isfinite(divisors) & (divisors > 0)).all():
        raise ModelFileError(f"{file.path}: tensor {name!r} should hold positive numbers")
    scaling = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    with np.errstate(all="ignore"):  # an absurd base
        expected = _llama3_divisors(scaling, config["rope_theta"], config["head_dim"])
    if not np.allclose(expected, divisors, rtol=1e-4):
        raise ModelFileError(
            f"{file.path}: 'rope_freqs.weight' is not the frequency scaling of Llama 3, the only "
            "one supported"
        )
    return scaling


def _llama3_divisors(
    scaling: Mapping[str, Any], theta: float, head_width: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """llama.cpp's `rope_freqs` for this scaling (`LlamaModel.generate_extra_tensors`)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / (
        2 * math.pi * theta ** (np.arange(0, head_width, 2) / head_width)
    )
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)
