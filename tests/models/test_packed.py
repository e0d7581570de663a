"""Products of packed matrices with codes, against an oracle that rounds inputs as they say.

Inputs are rounded to 8 bits, one scale for each 32: scale = max |x| / 127 and x times its inverse
in float32, then to the nearest whole number, ties to even. Products of codes are summed as whole
numbers; the oracle does the rest in float64. The float kernels are held to float64 in
`test_native.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from forwards import fed
from small_models import Store
from torch import Tensor

from decodery.models import native
from decodery.models.architecture import Architecture
from decodery.models.codes import Codes
from decodery.models.compiled import CompiledTransformer
from decodery.models.llama import expected_shapes
from decodery.models.packed import PackedMatrix

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")

Floats = npt.NDArray[np.float64]

OUTPUTS = (1, 15, 16, 17, 100)
ROWS = range(1, 10)
INPUTS = 192
FORMS = list(product((4, 8), (16, 32), (torch.float16, torch.float32), (False, True)))
CLOSE = 1e-5  # of the sum of the magnitudes of all terms


class Rounded(NamedTuple):
    """Inputs as the kernel sees them."""

    codes: Floats  # [rows, groups of 32, 32], whole numbers
    scale: Floats  # [rows, groups of 32], float32 values


class Product(NamedTuple):
    """What a product should be, and the sum of the magnitudes of its terms."""

    value: Floats  # [rows, outputs]
    size: Floats


def rounded(x: npt.NDArray[np.float32], steps: float = 127, nearest: Any = np.rint) -> Rounded:
    groups = x.reshape(len(x), -1, 32)
    scale = np.abs(groups).max(-1) / np.float32(steps)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scale > 1e-30, np.float32(1) / scale, np.float32(0))
    codes = nearest(groups * inverse.astype(np.float32)[..., None])
    return Rounded(codes.astype(np.float64), scale.astype(np.float64))


def expected(weight: Codes, x: Tensor, **variant: Any) -> Product:
    """The exact product of codes with rounded inputs."""
    inputs = rounded(x.numpy(), **variant)
    parts = 32 // weight.group
    codes = weight.codes.numpy().astype(np.float64).reshape(weight.outputs, -1, weight.group)
    own = inputs.codes.reshape(len(x), -1, weight.group)
    sums = np.einsum("ngi,ogi->nog", own, codes)
    assert np.abs(sums).max() < 2**31
    input_scale = inputs.scale.repeat(parts, axis=1)[:, None]
    terms = [weight.scale.numpy().astype(np.float64) * input_scale * sums]
    if weight.offset is not None:
        totals = own.sum(-1)[:, None]
        terms.append(weight.offset.numpy().astype(np.float64) * input_scale * totals)
    return Product(
        np.sum([term.sum(-1) for term in terms], axis=0),
        np.sum([np.abs(term).sum(-1) for term in terms], axis=0),
    )


def random_codes(form: tuple[Any, ...], outputs: int, seed: int = 0, inputs: int = INPUTS) -> Codes:
    """Codes over their whole range, scales of either sign over some powers of two."""
    bits, group, dtype, has_offset = form
    generator = torch.Generator().manual_seed(seed)
    low, high = (0, 16) if bits == 4 else (-128, 128)
    codes = torch.randint(low, high, (outputs, inputs), generator=generator)
    codes[:, ::7], codes[:, 3::11] = low, high - 1
    shape = (outputs, inputs // group)

    def scales() -> Tensor:
        power = torch.randint(-6, 2, shape, generator=generator)
        return (torch.randn(shape, generator=generator) * 2.0**power).to(dtype)

    kept = codes.to(torch.uint8 if bits == 4 else torch.int8)
    return Codes(kept, bits, group, scales(), scales() if has_offset else None)


def random_rows(rows: int, seed: int = 1, inputs: int = INPUTS) -> Tensor:
    """Inputs whose groups differ in size; a group of zeros and a lone outlier among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs // 32, 32, generator=generator)
    x *= 2.0 ** torch.randint(-8, 8, (rows, inputs // 32, 1), generator=generator)
    x[0, 1] = 0
    x[-1, 2, 5] = 1000
    return x.view(rows, inputs)


def worst(found: Tensor, wanted: Product) -> float:
    """The largest error, in parts of the sum of magnitudes."""
    off = np.abs(found.numpy().astype(np.float64) - wanted.value)
    return float((off / np.maximum(wanted.size, 1e-300)).max())


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_products_equal_the_oracle(form: tuple[Any, ...]) -> None:
    for outputs in OUTPUTS:
        weight = random_codes(form, outputs, seed=outputs)
        matrix = PackedMatrix(weight, None)
        assert (matrix.outputs, matrix.inputs) == (outputs, INPUTS)
        for rows in ROWS:
            x = random_rows(rows, seed=rows)
            assert worst(matrix(x), expected(weight, x)) < CLOSE


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_bias_is_added_once(form: tuple[Any, ...]) -> None:
    weight, bias = random_codes(form, 17), torch.randn(17)
    x = random_rows(5)
    assert torch.equal(PackedMatrix(weight, bias)(x), PackedMatrix(weight, None)(x) + bias)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_whole_numbers_are_multiplied_exactly(form: tuple[Any, ...]) -> None:
    """Inputs of scale one and scales that are powers of two: not a bit is lost."""
    bits, group, dtype, has_offset = form
    generator = torch.Generator().manual_seed(3)
    weight = random_codes(form, 100)
    shape = (100, INPUTS // group)
    power = 2.0 ** torch.randint(-3, 1, shape, generator=generator)
    offset = torch.randint(-9, 9, shape, generator=generator).to(dtype) if has_offset else None
    weight = Codes(weight.codes, bits, group, power.to(dtype), offset)
    x = torch.randint(-127, 128, (9, INPUTS), generator=generator).float()
    x[:, ::32] = 127  # the largest of each group
    x[8] = -127  # the largest sums
    exact = x.double() @ weight.dequantise().double().T
    assert torch.equal(PackedMatrix(weight, None)(x).double(), exact)


def test_the_largest_products_do_not_overflow() -> None:
    """All codes and inputs at the ends of their ranges: sums of 16 bits would wrap or saturate."""
    for bits, group, code, sign in product((4, 8), (16, 32), ("low", "high"), (-1, 1)):
        value = {4: {"low": 0, "high": 15}, 8: {"low": -128, "high": 127}}[bits][code]
        codes = torch.full((17, INPUTS), value, dtype=torch.uint8 if bits == 4 else torch.int8)
        weight = Codes(codes, bits, group, torch.ones(17, INPUTS // group), None)
        found = PackedMatrix(weight, None)(torch.full((2, INPUTS), 127.0 * sign))
        assert torch.equal(found, torch.full((2, 17), 127.0 * sign * value * INPUTS))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rows_that_are_not_finite_leave_others_alone(form: tuple[Any, ...]) -> None:
    matrix = PackedMatrix(random_codes(form, 33), torch.randn(33))
    x = random_rows(9)
    whole = matrix(x)
    for value, row, column in (("nan", 0, 0), ("inf", 4, 100), ("-inf", 8, INPUTS - 1)):
        broken = x.clone()
        broken[row, column] = float(value)
        found = matrix(broken)
        assert found[row].isnan().all()
        others = torch.arange(9) != row
        assert torch.equal(found[others], whole[others])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rows_of_zeros_give_zeros(form: tuple[Any, ...]) -> None:
    matrix = PackedMatrix(random_codes(form, 33), None)
    x = random_rows(5)
    x[2], x[3] = 0.0, -0.0
    found = matrix(x)
    assert (found[2:4] == 0).all()
    assert (found[[0, 1, 4]] != 0).any(1).all()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_tiny_and_huge_inputs(form: tuple[Any, ...]) -> None:
    """1e30 is as exact as 1; what is below 1e-28 counts as zero, and is lost beside anything."""
    weight = random_codes(form, 33)
    matrix = PackedMatrix(weight, None)
    x = random_rows(4)
    for size in (1e-20, 1e-10, 1e10, 1e30):
        scaled = (x / x.abs().max() * size).float()
        assert worst(matrix(scaled), expected(weight, scaled)) < CLOSE
    for size in (1e-45, 1e-38, 1e-30):
        scaled = (x / x.abs().max() * size).float()
        assert (matrix(scaled) == 0).all()
    mixed = x.clone()
    mixed[:, :32] = 1e-38
    mixed[:, 32:64] *= 1e30
    assert worst(matrix(mixed), expected(weight, mixed)) < CLOSE


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rounding_stays_within_its_bound(form: tuple[Any, ...]) -> None:
    """Against the product of the dequantised values: half a step of each input, times its weight.

    A lone input that lies between two codes reaches it.
    """
    weight = random_codes(form, 100)
    values = weight.dequantise().double()
    x = random_rows(9)
    step = x.view(9, -1, 32).abs().amax(-1).div(127).repeat_interleave(32, 1).double()
    bound = step / 2 @ values.abs().T
    off = (PackedMatrix(weight, None)(x).double() - x.double() @ values.T).abs()
    assert (off <= bound * 1.0001 + 1e-5 * (x.double().abs() @ values.abs().T)).all()
    lone = torch.zeros(1, INPUTS)  # one input between two codes: the bound is reached
    lone[0, 0], lone[0, 1] = 127.0, 0.499
    one = (PackedMatrix(weight, None)(lone).double() - lone.double() @ values.T).abs()
    least = 1e-6 * 127 * float(values.abs().max())
    torch.testing.assert_close(one, 0.499 * values[:, 1].abs()[None], atol=least, rtol=1e-5)


WRONG: dict[str, Callable[[Codes, Tensor], Product]] = {
    "truncated": lambda weight, x: expected(weight, x, nearest=np.trunc),
    "steps of 128": lambda weight, x: expected(weight, x, steps=128),
    "next group's scale": lambda weight, x: expected(
        Codes(weight.codes, weight.bits, weight.group, weight.scale.roll(1, 1), weight.offset), x
    ),
    "no offset": lambda weight, x: expected(
        Codes(weight.codes, weight.bits, weight.group, weight.scale, None), x
    ),
    "one code off": lambda weight, x: expected(
        Codes(
            weight.codes.index_fill(1, torch.tensor([77]), 5), weight.bits, weight.group,
            weight.scale, weight.offset,
        ),
        x,
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("form", [(4, 32, torch.float16, True), (8, 16, torch.float32, True)])
def test_a_wrong_oracle_is_noticed(form: tuple[Any, ...], wrong: str) -> None:
    """Negative controls: the same comparison rejects each of these."""
    weight, x = random_codes(form, 100), random_rows(9)
    found = PackedMatrix(weight, None)(x)
    assert worst(found, expected(weight, x)) < CLOSE
    assert worst(found, WRONG[wrong](weight, x)) > 10 * CLOSE


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_embedding_rows_are_the_dequantised_values(form: tuple[Any, ...]) -> None:
    """Bit for bit: layers that add nothing, and a last norm that divides by exactly 2^50."""
    width, vocab = 64, 100
    architecture = Architecture.from_config(
        {
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": width,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "rms_norm_eps": 2.0**100,
        }
    )
    tensors: dict[str, Tensor | Codes] = {
        name: torch.ones(shape) if len(shape) == 1 else torch.zeros(shape)
        for name, shape in expected_shapes(architecture).items()
    }
    table = random_codes(form, vocab, inputs=width)
    tensors["model.embed_tokens.weight"] = table
    model = CompiledTransformer(architecture, Store(tensors), torch.float32, use_codes=True)
    rows = fed(model, torch.arange(vocab)) * 2.0**50
    assert torch.equal(rows, table.dequantise())


def test_inputs_that_no_scale_divides_are_refused() -> None:
    weight = Codes(torch.zeros((4, 48), dtype=torch.int8), 8, 16, torch.ones(4, 3), None)
    with pytest.raises(ValueError, match="codes of 48 inputs; the kernels take multiples of 32"):
        PackedMatrix(weight, None)


def test_no_rows_and_no_outputs() -> None:
    weight = random_codes(FORMS[0], 5)
    assert PackedMatrix(weight, None)(torch.zeros(0, INPUTS)).shape == (0, 5)
    assert PackedMatrix(weight.rows(0, 0), None)(random_rows(3)).shape == (3, 0)
