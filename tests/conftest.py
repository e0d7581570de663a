"""What several test rooms share: the embedded model, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.models.causal import CausalModel
from decodery.models.transformer import load_transformer


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """The embedded model in float32."""
    return dc.load(weights="float32")


@pytest.fixture(scope="session")
def default_lm() -> LanguageModel:
    """The embedded model as `load()` gives it: in the codes of its own file."""
    return dc.load()


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    from decodery.models import embedded

    return embedded.embedded_folder("float32")


@pytest.fixture(scope="session")
def small_peer() -> Any:
    """A small random Llama of transformers; `small_model` has its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.35,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def small_model(small_peer: Any, tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    """The weights of `small_peer`, run by our engine."""
    folder = tmp_path_factory.mktemp("small")
    small_peer.save_pretrained(folder)
    transformer = load_transformer(folder, "float32", "cpu")
    return CausalModel(transformer, name="small", eos_ids=frozenset({2}))


@pytest.fixture(autouse=True)
def cache_comes_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does with the embedded model, every cache slot returns."""
    yield
    for name in {"lm", "default_lm"}.intersection(request.fixturenames):
        model = request.getfixturevalue(name)
        assert model.cache.free == model.cache.slots
        model.prefixes.check(live=())
        assert model.reserved == 0
