"""Rotary position embedding: the pairs (i, i + head_dim/2) of a head turn by position * frequency.

Su et al. 2021, arXiv:2104.09864. Scalings: `linear` divides every frequency by a factor, `llama3`
only the slow ones, `yarn` (Peng et al. 2023, arXiv:2309.00071) blends by the number of rotations
and multiplies cosine and sine. Scalings that depend on how long the text has become (`dynamic`,
`longrope`) are not here: with them a node's key would depend on its batch mates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROPE_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """How positions turn the heads. Fields a kind does not use keep their defaults."""

    theta: float
    """Base of the frequencies theta ** (-2 i / head_dim)."""
    kind: str = "default"
    factor: float = 1.0
    """linear, llama3, yarn: the stretch, >= 1 as a rule."""
    original_context: int = 0
    """llama3, yarn: positions the model was first trained on."""
    low_frequency: float = 1.0
    """llama3: waves longer than original_context / low_frequency are stretched in full."""
    high_frequency: float = 4.0
    """llama3: waves shorter than original_context / high_frequency are left alone."""
    beta_fast: float = 32.0
    """yarn: with more rotations than this over original_context, no stretch."""
    beta_slow: float = 1.0
    """yarn: with fewer, the full stretch."""
    truncate: bool = True
    """yarn: round the two borders outwards to whole frequencies."""
    magnitude: float = 1.0
    """yarn: factor on cosine and sine."""

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians per position, float32 [head_dim / 2] on the CPU."""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        plain = 1.0 / self.theta**exponent
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "yarn":
            return self._yarn(self.theta**exponent, head_dim)
        return plain

    def _llama3(self, plain: Tensor) -> Tensor:
        wave = 2 * math.pi / plain
        rotations = self.original_context / wave
        smooth = (rotations - self.low_frequency) / (self.high_frequency - self.low_frequency)
        between = (1 - smooth) * plain / self.factor + smooth * plain
        stretched = torch.where(
            wave > self.original_context / self.low_frequency,
            plain / self.factor,
            between,
        )
        return torch.where(wave < self.original_context / self.high_frequency, plain, stretched)

    def _yarn(self, periods: Tensor, head_dim: int) -> Tensor:
        low = self._yarn_border(self.beta_fast, head_dim)
        high = self._yarn_border(self.beta_slow, head_dim)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        high = high + 0.001 if low == high else high
        ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
        keep = 1 - ramp.clamp(0, 1)
        return 1.0 / (self.factor * periods) * (1 - keep) + 1.0 / periods * keep

    def _yarn_border(self, rotations: float, head_dim: int) -> float:
        """Index of the frequency that turns `rotations` times over the original context."""
        turns = self.original_context / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(self.theta))


@dataclass(frozen=True)
class Rotation:
    """Cosine and signed sine of n positions, [n, 1, head_dim] each, ready for `rotate`."""

    cosine: Tensor
    sine: Tensor  # the first half negated, so that rotating needs no sign of its own


def rotation(
    frequencies: Tensor, positions: Tensor, magnitude: float, dtype: torch.dtype
) -> Rotation:
    """frequencies float32 [head_dim / 2], positions int64 [n]; angles are taken in float32."""
    angles = positions[:, None, None].float() * frequencies
    cosine, sine = angles.cos() * magnitude, angles.sin() * magnitude
    return Rotation(
        torch.cat((cosine, cosine), dim=-1).to(dtype),
        torch.cat((-sine, sine), dim=-1).to(dtype),
    )


def rotate(heads: Tensor, by: Rotation) -> Tensor:
    """Turns [n, heads, head_dim] by each row's position."""
    first, second = heads.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return (heads * by.cosine).add_(swapped.mul_(by.sine))
