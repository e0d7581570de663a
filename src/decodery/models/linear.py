"""Linear layers, one class per way of multiplying, chosen by `pack`.

The law a backend must keep on CPU in float32: **a row's output does not depend on the other rows,
on their number or on the number of threads**, bit for bit. Plain `F.linear` breaks it (a matrix
product of 1, 2 or 3 rows takes another kernel than one of 16), and greedy decoding would then
depend on who shares the batch. Measured on AVX2 and AVX512 CPUs with torch 2.13, 1 and 2 threads:

- our own kernel (`packed.py`): invariant by construction, at the speed of memory for a lone
  row, float32 and bfloat16 weights; used wherever a C++ compiler is at hand.
- oneDNN with a pre-packed weight: rows agree for every number of rows >= 2, so a lone row is
  sent twice. Packing also saves a re-pack per call.
- `F.linear`: rows agree for every multiple of 4, so rows are padded to one.
- bfloat16 on CPU, and CUDA: fast, no bitwise promise.

`compiled.py` has the whole forward on our kernel; these serve `llama.py`, which runs where that
cannot: on CUDA, without a compiler, for head sizes that are no multiple of 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from decodery.models import native
from decodery.models.packed import PackedMatrix


class Linear(Protocol):
    """x [n, inputs] -> [n, outputs] in the dtype of x."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Backend(Protocol):
    """A way of multiplying: takes weight [outputs, inputs] and bias [outputs] or None."""

    def __call__(self, weight: Tensor, bias: Tensor | None) -> Linear: ...


@dataclass(frozen=True, eq=False)
class PlainLinear:
    """`F.linear` as it is."""

    weight: Tensor  # [outputs, inputs]
    bias: Tensor | None  # [outputs]

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class PaddedLinear:
    """`F.linear` over a multiple of 4 rows: the batch-invariant form without oneDNN."""

    weight: Tensor  # [outputs, inputs]
    bias: Tensor | None  # [outputs]

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        return F.linear(F.pad(x, (0, 0, 0, -rows % 4)), self.weight, self.bias)[:rows]


class OneDnnLinear:
    """oneDNN with a weight packed once. The unpacked weight is not kept."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        x = x.expand(2, -1) if rows == 1 else x  # one row takes another kernel than two
        y = torch.ops.mkldnn._linear_pointwise(
            x.contiguous(), self._weight, self._bias, "none", [], ""
        )
        return y[:rows]


def backend(dtype: torch.dtype, device: torch.device | str) -> Backend:
    """The best backend for a dtype on a device of this machine."""
    if torch.device(device).type != "cpu":
        return PlainLinear
    compiled = native.library() is not None
    if dtype == torch.float32:
        return PackedMatrix if compiled else OneDnnLinear if _onednn() else PaddedLinear
    if dtype == torch.bfloat16:
        if _onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return OneDnnLinear  # matrix units for bfloat16: fast for many rows
        return PackedMatrix if compiled else PlainLinear
    return PlainLinear


def pack(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, device: torch.device | str
) -> Linear:
    """A linear layer from weight [outputs, inputs] and bias [outputs] or None.

    The result may share memory with `weight` or hold a packed copy; drop `weight` afterwards.
    """
    bias = None if bias is None else bias.to(device, dtype)
    return backend(dtype, device)(weight.to(device, dtype), bias)


def _onednn() -> bool:
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
