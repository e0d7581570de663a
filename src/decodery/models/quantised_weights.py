"""Float weights quantised as they are read: the `int4` and `int8` of `load`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from decodery.core.errors import ModelFileError
from decodery.models.codes import GROUP, Codes, quantise
from decodery.models.weights import Precision, Shape, Weights

# In 4 bits these cost ten times the divergence of all other matrices together.
_EIGHT_BITS = frozenset({"model.embed_tokens.weight", "lm_head.weight"})


class QuantisedWeights:
    """Another store's tensors, its matrices in `bits` (4 or 8) bits.

    With 4, the embedding and the head take 8. A matrix whose inputs are no multiple of 32 stays in
    floats, and so do vectors. Codes are made anew at each call.
    """

    precision: Precision = "codes"

    def __init__(self, store: Weights, bits: int) -> None:
        self._store = store
        self._bits = bits

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return self._store.shapes

    def source(self, name: str) -> str:
        return self._store.source(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor's values after quantisation, float32; others as the store has them."""
        codes = self.codes(name)
        return self._store.tensor(name) if codes is None else codes.dequantise()

    def codes(self, name: str) -> Codes | None:
        """A matrix's codes. Raises `ModelFileError` for values that are not finite."""
        shape = self.shapes[name]
        if len(shape) != 2 or shape[1] % GROUP:
            return None
        try:
            return quantise(self._store.tensor(name), 8 if name in _EIGHT_BITS else self._bits)
        except ValueError as error:
            raise ModelFileError(f"{self.source(name)}: tensor {name!r}: {error}") from None
