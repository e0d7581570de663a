"""What several test rooms share: the embedded model, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import decodery as dc
from decodery.api.language_model import LanguageModel


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


@pytest.fixture(autouse=True)
def cache_comes_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does with the embedded model, every cache slot returns."""
    yield
    for name in {"lm", "default_lm"}.intersection(request.fixturenames):
        model = request.getfixturevalue(name)
        assert model.cache.free == model.cache.slots
        model.prefixes.check(live=())
        assert model.reserved == 0
