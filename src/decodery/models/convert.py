"""GGUF to a Hugging Face folder, once: `config.json`, the tokenizer's files, and the weights.

`prepared` leaves the weights in the GGUF file and writes down where they are (`weight_store.py`);
this is what `load` uses. `converted` writes them as floats into `model.safetensors`, for other
libraries: values are dequantised in float32 and rounded once to the storing dtype, so a float32
folder holds exactly what transformers' own GGUF loader computes. Tensors are streamed: peak memory
is one tensor, not one model.

The folder lies in the cache (see `cache.py`) under a name made from the file's content, what is
written and the version of this converter, so a changed file is converted again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.core.errors import ModelFileError, ParameterError
from decodery.models import gguf
from decodery.models.cache import cached, require_room

if TYPE_CHECKING:
    import numpy as np
    import torch

    from decodery.models.gguf_architectures import Parameter

FORMAT_VERSION = 1
_DTYPES = {"bfloat16": ("BF16", 2), "float32": ("F32", 4)}
_HEAD_BYTES = 1 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 4096
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
    source = Path(path).resolve()
    settings = dict(generation or {})
    name = f"{source.stem[:80]}-{stored}-{_identity(source, stored, settings)}"

    def build(folder: Path) -> None:
        with gguf.read(source) as file:
            parameters = _describe(file, {"dtype": stored}, settings, folder)
            _write_tensors(folder, file, parameters, stored)

    return cached(name, str(source), build)


def prepared(path: str | os.PathLike[str], generation: Mapping[str, Any] | None = None) -> Path:
    """The folder of a GGUF file's model whose weights stay in the file, made if not cached.

    Raises as `converted`. The folder is good for as long as the file stays as and where it is.
    """
    source = Path(path).resolve()
    settings = dict(generation or {})
    # The path too, since the folder holds it: a file that was moved needs another folder.
    name = f"{source.stem[:80]}-gguf-{_identity(source, f'gguf {source}', settings)}"

    def build(folder: Path) -> None:
        from decodery.models.weight_store import write_reference

        with gguf.read(source) as file:
            _describe(file, {}, settings, folder)
            write_reference(folder, file)

    return cached(name, str(source), build)


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
        raise ModelFileError(f"{source}: cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()[:16]


def _describe(
    file: gguf.GgufFile, extra: Mapping[str, Any], settings: Mapping[str, Any], folder: Path
) -> dict[str, Parameter]:
    """Write everything but the weights; returns the parameters they make up."""
    # These import torch and tokenizers, over a second together, and a cached model needs neither.
    from decodery.models import gguf_architectures, gguf_tokenizer

    config = gguf_architectures.config(file)
    parameters = gguf_architectures.parameters(file, config)
    pieces = gguf_tokenizer.tokens(file)
    if len(pieces) > config["vocab_size"]:
        raise ModelFileError(
            f"{file.path}: has {len(pieces)} tokens and embeddings for {config['vocab_size']}"
        )
    ids = {name: gguf_tokenizer.special_id(file, name) for name in _SPECIAL}
    special = {"bos_token_id": ids["bos"], "pad_token_id": ids["padding"]}
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    generation = special | {"eos_token_id": list(dict.fromkeys(ends)) or None}
    config |= special | {"eos_token_id": ids["eos"]} | dict(extra)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation | dict(settings))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(file, pieces, ids, config))
    gguf_tokenizer.tokenizer(file).save(str(folder / "tokenizer.json"), pretty=False)
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
            stream.write(_values(file, parameter, stored).data)


def _values(file: gguf.GgufFile, parameter: Parameter, stored: str) -> np.ndarray[Any, Any]:
    """A parameter's bytes in transformers' layout and the storing dtype."""
    import torch

    from decodery.models.codes import original_rows

    dtype: torch.dtype = getattr(torch, stored)
    if parameter.minus_one:  # the difference in float32, then the one rounding
        values = (gguf.dequantise(file, parameter.stored) - 1).to(dtype)
    else:
        values = gguf.dequantise(file, parameter.stored, dtype)
    if parameter.heads:
        values = original_rows(values, parameter.heads)
    return values.reshape(-1).view(torch.uint8).numpy()
