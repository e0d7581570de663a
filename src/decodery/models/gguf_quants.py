"""Values and codes of quantised tensors: ggml's block formats, unpacked.

A block holds 32 or 256 values as small integers with shared scales (and minima):

    value = (code - centre) * scale + offset

`_FORMATS` says for each format how to find the three; the layouts are those of ggml's
`dequantize_row_*` (`ggml-quants.c`). Dequantising does the float32 operations in its order, so
results are bit-equal to it. `codes_of` gives the integers themselves, nothing rounded. `blocks` is
`(n, bytes of a block)` and `codes` `(n, values of a block)`, both uint8, throughout.

Work goes in pieces that stay in the processor's own cache, and torch's below its threading grain:
one core is then as fast as two, and a busy machine does not stall it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch

from decodery.core.errors import ModelFileError
from decodery.models.codes import Codes
from decodery.models.gguf_file import TENSOR_TYPES, BlockType, GgufFile

Array: TypeAlias = "np.ndarray[Any, Any]"
Scales: TypeAlias = "tuple[Array, Array | None]"  # scale and offset, (n, groups of a block)

_PIECE = 32_767  # values at a time; ATen starts threads at 32,768
_CODES_PIECE = 131_072
_LOW_HALVES = np.uint64(0x0F0F0F0F0F0F0F0F)
_PLAIN: Mapping[str, torch.dtype] = MappingProxyType(
    {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)


@dataclass(frozen=True, slots=True)
class _Format:
    """How a block type is unpacked: `unpack` writes the codes and returns scale and offset."""

    unpack: Callable[[Array, Array], Scales]
    bits: int  # 4 or 8: the narrowest of the two that holds the codes
    group: int  # values that share a scale
    centre: int = 0  # the code of value 0, where there is no offset


def dequantise_tensor(file: GgufFile, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor's values in `dtype` (float32 by default), in its torch shape.

    Computed in float32 and rounded once. Raises `ModelFileError` for a type that is not supported.
    """
    info = file.tensor(name)
    if info.type not in SUPPORTED:
        raise ModelFileError(
            f"{file.path}: tensor {name!r} is stored as {info.type}, which is not supported; "
            f"supported: {', '.join(SUPPORTED)}"
        )
    block = _BLOCKS[info.type]
    count = info.nbytes // block.nbytes
    values = torch.empty(count, block.elements, dtype=dtype or torch.float32)
    form = _FORMATS.get(info.type)
    for piece, blocks in _pieces(file, name, block, _PIECE):
        if form is None:
            values[piece] = torch.from_numpy(blocks).view(_PLAIN[info.type])
        else:
            values[piece] = torch.from_numpy(_floats(form, blocks, block))
    return values.reshape(info.shape)


def codes_of(file: GgufFile, name: str) -> Codes | None:
    """A matrix's own codes, none of them rounded; None for floats and for vectors.

    `dequantise()` of the result equals `dequantise_tensor`, except that a zero may have the other
    sign. Raises `ModelFileError` for a type that is not supported and for scales that are not
    finite.
    """
    info = file.tensor(name)
    form = _FORMATS.get(info.type)
    if form is None or len(info.shape) != 2:
        return None
    block = _BLOCKS[info.type]
    count = info.nbytes // block.nbytes
    codes = np.empty((count, block.elements), np.uint8)
    scales: list[Scales] = []
    for piece, blocks in _pieces(file, name, block, _CODES_PIECE):
        scales.append(_unpacked(form, blocks, codes[piece]))
        if form.bits == 8 and form.centre:
            codes[piece] -= np.uint8(form.centre)
    per_row = (info.shape[0], info.shape[1] // form.group)
    scale, offset = _joined(form, scales)
    if not (np.isfinite(scale).all() and (offset is None or np.isfinite(offset).all())):
        raise ModelFileError(f"{file.path}: tensor {name!r} has a scale that is not finite")
    signed = codes.view(np.uint8 if form.bits == 4 else np.int8)
    return Codes(
        torch.from_numpy(signed.reshape(info.shape)),
        form.bits,
        form.group,
        torch.from_numpy(scale.reshape(per_row)),
        None if offset is None else torch.from_numpy(offset.reshape(per_row)),
    )


def _joined(form: _Format, scales: list[Scales]) -> Scales:
    """The scales of all pieces, in float16 where that holds every one, else in float32."""
    scale = np.concatenate([pair[0] for pair in scales])
    offsets = [pair[1] for pair in scales if pair[1] is not None]
    offset = np.concatenate(offsets) if offsets else None
    if form.bits == 4 and form.centre:
        offset = scale.astype(np.float32) * -form.centre
    halves = _half_exactly(scale), None if offset is None else _half_exactly(offset)
    if halves[0] is None or (offset is not None and halves[1] is None):
        return scale.astype(np.float32), None if offset is None else offset.astype(np.float32)
    return halves[0], halves[1]


def _half_exactly(values: Array) -> Array | None:
    with np.errstate(over="ignore", invalid="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half, values) else None


def _pieces(
    file: GgufFile, name: str, block: BlockType, most: int
) -> Iterator[tuple[slice, Array]]:
    """A tensor's blocks, `most` values at a time, and their places. Copies, contiguous."""
    stored = file.tensor_bytes(name).reshape(-1, block.nbytes)
    step = most // block.elements
    for start in range(0, len(stored), step):
        yield slice(start, start + step), stored[start : start + step].copy()


def _floats(form: _Format, blocks: Array, block: BlockType) -> Array:
    codes = np.empty((len(blocks), block.elements), np.uint8)
    scale, offset = _unpacked(form, blocks, codes)
    with np.errstate(invalid="ignore", over="ignore"):  # scales that are not finite
        signed = codes.view(np.int8)  # no unsigned code is above 127
        if form.centre:
            signed -= np.int8(form.centre)
        values = signed.astype(np.float32).reshape(*scale.shape, form.group)
        # Two roundings as in ggml: a fused multiply-add would differ in the last bit.
        values *= scale.astype(np.float32)[:, :, None]
        if offset is not None:
            values += offset.astype(np.float32)[:, :, None]
    return values.reshape(codes.shape)


def _unpacked(form: _Format, blocks: Array, codes: Array) -> Scales:
    with np.errstate(invalid="ignore"):  # scales that are not finite
        return form.unpack(blocks, codes)


def _half(blocks: Array, start: int) -> Array:
    """The float16 at byte `start` (even) of each block, `(n, 1)`."""
    return blocks.view(np.float16)[:, start // 2 : start // 2 + 1].copy()


def _halves(packed: Array, codes: Array, run: int) -> None:
    """Two 4-bit codes a byte: for each `run` bytes all the low halves, then all the high ones."""
    words = np.ascontiguousarray(packed).view(np.uint64).reshape(-1, run // 8)
    out = codes.view(np.uint64).reshape(-1, 2, run // 8)
    for column in range(run // 8):  # a column at a time: numpy is slow over short last axes
        word = words[:, column]
        np.bitwise_and(word, _LOW_HALVES, out=out[:, 0, column])
        np.bitwise_and(word >> np.uint64(4), _LOW_HALVES, out=out[:, 1, column])


def _add_fifth_bit(packed: Array, codes: Array) -> None:
    """Bit i of the 32-bit word adds 16 to code i. `packed` `(n, 4)`, little-endian."""
    bits = np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")
    codes |= bits << np.uint8(4)


def _q4_0(blocks: Array, codes: Array) -> Scales:
    _halves(blocks[:, 2:], codes, 16)
    return _half(blocks, 0), None


def _q4_1(blocks: Array, codes: Array) -> Scales:
    _halves(blocks[:, 4:], codes, 16)
    return _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Array, codes: Array) -> Scales:
    _halves(blocks[:, 6:], codes, 16)
    _add_fifth_bit(blocks[:, 2:6], codes)
    return _half(blocks, 0), None


def _q5_1(blocks: Array, codes: Array) -> Scales:
    _halves(blocks[:, 8:], codes, 16)
    _add_fifth_bit(blocks[:, 4:8], codes)
    return _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Array, codes: Array) -> Scales:
    codes[:] = blocks[:, 2:]
    return _half(blocks, 0), None


def _pairs(packed: Array, codes: Array) -> None:
    """Four 2-bit codes a byte: for each 32 bytes the lowest pairs of bits, then the next."""
    words = np.ascontiguousarray(packed).reshape(-1, 1, 32)
    out = codes.reshape(-1, 4, 32)
    for place in range(4):
        out[:, place] = (words[:, 0] >> np.uint8(2 * place)) & np.uint8(3)


def _q2_k(blocks: Array, codes: Array) -> Scales:
    _pairs(blocks[:, 16:80], codes)
    scales, minima = blocks[:, :16] & np.uint8(15), blocks[:, :16] >> np.uint8(4)
    return _times(blocks, 80, scales), -_times(blocks, 82, minima)


def _q3_k(blocks: Array, codes: Array) -> Scales:
    _pairs(blocks[:, 32:96], codes)
    groups = codes.reshape(-1, 8, 32)
    for place in range(8):
        groups[:, place] |= ((blocks[:, :32] >> np.uint8(place)) & np.uint8(1)) << np.uint8(2)
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    scales = np.concatenate([low & np.uint8(15), low >> np.uint8(4)], axis=1)
    for place in range(4):
        pair = (high >> np.uint8(2 * place)) & np.uint8(3)
        scales[:, 4 * place : 4 * place + 4] |= pair << np.uint8(4)
    return _times(blocks, 108, scales.view(np.int8) - np.int8(32)), None


def _q4_k(blocks: Array, codes: Array) -> Scales:
    _halves(blocks[:, 16:144], codes, 32)
    return _k_scales(blocks)


def _q5_k(blocks: Array, codes: Array) -> Scales:
    _halves(blocks[:, 48:176], codes, 32)
    groups, fifths = codes.reshape(-1, 8, 32), blocks[:, 16:48]
    for place in range(8):
        groups[:, place] |= ((fifths >> np.uint8(place)) & np.uint8(1)) << np.uint8(4)
    return _k_scales(blocks)


def _k_scales(blocks: Array) -> Scales:
    """Eight 6-bit scales and eight 6-bit minima in the 12 bytes from byte 4.

    The first four of each lie in the low six bits of bytes 0-3 and 4-7; the last four take four
    bits from bytes 8-11 and their top two from bytes 0-3 and 4-7.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    six, four, top = np.uint8(63), np.uint8(15), np.uint8(48)
    two, low = np.uint8(2), np.uint8(4)
    scales = np.concatenate([first & six, (third & four) | ((first >> two) & top)], axis=1)
    minima = np.concatenate([second & six, (third >> low) | ((second >> two) & top)], axis=1)
    return _times(blocks, 0, scales), -_times(blocks, 2, minima)


def _q6_k(blocks: Array, codes: Array) -> Scales:
    _halves(blocks[:, :128], codes, 64)
    groups, high = codes.reshape(-1, 2, 4, 32), blocks[:, 128:192].reshape(-1, 2, 32)
    for place in range(4):
        pair = (high >> np.uint8(2 * place)) & np.uint8(3)
        groups[:, :, place] |= pair << np.uint8(4)
    return _times(blocks, 208, blocks[:, 192:208].view(np.int8)), None


def _times(blocks: Array, start: int, factors: Array) -> Array:
    """The float16 at byte `start` times small integers, exact in float32."""
    return _half(blocks, start).astype(np.float32) * factors.astype(np.float32)


_FORMATS: Mapping[str, _Format] = MappingProxyType(
    {
        "Q4_0": _Format(_q4_0, bits=4, group=32, centre=8),
        "Q4_1": _Format(_q4_1, bits=4, group=32),
        "Q5_0": _Format(_q5_0, bits=8, group=32, centre=16),
        "Q5_1": _Format(_q5_1, bits=8, group=32),
        "Q8_0": _Format(_q8_0, bits=8, group=32),
        "Q2_K": _Format(_q2_k, bits=4, group=16),
        "Q3_K": _Format(_q3_k, bits=4, group=16, centre=4),
        "Q4_K": _Format(_q4_k, bits=4, group=32),
        "Q5_K": _Format(_q5_k, bits=8, group=32),
        "Q6_K": _Format(_q6_k, bits=8, group=16, centre=32),
    }
)
SUPPORTED: tuple[str, ...] = (*_PLAIN, *_FORMATS)
_BLOCKS: Mapping[str, BlockType] = MappingProxyType(
    {block.name: block for block in TENSOR_TYPES.values()}
)
