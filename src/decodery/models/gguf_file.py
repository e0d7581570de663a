"""What a GGUF file holds once it is read: metadata, the table of tensors, views of their bytes.

Block sizes: ggml's `ggml-common.h`.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, TypeAlias, overload

import numpy as np

from decodery.core.errors import ModelFileError
from decodery.models.bounds import require_memory, shown


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a tensor type stores values: `nbytes` bytes for each block of `elements` values."""

    name: str
    elements: int
    nbytes: int


TENSOR_TYPES: Mapping[int, BlockType] = MappingProxyType(
    {
        0: BlockType("F32", 1, 4),
        1: BlockType("F16", 1, 2),
        2: BlockType("Q4_0", 32, 18),
        3: BlockType("Q4_1", 32, 20),
        6: BlockType("Q5_0", 32, 22),
        7: BlockType("Q5_1", 32, 24),
        8: BlockType("Q8_0", 32, 34),
        9: BlockType("Q8_1", 32, 40),
        10: BlockType("Q2_K", 256, 84),
        11: BlockType("Q3_K", 256, 110),
        12: BlockType("Q4_K", 256, 144),
        13: BlockType("Q5_K", 256, 176),
        14: BlockType("Q6_K", 256, 210),
        15: BlockType("Q8_K", 256, 292),
        16: BlockType("IQ2_XXS", 256, 66),
        17: BlockType("IQ2_XS", 256, 74),
        18: BlockType("IQ3_XXS", 256, 98),
        19: BlockType("IQ1_S", 256, 50),
        20: BlockType("IQ4_NL", 32, 18),
        21: BlockType("IQ3_S", 256, 110),
        22: BlockType("IQ2_S", 256, 82),
        23: BlockType("IQ4_XS", 256, 136),
        24: BlockType("I8", 1, 1),
        25: BlockType("I16", 1, 2),
        26: BlockType("I32", 1, 4),
        27: BlockType("I64", 1, 8),
        28: BlockType("F64", 1, 8),
        29: BlockType("IQ1_M", 256, 56),
        30: BlockType("BF16", 1, 2),
        34: BlockType("TQ1_0", 256, 54),
        35: BlockType("TQ2_0", 256, 66),
        39: BlockType("MXFP4", 32, 17),
    }
)


class TextArray(Sequence[str]):
    """An array of strings, decoded when an element is read.

    Only the places are kept (8 bytes a string, as many as the file spends on its length), so that
    a file of many short strings does not become a list many times its size.
    """

    def __init__(self, data: mmap.mmap, path: Path, key: str, places: array[int], end: int) -> None:
        self._data = data
        self._path = path
        self._key = key
        self._places = places  # of each string's length field
        self._end = end

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._text(i) for i in range(*index.indices(len(self)))]
        return self._text(range(len(self))[index])

    @property
    def nbytes(self) -> int:
        """What the texts take in the file, their lengths included."""
        return self._end - self._places[0] if self._places else 0

    def nbytes_of(self, index: int) -> int:
        """The length of one text in UTF-8."""
        return self._stop(index) - self._places[index] - 8

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def tolist(self) -> list[str]:
        """Every string. Raises `ModelFileError` where one is not UTF-8."""
        borders = array("Q", [*self._places, self._end])
        first = borders[0]
        try:  # all at once: a slice of bytes is cheaper than one of the map
            stored = self._data[first : self._end]
            return [stored[a + 8 - first : b - first].decode() for a, b in pairwise(borders)]
        except ValueError:  # one is not UTF-8, or the file was closed: say which
            return [self._text(i) for i in range(len(self))]

    def _text(self, index: int) -> str:
        try:
            return self._data[self._places[index] + 8 : self._stop(index)].decode()
        except UnicodeDecodeError as error:
            _fail(self._path, f"{shown(self._key)}[{index}] is not UTF-8: {error.reason}")
        except ValueError:
            _fail(self._path, f"{shown(self._key)} was read after the file was closed")

    def _stop(self, index: int) -> int:
        return self._places[index + 1] if index + 1 < len(self._places) else self._end


Value: TypeAlias = "bool | int | float | str | np.ndarray[Any, Any] | TextArray | tuple[Value, ...]"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and how it is stored.

    `shape` is in torch's order, outermost first; `offset` counts from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class GgufFile:
    """An open GGUF file: `metadata`, `tensors`, and views of the data until it is closed."""

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        version: int,
        metadata: dict[str, Value],
        tensors: dict[str, TensorInfo],
    ) -> None:
        self.path = path
        self.version = version
        self.metadata: Mapping[str, Value] = MappingProxyType(metadata)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self._data = data

    def tensor_bytes(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The stored bytes of a tensor, a read-only view `(nbytes,)`."""
        info = self.tensor(name)
        try:
            return np.frombuffer(self._data, np.uint8, info.nbytes, info.offset)
        except ValueError:
            _fail(self.path, f"tensor {shown(name)} was read after the file was closed")

    def tensor(self, name: str) -> TensorInfo:
        """The entry of a tensor; `ModelFileError` when the file has none of that name."""
        if name not in self.tensors:
            _fail(self.path, f"has no tensor {shown(name)} among its {len(self.tensors)}")
        return self.tensors[name]

    def rows(self, name: str, rows: slice) -> GgufFile:
        """This file as if it held only some rows of a tensor, for work in pieces of bounded size.

        Rows are those of the outermost dimension. A matrix's hold whole blocks, a vector's need not
        and are taken all at once. Closing the view closes nothing.
        """
        return _Rows(self, name, rows)

    def text(self, key: str, default: str | None = None) -> str | None:
        """A text of the metadata; `ModelFileError` for a value of another kind."""
        value = self.metadata.get(key, default)
        if value is not None and not isinstance(value, str):
            _fail(self.path, f"{shown(key)} is {shown(value)}, not a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false out of the metadata; `ModelFileError` for a value of another kind."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            _fail(self.path, f"{shown(key)} is {shown(value)}, not true or false")
        return value

    def require_memory(self, nbytes: int, what: str) -> None:
        """Raise `ModelFileError` where building `what` takes more than this file may."""
        require_memory(self.path, len(self._data), nbytes, what)

    def close(self) -> None:
        """Unmap the file; a view that is still held keeps the map until it goes."""
        try:
            self._data.close()
        except BufferError:
            return

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Rows(GgufFile):
    """Some rows of one tensor of a file; see `GgufFile.rows`."""

    def __init__(self, file: GgufFile, name: str, rows: slice) -> None:
        info = file.tensor(name)
        count = len(range(*rows.indices(info.shape[0])))
        nbytes = info.nbytes // info.shape[0] * count
        part = replace(info, shape=(count, *info.shape[1:]), nbytes=nbytes)
        super().__init__(file.path, file._data, file.version, {}, {name: part})
        self._whole, self._rows = file, rows

    def tensor_bytes(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        stored = self._whole.tensor_bytes(name)
        return stored.reshape(self._whole.tensor(name).shape[0], -1)[self._rows].reshape(-1)

    def close(self) -> None:
        return


def _fail(path: Path, problem: str) -> NoReturn:
    raise ModelFileError(f"{path}: {problem}") from None
