"""GGUF files by hand, for tests: every field can be made wrong, which the gguf package forbids."""

from __future__ import annotations

import struct
from collections.abc import Sequence

TEXT, ARRAY = 8, 9
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A string with its length before it; `length` lies about it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def value(kind: int, content: object) -> bytes:
    """A value after its type."""
    if kind == TEXT:
        return text(content)  # type: ignore[arg-type]
    return struct.pack("<" + FORMS[kind], content)


def array(kind: int, contents: Sequence[object], count: int | None = None) -> bytes:
    """An array after its type; `count` lies about its length."""
    head = struct.pack("<IQ", kind, len(contents) if count is None else count)
    return head + b"".join(value(kind, content) for content in contents)


def entry(key: str | bytes, kind: int, raw: bytes) -> bytes:
    """A metadata entry: key, type, value."""
    return text(key) + struct.pack("<I", kind) + raw


def tensor(
    name: str | bytes, shape: Sequence[int], kind: int, offset: int, rank: int | None = None
) -> bytes:
    """A tensor's entry; `shape` in the file's order, fastest first."""
    dimensions = len(shape) if rank is None else rank
    return (
        text(name)
        + struct.pack("<I", dimensions)
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


def gguf(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    entry_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts lie where they are given."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if entry_count is None else entry_count,
    )
    raw = head + b"".join(entries) + b"".join(tensors)
    return raw + b"\0" * (-len(raw) % alignment) + data


def sample() -> bytes:
    """A small good file with every kind of value and two tensors."""
    entries = [
        entry("general.architecture", TEXT, text("llama")),
        entry("u8", 0, value(0, 200)),
        entry("i8", 1, value(1, -5)),
        entry("u16", 2, value(2, 60_000)),
        entry("i16", 3, value(3, -300)),
        entry("u32", 4, value(4, 4_000_000_000)),
        entry("i32", 5, value(5, -7)),
        entry("f32", 6, value(6, 0.5)),
        entry("bool", 7, value(7, 1)),
        entry("u64", 10, value(10, 2**63)),
        entry("i64", 11, value(11, -(2**62))),
        entry("f64", 12, value(12, 0.1)),
        entry("texts", ARRAY, array(TEXT, ["a", "", "é", "\U0001f600"])),
        entry("ints", ARRAY, array(5, [1, -2, 3])),
        entry("bools", ARRAY, array(7, [1, 0])),
        entry("empty", ARRAY, array(6, [])),
        entry("nested", ARRAY, struct.pack("<IQ", ARRAY, 2) + array(0, [1]) + array(TEXT, ["x"])),
    ]
    tensors = [tensor("w", [2, 3], 0, 0), tensor("q", [32], 8, 32)]
    data = struct.pack("<6f", *range(6)) + b"\0" * 8 + struct.pack("<e32b", 0.5, *range(-16, 16))
    return gguf(entries, tensors, data)


def byte_alphabet() -> list[str]:
    """GPT-2's 256 letters for bytes, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "h e", "l l", "he ll", "Ġ hell", "1 2", "ð Ł"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def vocabulary(words: Sequence[str] = ()) -> list[str]:
    """A small byte-level vocabulary: special tokens, the alphabet, the merges, words that no
    merge makes, a user's token."""
    merged = (merge.replace(" ", "") for merge in MERGES)
    return [*SPECIAL, *byte_alphabet(), *merged, *words, "<think>"]


def tokenizer_entries(
    pre: str = "smollm", add_bos: bool = False, words: Sequence[str] = ()
) -> list[bytes]:
    """Metadata of that vocabulary."""
    tokens = vocabulary(words)
    kinds = [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL) - 1) + [4]
    return [
        entry("tokenizer.ggml.model", TEXT, text("gpt2")),
        entry("tokenizer.ggml.pre", TEXT, text(pre)),
        entry("tokenizer.ggml.tokens", ARRAY, array(TEXT, tokens)),
        entry("tokenizer.ggml.token_type", ARRAY, array(5, kinds)),
        entry("tokenizer.ggml.merges", ARRAY, array(TEXT, MERGES)),
        entry("tokenizer.ggml.bos_token_id", 4, value(4, 1)),
        entry("tokenizer.ggml.eos_token_id", 4, value(4, 2)),
        entry("tokenizer.ggml.add_bos_token", 7, value(7, int(add_bos))),
        entry("tokenizer.chat_template", TEXT, text(TEMPLATE)),
    ]
