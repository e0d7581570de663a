"""GGUF to a Hugging Face folder, once: `config.json`, the tokenizer's files, and the weights.

`prepared` leaves the weights in the GGUF file and writes down where they are (`weight_store.py`);
this is what `load` uses. `converted` writes them as floats into `model.safetensors`, for other
libraries: values are dequantised in float32 and rounded once to the storing dtype, so a float32
folder holds exactly what transformers' own GGUF loader computes. Rows are streamed: peak memory is
a few megabytes, whatever the size of the model.

The folder lies in the cache (see `cache.py`) under a name made from the file's content, what is
written and the version of this converter, so a changed file is converted again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.core.errors import ModelFileError, ParameterError
from decodery.models import gguf
from decodery.models.bounds import fail_to_read
from decodery.models.cache import cached, require_room

if TYPE_CHECKING:
    import numpy as np
    import torch

    from decodery.models.gguf_architectures import Parameter

FORMAT_VERSION = 1
_DTYPES = {"bfloat16": ("BF16", 2), "float32": ("F32", 4)}
_HEAD_BYTES = 1 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_NAME_BYTES = 80  # of the file's name in the folder's: no name may have more than 255
_PIECE_VALUES = 1 << 20
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "padding")


def converted(
    path: str | os.PathLike[str],
    dtype: torch.dtype | str = "bfloat16",
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """The folder of a GGUF file's model with weights in `dtype`, converted if it is not cached.

    `dtype` is bfloat16 or float32, as a torch dtype or its name. `generation` adds settings to
    `generation_config.json`. Raises `ModelFileError` for a file that cannot be converted,
    `CacheFolderError` for a cache that cannot be written, `ParameterError` for another dtype.
    """
    stored = str(dtype).removeprefix("torch.")
    if stored not in _DTYPES:
        raise ParameterError(f"dtype is {stored}; allowed are {' and '.join(_DTYPES)}")
    source = _resolved(path)
    settings = dict(generation or {})
    name = f"{_stem(source)}-{stored}-{_identity(source, stored, settings)}"

    def build(folder: Path) -> None:
        with gguf.read(source) as file:
            parameters = _describe(file, {"dtype": stored}, settings, folder)
            _write_tensors(folder, file, parameters, stored)

    return cached(name, str(source), build)


def prepared(path: str | os.PathLike[str], generation: Mapping[str, Any] | None = None) -> Path:
    """The folder of a GGUF file's model whose weights stay in the file, made if not cached.

    Raises as `converted`. The folder is good for as long as the file stays as and where it is.
    """
    source = _resolved(path)
    settings = dict(generation or {})
    # The path too, since the folder holds it: a file that was moved needs another folder.
    name = f"{_stem(source)}-gguf-{_identity(source, f'gguf {source}', settings)}"

    def build(folder: Path) -> None:
        from decodery.models.weight_store import write_reference

        with gguf.read(source) as file:
            _describe(file, {}, settings, folder)
            write_reference(folder, file)

    return cached(name, str(source), build)


def _resolved(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a null character
        fail_to_read(Path(path), error)


def _stem(source: Path) -> str:
    return os.fsencode(source.stem)[:_NAME_BYTES].decode(errors="ignore")


def _identity(source: Path, stored: str, settings: Mapping[str, Any]) -> str:
    """A key of the file's content: size, time, its first MiB and samples of all the rest."""
    try:
        status = source.stat()
        if not source.is_file():
            raise ModelFileError(f"{source}: is not a regular file; give the path of a .gguf file")
        about = [FORMAT_VERSION, stored, settings, status.st_size, status.st_mtime_ns]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        with source.open("rb") as stream:
            digest.update(stream.read(_HEAD_BYTES))
            step = max(_SAMPLE_BYTES, status.st_size // _SAMPLES)
            for place in range(0, status.st_size, step):
                stream.seek(place)
                digest.update(stream.read(_SAMPLE_BYTES))
    except OSError as error:
        fail_to_read(source, error)
    return digest.hexdigest()[:16]


def _describe(
    file: gguf.GgufFile, extra: Mapping[str, Any], settings: Mapping[str, Any], folder: Path
) -> dict[str, Parameter]:
    """Write everything but the weights; returns the parameters they make up."""
    # These import torch and tokenizers, over a second together, and a cached model needs neither.
    from decodery.models import gguf_architectures, gguf_tokenizer
    from decodery.models.architecture import Architecture

    config = gguf_architectures.config(file)
    parameters = gguf_architectures.parameters(file, config)
    Architecture.from_config(config, source=str(file.path))  # refused now, under the file's name
    count = gguf_tokenizer.count_tokens(file)
    if count > config["vocab_size"]:
        raise ModelFileError(
            f"{file.path}: has {count} tokens and embeddings for {config['vocab_size']}"
        )
    backend = gguf_tokenizer.tokenizer(file)  # first, since it knows what may be decoded
    pieces = gguf_tokenizer.tokens(file)
    ids = {name: gguf_tokenizer.special_id(file, name) for name in _SPECIAL}
    special = {"bos_token_id": ids["bos"], "pad_token_id": ids["padding"]}
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    generation = special | {"eos_token_id": list(dict.fromkeys(ends)) or None}
    config |= special | {"eos_token_id": ids["eos"]} | dict(extra)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation | dict(settings))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(file, pieces, ids, config))
    backend.save(str(folder / "tokenizer.json"), pretty=False)
    return parameters


def _tokenizer_config(
    file: gguf.GgufFile,
    pieces: list[str],
    ids: Mapping[str, int | None],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    from decodery.models import gguf_tokenizer

    made: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "add_bos_token": gguf_tokenizer.adds(file, "bos"),
        "add_eos_token": gguf_tokenizer.adds(file, "eos"),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        index = ids[name]
        if index is not None:
            made[f"{key}_token"] = pieces[index]
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        made["chat_template"] = template
    return made


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _write_tensors(
    folder: Path, file: gguf.GgufFile, parameters: Mapping[str, Parameter], stored: str
) -> None:
    """Write the safetensors format: header length, JSON header, then each tensor as it is made.

    Raises `CacheFolderError` before the first byte where the disk has not enough room.
    """
    code, width = _DTYPES[stored]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, parameter in parameters.items():
        end = place + prod(parameter.shape) * width
        header[name] = {"dtype": code, "shape": parameter.shape, "data_offsets": [place, end]}
        place = end
    require_room(folder, place)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for parameter in parameters.values():
            for rows in _original_rows(parameter):
                stream.write(_values(file, parameter, rows, stored).data)


def _original_rows(parameter: Parameter) -> Iterator[slice]:
    """The rows of a stored tensor, a few at a time, in transformers' order.

    In a head of a query or key projection llama.cpp puts the two halves of the rotary embedding
    side by side (0, w/2, 1, ...); transformers keeps them apart (`LlamaModel.permute` in
    `convert_hf_to_gguf.py`, reversed).
    """
    count, *columns = parameter.shape
    if not columns:
        yield slice(0, count)  # a vector's blocks lie across its values
        return
    few = max(1, _PIECE_VALUES // prod(columns))
    if not parameter.heads:
        yield from (slice(at, min(at + few, count)) for at in range(0, count, few))
        return
    width = count // parameter.heads
    for head, half in product(range(parameter.heads), (0, 1)):
        end = (head + 1) * width
        for at in range(head * width + half, end, 2 * few):
            yield slice(at, min(at + 2 * few, end), 2)


def _values(
    file: gguf.GgufFile, parameter: Parameter, rows: slice, stored: str
) -> np.ndarray[Any, Any]:
    """Some rows of a parameter as bytes of the storing dtype."""
    import torch

    dtype: torch.dtype = getattr(torch, stored)
    part, name = file.rows(parameter.stored, rows), parameter.stored
    if parameter.minus_one:  # the difference in float32, then the one rounding
        values = (gguf.dequantise(part, name) - 1).to(dtype)
    else:
        values = gguf.dequantise(part, name, dtype)
    if not torch.isfinite(values).all():
        raise ModelFileError(f"{file.path}: tensor {name!r} holds values that are not finite")
    return values.reshape(-1).view(torch.uint8).numpy()
