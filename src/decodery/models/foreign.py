"""Any other causal language model of transformers, run with decodery's attention.

transformers lets an attention function be registered by name. Ours answers every attention layer of
a model by calling the engine's `attend`, so GPT-2, OPT, Phi, Gemma 2, Cohere and their like need no
code here. Not every model can be run so: some add a bias by distance (ALiBi), keep a recurrent
state, or never ask the registry. Nothing is assumed: at load a probe text goes through the model
twice, once with the model's own attention, once as the engine would run it, in pieces and out of
order, and a model whose logits differ is refused.

Unlike the Llama family, rows are not promised to be bitwise independent of their batch mates.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from decodery.core.errors import ModelFileError, ParameterError
from decodery.models.architecture import MODEL_TYPES
from decodery.models.bounds import SPARE_BYTES, shown
from decodery.models.transformer import Attend, LayerAttention
from decodery.models.weights import read_header, safetensors_files

_NAME = "decodery"
_PROBE_NAME = "decodery_probe"
_PROBE_TOKENS = 16
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}  # else bfloat16's
_BFLOAT16_TOLERANCE = 1e-1

# Tensors a model may pass to the attention function although `attend` needs none of them: it knows
# the mask itself, and keys and queries come rotated.
_HARMLESS_TENSORS = frozenset({"attention_mask", "position_ids", "cache_position"})


class _Handler(Protocol):
    """What answers one attention layer: query [n, heads, head_dim], key and value likewise."""

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, layer: LayerAttention, /
    ) -> Tensor: ...


_handler: ContextVar[_Handler] = ContextVar("decodery_attention_handler")


class ForeignTransformer:
    """A `Transformer` around a transformers model. Made by `load`."""

    def __init__(self, model: Any, probe: _Probe, hidden: Tensor) -> None:
        self._model = model
        self._head = _head_of(model)
        self._indices = {module: index for index, module in enumerate(probe.layers)}
        self.layers = tuple(probe.layers.values())
        self.kv_heads, self.head_dim = probe.key_shape
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.width = hidden.shape[-1]
        self.context_length = int(model.config.max_position_embeddings)
        self.dtype: torch.dtype = hidden.dtype
        self.cache_dtype = self.dtype
        self.device: torch.device = hidden.device
        self.parameters = sum(weight.numel() for weight in model.parameters())

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: str) -> ForeignTransformer:
        """Loads a folder in the Hugging Face layout and proves that the engine can run it.

        Raises `ModelFileError` with the reason when it cannot, or when weights are missing.
        """
        files = safetensors_files(folder)
        config = _load_config(folder)
        _refuse_by_config(folder, config)
        _refuse_without_weights(folder, config, files)
        model = _load_model(folder, dtype).to(device).eval()
        _register()
        try:
            return cls._probed(folder, model, _probe_tokens(model))
        except ModelFileError:
            raise
        except Exception as error:  # a model of transformers may raise anything
            _refuse(folder, f"its forward pass fails under decodery's attention ({error})", error)

    @classmethod
    @torch.no_grad()
    def _probed(cls, folder: Path, model: Any, tokens: Tensor) -> ForeignTransformer:
        expected = model(input_ids=tokens[None], use_cache=False).logits[0].float()
        model.set_attn_implementation(_PROBE_NAME)
        if model.config._attn_implementation != _PROBE_NAME:
            _refuse(folder, "its attention cannot be replaced")
        probe = _Probe(folder)
        hidden = probe.run(model, tokens)
        probe.check(model)
        model.set_attn_implementation(_NAME)

        self = cls(model, probe, hidden)
        difference = (self.logits(hidden) - expected).abs().max().item()
        allowed = _TOLERANCE.get(self.dtype, _BFLOAT16_TOLERANCE)
        allowed *= max(1.0, expected.abs().max().item())
        if not difference <= allowed:
            _refuse(
                folder,
                f"on a probe text its logits differ by {difference:.2g} from its own forward pass"
                f" (at most {allowed:.2g}): it has positions or state the engine cannot see",
            )
        return self

    @torch.no_grad()
    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions [n] int64 -> hidden states after the last norm [n, width]."""

        def handler(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _: LayerAttention
        ) -> Tensor:
            return attend(self._indices[module], query, key, value)

        with _handled_by(handler):
            return _run_body(self._model, tokens, positions)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """[m, width] -> float32 [m, vocab_size], the head's scaling and capping included."""
        return self._head(inputs_embeds=hidden[None], use_cache=False).logits[0].float()

    def exit(self, layer: int) -> NoReturn:
        """Refused: which of its parts come after the last layer is not known."""
        raise ParameterError(
            "a model that runs through transformers' forward cannot be left early;"
            f" use a {', '.join(MODEL_TYPES[:-1])} or {MODEL_TYPES[-1]} model"
        )


@dataclass
class _Probe:
    """Attends by position in plain float32, and writes down what each layer asked for."""

    folder: Path
    layers: dict[nn.Module, LayerAttention] = field(default_factory=dict)
    key_shape: tuple[int, int] = (0, 0)  # kv_heads, head_dim
    mask_windows: set[int | None] = field(default_factory=set)
    _calls: dict[nn.Module, int] = field(default_factory=dict)
    _keys: dict[nn.Module, Tensor] = field(default_factory=dict)
    _values: dict[nn.Module, Tensor] = field(default_factory=dict)
    _seen: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    _new: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def run(self, model: Any, tokens: Tensor) -> Tensor:
        """Hidden states [n, width] of a text fed in two pieces, each in a shuffled order.

        A model that takes positions from the order of the rows, mixes rows outside attention, or
        needs the text in one piece gives other states than its own forward pass.
        """
        half = len(tokens) // 2
        order = torch.randperm(half, generator=torch.Generator().manual_seed(0))
        rows: list[Tensor] = []
        with _handled_by(self):
            for piece in (order, order + half):
                self._new = piece.to(tokens.device)
                self._seen = torch.cat((self._seen.to(tokens.device), self._new))
                rows.append(_run_body(model, tokens[self._new], self._new))
        return torch.cat(rows)[self._seen.argsort()]

    def check(self, model: Any) -> None:
        """Refuses a model whose layers did not each call back exactly once in each piece."""
        count = model.config.num_hidden_layers
        if len(self.layers) != count:
            _refuse(
                self.folder,
                f"{len(self.layers)} of its {count} layers ask for attention, the rest (recurrent"
                " or convolutional layers, perhaps) work in a way the engine cannot see",
            )
        if set(self._calls.values()) != {2}:
            _refuse(self.folder, "a layer attends more than once")
        windows = {layer.window for layer in self.layers.values()}
        if windows - {None} != self.mask_windows - {None}:
            _refuse(
                self.folder,
                f"its layers name the windows {_listed(windows)},"
                f" its masks {_listed(self.mask_windows)}",
            )

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, layer: LayerAttention
    ) -> Tensor:
        if key.shape != value.shape:
            _refuse(
                self.folder,
                f"its keys have shape {list(key.shape[1:])}, its values {list(value.shape[1:])}",
            )
        if self.layers and tuple(key.shape[1:]) != self.key_shape:
            _refuse(self.folder, "its layers have key-value heads of different shapes")
        if len(key) != len(self._new):
            _refuse(self.folder, "a layer keeps keys and values of its own")
        self.key_shape = (key.shape[1], key.shape[2])
        self.layers[module] = layer
        self._calls[module] = self._calls.get(module, 0) + 1
        self._keys[module] = torch.cat((self._keys[module], key)) if module in self._keys else key
        self._values[module] = (
            torch.cat((self._values[module], value)) if module in self._values else value
        )
        return self._attention(query, self._keys[module], self._values[module], layer)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, layer: LayerAttention
    ) -> Tensor:
        """query [n, heads, head_dim], key and value [seen, kv_heads, head_dim]."""
        groups = query.shape[1] // key.shape[1]
        key, value = (
            states.float().repeat_interleave(groups, dim=1).transpose(0, 1)
            for states in (key, value)
        )
        scores = query.float().transpose(0, 1) @ key.transpose(1, 2) * layer.scale
        if layer.softcap is not None:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        distance = self._new[:, None] - self._seen[None, :]
        hidden = distance < 0
        if layer.window is not None:
            hidden |= distance >= layer.window
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        return (weights @ value).transpose(0, 1).flatten(1).to(query.dtype)


class _GivenHidden(nn.Module):
    """Stands where a model's body was and hands its input on as the last hidden state."""

    @property
    def decoder(self) -> _GivenHidden:
        """Some models (OPT) call `body.decoder` instead of the body."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        output: Any = BaseModelOutputWithPastAndCrossAttentions()
        output.last_hidden_state = inputs_embeds
        output.router_logits = None  # mixtures of experts pass it on
        return output


def _head_of(model: Any) -> Any:
    """The model with its body taken out: the head and all the model does to logits, as it is."""
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: _GivenHidden()}
    return head


def _run_body(model: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    body = getattr(model, model.base_model_prefix)
    output = body(input_ids=tokens[None], position_ids=positions[None], use_cache=False)
    return output.last_hidden_state[0]


def _load_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a config class of transformers may raise anything
        _refuse(folder, f"transformers cannot read it ({type(error).__name__}: {error})", error)


def _load_model(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",  # the probe's reference: every model has it, with softcaps
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a model class of transformers may raise anything
        _refuse(folder, f"transformers cannot load it ({type(error).__name__}: {error})", error)
    model, report = loaded
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(kind):
            raise ModelFileError(
                f"{folder}: {kind.replace('_', ' ')} on loading: {_listed(report[kind])}"
            )
    return model


def _refuse_by_config(folder: Path, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        _refuse(folder, "it is an encoder-decoder")
    if config.get_text_config() is not config:
        _refuse(folder, "it is multi-modal; only text models are decoded")
    if not isinstance(getattr(config, "max_position_embeddings", None), int):
        _refuse(folder, "its config names no max_position_embeddings")
    for kind in sorted(_rope_kinds(getattr(config, "rope_parameters", None))):
        if kind in ("dynamic", "longrope"):
            _refuse(
                folder,
                f"its {kind!r} rotation depends on the longest text in the batch,"
                " so rows would depend on their batch mates",
            )


def _refuse_without_weights(folder: Path, config: Any, files: list[Path]) -> None:
    """Refuse a config of far more layers or parameters than the files hold.

    transformers makes up what is missing, at any size, before it says that something is.
    """
    layers, tensors = (
        getattr(config, "num_hidden_layers", 0),
        sum(map(len, map(read_header, files))),
    )
    if not isinstance(layers, int) or layers > tensors:
        _refuse(folder, f"its config has {shown(layers)} layers, its files {tensors} tensors")
    stored = sum(path.stat().st_size for path in files)
    needed = _parameters(folder, config)
    if needed > stored + SPARE_BYTES // 4:  # float32's, beside what is stored
        _refuse(folder, f"its config makes {needed} parameters, its files have {stored} bytes")


def _parameters(folder: Path, config: Any) -> int:
    """How many parameters and buffers the config makes, nothing allocated."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a model class of transformers may raise anything
        _refuse(folder, f"transformers cannot make it ({type(error).__name__}: {error})", error)
    return sum(values.numel() for values in chain(model.parameters(), model.buffers()))


def _rope_kinds(parameters: Any) -> set[str]:
    """The rope types in a flat or nested `rope_parameters`."""
    if not isinstance(parameters, dict):
        return set()
    nested = set().union(*(_rope_kinds(value) for value in parameters.values()))
    return nested | {str(parameters.get("rope_type", "default"))}


def _probe_tokens(model: Any) -> Tensor:
    """Spread-out token ids, [16] int64."""
    vocab = int(model.get_output_embeddings().weight.shape[0])
    return (torch.arange(_PROBE_TOKENS) * 7919 + 13).remainder(vocab).to(model.device)


def _register() -> None:
    """Makes our attention known to transformers. Registering again changes nothing.

    Under `_NAME` no mask function is registered, so transformers builds no mask at all. The probe
    registers one to learn the window of each mask the model asks for.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attention)
    AttentionInterface.register(_PROBE_NAME, _attention)
    AttentionMaskInterface.register(_PROBE_NAME, _probe_mask)


def _probe_mask(*_: Any, local_size: int | None = None, **__: Any) -> None:
    handler = _handler.get()
    if isinstance(handler, _Probe):
        handler.mask_windows.add(local_size)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """transformers' side: query [1, heads, n, head_dim] in, [1, n, heads, head_dim] out."""
    odd = [name for name, value in rest.items() if isinstance(value, Tensor)]
    odd = [name for name in odd if name not in _HARMLESS_TENSORS]
    if odd:
        raise ValueError(f"attention takes {odd[0]!r}, which decodery's does not know")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    answered = _handler.get()(
        module,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        LayerAttention(sliding_window, scale, softcap),
    )
    return answered.reshape(1, query.shape[2], query.shape[1], -1), None


@contextlib.contextmanager
def _handled_by(handler: _Handler) -> Iterator[None]:
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)


def _listed(things: Any) -> str:
    names = sorted(str(thing) for thing in things)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refuse(folder: Path, reason: str, cause: BaseException | None = None) -> NoReturn:
    line = " ".join(f"{folder}: this model cannot be decoded here: {reason}".split())
    raise ModelFileError(line[:600]) from cause
