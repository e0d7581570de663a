"""Trained parts: what was trained for a model besides its weights, such as a gate or a draft head.

A part is one safetensors file of F32 or F16 tensors whose metadata says, as JSON under `decodery`,
what it is and what it was made for: the model's name, its vocabulary (a fingerprint) and its width.
It is read for no other model. Parts of the embedded model lie in this package, as
`parts/<model>/<part>.safetensors`; others are given as files. Nothing is unpickled, and a file is
checked before its tensors are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from decodery.core.errors import ModelFileError, ParameterError
from decodery.models.bounds import file_size, one_line, shown
from decodery.models.weights import MAX_DIMENSIONS, read_header

FORMAT = 1
ENTRY = "decodery"  # one entry, since several would be written in a random order
MAX_PART_BYTES = 4 << 30
_MAX_METADATA = 1 << 16
_FLOATS = ("F32", "F16")
_SHIPPED = Path(__file__).parents[1] / "parts"

Tensors = Mapping[str, npt.NDArray[np.floating]]


@dataclass(frozen=True)
class MadeFor:
    """The model a part belongs to: its name, the fingerprint of its vocabulary, its width."""

    model: str
    vocabulary: str
    width: int

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.model, "vocabulary": self.vocabulary, "width": self.width}


@lru_cache(maxsize=8)
def vocabulary_of(pieces: tuple[bytes | None, ...]) -> str:
    """A fingerprint of a vocabulary: equal where every id adds the same bytes to a text.

    >>> vocabulary_of((b"a", None)) == vocabulary_of((b"a", b""))
    False
    """
    parts = [b"-" if piece is None else b"%d:%b" % (len(piece), piece) for piece in pieces]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def read_part(name: str, model: MadeFor, file: str | None = None) -> dict[str, Any]:
    """The tensors [float32] of a part, from `file` or from those that come with the model.

    Raises `ParameterError` where there is none and where it was made for another model,
    `ModelFileError` for a file that is no part or is damaged.
    """
    path = shipped(name, model.model) if file is None else Path(file).expanduser()
    if path is None:
        raise ParameterError(
            f"no {name} was trained for {model.model}; train one with decodery train"
            f" {name.replace('_', '-')} and name its file"
        )
    if not path.exists():
        raise ParameterError(f"{path} does not exist; name the file of a trained {name}")
    _check_header(path, name, model)
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as reader:
            tensors = {key: _tensor(path, key, reader) for key in reader.keys()}  # noqa: SIM118
    except ModelFileError:
        raise
    except Exception as error:  # safetensors' own, the system's
        raise ModelFileError(
            f"{path}: not a readable safetensors file: {one_line(error)}"
        ) from error
    return tensors


def write_part(path: Path, name: str, model: MadeFor, tensors: Tensors) -> None:
    """Write a part whole or not at all; equal parts are equal files.

    Raises `OSError` where the folder cannot be written.
    """
    from safetensors.numpy import save

    content = {"format": FORMAT, "part": name, **model.to_dict()}
    arrays: dict[str, Any] = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    write_whole(path, save(arrays, {ENTRY: json.dumps(content)}))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process dies."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def shipped(name: str, model: str) -> Path | None:
    """The file of a part that comes with this package, or None."""
    if not (_is_plain(name) and _is_plain(model)):
        return None
    path = _SHIPPED / model / f"{name}.safetensors"
    return path if path.is_file() else None


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is not None


def _check_header(path: Path, name: str, model: MadeFor) -> None:
    """Refuse what is no part of that name for that model."""
    if file_size(path) > MAX_PART_BYTES:
        raise ModelFileError(f"{path}: is larger than {MAX_PART_BYTES >> 30} GiB")
    content = _content(read_header(path).get("__metadata__"))
    if content.get("format") != FORMAT:
        raise ModelFileError(f"{path}: is no trained part: its metadata says nothing of one")
    if content.get("part") != name:
        raise ParameterError(f"{path} is a {shown(content.get('part'))}, not a {name}")
    reasons = {
        "model": "the model {}",
        "width": "hidden states of width {}",
        "vocabulary": "another vocabulary",
    }
    for key, wanted in model.to_dict().items():
        if content.get(key) != wanted:
            what = reasons[key].format(shown(content.get(key)))
            raise ParameterError(
                f"{path} was trained for {what}; it does not fit {model.model}"
                f" (width {model.width})"
            )


def _content(metadata: Any) -> dict[str, Any]:
    """What a file's metadata says of a part; empty where it says nothing."""
    text = metadata.get(ENTRY) if isinstance(metadata, dict) else None
    if not isinstance(text, str) or len(text) > _MAX_METADATA:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _tensor(path: Path, key: str, reader: Any) -> npt.NDArray[np.float32]:
    import torch  # here: what only lists trainings must not wait for it

    part = reader.get_slice(key)
    kind, shape = part.get_dtype(), part.get_shape()
    if kind not in _FLOATS or len(shape) > MAX_DIMENSIONS:
        raise ModelFileError(
            f"{path}: tensor {shown(key)} is {kind} of {len(shape)} dimensions; expected"
            f" {' or '.join(_FLOATS)} of at most {MAX_DIMENSIONS}"
        )
    values = torch.from_numpy(reader.get_tensor(key)).float().numpy()  # faster than numpy's
    if not np.isfinite(values).all():
        raise ModelFileError(f"{path}: tensor {shown(key)} holds NaN or infinity")
    return values
