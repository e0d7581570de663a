"""Seeded damage to good model files: bytes, pieces, and fields of the format."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

LENGTHS = (0, 1, 2, 7, 8, 31, 255, 2**15, 2**16 - 1, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
LONG_LENGTHS = (*LENGTHS, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)
BYTES = (0, 1, 2, 0x20, 0x22, 0x7F, 0x80, 0xFF)
VALUES: tuple[Any, ...] = (
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    10**15,
    10**400,
    0.5,
    -0.5,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    True,
    False,
    None,
    "",
    "a",
    "\ud800",
    "x\n" * 50,
    [],
    [[]],
    [1, 2],
    {},
    {"a": 1},
)

Mutation = Callable[[bytes, random.Random], bytes]


def flipped(raw: bytes, rng: random.Random) -> bytes:
    """One to eight bytes, mostly to those that break lengths."""
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.choice((*BYTES, rng.randrange(256)))
    return bytes(changed)


def flipped_early(raw: bytes, rng: random.Random) -> bytes:
    """The same in the first quarter, where the tables are."""
    quarter = len(raw) // 4
    return flipped(raw[:quarter], rng) + raw[quarter:]


def cut(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw))]


def inserted(raw: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(raw))
    return raw[:place] + rng.randbytes(rng.choice((1, 4, 8, 32))) + raw[place:]


def removed(raw: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(raw))
    return raw[:place] + raw[place + rng.choice((1, 4, 8, 32)) :]


def spliced(raw: bytes, rng: random.Random) -> bytes:
    """A piece copied over another place."""
    start, length = rng.randrange(len(raw)), rng.randint(1, 200)
    piece, place = raw[start : start + length], rng.randrange(len(raw))
    return raw[:place] + piece + raw[place + len(piece) :]


def with_integer(raw: bytes, rng: random.Random) -> bytes:
    """A 32-bit or 64-bit field at any place, with a value that readers trip over."""
    form, values = rng.choice((("<I", LENGTHS), ("<Q", LONG_LENGTHS)))
    written = struct.pack(form, rng.choice(values))
    place = rng.randrange(len(raw) - len(written))
    return raw[:place] + written + raw[place + len(written) :]


def integer_fields(raw: bytes) -> list[tuple[int, str]]:
    """Every place of a GGUF file's head that holds an integer, with its form.

    Walked by the format, so that it can be told from the text between.
    """
    fields = [(4, "<I"), (8, "<Q"), (16, "<Q")]
    place = 24
    tensors, entries = struct.unpack_from("<QQ", raw, 8)

    def take(form: str) -> int:
        nonlocal place
        fields.append((place, form))
        place += struct.calcsize(form)
        return struct.unpack_from(form, raw, place - struct.calcsize(form))[0]

    def text() -> None:
        nonlocal place
        length = take("<Q")
        place += length

    def value(kind: int) -> None:
        nonlocal place
        if kind == 8:
            text()
        elif kind == 9:
            inner = take("<I")
            for _ in range(take("<Q")):
                value(inner)
        else:
            take({0: "<B", 1: "<B", 2: "<H", 3: "<H", 7: "<B", 10: "<Q", 11: "<Q"}.get(kind, "<I"))

    for _ in range(entries):
        text()
        value(take("<I"))
    for _ in range(tensors):
        text()
        for _ in range(take("<I")):
            take("<Q")
        take("<I")
        take("<Q")
    return fields


def with_field(raw: bytes, rng: random.Random) -> bytes:
    """One to three integer fields of a GGUF file's head with other values."""
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        place, form = rng.choice(_fields(raw))
        values = LONG_LENGTHS if form == "<Q" else LENGTHS
        now = struct.unpack_from(form, raw, place)[0]
        near = (now + 1, now - 1, now * 2)
        choice = rng.choice((*values, *near)) % (1 << (8 * struct.calcsize(form)))
        struct.pack_into(form, changed, place, choice)
    return bytes(changed)


_known: dict[int, list[tuple[int, str]]] = {}


def _fields(raw: bytes) -> list[tuple[int, str]]:
    """The head's fields; a vocabulary's many lengths count as one in eight."""
    if hash(raw) not in _known:
        fields = integer_fields(raw)
        short = [field for index, field in enumerate(fields) if index < 60 or index % 8 == 0]
        _known[hash(raw)] = short + fields[-200:]
    return _known[hash(raw)]


def with_json(raw: bytes, rng: random.Random) -> bytes:
    """A JSON object with a value replaced, removed, doubled or moved, at any depth."""
    whole = json.loads(raw)
    holder, key = rng.choice(_places(whole))
    action = rng.random()
    if action < 0.7:
        holder[key] = rng.choice(VALUES)
    elif action < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[f"{key}2"] = holder[key]
    else:
        holder.append(holder[key])
    return json.dumps(whole).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    keys = [*keys][:40]  # a vocabulary is one place of many, not nearly all
    inside = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], (dict, list)):
            inside += _places(value[key])
    return inside


ANY: tuple[Mutation, ...] = (flipped, flipped_early, cut, inserted, removed, spliced, with_integer)
GGUF: tuple[Mutation, ...] = (*ANY, with_field, with_field, with_field)
JSON: tuple[Mutation, ...] = (flipped, cut, removed, spliced, with_json, with_json, with_json)


def header_mutation(raw: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is mutated as JSON, its length made right again."""
    length = struct.unpack_from("<Q", raw)[0]
    header = rng.choice(JSON)(raw[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


SAFETENSORS: tuple[Mutation, ...] = (*ANY, header_mutation, header_mutation, header_mutation)
