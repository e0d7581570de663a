"""The linear backends: right, and on CPU in float32 indifferent to batch mates and threads."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from decodery.models import native
from decodery.models.activation import ACTIVATIONS, activation
from decodery.models.linear import (
    Backend,
    OneDnnLinear,
    PackedMatrix,
    PaddedLinear,
    PlainLinear,
    backend,
    pack,
)

SHAPES = [(576, 960), (576, 3072), (1536, 576), (576, 49152)]  # of the embedded model
ROW_COUNTS = [*range(1, 71), 128, 257, 600]
FEW_ROW_COUNTS = [1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 64, 70]  # for the head, which is slow
compiled = pytest.mark.skipif(native.library() is None, reason="slow path: no C++ compiler here")
INVARIANT = [OneDnnLinear, PaddedLinear, pytest.param(PackedMatrix, marks=compiled)]


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _layer(inputs: int, outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    return weight, torch.randn(outputs, generator=generator)


def _rows_that_differ(make: Backend, inputs: int, outputs: int, counts: list[int]) -> int:
    """How many (threads, row count) pairs change at least one bit of a row."""
    weight, bias = _layer(inputs, outputs)
    linear = make(weight, bias)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(max(counts), inputs, generator=generator)
    torch.set_num_threads(2)
    whole = linear(x)
    differing = 0
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in counts:
            rows = torch.randperm(len(x), generator=generator)[:count]
            differing += not torch.equal(linear(x[rows]), whole[rows])
    return differing


@pytest.mark.parametrize("make", INVARIANT)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_does_not_depend_on_its_batch_mates(make: Backend, inputs: int, outputs: int) -> None:
    counts = FEW_ROW_COUNTS if outputs > 10_000 else ROW_COUNTS
    assert _rows_that_differ(make, inputs, outputs, counts) == 0


@pytest.mark.parametrize("make", INVARIANT)
def test_odd_sizes_are_invariant_too(make: Backend) -> None:
    assert _rows_that_differ(make, 33, 37, ROW_COUNTS) == 0


class _LoneRowTakesAnotherKernel(PlainLinear):
    """A wrong variant: one row is summed in float64, several are not."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            return super().__call__(x)
        assert self.bias is not None
        return F.linear(x.double(), self.weight.double(), self.bias.double()).float()


def test_a_backend_that_minds_the_number_of_rows_is_caught() -> None:
    assert _rows_that_differ(_LoneRowTakesAnotherKernel, 576, 960, ROW_COUNTS) >= 2


@pytest.mark.parametrize("make", [OneDnnLinear, PaddedLinear, PlainLinear])
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_backends_multiply(make: Backend, rows: int) -> None:
    weight, bias = _layer(24, 40)
    x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(2))
    expected = x.double() @ weight.double().T
    for given, sums in ((bias, expected + bias.double()), (None, expected)):
        result = make(weight.clone(), given)(x)
        assert result.shape == (rows, 40)
        torch.testing.assert_close(result.double(), sums, atol=1e-5, rtol=0)


def test_strided_rows_are_accepted() -> None:
    weight, bias = _layer(24, 40)
    wide = torch.randn(5, 48, generator=torch.Generator().manual_seed(3))
    for make in (OneDnnLinear, PaddedLinear, PlainLinear):
        linear = make(weight, bias)
        torch.testing.assert_close(linear(wide[:, 24:]), linear(wide[:, 24:].contiguous()))


def test_float32_on_cpu_gets_an_invariant_backend() -> None:
    assert backend(torch.float32, "cpu") in (PackedMatrix, OneDnnLinear, PaddedLinear)
    assert backend(torch.float32, torch.device("cpu")) is backend(torch.float32, "cpu")
    assert backend(torch.float32, "cuda") is PlainLinear
    assert backend(torch.bfloat16, "cuda") is PlainLinear


def test_what_is_missing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    assert backend(torch.float32, "cpu") is OneDnnLinear
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert backend(torch.float32, "cpu") is PaddedLinear
    assert backend(torch.bfloat16, "cpu") is PlainLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pack_converts_to_the_dtype(dtype: torch.dtype) -> None:
    weight, bias = _layer(24, 40)
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(4)).to(dtype)
    result = pack(weight, bias, dtype, "cpu")(x)
    assert result.dtype == dtype
    expected = F.linear(x.float(), weight.to(dtype).float(), bias.to(dtype).float())
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
    torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_do_not_depend_on_where_an_element_lies(name: str) -> None:
    act = activation(name, torch.float32, torch.device("cpu"))
    x = 4 * torch.randn(4099, generator=torch.Generator().manual_seed(5))
    whole = act(x)
    for start in range(1, 40):
        assert torch.equal(act(x[start:].clone()), whole[start:])
        assert torch.equal(act(x[start : start + 3].clone()), whole[start : start + 3])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_the_fused_ones(name: str) -> None:
    exact = activation(name, torch.float32, torch.device("cpu"))
    fused = activation(name, torch.bfloat16, torch.device("cpu"))
    x = torch.cat((torch.linspace(-20, 20, 4001), torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])))
    torch.testing.assert_close(exact(x), fused(x), atol=2e-6, rtol=2e-6)


def test_the_packed_backend_does_not_keep_the_weight() -> None:
    weight, bias = _layer(24, 40)
    reference = weakref.ref(weight)
    linear = OneDnnLinear(weight, bias)
    del weight
    assert reference() is None
    assert linear(torch.zeros(1, 24)).shape == (1, 40)
