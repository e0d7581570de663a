"""Regular expression: the answer, whole, matches a pattern.

At every place the row is restricted to the tokens after which the answer still begins a text that
the pattern matches from its first character to its last, and renormalised; it ends where the text
matches. See `structured.py` for the law. The syntax is that of Rust's `regex`, without look-around
and back-references; `.` is any character but a line feed.

Willard, Louf: Efficient Guided Generation for Large Language Models (2023), arXiv:2307.09702.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from decodery.core.card import Card, Method
from decodery.core.language import GrammarKind
from decodery.core.params import Parameters, parameter
from decodery.methods.sampling.structured import LAW, NOTES, PLACE, Structured

CARD = Card(
    name="regex",
    kind="sampler",
    family="sampling",
    summary="The answer, whole, matches a regular expression.",
    guarantee="law",
    law=LAW,
    title="Efficient Guided Generation for Large Language Models",
    authors="Willard, Louf",
    year=2023,
    arxiv="2307.09702",
    needs=("tokenizer", "llguidance"),
    place=PLACE,
    examples=({"regex": "[0-9]{1,3} (metres|miles)"}, {"regex": "[ab]+"}),
    deviations=(
        "the engine is llguidance, which follows derivatives of the pattern over bytes as it goes,"
        " where the paper builds an index of the vocabulary before",
    ),
    notes=NOTES,
)


class Params(Parameters):
    regex: str = parameter(
        help="The pattern that the whole answer matches, in the syntax of Rust's regex.", file=True
    )


@dataclass(frozen=True, repr=False)
class Regex(Structured):
    """Tokens that keep the answer a beginning of a text that the pattern matches.

    >>> Regex("[a-z]+")
    regex('[a-z]+')
    """

    kind: ClassVar[GrammarKind] = "regex"


def build(params: Params) -> Regex:
    return Regex(params.regex)


METHOD = Method(CARD, Params, build)
