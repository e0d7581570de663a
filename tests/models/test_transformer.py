"""Both transformers against the reference, transformers' own forward pass, on tiny random models.

`CachedAttention` plays the engine: plain causal attention in float32 over a growing cache, so a
text can be fed at once, in chunks or one token at a time. Texts are longer than every window.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from decodery.core.errors import ModelFileError
from decodery.models import foreign
from decodery.models.architecture import Architecture
from decodery.models.foreign import ForeignTransformer
from decodery.models.llama import LlamaTransformer, expected_shapes
from decodery.models.rope import Rope
from decodery.models.transformer import Transformer, load_transformer
from decodery.models.weights import SINGLE_FILE, SafetensorsFolder

LENGTH = 96
CLOSE = 1e-4  # largest difference of float32 logits; typical is 1e-6
VOCAB = 101

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
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
    "original_max_position_embeddings": 32,
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
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
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


class CachedAttention:
    """Causal attention in the order of feeding, with a cache for each layer. Counts its calls."""

    def __init__(self, model: Transformer) -> None:
        self._layers = model.layers
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self.calls: list[int] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.calls.append(layer)
        if layer in self._keys:
            key = torch.cat((self._keys[layer], key))
            value = torch.cat((self._values[layer], value))
        self._keys[layer], self._values[layer] = key, value
        seen, shape = len(key), self._layers[layer]
        groups = query.shape[1] // key.shape[1]
        keys = key.float().repeat_interleave(groups, dim=1)
        values = value.float().repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * shape.scale
        if shape.softcap is not None:
            scores = shape.softcap * torch.tanh(scores / shape.softcap)
        place = torch.arange(seen)
        distance = place[seen - len(query) :, None] - place[None, :]
        visible = distance >= 0
        if shape.window is not None:
            visible &= distance < shape.window
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values).flatten(1).to(query.dtype)


def _own_values(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """An attention in which every node sees itself alone: rows cannot mix, whatever the batch."""
    return (value + key).repeat_interleave(query.shape[1] // key.shape[1], dim=1).flatten(1)


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes a random model of a named kind once and returns its folder."""
    folders: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name.replace(" ", "_"))
            _reference_from_config(name).save_pretrained(folders[name])
        return folders[name]

    return write


def _reference_from_config(name: str) -> Any:
    config_name, options = ALL[name]
    sizes = {"vocab_size": VOCAB} if name == "gpt2" else SIZES
    config = getattr(transformers, config_name)(**(sizes | options))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():  # norms start at one, biases at zero: give them values
            weight.add_(0.15 * torch.randn_like(weight))
    return model


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def _text(length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def _reference(folder: Path, tokens: Tensor) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()(input_ids=tokens[None], use_cache=False).logits[0]


def _logits(model: Transformer, tokens: Tensor, pieces: list[int] | None = None) -> Tensor:
    """Logits of a text fed in pieces of the given lengths (default: at once)."""
    attend = CachedAttention(model)
    positions = torch.arange(len(tokens))
    rows = [
        model.hidden(piece, places, attend)
        for piece, places in zip(
            tokens.split(pieces or [len(tokens)]),
            positions.split(pieces or [len(tokens)]),
            strict=True,
        )
    ]
    return model.logits(torch.cat(rows))


def _difference(model: Transformer, reference: Tensor) -> float:
    return (_logits(model, _text()) - reference).abs().max().item()


@pytest.mark.parametrize("name", ALL)
def test_logits_equal_the_reference(make: Make, name: str) -> None:
    model = load_transformer(make(name), torch.float32, "cpu")
    assert isinstance(model, LlamaTransformer if name in OURS else ForeignTransformer)
    reference = _reference(make(name), _text())
    assert reference.std() > 0.05  # the comparison means something
    logits = _logits(model, _text())
    assert logits.shape == (LENGTH, VOCAB)
    assert logits.dtype == torch.float32
    assert (logits - reference).abs().max().item() < CLOSE


@pytest.mark.parametrize("name", ["llama", "gemma3", "smollm3 windowed", "gemma2", "opt"])
@pytest.mark.parametrize("pieces", [[1] * 40, [17, 1, 1, 21]])
def test_a_text_may_be_fed_in_pieces(make: Make, name: str, pieces: list[int]) -> None:
    model = load_transformer(make(name), torch.float32, "cpu")
    tokens = _text(40)
    torch.testing.assert_close(
        _logits(model, tokens, pieces), _logits(model, tokens), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_layer_calls_back_once_in_order(make: Make, name: str) -> None:
    model = load_transformer(make(name), torch.float32, "cpu")
    attend = CachedAttention(model)
    model.hidden(_text(5), torch.arange(5), attend)
    assert attend.calls == [0, 1, 2]


@pytest.mark.parametrize("name", OURS)
def test_a_row_does_not_depend_on_its_batch_mates(make: Make, name: str) -> None:
    model = load_transformer(make(name), torch.float32, "cpu")
    tokens = _text(67)
    positions = torch.randint(0, 128, (67,), generator=torch.Generator().manual_seed(8))
    whole = model.hidden(tokens, positions, _own_values)
    logits = model.logits(whole)
    for size in (1, 2, 3, 5, 16, 66):
        rows = torch.randperm(67, generator=torch.Generator().manual_seed(size))[:size]
        hidden = model.hidden(tokens[rows], positions[rows], _own_values)
        assert torch.equal(hidden, whole[rows])
        assert torch.equal(model.logits(hidden), logits[rows])


def test_positions_matter_and_nothing_else_about_places(make: Make) -> None:
    """Shuffled rows give shuffled results; a shift by one position changes them."""
    model = load_transformer(make("llama"), torch.float32, "cpu")
    tokens, positions = _text(9), torch.arange(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    plain = model.hidden(tokens, positions, _own_values)
    assert torch.equal(model.hidden(tokens[order], positions[order], _own_values), plain[order])
    assert not torch.equal(model.hidden(tokens, positions + 1, _own_values), plain)


def _with_config(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a model with some fields of config.json changed (None removes a field)."""
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (target / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in changes or v is not None})
    )
    (target / SINGLE_FILE).symlink_to(folder / SINGLE_FILE)
    return target


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 9_000.0}}),
    "scaling": ("llama llama3", {"rope_parameters": LLAMA3 | {"factor": 7.0}}),
    "window": ("mistral windowed", {"sliding_window": 12}),
    "epsilon": ("llama", {"rms_norm_eps": 1e-3}),
    "heads": ("llama all heads", {"num_attention_heads": 8, "num_key_value_heads": 8}),
    "scale": ("gemma3", {"query_pre_attn_scalar": 25}),
    "activation": ("gemma3", {"hidden_activation": "silu"}),
    "softcap": ("gemma3 scaled", {"final_logit_softcapping": 1.6}),
    "nope": ("smollm3", {"no_rope_layers": [0, 1, 1], "layer_types": ["full_attention"] * 3}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_switch_is_noticed(make: Make, tmp_path: Path, wrong: str) -> None:
    """Negative controls: the same comparison rejects each of these."""
    name, changes = WRONG[wrong]
    changes = {"head_dim": 4, **changes} if wrong == "heads" else changes
    model = load_transformer(_with_config(make(name), tmp_path, **changes), torch.float32, "cpu")
    assert _difference(model, _reference(make(name), _text())) > CLOSE


def test_old_config_spellings_are_read(make: Make, tmp_path: Path) -> None:
    """`rope_theta` with `rope_scaling`, no `head_dim`, as files before transformers 5 have them."""
    scaling = {k: v for k, v in LLAMA3.items() if k not in ("rope_theta", "rope_type")}
    folder = _with_config(
        make("llama llama3"),
        tmp_path,
        rope_parameters=None,
        head_dim=None,
        rope_theta=LLAMA3["rope_theta"],
        rope_scaling=scaling | {"type": "llama3"},
    )
    model = load_transformer(folder, torch.float32, "cpu")
    assert _difference(model, _reference(make("llama llama3"), _text())) < CLOSE


def test_old_gemma_spellings_are_read(make: Make, tmp_path: Path) -> None:
    folder = _with_config(
        make("gemma3"),
        tmp_path,
        rope_parameters=None,
        layer_types=None,
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
        sliding_window_pattern=2,
    )
    model = load_transformer(folder, torch.float32, "cpu")
    assert _difference(model, _reference(make("gemma3"), _text())) < CLOSE


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_bfloat16_is_near_the_reference(make: Make, name: str) -> None:
    model = load_transformer(make(name), torch.bfloat16, "cpu")
    assert model.dtype == torch.bfloat16
    reference = _reference(make(name), _text())
    assert _difference(model, reference) < 0.06 * reference.abs().max().item()


@pytest.mark.parametrize("name", ["llama tied", "llama biases", "gemma3", "gpt2", "opt"])
def test_sizes_are_reported(make: Make, name: str) -> None:
    model = load_transformer(make(name), torch.float32, "cpu")
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(make(name))
    assert model.parameters == sum(weight.numel() for weight in reference.parameters())
    assert model.vocab_size == VOCAB
    assert model.width == reference.get_output_embeddings().weight.shape[1]
    assert model.context_length == 128
    assert model.kv_heads * model.head_dim == (
        32 if name in ("gpt2", "opt", "gemma3") else 16
    )  # gemma3: 2 heads of 16
    assert model.device == torch.device("cpu")
    assert len(model.layers) == reference.config.num_hidden_layers


def test_shards_are_read(make: Make, tmp_path: Path) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(make("llama"))
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / SINGLE_FILE).exists()
    model = load_transformer(tmp_path, torch.float32, "cpu")
    assert _difference(model, _reference(make("llama"), _text())) < CLOSE


def _refused(folder: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_transformer(folder, torch.float32, "cpu")
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_size": 0}, "hidden_size should be an integer from 1"),
        ({"hidden_size": True}, "hidden_size should be an integer"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers should be an integer from 1 to 4096"),
        ({"num_key_value_heads": 3}, "num_key_value_heads should be a divisor"),
        ({"num_attention_heads": None}, "num_attention_heads .* found nothing"),
        ({"num_attention_heads": 3, "head_dim": None}, "hidden_size should be a multiple"),
        ({"head_dim": 7}, "heads of size 7"),
        ({"hidden_act": "selu"}, "hidden_act should be one of .*'silu'"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps should be a positive number"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps should be a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings should be true or false"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters.rope_type"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor"),
        ({"rope_parameters": [1]}, "rope_parameters should be an object"),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 0.5}}, "high_freq_factor should be"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"intermediate_size": 49}, r"gate_proj.weight' has shape \[48, 32\], expected \[49, 32\]"),
        ({"num_hidden_layers": 2}, "'model.layers.2.* is unexpected"),
        ({"num_hidden_layers": 4}, "'model.layers.3.* is missing"),
        ({"attention_bias": True}, "q_proj.bias' is missing"),
    ],
)
def test_impossible_configs_are_refused(
    make: Make, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    message = _refused(_with_config(make("llama"), tmp_path, **changes))
    assert re.search(complaint, message), message


def test_gemma_features_without_a_reference_are_refused() -> None:
    config = {"model_type": "gemma3_text", "attn_logit_softcapping": 30.0}
    with pytest.raises(ModelFileError, match="attn_logit_softcapping should be null"):
        Architecture.from_config(config)
    config = {"model_type": "gemma3_text", "use_bidirectional_attention": True}
    with pytest.raises(ModelFileError, match="use_bidirectional_attention should be false"):
        Architecture.from_config(config)


def test_a_tied_head_that_differs_is_refused(make: Make, tmp_path: Path) -> None:
    tensors = load_file(make("llama tied") / SINGLE_FILE)
    head = tensors["model.embed_tokens.weight"].clone()
    (tmp_path / "config.json").write_text((make("llama tied") / "config.json").read_text())
    save_file(tensors | {"lm_head.weight": head}, tmp_path / SINGLE_FILE)
    load_transformer(tmp_path, torch.float32, "cpu")
    head[0, 0] += 1
    save_file(tensors | {"lm_head.weight": head}, tmp_path / SINGLE_FILE)
    assert "differs from the embedding" in _refused(tmp_path)


def test_the_default_rope_is_exact_far_out() -> None:
    """Angles are taken in float32 from exact frequencies, as the reference takes them."""
    frequencies = Rope(theta=10_000.0).frequencies(8)
    expected = torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(frequencies, expected, atol=0, rtol=1e-6)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "alibi": ("BloomConfig", {"n_layer": 2, "n_head": 4, "hidden_size": 32}, "max_position"),
    "own attention": ("GPTJConfig", _GPT2 | {"rotary_dim": 4}, "cannot be replaced"),
    "convolutions": ("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv"]}, "1 of its"),
    "sinks": ("GptOssConfig", {"head_dim": 8, "num_local_experts": 4}, "s_aux"),
    "longrope": (
        "Phi3Config",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 64,
            }
        },
        "batch mates",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_the_engine_cannot_run_are_refused(tmp_path: Path, name: str) -> None:
    config_name, options, complaint = REFUSED[name]
    sizes = {"vocab_size": VOCAB} if name in ("alibi", "own attention") else SIZES
    config = getattr(transformers, config_name)(**(sizes | options))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert complaint in _refused(tmp_path)


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        ({"scaling": 0.36}, "logits differ"),
        ({"softcap": 1.0}, "logits differ"),
        ({"sliding_window": 4096}, "windows 4096, its masks"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
    ],
)
def test_the_probe_notices_another_attention(
    make: Make, monkeypatch: pytest.MonkeyPatch, lie: dict[str, Any], complaint: str
) -> None:
    """Negative controls of the proof at load: a model that misreports its attention."""
    honest = foreign._attention

    def dishonest(module: Any, *states: Any, **options: Any) -> Any:
        return honest(module, *states, **(options | lie))

    monkeypatch.setattr(foreign, "_attention", dishonest)
    assert complaint in _refused(make("phi"))


def test_missing_foreign_weights_are_refused(make: Make, tmp_path: Path) -> None:
    tensors = load_file(make("phi") / SINGLE_FILE)
    del tensors["model.layers.1.mlp.fc1.bias"]
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((make("phi") / "config.json").read_text())
    assert "missing keys on loading: model.layers.1.mlp.fc1.bias" in _refused(tmp_path)


def test_foreign_pickles_and_unknown_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "unpickling runs code" in _refused(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / SINGLE_FILE)
    assert "transformers cannot read it" in _refused(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert "encoder-decoder" in _refused(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    assert "multi-modal" in _refused(tmp_path)


class Store:
    """Weights in memory: all a store needs to be."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def source(self, name: str) -> str:
        return "memory"

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def test_weights_may_come_from_any_store(make: Make) -> None:
    folder = make("qwen3")
    config = json.loads((folder / "config.json").read_text())
    store = Store(load_file(folder / SINGLE_FILE))
    model = LlamaTransformer(Architecture.from_config(config), store, torch.float32, "cpu")
    with SafetensorsFolder(folder) as weights:
        other = LlamaTransformer(Architecture.from_config(config), weights, torch.float32, "cpu")
    tokens, positions = _text(6), torch.arange(6)
    assert torch.equal(
        model.hidden(tokens, positions, _own_values), other.hidden(tokens, positions, _own_values)
    )


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_rows_of_real_widths_are_invariant_to_batch_and_threads(kind: str) -> None:
    """Two layers of the embedded model's sizes: large enough that torch splits the work."""
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
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        for name, shape in expected_shapes(architecture).items()
    }
    model = LlamaTransformer(architecture, Store(tensors), torch.float32, "cpu")
    tokens = torch.randint(VOCAB, (300,), generator=generator)
    positions = torch.randint(8192, (300,), generator=generator)
    whole = model.hidden(tokens, positions, _own_values)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for size in (1, 2, 3, 7, 16, 37, 128, 299):
                rows = torch.randperm(300, generator=generator)[:size]
                part = model.hidden(tokens[rows], positions[rows], _own_values)
                assert torch.equal(part, whole[rows])
    finally:
        torch.set_num_threads(threads)
