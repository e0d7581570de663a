"""Small random models of every kind we run, written by transformers, which is the reference.

Texts are longer than every window, and long texts than a span of the compiled attention (128).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from decodery.models.architecture import Architecture
from decodery.models.codes import Codes
from decodery.models.llama import expected_shapes
from decodery.models.weights import SINGLE_FILE, Precision

CLOSE = 1e-4  # largest difference of float32 logits; typical is 1e-6
LENGTH = 96
VOCAB = 101

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama all heads": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama one key head": ("LlamaConfig", {"num_key_value_heads": 1}),
    "llama tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama linear": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10_000.0}},
    ),
    "llama yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "llama yarn mscale": (
        "LlamaConfig",
        {"rope_parameters": YARN | {"mscale": 0.8, "mscale_all_dim": 0.5, "truncate": False}},
    ),
    "llama wide heads": ("LlamaConfig", {"head_dim": 20}),
    "llama biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama wider": ("LlamaConfig", {"hidden_size": 64, "intermediate_size": 608}),
    "llama gelu": ("LlamaConfig", {"hidden_act": "gelu"}),
    "mistral windowed": ("MistralConfig", {"sliding_window": 11}),
    "mistral full": ("MistralConfig", {"sliding_window": None, "head_dim": 12}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2 windowed": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3 biases": ("Qwen3Config", {"head_dim": 16, "attention_bias": True}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma3 scaled": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "sliding_window": 10,
            "final_logit_softcapping": 1.5,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2}),
    "smollm3 windowed": (
        "SmolLM3Config",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 7},
    ),
}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {"sliding_window": 12}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 9, "attn_logit_softcapping": 2.0},
    ),
    "cohere": ("CohereConfig", {"use_qk_norm": True, "logit_scale": 0.3}),
    "stablelm": ("StableLmConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"logits_scaling": 3.0, "attention_multiplier": 0.3}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
}
ALL = OURS | FOREIGN
# Heads of 20 and 12, no multiples of the 8 lanes of a vector.
NOT_COMPILED = frozenset({"llama wide heads", "mistral full"})
COMPILED = tuple(name for name in OURS if name not in NOT_COMPILED)


# Negative controls: a switch of config.json that the comparison of logits has to notice.
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 9_000.0}}),
    "scaling": ("llama llama3", {"rope_parameters": LLAMA3 | {"factor": 7.0}}),
    "window": ("mistral windowed", {"sliding_window": 12}),
    "epsilon": ("llama", {"rms_norm_eps": 1e-3}),
    "heads": (
        "llama all heads",
        {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4},
    ),
    "scale": ("gemma3", {"query_pre_attn_scalar": 25}),
    "activation": ("gemma3", {"hidden_activation": "silu"}),
    "softcap": ("gemma3 scaled", {"final_logit_softcapping": 1.6}),
    "nope": ("smollm3", {"no_rope_layers": [0, 1, 1], "layer_types": ["full_attention"] * 3}),
}

Make = Callable[..., Path]


def text(length: int = LENGTH, seed: int = 7) -> Tensor:
    """Random tokens, int64 [length]."""
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def random_model(name: str) -> Any:
    """transformers' model of a named kind, every weight random."""
    config_name, options = ALL[name]
    sizes = {"vocab_size": VOCAB} if name == "gpt2" else SIZES
    config = getattr(transformers, config_name)(**(sizes | options))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():  # norms start at one, biases at zero: give them values
            weight.add_(0.15 * torch.randn_like(weight))
    return model


def with_config(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a model with some fields of config.json changed (None removes a field)."""
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (target / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in changes or v is not None})
    )
    (target / SINGLE_FILE).symlink_to(folder / SINGLE_FILE)
    return target


@torch.no_grad()
def reference(folder: Path, tokens: Tensor) -> Tensor:
    """transformers' float32 logits of a text [n] or several [m, n]: [n, vocab] or [m, n, vocab]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    batch = tokens if tokens.dim() == 2 else tokens[None]
    logits = model.eval()(input_ids=batch, use_cache=False).logits
    return logits if tokens.dim() == 2 else logits[0]


class Store:
    """Weights in memory: all a store needs to be."""

    precision: Precision = "float32"

    def __init__(self, tensors: Mapping[str, Tensor | Codes]) -> None:
        self._tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def source(self, name: str) -> str:
        return "memory"

    def tensor(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return tensor if isinstance(tensor, Tensor) else tensor.dequantise()

    def codes(self, name: str) -> Codes | None:
        tensor = self._tensors[name]
        return None if isinstance(tensor, Tensor) else tensor


def random_store(architecture: Architecture, seed: int = 0) -> Store:
    """Random float weights of an architecture."""
    generator = torch.Generator().manual_seed(seed)
    return Store(
        {
            name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5
            for name, shape in expected_shapes(architecture).items()
        }
    )


def real_widths(kind: str) -> tuple[Architecture, Store]:
    """Two layers of the embedded model's sizes, of a model type."""
    config = {
        "model_type": kind,
        "vocab_size": VOCAB,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 2,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    architecture = Architecture.from_config(config)
    return architecture, random_store(architecture)
