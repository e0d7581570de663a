"""Low-rank sums on a frozen model: W x + scale B A x, where A and B learn.

A begins uniform in +-1/sqrt(inputs), B at zero: the model begins as it is (LoRA, section 4.1, with
PEFT's starting law).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decodery.core.errors import ParameterError, nearest
from decodery.models.adapters import MATRICES


class LowRank(nn.Module):
    """A frozen linear layer and the sum that is added to its weight."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        bound = linear.in_features**-0.5
        first = torch.rand((rank, linear.in_features), generator=generator) * 2 * bound - bound
        self.linear = linear
        self.scale = scale
        self.first = nn.Parameter(first)
        self.second = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.first), self.second)


def add_low_rank(
    model: Any, matrices: Sequence[str], rank: int, alpha: float, seed: int
) -> dict[str, LowRank]:
    """Freeze a transformers model and put sums on these matrices of its layers; by weight name."""
    for name in matrices:
        if name not in MATRICES:
            raise ParameterError(f"matrices has {name!r}; {nearest(name, MATRICES)}")
    if not matrices:
        raise ParameterError(f"matrices is empty; name some of {', '.join(MATRICES)}")
    model.requires_grad_(False)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in matrices
    ]
    added: dict[str, LowRank] = {}
    for number, (name, module) in enumerate(found):
        if rank > min(module.in_features, module.out_features):
            raise ParameterError(
                f"rank is {rank}, more than {name} of {module.out_features} x {module.in_features}"
            )
        parent, last = name.rsplit(".", 1)
        added[f"{name}.weight"] = LowRank(module, rank, alpha / rank, seed * 65536 + number)
        setattr(model.get_submodule(parent), last, added[f"{name}.weight"])
    return added
