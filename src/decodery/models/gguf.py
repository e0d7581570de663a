"""GGUF files: a bounded, memory-mapped reader of versions 2 and 3.

A GGUF file is a header, key-value metadata, a table of tensors and an aligned data section. The
file may come from anywhere, so every count, length, offset and product is checked against the size
of the file before anything is allocated or looped over, and all failures are one-line
`ModelFileError`s. String arrays (a vocabulary has 50 to 250 thousand entries) are walked once to
check them and decoded when they are asked for; numeric arrays and tensors are views of the map.

Format: ggml's `docs/gguf.md`.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from array import array
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from decodery.core.errors import ModelFileError
from decodery.models.bounds import shown
from decodery.models.gguf_file import TENSOR_TYPES, GgufFile, TensorInfo, TextArray, Value

if TYPE_CHECKING:
    import torch

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Far above any published model, low enough that the tables of a hostile file stay small.
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_NESTED_ARRAYS = 65_536
MAX_NAME_BYTES = 65_535
MAX_TEXT_BYTES = 8 << 20  # of all names and texts; one rare character makes a text four times wider
MAX_ARRAY_TEXTS = 1 << 22  # in all arrays
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4

_BOOL, _TEXT, _ARRAY = 7, 8, 9
# Value type to its code, the same letters in `struct` and in numpy. A bool is a byte, checked.
_SCALARS: Mapping[int, str] = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
)
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_ARRAY_HEAD, _TENSOR_TAIL = struct.Struct("<IQ"), struct.Struct("<IQ")


def read(path: str | os.PathLike[str]) -> GgufFile:
    """Map a GGUF file and check all of its structure; tensor data is not touched.

    Raises `ModelFileError` (one line) for anything that is missing, truncated, inconsistent or
    outside the bounds above.
    """
    place = Path(path)
    data = _mapped(place)
    try:
        return _Parser(place, data).file()
    except BaseException:
        data.close()
        raise


def dequantise(
    file: GgufFile, name: str, dtype: torch.dtype | None = None, device: str = "cpu"
) -> torch.Tensor:
    """A tensor's values in `dtype` (float32 by default), in its torch shape.

    Values are computed in float32 and rounded once. Raises `ModelFileError` for a storage type
    that is not supported, with the ones that are.
    """
    # torch takes over a second to import, and reading metadata does not need it.
    from decodery.models.gguf_quants import dequantise_tensor

    return dequantise_tensor(file, name, dtype).to(device)


def _fail(path: Path, problem: str) -> NoReturn:
    raise ModelFileError(f"{path}: {problem}") from None


def _mapped(path: Path) -> mmap.mmap:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            _fail(path, "is not a regular file; give the path of a .gguf file")
        if status.st_size < 24:
            _fail(path, f"is {status.st_size} bytes; a GGUF file has at least 24")
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        _fail(path, f"cannot be read: {reason}")


class _Parser:
    """One pass over a mapped file. Every `_take` checks what is left before it reads."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.place = 0
        self.nested = 0
        self.text_bytes = 0
        self.array_texts = 0

    def file(self) -> GgufFile:
        version, tensor_count, key_count = self._header()
        metadata = self._metadata(key_count)
        alignment = self._alignment(metadata)
        tensors = self._tensors(tensor_count, alignment)
        return GgufFile(self.path, self.data, version, metadata, tensors)

    def _header(self) -> tuple[int, int, int]:
        magic = self.data[:4]
        if magic != MAGIC:
            _fail(self.path, f"starts with {magic!r}, not {MAGIC!r}; this is not a GGUF file")
        self.place = 4
        version = self._u32("version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            hint = " (big-endian)" if swapped in VERSIONS else ""
            _fail(self.path, f"is GGUF version {version}{hint}; versions 2 and 3 are supported")
        tensor_count = self._count("tensor count", least_bytes=24, most=MAX_TENSORS)
        key_count = self._count("metadata count", least_bytes=13, most=MAX_KEYS)
        return version, tensor_count, key_count

    def _metadata(self, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for index in range(count):
            key = self._text(f"metadata key {index}", MAX_NAME_BYTES)
            if not key:
                _fail(self.path, f"metadata key {index} is empty")
            if key in metadata:
                _fail(self.path, f"metadata key {shown(key)} is there twice")
            metadata[key] = self._value(key, self._u32(f"type of {shown(key)}"))
        return metadata

    def _value(self, key: str, kind: int) -> Value:
        if kind in _SCALARS:
            return self._scalar(key, kind)
        if kind == _TEXT:
            return self._text(shown(key), MAX_TEXT_BYTES)
        if kind == _ARRAY:
            return self._array(key, depth=1)
        _fail(self.path, f"{shown(key)} has value type {kind}; allowed are 0 to 12")

    def _scalar(self, key: str, kind: int) -> bool | int | float:
        form = struct.Struct("<" + _SCALARS[kind])
        value = form.unpack_from(self.data, self._take(form.size, shown(key)))[0]
        return self._bool(key, value) if kind == _BOOL else value

    def _bool(self, key: str, value: int) -> bool:
        if value not in (0, 1):
            _fail(self.path, f"{shown(key)} is a bool stored as {value}; allowed are 0 and 1")
        return bool(value)

    def _array(self, key: str, depth: int) -> Value:
        if depth > MAX_ARRAY_DEPTH:
            _fail(self.path, f"{shown(key)} nests arrays deeper than {MAX_ARRAY_DEPTH}")
        start = self._take(_ARRAY_HEAD.size, f"array head of {shown(key)}")
        kind, count = _ARRAY_HEAD.unpack_from(self.data, start)
        if kind in _SCALARS:
            return self._numbers(key, kind, count)
        if kind == _TEXT:
            return self._texts(key, count)
        if kind == _ARRAY:
            return self._arrays(key, count, depth)
        _fail(self.path, f"{shown(key)} is an array of type {kind}; allowed are 0 to 12")

    def _numbers(self, key: str, kind: int, count: int) -> np.ndarray[Any, Any]:
        dtype = np.dtype("<" + _SCALARS[kind])
        start = self._take(count * dtype.itemsize, f"array {shown(key)} of {count}")
        if not count:
            return np.empty(0, dtype)
        # Copied (at most the bytes it has in the file), so that closing the file unmaps it.
        values = np.frombuffer(self.data, dtype, count, start).copy()
        values.flags.writeable = False
        if kind != _BOOL:
            return values
        self._bool(key, int(values.max()))
        return values.view(np.bool_)

    def _texts(self, key: str, count: int) -> TextArray:
        self._fits(count, 8, f"array {shown(key)}")
        self.array_texts += count
        if self.array_texts > MAX_ARRAY_TEXTS:
            _fail(self.path, f"{shown(key)} makes more than {MAX_ARRAY_TEXTS} texts in arrays")
        places = array("Q")
        data, size, place = self.data, self.size, self.place
        note, length_at = places.append, _U64.unpack_from
        for index in range(count):  # the hot loop: 100 thousand strings in a usual file
            if place + 8 > size:
                _fail(self.path, f"ends inside {shown(key)}[{index}]")
            note(place)
            place += 8 + length_at(data, place)[0]
            if place > size:
                _fail(self.path, f"{shown(key)}[{index}] runs past the end of the file")
        self.place = place
        return TextArray(data, self.path, key, places, place)

    def _arrays(self, key: str, count: int, depth: int) -> tuple[Value, ...]:
        self._fits(count, _ARRAY_HEAD.size, f"array {shown(key)}")
        self.nested += count
        if self.nested > MAX_NESTED_ARRAYS:
            _fail(self.path, f"{shown(key)} makes more than {MAX_NESTED_ARRAYS} nested arrays")
        return tuple(self._array(key, depth + 1) for _ in range(count))

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(value) is int and 1 <= value <= MAX_ALIGNMENT and value & (value - 1) == 0:
            return value
        _fail(
            self.path,
            f"general.alignment is {shown(value)}; allowed are powers of two up to {MAX_ALIGNMENT}",
        )

    def _tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        found: dict[str, TensorInfo] = {}
        for index in range(count):
            info = self._tensor(index, alignment)
            if info.name in found:
                _fail(self.path, f"tensor {shown(info.name)} is there twice")
            found[info.name] = info
        start = -(-self.place // alignment) * alignment
        placed = {name: self._placed(info, start) for name, info in found.items()}
        self._refuse_overlap(placed)
        return placed

    def _tensor(self, index: int, alignment: int) -> TensorInfo:
        name = self._text(f"name of tensor {index}", MAX_NAME_BYTES)
        if not name:
            _fail(self.path, f"tensor {index} has an empty name")
        label = f"tensor {shown(name)}"
        rank = self._u32(f"dimensions of {label}")
        if not 1 <= rank <= MAX_DIMENSIONS:
            _fail(self.path, f"{label} has {rank} dimensions; allowed are 1 to {MAX_DIMENSIONS}")
        start = self._take(8 * rank, f"shape of {label}")
        # ggml writes the fastest-moving dimension first, torch the outermost first.
        shape = tuple(reversed(struct.unpack_from(f"<{rank}Q", self.data, start)))
        start = self._take(_TENSOR_TAIL.size, f"type and offset of {label}")
        kind, offset = _TENSOR_TAIL.unpack_from(self.data, start)
        if offset % alignment:
            _fail(self.path, f"{label} starts at {offset}, no multiple of {alignment}")
        type_name, nbytes = self._storage(label, kind, shape)
        return TensorInfo(name, shape, type_name, offset, nbytes)

    def _storage(self, label: str, kind: int, shape: tuple[int, ...]) -> tuple[str, int]:
        if kind not in TENSOR_TYPES:
            known = ", ".join(block.name for block in TENSOR_TYPES.values())
            _fail(self.path, f"{label} has the unknown type {kind}; known: {known}")
        block = TENSOR_TYPES[kind]
        if 0 in shape:
            _fail(self.path, f"{label} has the shape {list(shape)}; no dimension may be 0")
        if shape[-1] % block.elements:
            _fail(
                self.path,
                f"{label} has rows of {shape[-1]}; "
                f"{block.name} needs multiples of {block.elements}",
            )
        nbytes = prod(shape) // block.elements * block.nbytes
        if nbytes > self.size:
            _fail(
                self.path,
                f"{label} of shape {list(shape)} needs {nbytes} bytes; the file has {self.size}",
            )
        return block.name, nbytes

    def _placed(self, info: TensorInfo, data_start: int) -> TensorInfo:
        """The entry with its offset counted from the start of the file, known to lie inside it."""
        offset = data_start + info.offset
        if offset + info.nbytes > self.size:
            _fail(
                self.path,
                f"tensor {shown(info.name)} ends at byte {offset + info.nbytes}; "
                f"the file has {self.size} (truncated?)",
            )
        return replace(info, offset=offset)

    def _refuse_overlap(self, tensors: Mapping[str, TensorInfo]) -> None:
        ordered = sorted(tensors.values(), key=lambda info: info.offset)
        for first, second in pairwise(ordered):
            if first.offset + first.nbytes > second.offset:
                _fail(self.path, f"tensors {shown(first.name)} and {shown(second.name)} overlap")

    def _take(self, nbytes: int, what: str) -> int:
        """Step over `nbytes` and return where they start, or fail if the file ends before."""
        start = self.place
        if nbytes > self.size - start:
            _fail(
                self.path,
                f"ends inside {what}: {nbytes} bytes wanted at {start}, "
                f"{self.size - start} left (truncated?)",
            )
        self.place = start + nbytes
        return start

    def _u32(self, what: str) -> int:
        return _U32.unpack_from(self.data, self._take(4, what))[0]

    def _count(self, what: str, least_bytes: int, most: int) -> int:
        count = _U64.unpack_from(self.data, self._take(8, what))[0]
        if count > most:
            _fail(self.path, f"{what} is {count}; at most {most} are allowed")
        self._fits(count, least_bytes, what)
        return count

    def _fits(self, count: int, least_bytes: int, what: str) -> None:
        left = self.size - self.place
        if count > left // least_bytes:
            _fail(
                self.path,
                f"{what} has {count} entries; the {left} bytes left hold "
                f"{left // least_bytes} at most",
            )

    def _text(self, what: str, most: int) -> str:
        length = _U64.unpack_from(self.data, self._take(8, f"length of {what}"))[0]
        if length > most:
            _fail(self.path, f"{what} is {length} bytes long; at most {most} are allowed")
        start = self._take(length, what)
        self.text_bytes += length
        if self.text_bytes > MAX_TEXT_BYTES:
            _fail(self.path, f"{what} makes more than {MAX_TEXT_BYTES} bytes of names and texts")
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as error:
            _fail(self.path, f"{what} is not UTF-8: {error.reason}")
