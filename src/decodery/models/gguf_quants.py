"""Values of quantised tensors: ggml's block formats to float32, then rounded once.

A block holds 32 or 256 values as small integers with shared scales (and minima). Each formula is
the one of ggml's `dequantize_row_*` (`ggml-quants.c`), in the same order of float32 operations, so
results are bit-equal to it. `blocks` is `(n, bytes of a block)` uint8 and `out` is `(n, values of
a block)` float32 throughout.

Work goes in pieces below torch's threading grain: one core at memory speed is as fast as two for
this, and a busy machine does not stall it (two threads were seen ten times slower there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from decodery.core.errors import ModelFileError
from decodery.models.gguf import TENSOR_TYPES, BlockType, GgufFile

_PIECE = 32_767  # values at a time; ATen starts threads at 32,768
_BITS = torch.arange(8, dtype=torch.uint8)
_PLAIN: Mapping[str, torch.dtype] = MappingProxyType(
    {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)


def dequantise_tensor(file: GgufFile, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor's values in `dtype` (float32 by default), in its torch shape."""
    info = file.tensor(name)
    if info.type not in SUPPORTED:
        raise ModelFileError(
            f"{file.path}: tensor {name!r} is stored as {info.type}, which is not supported; "
            f"supported: {', '.join(SUPPORTED)}"
        )
    block = _BLOCKS[info.type]
    stored = file.tensor_bytes(name).reshape(-1, block.nbytes)
    values = torch.empty(len(stored), block.elements, dtype=dtype or torch.float32)
    step = _PIECE // block.elements
    work = torch.empty(step, block.elements)
    for start in range(0, len(stored), step):
        # Copied because torch wants writable memory and the map is read-only.
        blocks = torch.from_numpy(stored[start : start + step].copy())
        target = values[start : start + step]
        if values.dtype == torch.float32:
            _FORMULAS[info.type](blocks, target)
            continue
        out = work[: len(blocks)]
        _FORMULAS[info.type](blocks, out)
        target.copy_(out)
    return values.reshape(info.shape)


def _plain(dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor], None]:
    def copy(blocks: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(blocks.view(dtype))

    return copy


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The float16 at byte `start` of each block, as float32 `(n, 1)`."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _low_and_high(packed: torch.Tensor, out: torch.Tensor) -> None:
    """Two 4-bit values a byte: all the low halves, then all the high halves."""
    packed = packed.contiguous()
    out.copy_(torch.cat([packed & 15, packed >> 4], dim=1))


def _add_fifth_bit(packed: torch.Tensor, out: torch.Tensor) -> None:
    """Bit i of the 32-bit word adds 16 to value i. `packed` `(n, 4)`, little-endian."""
    bits = (packed[:, :, None] >> _BITS) & 1
    out.add_(bits.reshape(out.shape), alpha=16)


def _q4_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _low_and_high(blocks[:, 2:], out)
    out.sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _low_and_high(blocks[:, 4:], out)
    # Two roundings as in ggml: a fused multiply-add would differ in the last bit.
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _low_and_high(blocks[:, 6:], out)
    _add_fifth_bit(blocks[:, 2:6], out)
    out.sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _low_and_high(blocks[:, 8:], out)
    _add_fifth_bit(blocks[:, 4:8], out)
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8))
    out.mul_(_half(blocks, 0))


def _scales_and_minima(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes; each `(n, 8)`.

    The first four of each lie in the low six bits of bytes 0-3 and 4-7; the last four take four
    bits from bytes 8-11 and their top two from bytes 0-3 and 4-7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], dim=1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], dim=1)
    return scales.float(), minima.float()


def _q4_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _k_nibbles(blocks[:, 16:144], out)
    _k_scale(blocks, out)


def _q5_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _k_nibbles(blocks[:, 48:176], out)
    bits = (blocks[:, None, 16:48] >> _BITS[:, None]) & 1
    out.view(-1, 8, 32).add_(bits, alpha=16)
    _k_scale(blocks, out)


def _k_nibbles(packed: torch.Tensor, out: torch.Tensor) -> None:
    """Groups of 32 bytes: the low halves are one group of 32 values, the high halves the next."""
    groups = packed.reshape(-1, 4, 1, 32)
    out.view(-1, 4, 2, 32).copy_(torch.cat([groups & 15, groups >> 4], dim=2))


def _k_scale(blocks: torch.Tensor, out: torch.Tensor) -> None:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    scale = (_half(blocks, 0) * scales)[:, :, None]
    minimum = (_half(blocks, 2) * minima)[:, :, None]
    out.view(-1, 8, 32).mul_(scale).sub_(minimum)


def _q6_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat([low & 15, low >> 4], dim=2).reshape(-1, 8, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = ((high >> _BITS[0:8:2, None]) & 3).reshape(-1, 8, 32)
    out.view(-1, 8, 32).copy_(low | (high << 4))
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    out.sub_(32).view(-1, 16, 16).mul_(scales[:, :, None])


_FORMULAS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], None]] = MappingProxyType(
    {
        **{name: _plain(dtype) for name, dtype in _PLAIN.items()},
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
    }
)
SUPPORTED: tuple[str, ...] = tuple(_FORMULAS)
_BLOCKS: Mapping[str, BlockType] = MappingProxyType(
    {block.name: block for block in TENSOR_TYPES.values()}
)
