"""A toy of image tokens: a grid of codes, each of which depends on its left and upper neighbour.

Its laws are flat, as those of image tokens are, and hardly change with the last few tokens' noise:
what speculative Jacobi decoding was made for. The model is a table, so nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from decodery.core.distribution import entropy, softmax
from decodery.models.table import TableModel

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """`width` columns of one of `codes` codes; `spread` is the deviation of the scores, in nats.

    The score of a code is a random number of it and the left neighbour plus one of it and the upper
    neighbour, together normal with deviation `spread`, so the laws have about
    ln(codes) - spread^2 / 2 nats of entropy. With probability `copied` a code is its upper
    neighbour's, as in flat regions of an image.
    """

    codes: int = 256
    width: int = 16
    spread: float = 1.4
    copied: float = 0.0
    seed: int = 0

    @cached_property
    def _scores(self) -> Array:
        """Scores [neighbour, code of it, code]; the last code of a neighbour stands for none."""
        generator = np.random.default_rng(self.seed)
        size = (2, self.codes + 1, self.codes)
        return generator.normal(0.0, self.spread / np.sqrt(2.0), size)

    def model(self) -> TableModel:
        """The source: its prompt is one token, which does not count as a code of the grid."""
        return TableModel(self.law, self.codes, self.width + 1, name=f"grid of {self.codes} codes")

    def law(self, context: tuple[int, ...]) -> Array:
        """The probabilities [codes] of the next code.

        The context begins with the prompt where it is no longer than the width.
        """
        left, above = self._scores
        known = len(context) > self.width
        scores = left[context[-1]] + above[context[-self.width] if known else self.codes]
        law = softmax(scores)
        if known:
            law *= 1.0 - self.copied
            law[context[-self.width]] += self.copied
        return law

    def entropy(self, tokens: Sequence[int]) -> float:
        """The mean entropy of the laws along a grid, in nats, its first row aside."""
        places = range(self.width + 1, len(tokens))
        laws = [self.law(tuple(tokens[place - self.width - 1 : place])) for place in places]
        return float(np.mean([entropy(law) for law in laws]))
