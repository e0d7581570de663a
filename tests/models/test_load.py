"""`load`: what `weights` and `exact` mean for each kind of file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import Model, model
from safetensors.torch import save_file

import decodery as dc
from decodery.core.decoder import Decoder, Decoding, Task
from decodery.core.errors import DecoderyError, ModelFileError, ParameterError
from decodery.core.requests import Open
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.models import embedded
from decodery.models.causal import CausalModel
from decodery.models.convert import converted
from decodery.models.transformer import load_transformer, resolved_weights

PROMPT = (1, 20, 28, 7, 9)
QUANTISED = {
    "token_embd.weight": "Q8_0",
    **{f"attn_{part}.weight": "Q4_1" for part in ("q", "k", "v", "output")},
    **{f"ffn_{part}.weight": "Q4_0" for part in ("gate", "up", "down")},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own cache."""
    monkeypatch.setenv("DECODERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small(types: dict[str, str] | None = None, kind: str = "llama") -> Model:
    """Weights small enough that the layers stay near the embedding, as in a trained model."""
    made = model(kind, hidden=64)
    made.tensors = {
        name: values / 8 if name.startswith("blk") and "norm" not in name else values
        for name, values in made.tensors.items()
    }
    made.types = types or {}
    return made


class Rows(Decoder):
    """Evaluates the prompt and keeps the row after it."""

    def __init__(self) -> None:
        self.row: Any = None

    def decode(self, task: Task) -> Decoding:
        tip = yield Open(task.policy, task.prompt)
        self.row = tip.row.probabilities()
        return []

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return 60


def row(lm: CausalModel) -> np.ndarray:
    decoder = Rows()
    run_alone(decoder, Task(Policy(lm), PROMPT, Stopping(1)))
    return decoder.row


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Kullback-Leibler, in nats."""
    return float((p * (np.log(p) - np.log(q))).sum())


# -- what auto means -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "on_cpu", "on_cuda"),
    [
        (QUANTISED, "codes", "bf16"),
        (dict.fromkeys(QUANTISED, "BF16"), "bf16", "bf16"),
        (dict.fromkeys(QUANTISED, "F16"), "float32", "float32"),
        ({}, "float32", "float32"),
    ],
)
def test_auto_for_a_gguf_file(
    types: dict[str, str], on_cpu: str, on_cuda: str, tmp_path: Path
) -> None:
    from decodery.models.convert import prepared

    folder = prepared(small(types).write(tmp_path / "m.gguf"))
    assert resolved_weights(folder, "auto", "cpu") == on_cpu
    assert resolved_weights(folder, "auto", "cuda") == on_cuda
    for asked in ("bf16", "float32"):
        assert resolved_weights(folder, asked, "cpu") == asked


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_auto_for_safetensors(stored: str, tmp_path: Path) -> None:
    folder = converted(small().write(tmp_path / "m.gguf"), stored)
    expected = "bf16" if stored == "bfloat16" else "float32"
    assert resolved_weights(folder, "auto", "cpu") == expected
    assert resolved_weights(folder, "int4", "cpu") == "int4"


# -- the answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3"])
def test_codes_answer_as_their_floats_do(kind: str, tmp_path: Path) -> None:
    """The same weights; the way of multiplying may round activations to 8 bits."""
    path = small(QUANTISED, kind).write(tmp_path / "m.gguf")
    codes, floats = dc.load(path, device="cpu"), dc.load(path, weights="float32", device="cpu")
    assert divergence(row(floats), row(codes)) < 2e-3


def test_a_gguf_file_answers_as_its_converted_folder(tmp_path: Path) -> None:
    path = small(QUANTISED).write(tmp_path / "m.gguf")
    straight = dc.load(path, weights="float32", device="cpu")
    folder = converted(path, "float32")
    assert np.array_equal(row(straight), row(dc.load(folder, device="cpu")))


@pytest.mark.parametrize("types", [QUANTISED, {}])
def test_exact_answers_the_same(types: dict[str, str], tmp_path: Path) -> None:
    """Each row from a model of its own, so nothing is remembered from one to the other."""
    path = small(types).write(tmp_path / "m.gguf")
    rows = [row(dc.load(path, exact=True, device="cpu")) for _ in range(2)]
    assert np.array_equal(*rows)


@pytest.mark.parametrize(("weights", "most"), [("bf16", 1e-3), ("int8", 2e-3), ("int4", 0.05)])
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_fewer_bits_stay_near(weights: Any, most: float, kind: str, tmp_path: Path) -> None:
    path = small().write(tmp_path / "m.gguf")
    place = path if kind == "gguf" else converted(path, "float32")
    exact = row(dc.load(place, device="cpu"))
    found = divergence(exact, row(dc.load(place, weights=weights, device="cpu")))
    assert 0 < found < most


def test_the_embedded_model_in_codes() -> None:
    lm = dc.load(device="cpu")
    text = lm.generate("Why is the sea salty?", method="greedy", max_tokens=8).text
    assert text.startswith("The sea is salty because")


# -- what is refused -------------------------------------------------------------------------------


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(DecoderyError) as caught:
        dc.load(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("weights", ["bfloat16", "codes", "int3", "", None, 4])
def test_unknown_weights(weights: Any) -> None:
    message = refusal(weights=weights)
    assert message == f"weights is {weights!r}; allowed are auto, int4, int8, bf16, float32"


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_codes_are_never_quantised_again(weights: Any, tmp_path: Path) -> None:
    message = refusal(small(QUANTISED).write(tmp_path / "m.gguf"), weights=weights)
    assert message == (
        f"weights is {weights!r}, and the file is quantised already: auto uses its codes as they"
        " are; or give bf16 or float32"
    )


@pytest.mark.parametrize("weights", ["codes", "int4", "int8"])
def test_only_a_cpu_multiplies_with_codes(weights: str) -> None:
    with pytest.raises(ParameterError, match="only a CPU multiplies with; on cuda use bf16"):
        load_transformer(embedded.prepared_folder(), weights, "cuda")


@pytest.mark.parametrize("weights", ["bf16", "float32"])
def test_cuda_is_not_exact(weights: str) -> None:
    with pytest.raises(ParameterError, match="exact is True, and no backend"):
        load_transformer(embedded.prepared_folder(), weights, "cuda", exact=True)


def test_a_foreign_model_has_float_weights_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    save_file({"a": torch.ones(2, 32)}, tmp_path / "model.safetensors")
    for weights in ("codes", "int4", "int8"):
        with pytest.raises(ParameterError, match=f"'gpt2' .* no {weights} weights"):
            load_transformer(tmp_path, weights, "cpu")
    with pytest.raises(ParameterError, match=r"'gpt2' .* rows depend on the batch"):
        load_transformer(tmp_path, "float32", "cpu", exact=True)


def test_a_quantised_folder_is_named_as_such(tmp_path: Path) -> None:
    config = {"model_type": "llama", "quantization_config": {"bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.ones(2, 32, dtype=torch.int32)}, tmp_path / "model.safetensors")
    for weights in ("auto", "int4"):
        with pytest.raises(ModelFileError, match="quantization_config"):
            resolved_weights(tmp_path, weights, "cpu")
