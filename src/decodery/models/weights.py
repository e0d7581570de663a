"""Weights by name: the store a transformer reads from, and its safetensors implementation.

Files may come from anywhere, so names, shapes, kinds and sizes are checked against what the
architecture expects before a tensor is read, and every failure is a one-line `ModelFileError` with
file, tensor, expected and found. Pickle files (`pytorch_model.bin`) are never opened: unpickling
runs code chosen by whoever wrote the file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from decodery.core.errors import ModelFileError
from decodery.models.bounds import (
    file_bytes,
    file_size,
    one_line,
    parsed_bytes,
    require_memory,
    shown,
)

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.models.codes import Codes

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOAT_KINDS = ("F32", "F16", "BF16")

# Far above any published model (the largest index is 9 MB).
MAX_JSON_BYTES = 64 << 20
MAX_HEADER_BYTES = 100_000_000  # safetensors' own
MAX_DIMENSIONS = 8
_MAX_FILE_NAME = 255

Shape = tuple[int, ...]
Precision = Literal["codes", "float32", "bf16"]
CODES: Precision = "codes"
Result = TypeVar("Result")
_Pairs = list[tuple[str, Any]]


class Weights(Protocol):
    """Named tensors, read one at a time."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every tensor in the store."""
        ...

    @property
    def precision(self) -> Precision:
        """What the store holds: integer codes, or mostly floats of 16 or of more bits."""
        ...

    def source(self, name: str) -> str:
        """Where a tensor is or should be, for messages."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A tensor's values, on the CPU, in a float dtype that holds them. Not to be written to."""
        ...

    def codes(self, name: str) -> Codes | None:
        """The integer codes of a matrix, whose values are `tensor(name)`; None: it is floats."""
        ...


class SafetensorsFolder:
    """The safetensors files of a folder: `model.safetensors`, or shards and their index.

    A context manager; tensors already read outlive it. Raises `ModelFileError` for a folder without
    safetensors, a shard that is missing, corrupt or named outside the folder, and an index that
    disagrees with the shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = safetensors_files(folder)
        self._readers: dict[str, Any] = {}  # tensor name -> the open file that holds it
        self._holders: dict[str, Path] = {}
        self.shapes: dict[str, Shape] = {}
        self._values: Counter[str] = Counter()  # how many values are stored as each kind
        self._open = ExitStack()
        try:
            for path in self._files:
                self._add(path)
            self._check_index()
        except ModelFileError:
            self.close()
            raise

    def source(self, name: str) -> str:
        """The file of a tensor; the folder when there is more than one it could be in."""
        if len(self._files) == 1:
            return str(self._files[0])
        return str(self._holders.get(name, self.folder))

    def tensor(self, name: str) -> Tensor:
        """A tensor as stored. Raises `ModelFileError` when it cannot be read."""
        return _guarded(self._holders[name], lambda: self._readers[name].get_tensor(name))

    def codes(self, name: str) -> None:
        """None: safetensors files hold floats here."""

    @property
    def precision(self) -> Precision:
        """bf16 where most values are bfloat16, else float32 (float16 has no kernel of its own)."""
        halves = self._values["BF16"]
        return "bf16" if 2 * halves > self._values.total() else "float32"

    def close(self) -> None:
        """Closes the files. Closing twice does nothing."""
        self._readers.clear()
        self._open.close()

    def __enter__(self) -> SafetensorsFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _add(self, path: Path) -> None:
        from safetensors import safe_open

        read_header(path)
        reader = _guarded(path, lambda: self._open.enter_context(safe_open(path, framework="pt")))
        for name in reader.keys():  # noqa: SIM118 (a safetensors file is no mapping)
            if name in self._holders:
                raise ModelFileError(
                    f"{path}: tensor {shown(name)} is also in {self._holders[name]}"
                )
            part = reader.get_slice(name)
            if part.get_dtype() not in FLOAT_KINDS:
                raise ModelFileError(
                    f"{path}: tensor {shown(name)} is stored as {part.get_dtype()},"
                    f" expected one of {', '.join(FLOAT_KINDS)}"
                )
            shape = tuple(part.get_shape())
            if len(shape) > MAX_DIMENSIONS:
                raise ModelFileError(
                    f"{path}: tensor {shown(name)} has {len(shape)} dimensions, at most"
                    f" {MAX_DIMENSIONS} are read"
                )
            self.shapes[name] = shape
            self._values[part.get_dtype()] += prod(self.shapes[name])
            self._holders[name] = path
            self._readers[name] = reader

    def _check_index(self) -> None:
        if self._files[0].name == SINGLE_FILE:
            return
        for name, shard in _weight_map(self.folder / INDEX_FILE).items():
            if name in self._holders and self._holders[name].name == shard:
                continue
            raise ModelFileError(
                f"{self.folder / INDEX_FILE}: tensor {shown(name)} should be in {shard}, but is not"
            )


def safetensors_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, checked to exist. Raises `ModelFileError`."""
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelFileError(_nothing_to_load(folder))
    shards = [folder / name for name in sorted(set(_weight_map(index).values()))]
    for shard in shards:
        if not shard.is_file():
            raise ModelFileError(f"{shard}: the shard is missing, but {INDEX_FILE} names it")
    return shards


def check_shapes(weights: Weights, expected: Mapping[str, Shape], ignored: frozenset[str]) -> None:
    """Raises `ModelFileError` for the first tensor that is missing, unexpected or misshapen.

    `ignored` names may be present and are not read.
    """
    for name, shape in expected.items():
        found = weights.shapes.get(name)
        if found is None:
            raise ModelFileError(
                f"{weights.source(name)}: tensor {name!r} is missing, expected shape {list(shape)}"
            )
        if tuple(found) != shape:
            raise ModelFileError(
                f"{weights.source(name)}: tensor {name!r} has shape {list(found)},"
                f" expected {list(shape)}"
            )
    unexpected = sorted(weights.shapes.keys() - expected.keys() - ignored)
    if unexpected:
        raise ModelFileError(
            f"{weights.source(unexpected[0])}: tensor {shown(unexpected[0])} is unexpected for this"
            f" architecture ({len(unexpected)} such in all)"
        )


def read_json(path: Path, *, repeats: bool = True) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises `ModelFileError`.

    Without `repeats`, a name that an object gives twice is refused; else the last one counts.
    """
    text = file_bytes(path, MAX_JSON_BYTES)
    require_memory(path, len(text), parsed_bytes(text), "its JSON")
    try:
        return _object(text, None if repeats else _without_repeats)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not valid JSON: {one_line(error)}") from error


def _object(text: bytes, hook: Callable[[_Pairs], dict[str, Any]] | None) -> dict[str, Any]:
    value = json.loads(text.decode(), object_pairs_hook=hook)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _without_repeats(pairs: _Pairs) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"{shown(name)} is there twice")
        made[name] = value
    return made


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, as it is written there. Raises `ModelFileError`.

    It refuses what the library lets pass: a name that is given twice, and a table of so many empty
    tensors (16 times its size in memory) that the file is not worth it.
    """
    return _guarded(path, lambda: _header(path))


def _header(path: Path) -> dict[str, Any]:
    size = file_size(path)
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = stream.read(length)
    require_memory(path, size, parsed_bytes(header), "its header")
    return _object(header, _without_repeats)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard name, every shard name a plain file name."""
    found = read_json(index, repeats=False).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ModelFileError(f"{index}: 'weight_map' should be a non-empty object")
    for name, shard in found.items():
        if not isinstance(shard, str) or not _is_file_name(shard):
            raise ModelFileError(
                f"{index}: tensor {shown(name)} names the shard {shown(shard)}, expected a"
                " .safetensors file name without a folder"
            )
    return found


def _is_file_name(name: str) -> bool:
    plain = name.isprintable() and "/" not in name and "\\" not in name
    return plain and name.endswith(".safetensors") and len(os.fsencode(name)) <= _MAX_FILE_NAME


def _nothing_to_load(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return (
            f"{folder}: holds pickled weights only; they are refused because unpickling runs code"
            f" from the file (convert them to {SINGLE_FILE} where you trust them)"
        )
    return f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}"


def _guarded(path: Path, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except ModelFileError:
        raise
    except Exception as error:  # safetensors' own, JSON's, the system's, torch's about a shape
        raise ModelFileError(
            f"{path}: not a readable safetensors file: {one_line(error)}"
        ) from error
