"""Structured output on the embedded model: its whole vocabulary, and answers that satisfy schemas.

Masks are compared with the partial matching of the package `regex`; answers are held to
`jsonschema` and `re`. Draws are seeded; none of these tests can fail by chance.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
import regex as regex_package

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain", "chess"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
PROMPT = "Describe a person as JSON with name, age and likes."


@pytest.mark.parametrize("options", [{"method": "sample", "n": 4}, {"method": "beam", "beams": 3}])
@pytest.mark.parametrize("temperature", [0.7, 3.0])
def test_every_whole_answer_satisfies_the_schema(
    default_lm: Any, options: dict[str, Any], temperature: float
) -> None:
    answer = default_lm.generate(
        PROMPT,
        json_schema=PERSON,
        json_spaces=1,
        temperature=temperature,
        max_tokens=120,
        seed=1,
        **options,
    )
    assert {sample.finish_reason for sample in answer.samples} == {"eos"}
    for sample in answer.samples:
        jsonschema.validate(json.loads(sample.text), PERSON)


def test_greedy_under_a_pattern(default_lm: Any) -> None:
    answer = default_lm.generate(
        "When did the second world war end?", method="greedy", regex=r"In [0-9]{4}\.", max_tokens=20
    )
    assert answer.finish_reason == "eos"
    assert re.fullmatch(r"In [0-9]{4}\.", answer.text)


PATTERNS = [
    r"[a-z]+( [a-z]+)*",
    r"(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]",
    r"(yes|no|perhaps), because .{3,40}\.",
    r"[A-Z][a-z]*(,\s[A-Z][a-z]*){0,4}",
    r"(\"[^\"\\]*\"|[0-9]+)(: ?[^,;]+[,;])*",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_allowed_tokens_of_the_real_vocabulary_are_those_of_partial_matching(
    pattern: str, default_lm: Any
) -> None:
    """All 49,152 tokens along a random walk, against partial matching of the package `regex`.

    Pieces that cut a character are left out: that package matches characters, not bytes.
    """
    generator = np.random.default_rng(0)
    pieces = default_lm.language.pieces()
    place, text = default_lm.language.matcher("regex", pattern), ""
    oracle = regex_package.compile(pattern)
    for _ in range(4):
        allowed = place.allowed
        for token, piece in enumerate(pieces):
            whole = _characters(piece)
            if whole is not None:
                wanted = oracle.fullmatch(text + whole, partial=True) is not None
                assert allowed[token] == wanted, (text, whole)
        assert place.complete == (oracle.fullmatch(text) is not None)
        choices = [
            t for t in np.flatnonzero(allowed).tolist() if _characters(pieces[t]) is not None
        ]
        if not choices:
            break
        token = int(generator.choice(choices))
        place, text = place.after(token), text + pieces[token].decode()


def _characters(piece: bytes | None) -> str | None:
    try:
        return None if piece is None else piece.decode()
    except UnicodeDecodeError:
        return None


def test_a_grammar_may_name_the_models_special_tokens(default_lm: Any) -> None:
    rules = "start: <|im_start|> /[a-z]+/"
    answer = default_lm.generate("Say hi.", method="greedy", grammar=rules, max_tokens=30)
    assert answer.tokens[0] == default_lm.tokenizer.token_id("<|im_start|>")
    assert re.fullmatch("[a-z]+", answer.text)
