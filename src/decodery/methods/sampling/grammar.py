"""Grammar: the answer is a text of a context-free grammar, written in Lark's syntax.

At every place the row is restricted to the tokens after which the answer still begins a text that
the grammar derives from its rule `start`, and renormalised; it ends where the text is derived. See
`structured.py` for the law. Rules have small names, terminals capital ones:

    start: NUMBER ("+" NUMBER)*
    NUMBER: /[0-9]+/

Moskal and others: llguidance, a library for constrained decoding (2024), by an Earley parser over a
lexer of derivatives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from decodery.core.card import Card, Method
from decodery.core.errors import ParameterError
from decodery.core.language import GrammarKind
from decodery.core.params import Parameters, parameter
from decodery.methods.sampling.structured import LAW, NOTES, PLACE, Structured

# Options of a rule that say how to sample inside it, which is not for a grammar to say here.
STEERING = re.compile(
    r"^\s*[?!]?[\w-]+\s*\[[^\]\n]*\b(temperature|max_tokens|stop)\s*=", re.MULTILINE
)

CARD = Card(
    name="grammar",
    kind="sampler",
    family="sampling",
    summary="The answer is a text of a context-free grammar.",
    guarantee="law",
    law=LAW,
    title="llguidance: constrained decoding with Lark-like grammars",
    authors="Moskal and contributors (llguidance)",
    year=2024,
    source="llguidance (engine and syntax); Lark; llama.cpp has grammars in a syntax of its own",
    needs=("tokenizer", "llguidance"),
    place=PLACE,
    examples=(
        {"grammar": 'start: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]+/'},
        {"grammar": 'start: "[" start "]" | "a"'},
    ),
    deviations=(
        "options of rules that steer sampling (temperature, max_tokens, stop) are refused: the"
        " samplers and run parameters say that",
    ),
    notes=NOTES,
)


class Params(Parameters):
    grammar: str = parameter(
        help="The grammar in Lark's syntax, with a rule called start.", file=True
    )


@dataclass(frozen=True, repr=False)
class Grammar(Structured):
    """Tokens that keep the answer a beginning of a text of the grammar.

    >>> Grammar('start: "a"+')
    grammar('start: "a"+')
    """

    kind: ClassVar[GrammarKind] = "grammar"


def build(params: Params) -> Grammar:
    steering = STEERING.search(params.grammar)
    if steering:
        raise ParameterError(
            f"grammar has a rule with {steering[1]}=; a grammar says what may come, and samplers"
            " and run parameters how it is drawn"
        )
    return Grammar(params.grammar)


METHOD = Method(CARD, Params, build)
