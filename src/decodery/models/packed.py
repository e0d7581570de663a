"""Matrices in the layout of the compiled kernels, and multiplying with them.

Weights are float32, bfloat16 or integer codes; inputs and results float32. A row of the result is
bitwise the same whatever the other rows are, however many there are, and with any number of
threads (`native/matrix.h`). With codes the inputs are rounded to 8 bits, one scale for each 32.
"""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import torch
from torch import Tensor

from decodery.models import native
from decodery.models.codes import Codes
from decodery.models.native import structures

_KINDS = {torch.float32: structures.FLOAT32, torch.bfloat16: structures.BFLOAT16}
_CODE_KINDS = {4: structures.CODES4, 8: structures.CODES8}


class PackedMatrix:
    """One matrix [outputs, inputs] and its bias [outputs] or None, packed; a `Linear`.

    `weight` is a float32 or bfloat16 tensor, or codes. It is not kept. Needs the compiled library.
    """

    def __init__(self, weight: Tensor | Codes, bias: Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape
        self._bias = None if bias is None else bias.float().contiguous()
        self.structure = structures.Matrix(inputs=self.inputs, outputs=self.outputs)
        if self._bias is not None:
            self.structure.bias = self._bias.data_ptr()
        if isinstance(weight, Codes):
            self._pack_codes(weight)
        else:
            self._pack_floats(weight.contiguous())

    @property
    def nbytes(self) -> int:
        """Bytes read to multiply with it."""
        return self._panels.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, inputs] -> [n, outputs] in the dtype of x."""
        if x.dim() != 2 or x.shape[1] != self.inputs:
            raise ValueError(f"x is {tuple(x.shape)}; expected [n, {self.inputs}]")
        exact = x.float().contiguous()
        y = torch.empty((x.shape[0], self.outputs), dtype=torch.float32)
        failed = library().decodery_linear(
            self.structure, exact.data_ptr(), y.data_ptr(), x.shape[0], torch.get_num_threads()
        )
        if failed:
            raise MemoryError(f"no memory to multiply {x.shape[0]} rows")
        return y.to(x.dtype)

    def _pack_floats(self, weight: Tensor) -> None:
        self.structure.kind = _KINDS[weight.dtype]
        self._panels = self._room()
        library().decodery_pack_floats(self.structure, weight.data_ptr(), self._panels.data_ptr())

    def _pack_codes(self, weight: Codes) -> None:
        if weight.inputs % 32:
            raise ValueError(f"codes of {weight.inputs} inputs; the kernels take multiples of 32")
        self.structure.kind = _CODE_KINDS[weight.bits]
        self.structure.group = weight.group
        self.structure.half_scales = weight.scale.dtype == torch.float16
        self.structure.has_offsets = weight.offset is not None
        self._panels = self._room()
        codes, scale = weight.codes.contiguous(), weight.scale.contiguous()
        offset = None if weight.offset is None else weight.offset.contiguous()
        library().decodery_pack_codes(
            self.structure,
            codes.data_ptr(),
            scale.data_ptr(),
            None if offset is None else offset.data_ptr(),
            self._panels.data_ptr(),
        )

    def _room(self) -> Tensor:
        room = _ROOM.take(library().decodery_packed_bytes(self.structure))
        self.structure.panels = room.data_ptr()
        return room


class _Room:
    """Memory for panels, many matrices side by side in large blocks.

    numpy asks the system for huge pages under large arrays. Under ordinary ones a step of a model
    that is read from memory once a token takes a tenth to a sixth longer (measured).
    """

    _BLOCK, _LINE = 64 << 20, 64

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, nbytes: int) -> Tensor:
        """uint8 [nbytes], not initialised, at the start of a cache line."""
        if nbytes > self._BLOCK // 4:
            return self._new(nbytes)[:nbytes]
        with self._lock:
            if self._used + nbytes > len(self._block):
                self._block, self._used = self._new(self._BLOCK), 0
            start = self._used
            self._used += -(-nbytes // self._LINE) * self._LINE
            return self._block[start : start + nbytes]

    def _new(self, nbytes: int) -> Tensor:
        block = torch.from_numpy(np.empty(nbytes + self._LINE, dtype=np.uint8))
        return block[-block.data_ptr() % self._LINE :]


_ROOM = _Room()


def library() -> ctypes.CDLL:
    """The compiled kernels, which the caller knows to be there."""
    found = native.library()
    if found is None:
        raise RuntimeError(f"there are no compiled kernels: {native.why_not()}")
    return found
