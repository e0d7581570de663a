"""JSON schema: the answer is a JSON text that satisfies a schema.

At every place the row is restricted to the tokens after which the answer still begins a JSON text
that satisfies the schema, and renormalised; it ends where the text is whole. See `structured.py`
for the law, and the engine's documentation for the keywords it knows: a schema with any other is
refused, not followed in part.

Moskal and others: llguidance, a library for constrained decoding (2024), which follows JSON Schema,
draft 2020-12.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from decodery.core.card import Card, Method
from decodery.core.errors import ParameterError
from decodery.core.language import GrammarKind
from decodery.core.params import Parameters, parameter
from decodery.methods.sampling.structured import LAW, NOTES, PLACE, Structured

SPACES = r"[\x20\x0A\x0D\x09]"
OPTIONS = "x-guidance"  # a key of the engine's own, by which a schema would loosen its rules

CARD = Card(
    name="json_schema",
    kind="sampler",
    family="sampling",
    summary="The answer is a JSON text that satisfies a schema.",
    guarantee="law",
    law=LAW,
    title="llguidance: constrained decoding, and JSON Schema (draft 2020-12)",
    authors="Moskal and contributors (llguidance)",
    year=2024,
    source="llguidance (engine); vLLM, SGLang and llama.cpp offer the same",
    needs=("tokenizer", "llguidance"),
    place=PLACE,
    examples=(
        {"json_schema": '{"type": "array", "items": {"type": "integer"}}'},
        {"json_schema": {"type": "integer"}},
    ),
    deviations=(
        "properties come in the order of the schema, additional ones after them, whose names may"
        " repeat",
        "unknown formats and keywords are refused, where the standard ignores them",
        "a character that JSON need not escape is not escaped",
    ),
    notes=NOTES,
)


class Params(Parameters):
    json_schema: str | dict[str, Any] = parameter(
        help="The schema that the answer satisfies, as text or in Python a mapping.", file=True
    )
    json_spaces: int | None = parameter(
        None,
        ge=0,
        le=1000,
        unit="characters",
        help="Most white space in a row between the parts of the JSON; default: any amount.",
    )


@dataclass(frozen=True, repr=False)
class JsonSchema(Structured):
    """Tokens that keep the answer a beginning of a JSON text that satisfies the schema.

    >>> JsonSchema('{"type": "null"}')
    json_schema('{"type": "null"}')
    """

    kind: ClassVar[GrammarKind] = "json_schema"


def schema_text(schema: str | dict[str, Any], spaces: int | None) -> str:
    """The schema as one JSON text, with what the engine is told of white space.

    >>> schema_text('{ "type":"null" }', None)
    '{"type": "null"}'
    """
    parsed = _parsed(schema) if isinstance(schema, str) else cast("object", schema)
    if not isinstance(parsed, dict):
        raise ParameterError(f"json_schema is {json.dumps(parsed)[:60]}; a schema is an object")
    known = cast("dict[str, Any]", parsed)
    if OPTIONS in known:
        raise ParameterError(f"json_schema has the key {OPTIONS!r}, which could loosen its rules")
    if spaces is not None:
        known = {**known, OPTIONS: _white_space(spaces)}
    try:
        return json.dumps(known, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ParameterError(f"json_schema cannot be written as JSON: {error}") from None


def _parsed(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        raise ParameterError(f"json_schema {shown!r} is no JSON: {error}") from None


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _white_space(most: int) -> dict[str, Any]:
    if most == 0:
        return {"whitespace_flexible": False}
    return {"whitespace_pattern": f"{SPACES}{{1,{most}}}"}


def build(params: Params) -> JsonSchema:
    return JsonSchema(schema_text(params.json_schema, params.json_spaces))


METHOD = Method(CARD, Params, build)
