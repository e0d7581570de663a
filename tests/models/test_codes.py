"""Integer codes: those of a GGUF file are its own, those of float weights are near them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf as peer
import numpy as np
import pytest
import torch
from gguf_writing import TEXT, entry, gguf, tensor, text

from decodery.core.errors import ModelFileError
from decodery.models.codes import Codes, concatenated, original_rows, quantise
from decodery.models.gguf import dequantise, read
from decodery.models.gguf_file import GgufFile
from decodery.models.gguf_quants import codes_of

# Type: bits, group, whether there is an offset, and the bytes of a block where a float16 begins.
FORMATS = {
    "Q4_0": (4, 32, True, (0,)),
    "Q4_1": (4, 32, True, (0, 2)),
    "Q5_0": (8, 32, False, (0,)),
    "Q5_1": (8, 32, True, (0, 2)),
    "Q8_0": (8, 32, False, (0,)),
    "Q2_K": (4, 16, True, (80, 82)),
    "Q3_K": (4, 16, True, (108,)),
    "Q4_K": (4, 32, True, (0, 2)),
    "Q5_K": (8, 32, True, (0, 2)),
    "Q6_K": (8, 16, False, (208,)),
}
ROWS, COLUMNS = 37, 512


def random_file(
    folder: Path, kind: str, seed: int, largest: float, shape: tuple[int, ...] = (ROWS, COLUMNS)
) -> GgufFile:
    """One tensor of random blocks whose scales are finite, up to `largest`."""
    rng = np.random.default_rng(seed)
    type_number = peer.GGMLQuantizationType[kind]
    elements, nbytes = peer.GGML_QUANT_SIZES[type_number]
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // elements, nbytes), dtype=np.uint8)
    for start in FORMATS[kind][3]:
        scales = (rng.uniform(-1, 1, len(blocks)) * largest).astype(np.float16)
        scales[:3] = 0, -0.0, 6e-8
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(-1, 2)
    path = folder / f"{kind}.gguf"
    head = entry("general.architecture", TEXT, text("llama"))
    listed = tensor("w", shape[::-1], type_number.value, 0)
    path.write_bytes(gguf([head], [listed], blocks.tobytes()))
    return read(path)


@pytest.mark.parametrize("largest", [0.01, 60_000.0])
@pytest.mark.parametrize("kind", FORMATS)
def test_codes_of_a_file_have_its_values_exactly(kind: str, largest: float, tmp_path: Path) -> None:
    """Random bytes: every code, 6-bit scale and sign occurs; a product of float16 and a code is
    exact in float32, so there is one rounding on both sides."""
    bits, group, has_offset, _ = FORMATS[kind]
    with random_file(tmp_path, kind, 1, largest) as file:
        codes, values = codes_of(file, "w"), dequantise(file, "w")
    assert codes is not None
    assert torch.equal(codes.dequantise(), values)
    assert (codes.bits, codes.group, codes.offset is not None) == (bits, group, has_offset)
    assert codes.shape == (ROWS, COLUMNS)
    legacy = group == 32 and not kind.endswith("K")
    overflows = kind == "Q4_0" and largest > 8190  # its offset is -8 scales
    assert codes.scale.dtype == (torch.float16 if legacy and not overflows else torch.float32)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_code_off_by_one_is_seen(kind: str, tmp_path: Path) -> None:
    """The negative control of the test above."""
    with random_file(tmp_path, kind, 2, 0.01) as file:
        codes, values = codes_of(file, "w"), dequantise(file, "w")
    assert codes is not None
    codes.codes[ROWS // 2, 7] ^= 1
    assert not torch.equal(codes.dequantise(), values)


def test_the_code_of_minus_128(tmp_path: Path) -> None:
    with random_file(tmp_path, "Q8_0", 3, 1.0) as file:
        codes = codes_of(file, "w")
    assert codes is not None
    assert codes.codes.min() == -128
    assert codes.codes.max() == 127


def test_more_blocks_than_a_piece(tmp_path: Path) -> None:
    with random_file(tmp_path, "Q4_1", 4, 1.0, (600, 512)) as file:
        codes, values = codes_of(file, "w"), dequantise(file, "w")
    assert codes is not None
    assert torch.equal(codes.dequantise(), values)


def test_vectors_and_floats_have_no_codes(tmp_path: Path) -> None:
    with random_file(tmp_path, "Q8_0", 5, 1.0, (512,)) as file:
        assert codes_of(file, "w") is None
    path = tmp_path / "floats.gguf"
    head = entry("general.architecture", TEXT, text("llama"))
    path.write_bytes(gguf([head], [tensor("w", [8, 2], 0, 0)], bytes(64)))
    with read(path) as file:
        assert codes_of(file, "w") is None


@pytest.mark.parametrize("kind", FORMATS)
def test_scales_that_are_not_finite_are_refused(kind: str, tmp_path: Path) -> None:
    with np.errstate(over="ignore"):
        file = random_file(tmp_path, kind, 6, 1e6)
    with file, pytest.raises(ModelFileError, match=r"tensor 'w' has a scale that is not finite"):
        codes_of(file, "w")


# -- the same values in other forms ----------------------------------------------------------------


def made(bits: int, group: int, offset: bool, dtype: torch.dtype, seed: int = 0) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    low, high = (0, 16) if bits == 4 else (-128, 128)
    codes = torch.randint(low, high, (12, 96), generator=generator)
    scales = [torch.randn(12, 96 // group, generator=generator).to(dtype) for _ in range(2)]
    kind = torch.uint8 if bits == 4 else torch.int8
    return Codes(codes.to(kind), bits, group, scales[0], scales[1] if offset else None)


FORMS = [
    made(bits, group, offset, dtype, seed=bits * group)
    for bits in (4, 8)
    for group in (16, 32)
    for offset in (False, True)
    for dtype in (torch.float16, torch.float32)
]


@pytest.mark.parametrize("codes", FORMS)
def test_changes_of_form_keep_every_value(codes: Codes) -> None:
    values = codes.dequantise()
    for row in (0, 11):  # by the definition, one value at a time
        for column in (0, 15, 16, 95):
            place = (row, column // codes.group)
            product = codes.codes[row, column].float() * codes.scale[place].float()
            offset = 0.0 if codes.offset is None else codes.offset[place].float()
            assert values[row, column] == product + offset
    assert torch.equal(codes.widened().dequantise(), values)
    assert (codes.widened().bits, codes.halved_groups().group) == (8, 16)
    assert torch.equal(codes.halved_groups().dequantise(), values)
    assert torch.equal(codes.rows(3, 7).dequantise(), values[3:7])
    assert torch.equal(codes.original_rows(3).dequantise(), original_rows(values, 3))


@pytest.mark.parametrize("second", FORMS)
@pytest.mark.parametrize("first", FORMS[:3])
def test_concatenated_forms_keep_every_value(first: Codes, second: Codes) -> None:
    both = concatenated([first, second, first])
    values = [first.dequantise(), second.dequantise(), first.dequantise()]
    assert torch.equal(both.dequantise(), torch.cat(values))
    assert both.bits == max(first.bits, second.bits)
    assert both.group == min(first.group, second.group)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: Codes(c.codes.int(), 4, 32, c.scale, c.offset),
        lambda c: Codes(c.codes, 8, 32, c.scale, c.offset),
        lambda c: Codes(c.codes, 5, 32, c.scale, c.offset),
        lambda c: Codes(c.codes[0], 4, 32, c.scale, c.offset),
        lambda c: Codes(c.codes, 4, 16, c.scale, c.offset),
        lambda c: Codes(c.codes[:, :95], 4, 32, c.scale[:, :2], None),
        lambda c: Codes(c.codes, 4, 48, c.scale[:, :2], None),
        lambda c: Codes(c.codes, 4, 32, c.scale.float(), c.offset),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: Callable[[Codes], object]) -> None:
    with pytest.raises(ValueError, match=r"codes of|scales are|groups of"):
        change(made(4, 32, True, torch.float16))


# -- from floats -----------------------------------------------------------------------------------


def weights(size: float = 0.05, rows: int = 40, columns: int = 96) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(7)) * size


@pytest.mark.parametrize("size", [0.05, 1e-9, 1e-5, 1e7, 1e25])
def test_eight_bits_are_half_a_step_away(size: float) -> None:
    weight = weights(size)
    codes = quantise(weight, 8)
    assert (codes.bits, codes.group, codes.offset) == (8, 32, None)
    assert codes.scale.dtype == (torch.float16 if size == 0.05 else torch.float32)
    groups = weight.view(40, 3, 32)
    moved = 1.0005 if codes.scale.dtype == torch.float16 else 1.0  # scales rounded to 11 bits
    step = groups.abs().amax(dim=-1, keepdim=True) / 127 * moved
    assert ((codes.dequantise().view(40, 3, 32) - groups).abs() <= 0.57 * step).all()


@pytest.mark.parametrize("size", [0.05, 1e-9, 1e7, 1e25])
def test_four_bits_are_better_than_the_full_range(size: float) -> None:
    weight = weights(size)
    codes = quantise(weight, 4)
    assert (codes.bits, codes.group) == (4, 32)
    assert codes.scale.dtype == (torch.float16 if size == 0.05 else torch.float32)
    groups = (weight / size).view(40, 3, 32)
    error = (codes.dequantise() / size).view(40, 3, 32) - groups
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 15
    plain = ((groups - low) / step).round() * step + low - groups
    assert error.square().sum() < 0.9 * plain.square().sum()
    assert (error.square().sum(-1) < 1.05 * plain.square().sum(-1)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_are_codes_are_found_again(bits: int) -> None:
    """Codes that use their whole range, scales of few bits: nothing is lost."""
    generator = torch.Generator().manual_seed(8)
    low, high = (0, 16) if bits == 4 else (-127, 128)
    codes = torch.randint(low, high, (30, 64), generator=generator).view(30, 2, 32)
    codes[..., 0], codes[..., 31] = low, high - 1
    scale = 2.0 ** torch.randint(-9, -3, (30, 2, 1), generator=generator)
    offset = -8 * scale if bits == 4 else 0
    weight = (codes * scale + offset).view(30, 64)
    assert torch.equal(quantise(weight, bits).dequantise(), weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_one_value(bits: int) -> None:
    weight = weights()
    weight[0] = 0
    weight[1] = 0.25
    weight[2, :32] = -3.0
    values = quantise(weight, bits).dequantise()
    assert torch.equal(values[0], weight[0])
    assert torch.allclose(values[1], weight[1], rtol=1e-3)
    assert torch.allclose(values[2, :32], weight[2, :32], rtol=1e-3)
    assert torch.equal(quantise(torch.zeros(3, 32), bits).dequantise(), torch.zeros(3, 32))


@pytest.mark.parametrize("bits", [4, 8])
def test_more_groups_than_a_piece_and_other_types(bits: int) -> None:
    weight = weights(rows=500, columns=192)
    whole = quantise(weight, bits).dequantise()
    rows = [quantise(weight[i : i + 1], bits).dequantise() for i in (0, 170, 171, 499)]
    assert torch.equal(whole[[0, 170, 171, 499]], torch.cat(rows))
    for dtype in (torch.bfloat16, torch.float16):
        half = quantise(weight.to(dtype), bits).dequantise()
        assert torch.equal(half, quantise(weight.to(dtype).float(), bits).dequantise())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e31])
def test_values_that_no_scale_holds_are_refused(bad: float) -> None:
    weight = weights()
    weight[3, 5] = bad
    with pytest.raises(ValueError, match="not finite or beyond"):
        quantise(weight, 4)


def test_shapes_and_bits_that_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        quantise(torch.zeros(2, 48), 4)
    with pytest.raises(ValueError, match="multiples of 32"):
        quantise(torch.zeros(64), 8)
    with pytest.raises(ValueError, match="allowed are 4 and 8"):
        quantise(torch.zeros(2, 32), 5)
