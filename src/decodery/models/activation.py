"""Activation functions of the feed-forward layers.

On CPU the fused `F.silu` and `F.gelu` compute an element in a vector lane or, at the end of a
chunk, by scalar code, and the two round differently: the result would depend on where in the batch
an element lies. `torch.exp`, `torch.tanh` and `torch.erf` do not (measured), and the rest of each
formula below is one correctly rounded operation at a time. So float32 on CPU uses the formulas,
everything else the fused functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def _silu(x: Tensor) -> Tensor:
    return x / torch.exp(-x).add_(1.0)


def _gelu(x: Tensor) -> Tensor:
    return torch.erf(x * math.sqrt(0.5)).add_(1.0).mul_(x).mul_(0.5)


def _gelu_tanh(x: Tensor) -> Tensor:
    inner = (x * x * x).mul_(0.044715).add_(x).mul_(math.sqrt(2.0 / math.pi))
    return torch.tanh(inner).add_(1.0).mul_(x).mul_(0.5)


_INVARIANT: dict[str, Activation] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
}
_FUSED: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}
ACTIVATIONS = tuple(_FUSED)


def activation(name: str, dtype: torch.dtype, device: torch.device) -> Activation:
    """The activation called `name` (one of `ACTIVATIONS`), batch-invariant for CPU float32."""
    exact = dtype == torch.float32 and device.type == "cpu"
    return (_INVARIANT if exact else _FUSED)[name]
