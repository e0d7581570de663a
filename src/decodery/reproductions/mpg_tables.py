"""Character models made by counting, for the quick mpg reproduction: no training, exact rows.

A model of order k mixes what it has counted after the last k characters with what it has after the
last k - 1, and so on down to even odds (Witten and Bell's weights: n / (n + kinds)). An attribute's
model backs off to the reference where it has seen nothing, as a fine-tune does to its base.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from decodery.models.table import TableModel
from decodery.reproductions.mpg_texts import VOICES, Voice, examples

ORDER = 6
END = 0
LETTERS = "\0 !',-.?" + "abcdefghijklmnopqrstuvwxyz" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def encode(text: str) -> tuple[int, ...]:
    """Characters as tokens; the prompt begins with an end token.

    >>> decode(encode("Arr!"))
    'Arr!'
    """
    return tuple(LETTERS.index(letter) for letter in text)


def decode(tokens: Sequence[int]) -> str:
    return "".join(LETTERS[token] for token in tokens if token != END)


class Counts:
    """How often each character came after each of the last 0 to `ORDER` characters."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.seen: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in texts:
            tokens = (END, *encode(text), END)
            for place in range(1, len(tokens)):
                for size in range(min(ORDER, place) + 1):
                    self.seen[tokens[place - size : place]][tokens[place]] += 1

    def law(
        self, context: tuple[int, ...], below: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """The mixture over orders, from `below` up."""
        row = below
        for size in range(len(context) + 1):
            counts = self.seen.get(context[len(context) - size :])
            if counts is None:
                break
            total, kinds = counts.total(), len(counts)
            own = np.zeros(len(LETTERS))
            own[list(counts)] = list(counts.values())
            row = (own + kinds * row) / (total + kinds)
        return row


def models(variations: int = 6) -> dict[Voice, TableModel]:
    """The reference (neutral) and one model for each attribute."""
    even = np.full(len(LETTERS), 1.0 / len(LETTERS))
    counts: dict[Voice, Counts] = {
        voice: Counts([item.response for item in examples(voice, variations)]) for voice in VOICES
    }

    def law(voice: Voice) -> Callable[[tuple[int, ...]], npt.NDArray[np.float64]]:
        def row(context: tuple[int, ...]) -> npt.NDArray[np.float64]:
            base = counts["neutral"].law(context, even)
            return base if voice == "neutral" else counts[voice].law(context, base)

        return row

    return {
        voice: TableModel(law(voice), len(LETTERS), ORDER, eos_ids=frozenset({END}), name=voice)
        for voice in counts
    }
