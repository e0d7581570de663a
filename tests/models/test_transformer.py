"""The transformers that attend through the engine against transformers' own, on tiny models.

`CachedAttention` plays the engine: plain causal attention in float32 over a growing cache, so a
text can be fed at once, in chunks or one token at a time. Texts are longer than every window.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import (
    ALL,
    CLOSE,
    GPT2,
    LENGTH,
    LLAMA3,
    OURS,
    SIZES,
    VOCAB,
    WRONG,
    Make,
    Store,
    real_widths,
    reference,
    text,
    with_config,
)
from torch import Tensor

from decodery.core.errors import ModelFileError
from decodery.models import foreign
from decodery.models.architecture import Architecture
from decodery.models.foreign import ForeignTransformer
from decodery.models.llama import LlamaTransformer
from decodery.models.rope import Rope
from decodery.models.transformer import Transformer, load_transformer
from decodery.models.weights import SINGLE_FILE, SafetensorsFolder


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


@pytest.fixture(autouse=True)
def _torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled forward, which attends by itself: `test_compiled.py` has that one."""
    monkeypatch.setattr("decodery.models.compiled.can_compile", lambda _: False)


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


def _difference(model: Transformer, expected: Tensor) -> float:
    return (_logits(model, text()) - expected).abs().max().item()


@pytest.mark.parametrize("name", ALL)
def test_logits_equal_the_reference(make: Make, name: str) -> None:
    model = load_transformer(make(name), "float32", "cpu")
    assert isinstance(model, LlamaTransformer if name in OURS else ForeignTransformer)
    expected = reference(make(name), text())
    assert expected.std() > 0.05  # the comparison means something
    logits = _logits(model, text())
    assert logits.shape == (LENGTH, VOCAB)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max().item() < CLOSE


@pytest.mark.parametrize("name", ["llama", "gemma3", "smollm3 windowed", "gemma2", "opt"])
@pytest.mark.parametrize("pieces", [[1] * 40, [17, 1, 1, 21]])
def test_a_text_may_be_fed_in_pieces(make: Make, name: str, pieces: list[int]) -> None:
    model = load_transformer(make(name), "float32", "cpu")
    tokens = text(40)
    torch.testing.assert_close(
        _logits(model, tokens, pieces), _logits(model, tokens), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_layer_calls_back_once_in_order(make: Make, name: str) -> None:
    model = load_transformer(make(name), "float32", "cpu")
    attend = CachedAttention(model)
    model.hidden(text(5), torch.arange(5), attend)
    assert attend.calls == [0, 1, 2]


@pytest.mark.parametrize("name", OURS)
def test_a_row_does_not_depend_on_its_batch_mates(make: Make, name: str) -> None:
    model = load_transformer(make(name), "float32", "cpu")
    tokens = text(67)
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
    model = load_transformer(make("llama"), "float32", "cpu")
    tokens, positions = text(9), torch.arange(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    plain = model.hidden(tokens, positions, _own_values)
    assert torch.equal(model.hidden(tokens[order], positions[order], _own_values), plain[order])
    assert not torch.equal(model.hidden(tokens, positions + 1, _own_values), plain)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_switch_is_noticed(make: Make, tmp_path: Path, wrong: str) -> None:
    """Negative controls: the same comparison rejects each of these."""
    name, changes = WRONG[wrong]
    model = load_transformer(with_config(make(name), tmp_path, **changes), "float32", "cpu")
    assert _difference(model, reference(make(name), text())) > CLOSE


def test_old_config_spellings_are_read(make: Make, tmp_path: Path) -> None:
    """`rope_theta` with `rope_scaling`, no `head_dim`, as files before transformers 5 have them."""
    scaling = {k: v for k, v in LLAMA3.items() if k not in ("rope_theta", "rope_type")}
    folder = with_config(
        make("llama llama3"),
        tmp_path,
        rope_parameters=None,
        head_dim=None,
        rope_theta=LLAMA3["rope_theta"],
        rope_scaling=scaling | {"type": "llama3"},
    )
    model = load_transformer(folder, "float32", "cpu")
    assert _difference(model, reference(make("llama llama3"), text())) < CLOSE


def test_old_gemma_spellings_are_read(make: Make, tmp_path: Path) -> None:
    folder = with_config(
        make("gemma3"),
        tmp_path,
        rope_parameters=None,
        layer_types=None,
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
        sliding_window_pattern=2,
    )
    model = load_transformer(folder, "float32", "cpu")
    assert _difference(model, reference(make("gemma3"), text())) < CLOSE


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_bfloat16_is_near_the_reference(make: Make, name: str) -> None:
    model = load_transformer(make(name), "bf16", "cpu")
    assert model.dtype == torch.bfloat16
    expected = reference(make(name), text())
    assert _difference(model, expected) < 0.06 * expected.abs().max().item()


@pytest.mark.parametrize("name", ["llama tied", "llama biases", "gemma3", "gpt2", "opt"])
def test_sizes_are_reported(make: Make, name: str) -> None:
    model = load_transformer(make(name), "float32", "cpu")
    peer: Any = transformers.AutoModelForCausalLM.from_pretrained(make(name))
    assert model.parameters == sum(weight.numel() for weight in peer.parameters())
    assert model.vocab_size == VOCAB
    assert model.width == peer.get_output_embeddings().weight.shape[1]
    assert model.context_length == 512
    assert model.kv_heads * model.head_dim == (
        32 if name in ("gpt2", "opt", "gemma3") else 16
    )  # gemma3: 2 heads of 16
    assert model.device == torch.device("cpu")
    assert len(model.layers) == peer.config.num_hidden_layers


def test_shards_are_read(make: Make, tmp_path: Path) -> None:
    peer = transformers.AutoModelForCausalLM.from_pretrained(make("llama"))
    peer.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / SINGLE_FILE).exists()
    model = load_transformer(tmp_path, "float32", "cpu")
    assert _difference(model, reference(make("llama"), text())) < CLOSE


def _refused(folder: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_transformer(folder, "float32", "cpu")
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
    message = _refused(with_config(make("llama"), tmp_path, **changes))
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
    load_transformer(tmp_path, "float32", "cpu")
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
    "own attention": ("GPTJConfig", GPT2 | {"rotary_dim": 4}, "cannot be replaced"),
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


def test_weights_may_come_from_any_store(make: Make) -> None:
    folder = make("qwen3")
    config = json.loads((folder / "config.json").read_text())
    store = Store(load_file(folder / SINGLE_FILE))
    model = LlamaTransformer(Architecture.from_config(config), store, torch.float32, "cpu")
    with SafetensorsFolder(folder) as weights:
        other = LlamaTransformer(Architecture.from_config(config), weights, torch.float32, "cpu")
    tokens, positions = text(6), torch.arange(6)
    assert torch.equal(
        model.hidden(tokens, positions, _own_values), other.hidden(tokens, positions, _own_values)
    )


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_rows_of_real_widths_are_invariant_to_batch_and_threads(kind: str) -> None:
    """Two layers of the embedded model's sizes: large enough that torch splits the work."""
    architecture, store = real_widths(kind)
    generator = torch.Generator().manual_seed(1)
    model = LlamaTransformer(architecture, store, torch.float32, "cpu")
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
