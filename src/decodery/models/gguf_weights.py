"""Weights read straight from a GGUF file, under the names and in the layout of transformers.

Codes are those of the file, never quantised anew; only the order of rows may change. Tensors are
copied out of the map one at a time, so memory holds what was asked for and no second model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from decodery.core.errors import ModelFileError
from decodery.models import gguf
from decodery.models.weights import CODES, Precision, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.models.codes import Codes


class GgufWeights:
    """The `Weights` of a GGUF file. A context manager; tensors already read outlive it.

    Raises `ModelFileError` for a file that is no GGUF, of an architecture we do not run, or whose
    tensors are not those of its architecture.
    """

    def __init__(self, path: Path) -> None:
        from decodery.models import gguf_architectures  # brings torch

        self._file = gguf.read(path)
        try:
            config = gguf_architectures.config(self._file)
            self._parameters = gguf_architectures.parameters(self._file, config)
        except ModelFileError:
            self.close()
            raise
        self.shapes: Mapping[str, Shape] = {
            name: parameter.shape for name, parameter in self._parameters.items()
        }

    @property
    def precision(self) -> Precision:
        """As `Weights.precision`."""
        return file_precision(self._file)

    def source(self, name: str) -> str:
        """The file, and the name the tensor has there."""
        parameter = self._parameters.get(name)
        return str(self._file.path) + (f" ({parameter.stored})" if parameter else "")

    def tensor(self, name: str) -> Tensor:
        """A tensor's values: float32, or the file's float16 or bfloat16 where it stores those."""
        import torch

        parameter = self._parameters[name]
        stored = self._file.tensor(parameter.stored).type
        dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(stored, torch.float32)
        if parameter.minus_one:  # the difference in float32
            return gguf.dequantise(self._file, parameter.stored) - 1
        values = gguf.dequantise(self._file, parameter.stored, dtype)
        if not parameter.heads:
            return values
        from decodery.models.codes import original_rows

        return original_rows(values, parameter.heads)

    def codes(self, name: str) -> Codes | None:
        """A matrix's own codes, or None where the file stores floats."""
        from decodery.models.gguf_quants import codes_of

        parameter = self._parameters[name]
        codes = None if parameter.minus_one else codes_of(self._file, parameter.stored)
        if codes is None or not parameter.heads:
            return codes
        return codes.original_rows(parameter.heads)

    def close(self) -> None:
        """Closes the file. Closing twice does nothing."""
        self._file.close()

    def __enter__(self) -> GgufWeights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def file_precision(file: gguf.GgufFile) -> Precision:
    """`codes` where a matrix of the file is quantised, else that of most of its values."""
    matrices = [info for info in file.tensors.values() if len(info.shape) > 1]
    if any(info.type not in ("F32", "F16", "BF16") for info in matrices):
        return CODES
    halves = sum(info.nbytes // 2 for info in matrices if info.type == "BF16")
    wholes = sum(info.nbytes // (4 if info.type == "F32" else 2) for info in matrices) - halves
    return "bf16" if halves > wholes else "float32"
