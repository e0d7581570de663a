"""What the tests of models share: small random models, written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Writes a random model of a kind of `small_models.ALL` once and returns its folder."""
    import transformers
    from small_models import random_model

    folders: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name.replace(" ", "_"))
            random_model(name).save_pretrained(folders[name])
        return folders[name]

    transformers.utils.logging.disable_progress_bar()
    yield write
    transformers.utils.logging.enable_progress_bar()
