"""Linear layers, one class per way of multiplying, chosen by `pack`.

The law a backend must keep on CPU in float32: **a row's output does not depend on the other rows,
on their number or on the number of threads**, bit for bit. Plain `F.linear` breaks it (a matrix
product of 1, 2 or 3 rows takes another kernel than one of 16), and greedy decoding would then
depend on who shares the batch. Measured on AVX2 and AVX512 CPUs with torch 2.13, 1 and 2 threads:

- our own kernel (`models/native/`): invariant by construction, at the speed of memory for a lone
  row, float32 and bfloat16 weights; used wherever a C++ compiler is at hand.
- oneDNN with a pre-packed weight: rows agree for every number of rows >= 2, so a lone row is
  sent twice. Packing also saves a re-pack per call.
- `F.linear`: rows agree for every multiple of 4, so rows are padded to one.
- bfloat16 on CPU, and CUDA: fast, no bitwise promise.

A 4-bit or 8-bit backend is one more class here and one more line in `backend`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from decodery.models import native


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


class NativeLinear:
    """Our compiled kernel: weights float32 or bfloat16, sums float32, rows bitwise independent.

    The unpacked weight is not kept.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        kernels = native.library()
        assert kernels is not None
        kind = str(weight.dtype).removeprefix("torch.")
        self._multiply = getattr(kernels, f"decodery_linear_{kind}")
        self._outputs, self._inputs = weight.shape
        panels = -(-self._outputs // 16)
        self._weight = torch.empty((panels, self._inputs, 16), dtype=weight.dtype)
        pack_panels = getattr(kernels, f"decodery_pack_{kind}")
        weight = weight.contiguous()
        pack_panels(weight.data_ptr(), self._weight.data_ptr(), self._outputs, self._inputs)
        self._bias = None if bias is None else bias.float().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self._inputs:
            raise ValueError(f"x is {tuple(x.shape)}; expected [n, {self._inputs}]")
        exact = x.float().contiguous()
        y = torch.empty((x.shape[0], self._outputs), dtype=torch.float32)
        self._multiply(
            exact.data_ptr(),
            self._weight.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            y.data_ptr(),
            x.shape[0],
            self._inputs,
            self._outputs,
            torch.get_num_threads(),
        )
        return y.to(x.dtype)


def backend(dtype: torch.dtype, device: torch.device | str) -> Backend:
    """The best backend for a dtype on a device of this machine."""
    if torch.device(device).type != "cpu":
        return PlainLinear
    compiled = native.library() is not None
    if dtype == torch.float32:
        return NativeLinear if compiled else OneDnnLinear if _onednn() else PaddedLinear
    if dtype == torch.bfloat16:
        if _onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return OneDnnLinear  # matrix units for bfloat16: fast for many rows
        return NativeLinear if compiled else PlainLinear
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
