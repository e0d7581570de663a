"""`load()`: the embedded model, a hub id, a folder, or a GGUF file, and an adapter on it."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from decodery.models import native

native.start()  # where the kernels are not compiled yet: that takes as long as all that follows

import torch

from decodery.api.language_model import LanguageModel
from decodery.core.errors import ModelFileError, ParameterError, nearest
from decodery.models import embedded
from decodery.models.adapters import is_adapter, read_config
from decodery.models.bounds import shown
from decodery.models.convert import converted, prepared
from decodery.models.tokenizer import Tokenizer
from decodery.models.transformer import load_transformer, resolved_weights

WeightsName = Literal["auto", "int4", "int8", "bf16", "float32"]
WEIGHTS: tuple[str, ...] = get_args(WeightsName)

# Settings of a generation_config.json that are parameters of our samplers, under the same names.
_RECOMMENDED = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    weights: WeightsName = "auto",
    exact: bool = False,
    device: str | None = None,
    cache_tokens: int | None = None,
    prefix_cache: bool = True,
    adapter: str | os.PathLike[str] | None = None,
) -> LanguageModel:
    """A language model ready to decode.

    `model` is None for the embedded SmolLM2-135M-Instruct, a folder in the Hugging Face layout, a
    `.gguf` file, or a hub id. `adapter` is the folder of a low-rank adapter in PEFT's layout, which
    is merged into the weights; given as the model, it is put on the base that it names, where that
    is the embedded model or a local one. `weights` is what it multiplies with:

    - auto: the codes of a quantised GGUF file as they are (on CUDA bf16), other weights in the
      precision of the file (float16 in float32); matrices of codes that an adapter adds to are
      quantised again, in 8 bits;
    - int4, int8: float weights quantised now, on a CPU; int4 keeps embedding and head in 8 bits;
    - bf16, float32.

    With `exact` a row is the same, bit for bit, whoever shares its batch (on a CPU only).
    `device` is a torch device, by default cuda where there is one. `cache_tokens` bounds the tokens
    alive at once; with `prefix_cache` the rest of the cache keeps what requests evaluated, and a
    prompt that begins like one of theirs begins there.
    """
    if weights not in WEIGHTS:
        raise ParameterError(f"weights is {weights!r}; allowed are {', '.join(WEIGHTS)}")
    place = _device(device)
    base, added = _adapted(model, adapter)
    folder, name = _folder(base)
    resolved = resolved_weights(folder, weights, place)
    transformer = load_transformer(folder, resolved, place, exact, added)
    lm = LanguageModel(
        transformer,
        Tokenizer.from_folder(folder),
        name=name if added is None else f"{name} + {added.resolve().name}",
        cache_tokens=cache_tokens,
        prefix_cache=prefix_cache,
        recommended=_recommended(folder),
    )
    options: dict[str, Any] = {
        "weights": weights,
        "exact": exact,
        "device": place,
        "cache_tokens": cache_tokens,
        "prefix_cache": prefix_cache,
    }
    lm.load_beside = partial(_beside, base, options)
    return lm


def _beside(
    base: str | os.PathLike[str] | None, options: dict[str, Any], name: str
) -> LanguageModel:
    """A further model for a blend: an adapter on the same base, loaded in the same way; or any."""
    if is_adapter(Path(name).expanduser()):
        return load(base, adapter=name, **options)
    return load(name, device=options["device"])


def _adapted(
    model: str | os.PathLike[str] | None, adapter: str | os.PathLike[str] | None
) -> tuple[str | os.PathLike[str] | None, Path | None]:
    """The base to load and the adapter's folder, where an adapter may stand for the model."""
    given = None if model is None else Path(model).expanduser()
    if given is None or not is_adapter(given):
        return model, None if adapter is None else Path(adapter).expanduser()
    if adapter is not None:
        raise ParameterError(
            f"{given} is an adapter, and so is {adapter}; give the base as the model, and one"
        )
    base = read_config(given).base
    if base == embedded.NAME:
        return None, given
    if base is None or not Path(base).expanduser().exists():
        raise ModelFileError(
            f"{given} is an adapter of {shown(base)}; give that as the model, this as its adapter"
        )
    return base, given


def _device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ParameterError(f"device is {device!r}; allowed are cpu and cuda") from None
    if kind not in ("cpu", "cuda"):
        raise ParameterError(f"device is {device!r}; {nearest(kind, ['cpu', 'cuda'])}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ParameterError(f"device is {device!r}, and this torch sees no CUDA device; use cpu")
    return device


def _folder(model: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """The folder with the model's files, and the name to show."""
    if model is None:
        return embedded.prepared_folder(), embedded.NAME
    path = Path(model).expanduser()
    if path.is_dir():
        return path, path.resolve().name
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return prepared(path), path.stem
        raise ModelFileError(f"{path} is a file that is no .gguf; give a .gguf file or a folder")
    text = os.fspath(model)
    if path.suffix.lower() == ".gguf" or path.is_absolute() or text.startswith(("./", "../", "~")):
        raise ModelFileError(f"{text} does not exist")
    if text.count("/") == 1:
        return _from_hub(text), text
    raise ModelFileError(
        f"{text!r} is no folder, no .gguf file and no hub id (owner/name); leave it out for the"
        f" embedded {embedded.NAME}"
    )


def float_folder(model: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """The folder of a model's float weights, for other libraries, and how to name it as a base."""
    if model is None:
        return embedded.embedded_folder("float32"), embedded.NAME
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        return converted(path, "float32"), str(path.resolve())
    folder, _ = _folder(model)
    return folder, str(folder.resolve()) if path.is_dir() else os.fspath(model)


def _from_hub(name: str) -> Path:
    """Download (or find) a hub model; only data files, never code or pickles."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelFileError(f"{name!r} is no hub id: {_line(error)}") from None
    except Exception as error:  # the hub's client raises many kinds: network, missing, gated
        raise ModelFileError(
            f"{name} is no local folder and could not be had from the hub: {_line(error)}"
        ) from None


def _recommended(folder: Path) -> dict[str, Any]:
    """Sampler settings that the model's authors publish for sampling."""
    try:
        settings = json.loads((folder / "generation_config.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{folder}: generation_config.json: {_line(error)}") from None
    if not isinstance(settings, dict) or not settings.get("do_sample"):
        return {}
    return {name: settings[name] for name in _RECOMMENDED if settings.get(name) is not None}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
