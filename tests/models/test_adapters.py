"""Adapters: merged by hand, read in PEFT's layout, kept apart from what they are not, refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import decodery as dc
from decodery.core.errors import ModelFileError, ParameterError
from decodery.models.adapters import (
    CONFIG,
    TENSORS,
    AdaptedWeights,
    base_norm,
    is_adapter,
    read_adapter,
    read_config,
    write_adapter,
)
from decodery.models.transformer import load_transformer
from decodery.models.weight_store import open_weights

UP = "model.layers.0.mlp.up_proj"
QUERY = "model.layers.1.self_attn.q_proj"
WIDTH, FEED_FORWARD = 64, 96


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny Llama in float32, as a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48, hidden_size=WIDTH, intermediate_size=FEED_FORWARD, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def made(folder: Path, rank: int = 4, **changed) -> Path:
    """An adapter of two matrices, with random A and B; `changed` fields of its config."""
    generator = torch.Generator().manual_seed(1)
    pairs = {
        f"{UP}.weight": (torch.randn(rank, WIDTH, generator=generator),
                         torch.randn(FEED_FORWARD, rank, generator=generator)),
        f"{QUERY}.weight": (torch.randn(rank, WIDTH, generator=generator),
                            torch.randn(WIDTH, rank, generator=generator)),
    }  # fmt: skip
    write_adapter(folder, pairs, alpha=8.0, base="tiny", base_norm="")
    tensors = load_file(folder / TENSORS)
    save_file(tensors, folder / TENSORS)  # without the fingerprint
    config = json.loads((folder / CONFIG).read_text()) | changed
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def halves(folder: Path, matrix: str):
    tensors = load_file(folder / TENSORS)
    return (tensors[f"base_model.model.{matrix}.lora_{half}.weight"] for half in "AB")


def logits(transformer, tokens=(5, 9, 2)) -> torch.Tensor:
    from decodery.training.tools import hidden_states

    return transformer.logits(hidden_states(transformer, tokens))


# -- the sum -------------------------------------------------------------------------------------


def test_a_matrix_is_its_base_plus_the_scaled_product(base, tmp_path):
    folder = made(tmp_path / "a")
    with open_weights(base) as store:
        merged = AdaptedWeights(store, read_adapter(folder))
        for matrix in (UP, QUERY):
            first, second = halves(folder, matrix)
            wanted = store.tensor(f"{matrix}.weight") + (8.0 / 4) * second @ first
            assert torch.equal(merged.tensor(f"{matrix}.weight"), wanted)
        other = "model.layers.0.mlp.down_proj.weight"
        assert torch.equal(merged.tensor(other), store.tensor(other))
        assert merged.shapes == store.shapes
        assert merged.precision == store.precision


@pytest.mark.parametrize(("changed", "scale"), [
    ({}, 2.0),
    ({"use_rslora": True}, 8.0 / math.sqrt(4)),
    ({"lora_alpha": 3}, 0.75),
    ({"alpha_pattern": {"up_proj": 2.0}}, 0.5),
    ({"alpha_pattern": {"model.layers.0.mlp.up_proj": 6.0}}, 1.5),
    ({"alpha_pattern": {"p_proj": 2.0}}, 2.0),  # no part of a name
], ids=str)  # fmt: skip
def test_scales(base, tmp_path, changed, scale):
    folder = made(tmp_path / "a", **changed)
    first, second = halves(folder, UP)
    found = read_adapter(folder).delta(f"{UP}.weight")
    torch.testing.assert_close(found, scale * second @ first)


def test_equal_adapters_are_equal_files(tmp_path):
    """Metadata included; and what is written is read as it was."""
    pairs = {f"{UP}.weight": (torch.rand(2, WIDTH), torch.rand(FEED_FORWARD, 2))}
    made = set()
    for number in range(8):
        folder = tmp_path / str(number)
        write_adapter(folder, pairs, alpha=8.0, base="tiny", base_norm="0" * 64)
        made.add((folder / TENSORS).read_bytes())
    assert len(made) == 1
    found = read_adapter(folder)
    assert found.base_norm == "0" * 64
    assert all(map(torch.equal, found.pairs[f"{UP}.weight"], pairs[f"{UP}.weight"]))


def test_a_rank_of_its_own(base, tmp_path):
    folder = made(tmp_path / "a", r=2, rank_pattern={"up_proj": 4, "q_proj": 4}, lora_alpha=2)
    assert read_config(folder).scale_of(UP) == 0.5
    assert read_adapter(folder).pairs.keys() == {f"{UP}.weight", f"{QUERY}.weight"}


@pytest.mark.parametrize("weights", ["float32", "int8", "bf16"])
def test_a_model_with_an_adapter_is_the_model_with_merged_weights(base, tmp_path, weights):
    """Against a folder whose weights were merged by hand: the same logits, bit for bit."""
    from transformers import LlamaForCausalLM

    folder = made(tmp_path / "a")
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for matrix in (UP, QUERY):
            first, second = halves(folder, matrix)
            model.get_submodule(matrix).weight += 2.0 * second @ first
    model.save_pretrained(tmp_path / "merged")
    found = load_transformer(base, weights, "cpu", adapter=folder)
    wanted = load_transformer(tmp_path / "merged", weights, "cpu")
    assert torch.equal(logits(found), logits(wanted))
    plain = load_transformer(base, weights, "cpu")
    assert not torch.allclose(logits(found), logits(plain), atol=0.1)


def test_it_is_the_model_with_the_sum_beside_it(base, tmp_path):
    """Transformers' forward with W x + scale B A x, nothing merged."""
    from transformers import LlamaForCausalLM

    folder = made(tmp_path / "a")
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    for matrix in (UP, QUERY):
        first, second = halves(folder, matrix)
        model.get_submodule(matrix).register_forward_hook(
            lambda _, inputs, output, first=first, second=second: (
                output + 2.0 * inputs[0] @ first.T @ second.T
            )
        )
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[5, 9, 2]])).logits[0]
    found = logits(load_transformer(base, "float32", "cpu", adapter=folder))
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


# -- on the embedded model -----------------------------------------------------------------------


def embedded_adapter(folder: Path, layers: int = 2, size: float = 0.0) -> Path:
    """An adapter of the value matrices of the first layers; of size 0 it changes nothing."""
    generator = torch.Generator().manual_seed(3)
    pairs = {
        f"model.layers.{layer}.self_attn.v_proj.weight": (
            torch.randn(2, 576, generator=generator),
            size * torch.randn(192, 2, generator=generator),
        )
        for layer in range(layers)
    }
    with open_weights(_embedded()) as store:
        norm = base_norm(store)
    write_adapter(folder, pairs, alpha=2.0, base="SmolLM2-135M-Instruct", base_norm=norm)
    return folder


def _embedded() -> Path:
    from decodery.models import embedded

    return embedded.prepared_folder()


def test_codes_stay_where_the_adapter_adds_nothing(tmp_path):
    """Of a quantised file: merged matrices get 8 bits, all others keep the file's codes."""
    folder = embedded_adapter(tmp_path / "a")
    with open_weights(_embedded()) as store:
        merged = AdaptedWeights(store, read_adapter(folder))
        touched = "model.layers.0.self_attn.v_proj.weight"
        left = "model.layers.0.self_attn.q_proj.weight"
        assert store.codes(touched).bits in (4, 8)
        assert merged.codes(touched).bits == 8
        error = (merged.codes(touched).dequantise() - store.tensor(touched)).abs().max()
        assert error < 0.01 * store.tensor(touched).abs().max()
        assert torch.equal(merged.codes(left).codes, store.codes(left).codes)
        assert merged.codes("model.norm.weight") is None


def test_a_loaded_adapter_is_named_and_changes_the_model(tmp_path, default_lm):
    prompt = default_lm.read("Why is the sea salty?").tokens
    rows = {}
    for size in (0.0, 0.3):
        folder = embedded_adapter(tmp_path / f"size {size}", size=size)
        for lm in (dc.load(adapter=folder), dc.load(folder)):
            assert lm.name == f"SmolLM2-135M-Instruct + size {size}"
            rows[size] = _law(lm, prompt)
    plain = _law(default_lm, prompt)
    assert abs(rows[0.0] - plain).sum() < 0.05  # 8 bits for 4: nearly the same
    assert abs(rows[0.3] - plain).sum() > 0.2


def _law(lm, prompt):
    from decodery.core.decoder import Decoder, Task
    from decodery.core.requests import Open
    from decodery.core.runner import run_alone
    from decodery.core.source import Policy
    from decodery.core.stopping import Stopping

    found = []

    class Look(Decoder):
        def decode(self, task):
            root = yield Open(task.policy, task.prompt)
            found.append(root.row.dense_probabilities())
            return []

    run_alone(Look(), Task(Policy(lm), prompt, Stopping(1)))
    return found[0]


def test_attributes_of_mpg_are_adapters_on_the_same_base(tmp_path, default_lm):
    """By names, as the command line has them: blend, decoder, report."""
    names = tuple(str(embedded_adapter(tmp_path / name, size=size))
                  for name, size in (("one", 0.1), ("two", 0.2)))  # fmt: skip
    options = {"attributes": names, "max_tokens": 6, "seed": 3, "chunk": 4}
    answer = default_lm.generate("Hello!", method="mpg", **options)
    assert answer.model == "mpg(SmolLM2-135M-Instruct + one, SmolLM2-135M-Instruct + two)"
    assert len(answer.samples[0].tokens) == 6
    routed = default_lm.generate("Hello!", method="mpg_route", blend="mpg", **options)
    assert routed.report.model_calls <= 2 + 6 + 2


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changed", "words"), [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ({"use_dora": True}, "use_dora is True"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is a list"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"r": 0}, "r is 0"),
    ({"r": 8}, "expected rank 8"),
    ({"r": 2.0}, "r is 2.0"),
    ({"lora_alpha": None}, "lora_alpha is None"),
    ({"lora_alpha": True}, "lora_alpha is True"),
    ({"rank_pattern": {"(a+)+$": 4}}, "no plain name"),
    ({"rank_pattern": ["q_proj"]}, "expected an object"),
], ids=str)  # fmt: skip
def test_adapters_that_are_more_than_a_sum_are_refused(base, tmp_path, changed, words):
    with pytest.raises(ModelFileError, match=r"adapter_config|adapter_model") as refusal:
        load_transformer(base, "float32", "cpu", adapter=made(tmp_path / "a", **changed))
    assert words in str(refusal.value)


def rewritten(folder: Path, change) -> Path:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    return folder


def name_of(matrix: str, half: str) -> str:
    return f"base_model.model.{matrix}.lora_{half}.weight"


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t.pop(name_of(UP, "B")), "lora_A only"),
    (lambda t: t.update({"lm_head.weight": torch.ones(2)}), "is no lora_A or lora_B"),
    (lambda t: t.update({name_of("model.embed_tokens", "A"): torch.ones(4, 4)}), "is no lora_A"),
    (lambda t: t.update({name_of(UP, "A"): torch.full((4, WIDTH), torch.nan)}), "NaN"),
    (lambda t: t.update({name_of(UP, "A"): torch.ones(4, WIDTH, dtype=torch.int32)}), "I32"),
    (lambda t: t.update({name_of(UP, "A"): torch.ones(4)}), "expected rank 4"),
    (lambda t: t.update({name_of(UP, "A"): torch.ones(4, WIDTH + 1)}), "base's matrix"),
    (lambda t: t.update({name_of(UP, "B"): torch.ones(4, 5).T.contiguous()}), "base's matrix"),
    (lambda t: [t.update({name_of("model.layers.7.mlp.up_proj", h): torch.ones((4, 4))})
                for h in "AB"], "which the base has not"),
    (lambda t: t.clear(), "holds no tensors"),
], ids=lambda value: value if isinstance(value, str) else "change")  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(base, tmp_path, change, words):
    folder = rewritten(made(tmp_path / "a"), change)
    with pytest.raises(ModelFileError) as refusal:
        load_transformer(base, "float32", "cpu", adapter=folder)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_rank_above_the_matrix_is_refused(base, tmp_path):
    with pytest.raises(ModelFileError, match="more than its matrix"):
        load_transformer(base, "float32", "cpu", adapter=made(tmp_path / "a", rank=80, r=80))


def test_another_base_is_refused(base, tmp_path):
    folder = made(tmp_path / "a")
    tensors = load_file(folder / TENSORS)
    with open_weights(base) as store:
        save_file(tensors, folder / TENSORS, metadata={"base_norm": base_norm(store)})
    load_transformer(base, "float32", "cpu", adapter=folder)
    save_file(tensors, folder / TENSORS, metadata={"base_norm": "0" * 64})
    with pytest.raises(ModelFileError, match="another base"):
        load_transformer(base, "float32", "cpu", adapter=folder)


def test_what_is_no_adapter_is_refused(base, tmp_path):
    with pytest.raises(ModelFileError, match="holds no adapter"):
        load_transformer(base, "float32", "cpu", adapter=base)
    empty = made(tmp_path / "a")
    (empty / TENSORS).unlink()
    with pytest.raises(ModelFileError, match=r"adapter_model\.bin"):
        read_adapter(empty)
    torn = made(tmp_path / "b")
    (torn / TENSORS).write_bytes((torn / TENSORS).read_bytes()[:-20])
    with pytest.raises(ModelFileError, match="not a readable safetensors file"):
        read_adapter(torn)
    assert is_adapter(empty)
    assert not is_adapter(base)


def test_an_adapter_finds_its_base_or_says_so(tmp_path):
    folder = made(tmp_path / "a")
    with pytest.raises(ModelFileError, match="is an adapter of 'tiny'; give that as the model"):
        dc.load(folder)
    with pytest.raises(ParameterError, match="is an adapter, and so is"):
        dc.load(folder, adapter=folder)
