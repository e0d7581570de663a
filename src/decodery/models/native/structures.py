"""The C structures of `kernels.cpp`, field for field."""

from __future__ import annotations

import ctypes

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float

FLOAT32, BFLOAT16, CODES4, CODES8 = range(4)
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}


class Matrix(ctypes.Structure):
    """A packed matrix; `panels` is None where there is no such matrix."""

    _fields_ = (
        ("inputs", _LONG),
        ("outputs", _LONG),
        ("kind", _INT),
        ("group", _INT),
        ("half_scales", _INT),
        ("has_offsets", _INT),
        ("panels", _POINTER),
        ("bias", _POINTER),
    )


class Layer(ctypes.Structure):
    """The weights of one layer; None stands for a norm the layer does not have."""

    _fields_ = (
        ("attention_norm", _POINTER),
        ("qkv", Matrix * 3),
        ("head_norm", _POINTER),
        ("output", Matrix),
        ("after_attention_norm", _POINTER),
        ("feed_forward_norm", _POINTER),
        ("gate_up", Matrix * 2),
        ("down", Matrix),
        ("after_feed_forward_norm", _POINTER),
        ("frequencies", _POINTER),
        ("magnitude", _FLOAT),
        ("window", _LONG),
    )


class Stack(ctypes.Structure):
    """A whole transformer."""

    _fields_ = (
        ("count", _LONG),
        ("layers", ctypes.POINTER(Layer)),
        ("embedding", Matrix),
        ("norm", _POINTER),
        ("width", _LONG),
        ("heads", _LONG),
        ("kv_heads", _LONG),
        ("head_dim", _LONG),
        ("feed_forward", _LONG),
        ("embedding_scale", _FLOAT),
        ("epsilon", _FLOAT),
        ("attention_scale", _FLOAT),
        ("activation", _INT),
    )


class Forest(ctypes.Structure):
    """The new nodes of a forward."""

    _fields_ = (
        ("count", _LONG),
        ("tokens", _POINTER),
        ("positions", _POINTER),
        ("slots", _POINTER),
        ("clumps", _LONG),
        ("sizes", _POINTER),
        ("rows", _POINTER),
        ("parents", _POINTER),
        ("run_counts", _POINTER),
        ("runs", _POINTER),
    )


class Cache(ctypes.Structure):
    """Keys and values [layers, kv_heads, slots, head_dim]."""

    _fields_ = (("keys", _POINTER), ("values", _POINTER), ("slots", _LONG), ("is_half", _INT))
