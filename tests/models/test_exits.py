"""Models left early: exits against transformers' hidden layers, the last exit against the model.

Logits of small random models in float32; how close is equal is said in `small_models.py`. What is
the same weights in the same order is the same bit for bit.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import drive
from forwards import Piece, fed, forward, new_cache, random_parents
from small_models import CLOSE, OURS, VOCAB, Make, Store, random_store, text
from torch import Tensor

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.requests import Grow, Open
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.models import native
from decodery.models.architecture import Architecture
from decodery.models.compiled import CompiledTransformer, can_compile
from decodery.models.llama import LlamaTransformer, expected_shapes
from decodery.models.transformer import Transformer
from decodery.models.weight_store import open_weights
from decodery.models.weights import read_json

LENGTH = 140  # crosses a span border of the compiled attention
BUILDS = ("torch", "compiled")


def built(folder: Path, build: str) -> Transformer | None:
    """The model of a folder on one of the two paths; None where the kernels do not fit it."""
    architecture = Architecture.from_config(read_json(folder / "config.json"))
    with open_weights(folder) as tensors:
        if build == "torch":
            return LlamaTransformer(architecture, tensors, torch.float32, "cpu")
        if not can_compile(architecture):
            return None
        return CompiledTransformer(architecture, tensors, torch.float32, use_codes=False)


@torch.no_grad()
def hidden_layers(folder: Path, tokens: Tensor) -> list[Tensor]:
    """transformers' logits [n, vocab] after every layer: its last norm and head on each."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    found = model(input_ids=tokens[None], use_cache=False, output_hidden_states=True)
    early = [model.lm_head(model.model.norm(states[0])) for states in found.hidden_states[1:-1]]
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:
        early = [torch.tanh(logits / cap) * cap for logits in early]
    return [*early, found.logits[0]]


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", OURS)
def test_an_exit_is_the_norm_and_head_after_its_layer(make: Make, name: str, build: str) -> None:
    model = built(make(name), build)
    if model is None:
        assert build == "compiled"
        return
    tokens = text(LENGTH)
    expected = hidden_layers(make(name), tokens)
    assert len(expected) == len(model.layers)
    for layer, wanted in enumerate(expected, 1):
        early = model.exit(layer)
        assert len(early.layers) == layer
        logits = early.logits(fed(early, tokens))
        assert (logits.shape, logits.dtype) == ((LENGTH, VOCAB), torch.float32)
        assert (logits - wanted).abs().max().item() < CLOSE
    # Negative control: neighbouring exits are far apart.
    assert min((one - other).abs().max().item() for one, other in pairwise(expected)) > 100 * CLOSE


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "smollm3 windowed", "qwen2 windowed"])
def test_the_last_exit_is_the_model_bit_for_bit(make: Make, name: str, build: str) -> None:
    """As a text in pieces and as a tree; and an exit of an exit is the exit."""
    model = built(make(name), build)
    assert model is not None
    tokens, nodes = text(LENGTH), text(20, seed=8)
    parents = random_parents(20, seed=3)

    def rows(transformer: Transformer) -> list[Tensor]:
        cache = new_cache(transformer)
        forward(transformer, cache, [Piece(tokens[:120], range(120))])
        slots = range(120, 140)
        (tree,) = forward(transformer, cache, [Piece(nodes, slots, range(120), parents)])
        return [fed(transformer, tokens, [100, 1, 39]), tree]

    def same(one: Transformer, other: Transformer) -> bool:
        return all(
            torch.equal(one.logits(a), other.logits(b))
            for a, b in zip(rows(one), rows(other), strict=True)
        )

    last = len(model.layers)
    assert same(model, model.exit(last))
    assert same(model.exit(2).exit(1), model.exit(1))
    assert not same(model, model.exit(last - 1))


@pytest.mark.parametrize("build", BUILDS)
def test_an_exit_outlives_the_model_and_copies_no_weights(build: str) -> None:
    """The structures of the kernels point into the model's memory, which has to stay."""
    config = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 256,
    }  # fmt: skip
    architecture = Architecture.from_config(config)
    store: Store = random_store(architecture)

    def make() -> Transformer:
        if build == "torch":
            return LlamaTransformer(architecture, store, torch.float32, "cpu")
        return CompiledTransformer(architecture, store, torch.float32, use_codes=False)

    if build == "compiled" and native.library() is None:
        return
    model = make()
    wanted = fed(model.exit(3), text(40))
    early = model.exit(3)
    assert early.parameters == model.parameters - 2 * (model.parameters - model.exit(4).parameters)
    smaller = {
        name
        for name in expected_shapes(architecture)
        if not name.startswith(("model.layers.3", "model.layers.4"))
    }
    assert early.parameters == sum(store.tensor(name).numel() for name in smaller)
    del model
    others = [make() for _ in range(3)]  # would take the memory that was let go
    assert torch.equal(fed(early, text(40)), wanted)
    del others


# -- exits as sources ------------------------------------------------------------------------------


def source_rows(model: LanguageModel, tokens: list[int]) -> list[np.ndarray]:
    """The rows of a prompt and of every token after it."""
    seen: list[np.ndarray] = []

    def body(task: Task):
        node = yield Open(task.policy, task.prompt)
        seen.append(node.row.scores.copy())
        for token in tokens[4:]:
            node = node.child(token)
            yield Grow([node])
            seen.append(node.row.scores.copy())

    drive(model, tokens[:4], body)
    return seen


@pytest.mark.parametrize("fixture", ["lm", "default_lm"])
def test_the_last_exit_of_the_embedded_model(fixture: str, request: pytest.FixtureRequest) -> None:
    """In float32 and in the codes of its own file: rows equal to the model's, bit for bit."""
    model: LanguageModel = request.getfixturevalue(fixture)
    tokens = model.tokenizer.encode("The capital of France is Paris, and it lies on a river.")
    last = model.exit(model.depth)
    wanted, found, early = (source_rows(m, tokens) for m in (model, last, model.exit(20)))
    assert all((a == b).all() for a, b in zip(wanted, found, strict=True))
    assert all(np.abs(a - b).max() > 0.1 for a, b in zip(wanted, early, strict=True))


def test_an_exit_of_the_embedded_model_is_transformers_hidden_layer(
    lm: LanguageModel, embedded_folder: Path
) -> None:
    tokens = lm.tokenizer.encode("The capital of France is Paris, and it lies on a river.")
    expected = hidden_layers(embedded_folder, torch.tensor(tokens))
    for layer in (1, 8, 29):
        found = source_rows(lm.exit(layer), tokens)
        assert np.abs(np.array(found) - expected[layer - 1][3:].numpy()).max() < 1e-3


def test_an_exit_is_a_language_model_with_a_cache_of_its_own(lm: LanguageModel) -> None:
    early = lm.exit(20)
    assert early is lm.exit(20)
    assert (early.depth, lm.depth) == (20, 30)
    assert early.name == f"{lm.name} after layer 20"
    assert early.vocab_size == lm.vocab_size
    before = lm.cache.cached
    made = early.generate("Name a bird.", method="greedy", max_tokens=3)
    assert len(made.tokens) == 3
    assert made.model == early.name
    assert lm.cache.cached == before
    assert early.cache.free == early.cache.slots
    assert early.reserved == 0
    tokens = run_alone(
        dc.greedy(), Task(Policy(lm.exit(30)), tuple(lm.read("Hi").tokens), Stopping(3))
    )[0].tokens
    assert tokens == lm.generate("Hi", method="greedy", max_tokens=3).tokens


@pytest.mark.parametrize("layer", [0, 31, -1])
def test_layers_that_are_not_there_are_refused(lm: LanguageModel, layer: int) -> None:
    with pytest.raises(ParameterError, match=r"has 30 layers to leave it at; allowed is 1\.\.30"):
        lm.exit(layer)


def test_a_foreign_model_cannot_be_left_early(make: Make) -> None:
    from decodery.models.causal import CausalModel
    from decodery.models.transformer import load_transformer

    model = CausalModel(load_transformer(make("gpt2"), "float32", "cpu"), name="small")
    with pytest.raises(ParameterError, match="cannot be left early"):
        model.exit(1)
