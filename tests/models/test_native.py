"""The compiled kernels: found, compiled once, refused in words, and equal to what they replace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kernel_results
import pytest
import torch
from small_models import Make

from decodery.core.errors import ParameterError
from decodery.models import native
from decodery.models.linear import PackedMatrix, backend
from decodery.models.llama import LlamaTransformer
from decodery.models.transformer import load_transformer

compiled = pytest.mark.skipif(native.library() is None, reason="slow path: no C++ compiler here")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A process that has not looked for kernels yet, with an empty cache."""
    monkeypatch.setenv("DECODERY_CACHE", str(tmp_path))
    monkeypatch.delenv("DECODERY_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    for function in (native.library, native._outcome):
        function.cache_clear()
    yield monkeypatch
    for function in (native.library, native._outcome):
        function.cache_clear()


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 960), (33, 37), (1, 1), (257, 16), (600, 5)])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13])
def test_multiplies_as_float64_does(
    dtype: torch.dtype, inputs: int, outputs: int, rows: int
) -> None:
    """Against float64 on the same weights: sums of float32 chains of 256, within 2e-5."""
    generator = torch.Generator().manual_seed(rows)
    weight = (torch.randn(outputs, inputs, generator=generator) / inputs**0.5).to(dtype)
    bias = torch.randn(outputs, generator=generator)
    x = torch.randn(rows, inputs, generator=generator)
    expected = x.double() @ weight.double().T + bias.to(dtype).double()
    found = PackedMatrix(weight, bias.to(dtype))(x)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


@compiled
def test_strided_and_half_precision_rows() -> None:
    weight = torch.randn(24, 40)
    whole = torch.randn(6, 80)
    linear = PackedMatrix(weight, None)
    torch.testing.assert_close(linear(whole[:, ::2]), linear(whole[:, ::2].contiguous()))
    half = PackedMatrix(weight.bfloat16(), None)(whole[:, :40].bfloat16())
    assert half.dtype == torch.bfloat16


@compiled
def test_wrong_shapes_are_refused() -> None:
    linear = PackedMatrix(torch.randn(4, 8), None)
    for shape in ((2, 7), (8,), (1, 2, 8)):
        with pytest.raises(ValueError, match="expected"):
            linear(torch.zeros(shape))


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("DECODERY_NATIVE", "0", "DECODERY_NATIVE=0"),
        ("CXX", "no-such-compiler", "no C++ compiler was found"),
        ("CXX", "false", "returned non-zero exit status"),
    ],
)
def test_without_kernels_torch_takes_over(
    fresh: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    fresh.setenv(variable, value)
    assert native.library() is None
    assert reason in str(native.why_not())
    assert backend(torch.float32, "cpu") is not PackedMatrix


def test_without_kernels_models_run_in_torch(fresh: pytest.MonkeyPatch, make: Make) -> None:
    """Codes are turned into floats; rows stay independent of the batch in float32 alone."""
    fresh.setenv("DECODERY_NATIVE", "0")
    for weights in ("float32", "int8", "int4"):
        model = load_transformer(make("llama"), weights, "cpu", exact=True)
        assert isinstance(model, LlamaTransformer)
        assert model.dtype == torch.float32
    assert load_transformer(make("llama"), "bf16", "cpu").dtype == torch.bfloat16
    with pytest.raises(ParameterError, match="exact is True, and no backend for bf16 on cpu"):
        load_transformer(make("llama"), "bf16", "cpu", exact=True)


def test_another_choice_of_kernels_is_refused(fresh: pytest.MonkeyPatch) -> None:
    for value in ("2", "yes", "Portable", ""):
        fresh.setenv("DECODERY_NATIVE", value)
        for asked in (native.library, native.why_not, native.instructions):
            with pytest.raises(ParameterError, match="; allowed are 0"):
                asked()


@compiled
def test_each_build_is_compiled_once_and_found_again(
    fresh: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[dict[str, int]] = []
    for choice in ("1", "portable", "1", "portable"):
        fresh.setenv("DECODERY_NATIVE", choice)
        for function in (native.library, native._outcome):
            function.cache_clear()
        assert native.library() is not None
        assert native.why_not() is None
        assert (native.instructions() == "portable") or choice == "1"
        files = (tmp_path / "native").iterdir()
        written.append({file.name: file.stat().st_mtime_ns for file in files})
    assert [len(files) for files in written] == [1, 2, 2, 2]
    assert written[0].items() < written[1].items()
    assert written[1] == written[2] == written[3]


@compiled
def test_the_portable_build_gives_the_same_results(make: Make, tmp_path: Path) -> None:
    """Without this processor's own instructions: sums of whole numbers are equal bit for bit.

    Floats are off in their last bits. Where those turn what is rounded on the way, keys to 11 bits
    or inputs to 8, all that follows moves by as much as that rounding itself does.
    """
    file = tmp_path / "portable.pt"
    subprocess.run(
        [sys.executable, kernel_results.__file__, str(file), str(make("llama wider"))],
        env=os.environ | {"DECODERY_NATIVE": "portable"},
        check=True,
        timeout=300,
    )
    portable = torch.load(file)
    assert portable["instructions"] == "portable"
    whole = kernel_results.whole_numbers()
    assert whole.keys() == portable["whole"].keys()
    for name, found in whole.items():
        assert torch.equal(found, portable["whole"][name]), name
    for name, found in kernel_results.products().items():
        torch.testing.assert_close(found, portable["products"][name], atol=2e-5, rtol=0)
    bounds = {"float32": 2e-5, "bf16": 1e-3, "int8": 0.05, "int4": 0.05}
    for name, found in kernel_results.logits(make("llama wider")).items():
        off = (found - portable["logits"][name]).square().mean().sqrt()
        assert off < bounds[name.split()[0]] * found.std(), name


def test_an_unwritable_cache_is_no_error(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fresh.setenv("DECODERY_CACHE", str(tmp_path / "file"))
    assert native.library() is None
    assert native.why_not()


def test_text_is_the_same_without_kernels() -> None:
    """Greedy text of the embedded model through torch's own kernels, in a process of its own."""
    script = (
        "import decodery as dc\n"
        "lm = dc.load()\n"
        "print(lm.generate('Why is the sea salty?', method='greedy', max_tokens=13).text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"DECODERY_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert (
        done.stdout.strip() == "The sea is salty because it contains a high concentration of salt,"
    )
