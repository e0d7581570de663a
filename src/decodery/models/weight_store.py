"""Where the weights of a model folder are: in its safetensors files, or in a GGUF file it names.

A folder made from a GGUF file (see `convert.py`) holds no tensors but a `weights.json`: the path of
the file with its size and time, which must still be true when the weights are read, and how
precisely it stores them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from decodery.core.errors import ModelFileError
from decodery.models.bounds import shown
from decodery.models.gguf_weights import GgufWeights, file_precision
from decodery.models.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    Precision,
    SafetensorsFolder,
    read_json,
)

if TYPE_CHECKING:
    from decodery.models.gguf_file import GgufFile

REFERENCE = "weights.json"
_MAX_PATH = 4096


def open_weights(folder: Path) -> SafetensorsFolder | GgufWeights:
    """The store of a model folder's weights, a context manager.

    Raises `ModelFileError` where there are none, or where the GGUF file is gone or has changed.
    """
    if not _refers(folder):
        return SafetensorsFolder(folder)
    place = folder / REFERENCE
    content = read_json(place)
    name = _field(place, content, "gguf", str)
    if not name.isprintable() or len(name) > _MAX_PATH:
        raise ModelFileError(f"{place}: 'gguf' is {shown(name)}, expected the path of a file")
    path = Path(name)
    expected = [_field(place, content, key, int) for key in ("size", "mtime_ns")]
    again = f"load the .gguf file itself to use it as it is now ({place})"
    try:
        status = path.stat()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}, but holds the weights; {again}") from None
    if [status.st_size, status.st_mtime_ns] != expected:
        raise ModelFileError(f"{path}: has changed since its folder was made; {again}")
    return GgufWeights(path)


def stored_precision(folder: Path) -> Precision:
    """How precisely a model folder's weights are stored. Raises `ModelFileError`."""
    if not _refers(folder):
        with SafetensorsFolder(folder) as store:
            return store.precision
    place = folder / REFERENCE
    found = _field(place, read_json(place), "precision", str)
    if found not in get_args(Precision):
        raise ModelFileError(
            f"{place}: 'precision' is {shown(found)}; allowed are {', '.join(get_args(Precision))}"
        )
    return found  # pyright: ignore[reportReturnType]


def write_reference(folder: Path, file: GgufFile) -> None:
    """Make `folder` one whose weights are in `file`."""
    status = file.path.stat()
    content = {
        "gguf": str(file.path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "precision": file_precision(file),
    }
    (folder / REFERENCE).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _refers(folder: Path) -> bool:
    """Whether the weights are elsewhere; tensors in the folder itself come first."""
    own = (folder / SINGLE_FILE, folder / INDEX_FILE)
    return (folder / REFERENCE).is_file() and not any(path.is_file() for path in own)


def _field(place: Path, content: dict[str, object], key: str, kind: type) -> Any:
    value = content.get(key)
    if type(value) is not kind:
        raise ModelFileError(f"{place}: {key!r} is {shown(value)}, expected {kind.__name__}")
    return value
