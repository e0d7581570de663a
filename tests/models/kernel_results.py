"""What the compiled kernels compute on fixed inputs, to be compared between builds.

`python kernel_results.py FILE FOLDER` writes the results of this process's kernels to a file.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch
from forwards import Piece, fed, forward, new_cache, random_parents
from small_models import text
from torch import Tensor

from decodery.models import native
from decodery.models.codes import Codes, quantise
from decodery.models.packed import PackedMatrix
from decodery.models.transformer import load_transformer

INPUTS, OUTPUTS, ROWS = 192, 37, 7


def whole_numbers() -> dict[str, Tensor]:
    """Products of codes without scales: sums of whole numbers, exact in any build."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-127, 128, (ROWS, INPUTS), generator=generator).float()
    x[:, ::32] = 127
    found: dict[str, Tensor] = {}
    for bits, group in product((4, 8), (16, 32)):
        low, high = (0, 16) if bits == 4 else (-128, 128)
        codes = torch.randint(low, high, (OUTPUTS, INPUTS), generator=generator)
        kept = codes.to(torch.uint8 if bits == 4 else torch.int8)
        ones = torch.ones(OUTPUTS, INPUTS // group)
        for dtype in (torch.float32, torch.float16):
            matrix = PackedMatrix(Codes(kept, bits, group, ones.to(dtype), None), None)
            found[f"codes {bits} {group} {dtype}"] = matrix(x)
    return found


def products() -> dict[str, Tensor]:
    """Products of floats and of codes with any scales, of fixed random numbers."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(ROWS, INPUTS, generator=generator)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator)
    made = {
        "float32": weight,
        "bf16": weight.bfloat16(),
        "int8": quantise(weight, 8),
        "int4": quantise(weight, 4),
        "groups of 16": quantise(weight, 4).halved_groups(),
    }
    return {name: PackedMatrix(item, None)(x) for name, item in made.items()}


def logits(folder: Path) -> dict[str, Tensor]:
    """Logits of a small model in every kind of weights, of a chain and of a tree."""
    found: dict[str, Tensor] = {}
    for weights in ("float32", "bf16", "int8", "int4"):
        model = load_transformer(folder, weights, "cpu")
        found[f"{weights} chain"] = model.logits(fed(model, text(150)))
        cache = new_cache(model)
        forward(model, cache, [Piece(text(120), range(120))])
        tree = Piece(text(30, seed=2), range(120, 150), range(120), random_parents(30, 3))
        found[f"{weights} tree"] = model.logits(forward(model, cache, [tree])[0])
    return found


def main() -> None:
    file, folder = map(Path, sys.argv[1:])
    results = {"whole": whole_numbers(), "products": products(), "logits": logits(folder)}
    torch.save({"instructions": native.instructions(), **results}, file)


if __name__ == "__main__":
    main()
