"""JSON schemas: every text that random draws complete satisfies its schema, by `jsonschema`.

The vocabulary is some dozens of pieces that JSON is made of, and tokens are drawn evenly from what
is allowed: texts are strange, and any that the schema forbids would come up. Formats are checked
too. The other direction, that nothing is forbidden that satisfies the schema, is tried on texts
that must be taken.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

import decodery as dc
from decodery.core.language import Matcher
from decodery.methods.sampling.json_schema import schema_text
from decodery.testing.spelling import Spelling

SIGNS = '{}[]":, \n\\0123459-+.eEaAbuntrflsTZ@/'
WORDS = ('{"', '":', '","', '"a"', '"b"', "true", "false", "null", "12", "ä", "\\n", '"]', "}}")
PIECES = (*(text.encode() for text in (*SIGNS, *WORDS)), "ä".encode()[:1], "ä".encode()[1:], None)
DRAWS = 60
LENGTH = 80

TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "a": {"type": "integer"},
                "b": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
            },
            "required": ["a"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "anything": ({}, [None, 1.5e3, "a", [], {"a": [True]}]),
    "types": ({"type": ["integer", "null", "boolean"]}, [None, -12, True]),
    "numbers": ({"type": "number", "minimum": -1.5, "exclusiveMaximum": 20}, [-1.5, 0, 19.25]),
    "integers": ({"type": "integer", "exclusiveMinimum": -3, "maximum": 120}, [-2, 0, 120]),
    "multiples": ({"type": "integer", "multipleOf": 5, "minimum": 0}, [0, 5, 125]),
    "strings": ({"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "ääää", '"\\']),
    "patterns": ({"type": "string", "pattern": "^a+[0-9]{1,2}b?$"}, ["a0", "aaa12b"]),
    "loose patterns": ({"type": "string", "pattern": "a.b", "maxLength": 9}, ["a0b", "00aTbu"]),
    "enum": ({"enum": [1, "a", None, [1, 2], {"a": 1}]}, [1, "a", None, [1, 2], {"a": 1}]),
    "const": ({"const": {"a": [1, {"b": 2}]}}, [{"a": [1, {"b": 2}]}]),
    "arrays": (
        {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 3},
        [[1], [2, 1, 2]],
    ),
    "tuples": (
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "boolean"}],
            "items": {"const": "a"},
            "minItems": 2,
        },
        [[1, True], [0, False, "a", "a"]],
    ),
    "objects": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 3}},
            "required": ["b"],
            "additionalProperties": False,
        },
        [{"b": "a"}, {"a": 1, "b": ""}],
    ),
    "open objects": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "additionalProperties": {"type": "boolean"},
        },
        [{}, {"a": 1}, {"a": 1, "b": True}],
    ),
    "named by pattern": (
        {
            "type": "object",
            "patternProperties": {"^a[0-9]+$": {"type": "null"}},
            "additionalProperties": False,
        },
        [{}, {"a1": None, "a2": None}],
    ),
    "either": (
        {"anyOf": [{"type": "integer", "maximum": 2}, {"type": "string", "maxLength": 1}]},
        [2, -4, "a"],
    ),
    "one of": ({"oneOf": [{"type": "integer"}, {"type": "array", "maxItems": 0}]}, [1, []]),
    "all of": (
        {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 15}]},
        [3, 15],
    ),
    "recursion": (TREE, [{"a": 1}, {"a": 1, "b": [{"a": 2, "b": []}]}]),
    "dates": ({"type": "string", "format": "date"}, ["2024-02-29", "1912-12-31"]),
    "addresses": ({"type": "string", "format": "ipv4"}, ["1.2.3.4", "255.0.0.125"]),
}


def beginning(schema: dict[str, Any], spaces: int | None = None) -> Matcher:
    return Spelling(PIECES).matcher("json_schema", schema_text(schema, spaces))


def drawn(begin: Matcher, generator: np.random.Generator) -> str | None:
    """One text by even draws, or None where it is not whole after `LENGTH` tokens."""
    place, text = begin, b""
    for _ in range(LENGTH):
        if place.complete and generator.random() < 0.5:
            return text.decode()
        allowed = np.flatnonzero(place.allowed)
        if allowed.size == 0:
            return text.decode() if place.complete else None
        token = int(generator.choice(allowed))
        following = place.after(token)
        assert following is not None
        place, text = following, text + (PIECES[token] or b"")
    return None


@pytest.mark.parametrize("spaces", [None, 0, 1])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_whole_text_satisfies_the_schema(name: str, spaces: int | None) -> None:
    schema, _ = SCHEMAS[name]
    begin = beginning(schema, spaces)
    check = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    generator = np.random.default_rng(0)
    texts = {text for _ in range(DRAWS) if (text := drawn(begin, generator)) is not None}
    assert texts
    for text in texts:
        check.validate(json.loads(text))


@pytest.mark.parametrize("name", SCHEMAS)
def test_texts_that_satisfy_the_schema_are_taken(name: str) -> None:
    schema, values = SCHEMAS[name]
    for value in values:
        jsonschema.validate(value, schema)
        for separators in ((",", ":"), (", ", ": "), (" ,\n", "\n:  ")):
            text = json.dumps(value, ensure_ascii=False, separators=separators)
            assert taken(beginning(schema), text), text


def taken(place: Matcher, text: str) -> bool:
    """Whether the text can be spelled, a byte at a time, and is whole then."""
    pieces = {piece: index for index, piece in enumerate(PIECES)}
    for byte in text.encode():
        following = place.after(pieces[bytes([byte])])
        if following is None:
            return False
        place = following
    return place.complete


@pytest.mark.parametrize(
    ("spaces", "texts"),
    [
        (0, {"[1,2]": True, "[1, 2]": False, "[ 1,2]": False}),
        (1, {"[1,2]": True, "[1, 2]": True, "[ 1 ,\n2 ]": True, "[1,  2]": False}),
        (3, {"[1,   2]": True, "[1,    2]": False}),
        (None, {"[1,2]": True, "[1,        2]": True}),
    ],
)
def test_white_space_is_bounded(spaces: int | None, texts: dict[str, bool]) -> None:
    begin = beginning({"type": "array", "items": {"type": "integer"}}, spaces)
    assert {text: taken(begin, text) for text in texts} == texts


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True},
        {"not": {"type": "integer"}},
        {"if": {"type": "integer"}, "then": {"minimum": 3}},
        {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]},
        {"type": "array", "contains": {"const": 1}},
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        {"type": "string", "format": "iban"},
        {"$ref": "https://example.org/schema.json"},
    ],
    ids=json.dumps,
)
def test_what_could_not_be_held_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(dc.DecoderyError, match="json_schema is refused by llguidance"):
        beginning(schema)
