"""Low-rank adapters: what a fine-tune adds to a base model's matrices, merged in as they are read.

    W' = W + scale * B A,    A [rank, inputs], B [outputs, rank],    scale = alpha / rank

(alpha / sqrt(rank) for rank-stabilised ones). A folder has the layout of PEFT: what the adapter is
in `adapter_config.json`, A and B of each matrix in `adapter_model.safetensors`. Only adapters that
are this sum and nothing else are read; what changes the model in another way (biases, magnitudes,
whole modules, a base of its own) is refused by name.

The sum is made in float32, on the base's values: those of a quantised GGUF file are its codes'. A
matrix that was codes is then quantised again, in 8 bits; matrices that the adapter leaves alone
stay as they are in the file.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA (2021), arXiv:2106.09685. Kalajdzievski:
rsLoRA (2023), arXiv:2312.03732.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.core.errors import ModelFileError
from decodery.models.bounds import file_size, one_line, shown
from decodery.models.parts import write_whole
from decodery.models.weights import FLOAT_KINDS, Precision, Shape, Weights, read_header, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from decodery.models.codes import Codes

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
MAX_ADAPTER_BYTES = 4 << 30
MAX_RANK = 4096
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_PREFIX = "base_model.model."
_NAME = re.compile(
    r"base_model\.model\.(model\.layers\.[0-9]{1,6}\.(?:self_attn|mlp)\.[a-z]{1,8}_proj)"
    r"\.lora_([AB])\.weight"
)
_NORM = "model.norm.weight"
# What makes an adapter more than a sum, by its field in the config; each must be absent or empty.
_MORE = (
    "use_dora",
    "use_qalora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
# Starting points that leave the base as it is; others (PiSSA, LoftQ, ...) change it.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says, as far as it matters here."""

    rank: int
    alpha: float
    root_scale: bool  # alpha / sqrt(rank)
    ranks: Mapping[str, int]  # of matrices that have another one, by the end of their name
    alphas: Mapping[str, float]
    base: str | None  # the model it was trained on, as its author calls it

    def rank_of(self, matrix: str) -> int:
        return _of(self.ranks, matrix, self.rank)

    def scale_of(self, matrix: str) -> float:
        rank, alpha = self.rank_of(matrix), _of(self.alphas, matrix, self.alpha)
        return alpha / math.sqrt(rank) if self.root_scale else alpha / rank


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory: A and B by the name of the matrix in transformers' files."""

    path: Path
    config: AdapterConfig
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    base_norm: str | None  # the fingerprint of its base, where it says

    def delta(self, name: str) -> Tensor:
        """What is added to a matrix, float32 [outputs, inputs]."""
        first, second = self.pairs[name]
        return self.config.scale_of(_matrix(name)) * (second.float() @ first.float())


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_config(folder: Path) -> AdapterConfig:
    """What an adapter is. Raises `ModelFileError` for one that is more than a low-rank sum."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelFileError(f"{folder}: holds no adapter: there is no {CONFIG}")
    content = read_json(path, repeats=False)
    if content.get("peft_type") != "LORA":
        raise ModelFileError(f"{path}: peft_type is {shown(content.get('peft_type'))}, not 'LORA'")
    for name in _MORE:
        if content.get(name):
            raise ModelFileError(
                f"{path}: {name} is {shown(content[name])}; only plain low-rank sums are merged"
            )
    if content.get("bias", "none") != "none":
        raise ModelFileError(f"{path}: bias is {shown(content['bias'])}; only 'none' is merged")
    start = content.get("init_lora_weights", True)
    if not any(start is plain or start == plain for plain in _PLAIN_STARTS):
        raise ModelFileError(
            f"{path}: init_lora_weights is {shown(start)}: its base is not the model it names;"
            " convert it to a plain adapter"
        )
    base = content.get("base_model_name_or_path")
    return AdapterConfig(
        rank=_whole(path, "r", content.get("r")),
        alpha=_number(path, "lora_alpha", content.get("lora_alpha")),
        root_scale=bool(content.get("use_rslora")),
        ranks=_pattern(path, "rank_pattern", content, _whole),
        alphas=_pattern(path, "alpha_pattern", content, _number),
        base=base if isinstance(base, str) and base else None,
    )


def read_adapter(folder: Path) -> Adapter:
    """An adapter folder, checked. Raises `ModelFileError`."""
    config = read_config(folder)
    path = folder / TENSORS
    if not path.is_file():
        raise ModelFileError(
            f"{folder}: has no {TENSORS}; pickled adapters (adapter_model.bin) are refused"
        )
    if file_size(path) > MAX_ADAPTER_BYTES:
        raise ModelFileError(f"{path}: is larger than {MAX_ADAPTER_BYTES >> 30} GiB")
    header = read_header(path)
    halves = _halves(path, header)
    for name, found in halves.items():
        _check_ranks(path, name, found, config.rank_of(_matrix(name)), header)
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        pairs = {name: (tensors[at["A"]], tensors[at["B"]]) for name, at in halves.items()}
    except Exception as error:  # safetensors' own, the system's
        raise ModelFileError(
            f"{path}: not a readable safetensors file: {one_line(error)}"
        ) from error
    for name, pair in pairs.items():
        if not all(part.isfinite().all() for part in pair):
            raise ModelFileError(f"{path}: the adapter of {name} holds NaN or infinity")
    about = header.get("__metadata__")
    norm = about.get("base_norm") if isinstance(about, dict) else None
    return Adapter(path, config, pairs, norm if isinstance(norm, str) else None)


def write_adapter(
    folder: Path,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    *,
    alpha: float,
    base: str,
    base_norm: str,
) -> None:
    """Write an adapter in PEFT's layout, float32; equal ones are equal files.

    `pairs` are A and B by matrix name.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_PREFIX}{_matrix(name)}.lora_{half}.weight": part.detach().float().contiguous()
        for name, pair in pairs.items()
        for half, part in zip("AB", pair, strict=True)
    }
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": int(next(iter(pairs.values()))[0].shape[0]),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "target_modules": sorted({name.split(".")[-2] for name in pairs}),
    }
    made = save(tensors, {"format": "pt", "base_norm": base_norm})
    write_whole(folder / TENSORS, _in_order(made))
    write_whole(folder / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted; the library writes them in any order."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


class AdaptedWeights:
    """Another store's tensors with an adapter merged in.

    Raises `ModelFileError` for an adapter of matrices that the store has not, of other shapes, or
    of another base.
    """

    def __init__(self, store: Weights, adapter: Adapter) -> None:
        self._store = store
        self._adapter = adapter
        for name, (first, second) in adapter.pairs.items():
            _check_fits(adapter, name, store.shapes.get(name), first, second)
        if adapter.base_norm not in (None, base_norm(store)):
            raise ModelFileError(
                f"{adapter.path}: was trained on another base than {store.source(_NORM)}"
                f" ({shown(adapter.config.base)}): their last norms differ"
            )

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return self._store.shapes

    @property
    def precision(self) -> Precision:
        return self._store.precision

    def source(self, name: str) -> str:
        return self._store.source(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor's values; float32 where the adapter adds to them."""
        if name not in self._adapter.pairs:
            return self._store.tensor(name)
        merged = self._store.tensor(name).float() + self._adapter.delta(name)
        if not merged.isfinite().all():
            raise ModelFileError(f"{self._adapter.path}: {name} is not finite once it is merged")
        return merged

    def codes(self, name: str) -> Codes | None:
        """The store's codes; of a merged matrix that was codes, new ones of 8 bits."""
        codes = self._store.codes(name)
        if codes is None or name not in self._adapter.pairs:
            return codes
        from decodery.models.codes import GROUP, quantise

        if codes.inputs % GROUP:
            return None  # float32 from `tensor`
        try:
            return quantise(self.tensor(name), 8)
        except ValueError as error:
            raise ModelFileError(f"{self._adapter.path}: {name}: {error}") from None


def base_norm(store: Weights) -> str:
    """A fingerprint of a base: its last norm, which is kept in floats however it is quantised."""
    values = store.tensor(_NORM).float().contiguous().numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()


# -- reading -------------------------------------------------------------------------------------


def _halves(path: Path, header: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Weight name -> {"A": tensor name, "B": tensor name}; nothing else may be in the file."""
    found: dict[str, dict[str, str]] = {}
    for name in header:
        if name == "__metadata__":
            continue
        match = _NAME.fullmatch(name)
        if match is None or match[1].rsplit(".", 1)[1] not in MATRICES:
            raise ModelFileError(
                f"{path}: tensor {shown(name)} is no lora_A or lora_B of a layer's"
                f" {', '.join(MATRICES)}"
            )
        found.setdefault(f"{match[1]}.weight", {})[match[2]] = name
    if not found:
        raise ModelFileError(f"{path}: holds no tensors")
    for name, halves in found.items():
        if len(halves) != 2:
            raise ModelFileError(f"{path}: {name} has a lora_{next(iter(halves))} only")
    return found


def _check_ranks(
    path: Path, name: str, halves: Mapping[str, str], rank: int, header: Mapping[str, Any]
) -> None:
    for half, place in (("A", 0), ("B", 1)):
        about = header[halves[half]]
        kind, shape = about.get("dtype"), about.get("shape")
        if kind not in FLOAT_KINDS:
            raise ModelFileError(
                f"{path}: lora_{half} of {name} is stored as {shown(kind)}, expected one of"
                f" {', '.join(FLOAT_KINDS)}"
            )
        if not isinstance(shape, list) or len(shape) != 2 or shape[place] != rank:
            raise ModelFileError(
                f"{path}: lora_{half} of {name} has shape {shape}, expected rank {rank} in place"
                f" {place} of two"
            )


def _check_fits(
    adapter: Adapter, name: str, shape: Shape | None, first: Tensor, second: Tensor
) -> None:
    made = (second.shape[0], first.shape[1])
    if shape is None:
        raise ModelFileError(
            f"{adapter.path}: has an adapter of {name}, which the base has not; it was trained on"
            f" {shown(adapter.config.base)}"
        )
    if tuple(shape) != made:
        raise ModelFileError(
            f"{adapter.path}: the adapter of {name} is {list(made)} and the base's matrix"
            f" {list(shape)}; it was trained on {shown(adapter.config.base)}"
        )
    if first.shape[0] > min(made):
        raise ModelFileError(
            f"{adapter.path}: the adapter of {name} has rank {first.shape[0]}, more than its matrix"
        )


def _pattern(path: Path, field: str, content: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Values by the end of a matrix's name. PEFT takes regular expressions; names are read here."""
    given = content.get(field) or {}
    if not isinstance(given, dict):
        raise ModelFileError(f"{path}: {field} is {shown(given)}, expected an object")
    for name in given:
        if not re.fullmatch(r"[A-Za-z0-9_.]{1,200}", name):
            raise ModelFileError(f"{path}: {field} has {shown(name)}, which is no plain name")
    return {name: kind(path, f"{field} {name}", value) for name, value in given.items()}


def _of(pattern: Mapping[str, Any], matrix: str, other: Any) -> Any:
    for name, value in pattern.items():
        if matrix == name or matrix.endswith(f".{name}"):
            return value
    return other


def _whole(path: Path, name: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise ModelFileError(f"{path}: {name} is {shown(value)}; allowed is 1..{MAX_RANK}")
    return value


def _number(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e6:
        raise ModelFileError(f"{path}: {name} is {shown(value)}, expected a number below a million")
    return float(value)


def _matrix(name: str) -> str:
    """`model.layers.0.mlp.up_proj` of `model.layers.0.mlp.up_proj.weight`."""
    return name.removesuffix(".weight")
