"""Matrices of integer codes: what a quantised weight is before anyone turns it into floats.

    weight[o, i] = scale[o, i // group] * codes[o, i] + offset[o, i // group]

Every quantisation of GGUF whose steps are even is of this form with nothing rounded (see
`gguf_codes.py`); `quantise` makes it from float weights. A kernel multiplies with the codes as they
are; `dequantise` is what it has to agree with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

GROUP = 32
_CODE_TYPES = {4: torch.uint8, 8: torch.int8}
_PIECE = 32_736  # values at a time, a multiple of the group; ATen starts threads at 32,768
_REFITS = 3
_LARGEST = 1e30  # sums of squares stay in float32
_LARGEST_HALF = 30_000.0  # half of float16's range: fitting may enlarge a scale
_MOST_MOVED = 0.01  # relative, of a scale by rounding to float16


@dataclass(frozen=True, eq=False)
class Codes:
    """A matrix of integer codes; the module's first lines give its values."""

    codes: Tensor  # [outputs, inputs]; bits 4: uint8, 0 to 15; bits 8: int8, -128 to 127
    bits: int  # 4 or 8
    group: int  # inputs that share a scale, 32 or 16
    scale: Tensor  # [outputs, inputs // group], float16 or float32
    offset: Tensor | None  # as `scale`, in its dtype; None: all zero

    def __post_init__(self) -> None:
        if self.codes.dtype != _CODE_TYPES.get(self.bits) or self.codes.dim() != 2:
            raise ValueError(f"codes of {self.bits} bits are {self.codes.dtype}, {self.shape}")
        groups = (self.outputs, self.inputs // self.group)
        for values in (self.scale, self.scale if self.offset is None else self.offset):
            if tuple(values.shape) != groups or values.dtype != self.scale.dtype:
                raise ValueError(f"scales are {values.dtype} {tuple(values.shape)}, not {groups}")
        if self.inputs % self.group or self.group not in (16, 32):
            raise ValueError(f"{self.inputs} inputs in groups of {self.group}; allowed: 16 and 32")

    @property
    def outputs(self) -> int:
        return self.codes.shape[0]

    @property
    def inputs(self) -> int:
        return self.codes.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    def dequantise(self) -> Tensor:
        """The values, float32 [outputs, inputs]: a product, then a sum, each rounded once."""
        values = self.codes.float().view(self.outputs, -1, self.group)
        values *= self.scale.float()[:, :, None]
        if self.offset is not None:
            values += self.offset.float()[:, :, None]
        return values.view(self.outputs, self.inputs)

    def rows(self, start: int, end: int) -> Codes:
        """Outputs `start` to `end - 1`, sharing memory."""
        return self._each(lambda values: values[start:end])

    def widened(self) -> Codes:
        """The same values in 8 bits."""
        return self if self.bits == 8 else replace(self, codes=self.codes.view(torch.int8), bits=8)

    def halved_groups(self) -> Codes:
        """The same values in groups of 16."""
        if self.group == 16:
            return self
        scale = self.scale.repeat_interleave(2, dim=1)
        offset = None if self.offset is None else self.offset.repeat_interleave(2, dim=1)
        return replace(self, group=16, scale=scale, offset=offset)

    def original_rows(self, heads: int) -> Codes:
        """Undoes llama.cpp's row order of a query or key projection; see `original_rows`."""
        return self._each(lambda values: original_rows(values, heads))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Codes:
        offset = None if self.offset is None else change(self.offset)
        return replace(self, codes=change(self.codes), scale=change(self.scale), offset=offset)


def concatenated(parts: Sequence[Codes]) -> Codes:
    """The outputs of several matrices of the same inputs one after another, values unchanged.

    Where the parts differ, all take the wider form: 8 bits, groups of 16, float32, an offset.
    """
    if min(part.bits for part in parts) != max(part.bits for part in parts):
        parts = [part.widened() for part in parts]
    if min(part.group for part in parts) != max(part.group for part in parts):
        parts = [part.halved_groups() for part in parts]
    half = all(part.scale.dtype == torch.float16 for part in parts)
    dtype = torch.float16 if half else torch.float32
    offsets = None
    if any(part.offset is not None for part in parts):
        offsets = torch.cat(
            [torch.zeros_like(p.scale) if p.offset is None else p.offset for p in parts]
        ).to(dtype)
    return Codes(
        torch.cat([part.codes for part in parts]),
        parts[0].bits,
        parts[0].group,
        torch.cat([part.scale.to(dtype) for part in parts]),
        offsets,
    )


def original_rows(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's row order of a query or key projection `(heads * width, anything)`.

    Inside a head it puts the two halves of the rotary embedding side by side (0, w/2, 1, ...);
    transformers keeps them apart (`LlamaModel.permute` in `convert_hf_to_gguf.py`, reversed).
    """
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, rows, 2, -1).transpose(1, 2).reshape(weight.shape)


def quantise(weight: Tensor, bits: int) -> Codes:
    """Float weights [outputs, inputs] as codes in groups of 32 inputs.

    8 bits: symmetric, scale = largest magnitude / 127. 4 bits: scale and offset that span a group,
    then fitted to its values by least squares. Codes are computed with the stored (rounded) scales,
    float16 where that moves none by more than 1 %, else float32. Raises `ValueError` where inputs
    are no multiple of 32 (keep such a matrix in floats), for values that are not finite or beyond
    1e30, and for other bits.
    """
    if bits not in _CODE_TYPES:
        raise ValueError(f"bits is {bits}; allowed are 4 and 8")
    if weight.dim() != 2 or weight.shape[1] % GROUP:
        raise ValueError(f"weight is {tuple(weight.shape)}; its rows have to be multiples of 32")
    groups = weight.float().reshape(-1, GROUP)
    if not bool(groups.abs().max() <= _LARGEST):  # NaN is not
        raise ValueError(f"weight has values that are not finite or beyond {_LARGEST}")
    full_range = _symmetric if bits == 8 else _full_range
    scale, offset = full_range(groups)
    dtype = _scale_type(scale, offset)
    codes = torch.empty(groups.shape, dtype=_CODE_TYPES[bits])
    scale, offset = scale.to(dtype), None if offset is None else offset.to(dtype)
    for start in range(0, len(groups), _PIECE // GROUP):
        piece = slice(start, start + _PIECE // GROUP)
        if offset is None:
            codes[piece] = _nearest(groups[piece], scale[piece].float(), None, -127, 127)
        else:
            codes[piece], scale[piece], offset[piece] = _fitted(groups[piece], dtype)
    per_row = (weight.shape[0], weight.shape[1] // GROUP)
    return Codes(
        codes.view(weight.shape),
        bits,
        GROUP,
        scale.view(per_row),
        None if offset is None else offset.view(per_row),
    )


def _symmetric(groups: Tensor) -> tuple[Tensor, None]:
    """Scales of 8-bit codes, [n, 1]."""
    low, high = groups.aminmax(dim=1, keepdim=True)
    return torch.maximum(high, -low) / 127, None


def _full_range(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets that span each group with 4-bit codes, [n, 1] each."""
    low, high = groups.aminmax(dim=1, keepdim=True)
    return high / 15 - low / 15, low


def _scale_type(scale: Tensor, offset: Tensor | None) -> torch.dtype:
    """float16 where rounding moves no scale, and no offset against its scale, by more than 1 %."""
    size = scale if offset is None else torch.maximum(scale, offset.abs())
    unfit = (scale.half().float() - scale).abs() > _MOST_MOVED * scale
    if offset is not None:
        unfit |= (offset.half().float() - offset).abs() > _MOST_MOVED * size
    unfit |= size > _LARGEST_HALF
    return torch.float32 if bool(unfit.any()) else torch.float16


def _nearest(values: Tensor, scale: Tensor, offset: Tensor | None, low: int, high: int) -> Tensor:
    """The nearest codes, as floats; 0 for a group whose scale is 0."""
    steps = (values if offset is None else values - offset) / torch.where(scale == 0, 1.0, scale)
    return steps.round_().clamp_(low, high)


def _fitted(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """4-bit codes, scales and offsets: nearest codes and least squares scales in turn.

    On Gaussian weights the squared error falls by 14 % from that of the full range.
    """
    scale, offset = _rounded(*_full_range(values), dtype)
    codes = _nearest(values, scale, offset, 0, 15)
    for _ in range(_REFITS):
        scale, offset = _rounded(*_least_squares(values, codes), dtype)
        codes = _nearest(values, scale, offset, 0, 15)
    return codes, scale, offset


def _least_squares(values: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The scales and offsets, [n, 1], that bring these codes nearest to the values."""
    middle, value = codes.mean(dim=1, keepdim=True), values.mean(dim=1, keepdim=True)
    off_middle = codes - middle
    spread = off_middle.square().sum(dim=1, keepdim=True)  # 0 in a group of one value
    covariance = (off_middle * (values - value)).sum(dim=1, keepdim=True)
    scale = covariance / torch.where(spread == 0, 1.0, spread)
    return scale, value - scale * middle


def _rounded(scale: Tensor, offset: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return scale.to(dtype).float(), offset.to(dtype).float()
