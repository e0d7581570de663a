"""What a penalty remembers: the tokens of the path, with or without the prompt.

It is read from the path at each place, so a branch sees its own past and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from decodery.core.row import Ids
from decodery.core.sampler import Context


def history(context: Context, *, prompt: bool, window: int = 0) -> Sequence[int]:
    """The last `window` tokens of the path (0: all), counting the prompt or not."""
    tokens = context.tokens if prompt else context.generated
    return tokens[-window:] if window else tokens


def occurrences(tokens: Sequence[int]) -> tuple[Ids, npt.NDArray[np.intp]]:
    """The distinct tokens, ascending, and how often each occurs.

    >>> occurrences([7, 2, 7])
    (array([2, 7]), array([1, 2]))
    """
    return np.unique(np.asarray(tokens, dtype=np.intp), return_counts=True)
