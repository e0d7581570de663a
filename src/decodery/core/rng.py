"""Keyed randomness: every draw is a pure function of who asks, where, and what for.

A draw is keyed by (seed, sequence, absolute position, purpose, index). There is no generator whose
state advances, so a draw depends neither on batch mates, nor on the order of requests, nor on how
many draws another part made. Two draws are independent exactly when their keys differ; a draft and
its verification use different purposes.

The bits come from BLAKE2b, a keyed cryptographic hash; arrays come from Philox seeded by it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from decodery.core.errors import ParameterError

_SEED_LIMIT = 2**63
_PACK = struct.Struct("<qqqq")


@dataclass(frozen=True, slots=True)
class Stream:
    """The random numbers of one request.

    `seed` is an integer in [0, 2**63). Positions are absolute: the prompt's length counts, so a
    continuation asked for in two requests draws what one request would have drawn.
    """

    seed: int

    def __post_init__(self) -> None:
        if type(self.seed) is not int or not 0 <= self.seed < _SEED_LIMIT:
            raise ParameterError(
                f"seed is {self.seed!r}; allowed is a whole number in 0..{_SEED_LIMIT - 1}"
            )

    def _digest(self, sequence: int, position: int, purpose: str, index: int, size: int) -> bytes:
        key = _PACK.pack(self.seed, sequence, position, index)
        return hashlib.blake2b(key + purpose.encode(), digest_size=size).digest()

    def uniform(self, sequence: int, position: int, purpose: str, index: int = 0) -> float:
        """One number in [0, 1) with 53 random bits.

        >>> Stream(7).uniform(0, 12, "token") == Stream(7).uniform(0, 12, "token")
        True
        """
        bits = int.from_bytes(self._digest(sequence, position, purpose, index, 8), "little")
        return (bits >> 11) * 2.0**-53

    def generator(
        self, sequence: int, position: int, purpose: str, index: int = 0
    ) -> np.random.Generator:
        """A generator of its own for this key, for draws of whole arrays."""
        key = int.from_bytes(self._digest(sequence, position, purpose, index, 16), "little")
        return np.random.Generator(np.random.Philox(key=key))
