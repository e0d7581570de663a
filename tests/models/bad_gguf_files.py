"""GGUF files that are bad on purpose, each in a way of its own.

A case is a name, what to do to a good model, and words that the refusal has to say. Changes to raw
bytes come last.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from bad_file import BIG, INFINITE, NAN, BadFile
from gguf_writing import ARRAY, TEXT, array, entry, text, vocabulary
from good_files import (
    F32,
    I32,
    TYPE_IDS,
    U32,
    GgufModel,
    Stored,
    gguf_model,
)

U64, BOOL = 10, 7
TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"


def bad_gguf(name: str, change: Callable[[GgufModel], Any], said: str, **lies: Any) -> BadFile:
    """`change` alters the model; bytes that it returns are the file instead."""

    def write(folder: Path) -> Path:
        made = gguf_model("Q4_0")
        changed = change(made)
        if not isinstance(changed, bytes):
            return made.write(folder, **lies)
        path = folder / "model.gguf"
        path.write_bytes(changed)
        return path

    return BadFile(f"gguf: {name}", write, said)


def lying(name: str, said: str, **lies: Any) -> BadFile:
    return bad_gguf(name, lambda _: None, said, **lies)


def at(offset: int, raw: bytes) -> Callable[[GgufModel], bytes]:
    """The good file with other bytes at an offset."""

    def change(made: GgufModel) -> bytes:
        whole = made.raw()
        return whole[:offset] + raw + whole[offset + len(raw) :]

    return change


def cut(where: Callable[[bytes], int]) -> Callable[[GgufModel], bytes]:
    """The good file up to a place."""

    def change(made: GgufModel) -> bytes:
        whole = made.raw()
        return whole[: where(whole)]

    return change


def meta(key: str, kind: int, content: Any) -> Callable[[GgufModel], Any]:
    return lambda made: made.set(key, kind, content)


def raw_entry(key: str, kind: int, raw: bytes) -> Callable[[GgufModel], Any]:
    return lambda made: made.entries.update({key: entry(key, kind, raw)})


def stored(tensor: str, **fields: Any) -> Callable[[GgufModel], Any]:
    """Another shape, type, offset, name or content of a tensor."""

    def change(made: GgufModel) -> None:
        for field, content in fields.items():
            setattr(made.tensors[tensor], field, content)

    return change


def scale(name: str, scale: float) -> Callable[[GgufModel], Any]:
    """Another scale of the last block of a Q4_0 tensor."""

    def change(made: GgufModel) -> None:
        data = made.tensors[name].data
        made.tensors[name].data = data[:-18] + np.float16(scale).tobytes() + data[-16:]

    return change


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", ARRAY, 1) * depth + array(U32, [1])


def many_layers(made: GgufModel) -> None:
    """40,000 tensors of a number, for which a table of 4,444 layers would have names."""
    for index in range(40_000):
        made.tensors[f"blk.{index // 9}.{index % 9}"] = Stored([1], TYPE_IDS["F32"], b"\0" * 4)
    made.set("llama.block_count", U32, 4_444)


def many_tokens(made: GgufModel) -> None:
    """A vocabulary of 600,000 tokens in a file of 9 MB: in memory 400 MB."""
    rows = 600_000
    tokens = [*vocabulary(), *(f"{index:x}." for index in range(rows - 267))]
    made.set(TOKENS, TEXT, tokens).set("tokenizer.ggml.token_type", 0, [1] * rows)
    made.set("llama.embedding_length", U32, 1)
    made.tensors["token_embd.weight"] = Stored([1, rows], TYPE_IDS["F16"], b"\0" * 2 * rows)
    for name, tensor in made.tensors.items():
        if name != "token_embd.weight":
            made.tensors[name] = Stored([1 if d == 32 else d for d in tensor.shape], 1, b"\0" * 512)
    for layer in range(2):
        for name, shape in {
            "attn_norm": [1],
            "attn_q": [1, 32],
            "attn_k": [1, 16],
            "attn_v": [1, 16],
            "attn_output": [32, 1],
            "ffn_norm": [1],
            "ffn_gate": [1, 32],
            "ffn_up": [1, 32],
            "ffn_down": [32, 1],
        }.items():
            made.tensors[f"blk.{layer}.{name}.weight"] = Stored(shape, 1, b"\0" * 64)
    made.tensors["output_norm.weight"] = Stored([1], 1, b"\0" * 2)


def three_key_heads(made: GgufModel) -> None:
    made.set("llama.attention.head_count_kv", U32, 3)
    for layer, name in product(range(2), "kv"):
        tensor = Stored([32, 24], TYPE_IDS["F32"], b"\0" * 3072)
        made.tensors[f"blk.{layer}.attn_{name}.weight"] = tensor


def wide_texts(made: GgufModel) -> None:
    for index in range(16):
        made.set(f"x{index}", TEXT, "a" * (1 << 20) + "\U0001f600")


def many_names(made: GgufModel) -> None:
    for index in range(65_000):
        made.set(f"{index:x}\U0001f600" + "a" * 195, 0, 1)


def many_rows(made: GgufModel) -> None:
    """A table of 14 MB, as float32 102 MB, that is wrong at its end."""
    rows = 800_000
    data = made.tensors["token_embd.weight"].data[:18] * (rows - 1)
    wrong = np.float16(NAN).tobytes() + b"\0" * 16
    made.tensors["token_embd.weight"] = Stored([32, rows], TYPE_IDS["Q4_0"], data + wrong)


def long_marked_tokens(made: GgufModel) -> None:
    """Control tokens of a megabyte: the automaton that finds them takes a hundred."""
    tokens = [*vocabulary(), *("a" * 500_000 + str(index) for index in range(2))]
    made.set(TOKENS, TEXT, tokens).set("tokenizer.ggml.token_type", I32, [3] * 269)


def sentencepiece(**fields: Any) -> Callable[[GgufModel], Any]:
    def change(made: GgufModel) -> None:
        made.drop(MERGES).set("tokenizer.ggml.model", TEXT, "llama")
        made.set("tokenizer.ggml.scores", F32, [0.0] * 267)
        for key, (kind, content) in fields.items():
            made.set(f"tokenizer.ggml.{key}", kind, content)

    return change


def with_rope_factors(*factors: float) -> Callable[[GgufModel], Any]:
    raw = struct.pack(f"<{len(factors)}f", *factors)
    return lambda made: made.tensors.update(
        {"rope_freqs.weight": Stored([len(factors)], TYPE_IDS["F32"], raw)}
    )


GGUF = [
    # the header
    bad_gguf("an empty file", lambda _: b"", "0 bytes"),
    bad_gguf("23 bytes", cut(lambda _: 23), "23 bytes"),
    bad_gguf("zeros", lambda _: b"\0" * 4096, "not a GGUF file"),
    lying("magic of another format", "not a GGUF file", magic=b"GGML"),
    lying("version 0", "version 0", version=0),
    lying("version 1", "version 1", version=1),
    lying("version 2^32 - 1", "version 4294967295", version=2**32 - 1),
    lying("big-endian", "big-endian", version=0x0300_0000),
    lying("2^63 tensors", "tensor count", tensor_count=2**63),
    lying("-1 tensors", "tensor count", tensor_count=BIG),
    lying("2^63 entries", "metadata count", entry_count=2**63),
    lying("-1 entries", "metadata count", entry_count=BIG),
    lying("an entry too few", "", entry_count=19),
    lying("an entry too many", "", entry_count=21),
    lying("a tensor too few", "", tensor_count=19),
    lying("a tensor too many", "", tensor_count=21),
    # metadata
    bad_gguf("a key longer than the file", at(24, struct.pack("<Q", 10**6)), "metadata key 0"),
    bad_gguf("a key of -1 bytes", at(24, struct.pack("<Q", BIG)), "metadata key 0"),
    bad_gguf("a key twice", lambda m: m.extra.append(m.entries[TOKENS]), "there twice"),
    bad_gguf("value type 13", raw_entry("x", 13, b"\0" * 8), "type 13"),
    bad_gguf("a text past the end", raw_entry("x", TEXT, text("a", 10**9)), "at most"),
    bad_gguf("a text of -1 bytes", raw_entry("x", TEXT, text("a", BIG)), "at most"),
    bad_gguf("arrays 5 deep", raw_entry("x", ARRAY, nested(5)), "deeper than 4"),
    bad_gguf("arrays 9,999 deep", raw_entry("x", ARRAY, nested(9_999)), "deeper than 4"),
    bad_gguf("an array of 2^61", raw_entry("x", ARRAY, array(U64, [1], 2**61)), "truncated"),
    bad_gguf("texts of 2^61", raw_entry("x", ARRAY, array(TEXT, ["a"], 2**61)), "entries"),
    bad_gguf(
        "16 MiB of text, one letter wide",
        wide_texts,
        "bytes of names and texts",
    ),
    bad_gguf(
        "65,000 names of 200 bytes",
        many_names,
        "bytes of names and texts",
    ),
    bad_gguf("4.2 million empty texts", meta("x", TEXT, [""] * 4_200_000), "texts in arrays"),
    bad_gguf("alignment 0", meta("general.alignment", U32, 0), "alignment is 0"),
    bad_gguf("alignment 24", meta("general.alignment", U32, 24), "alignment is 24"),
    bad_gguf("alignment 2^40", meta("general.alignment", U64, 2**40), "alignment"),
    bad_gguf("alignment a list", meta("general.alignment", U32, [32]), "alignment is a list"),
    # tensors
    bad_gguf("a tensor twice", lambda m: m.twice.append("output_norm.weight"), "there twice"),
    bad_gguf("a dimension of 0", stored("output_norm.weight", shape=[0]), "may be 0"),
    bad_gguf("5 dimensions", stored("output_norm.weight", shape=[32, 1, 1, 1, 1]), "5 dimensions"),
    bad_gguf("no dimensions", stored("output_norm.weight", shape=[]), "0 dimensions"),
    bad_gguf("a product over 2^64", stored("output_norm.weight", shape=[2**33] * 3), "needs"),
    bad_gguf("a product of 128 mod 2^64", stored("output_norm.weight", shape=[2**63, 2]), "needs"),
    bad_gguf("an offset of 1", stored("output_norm.weight", offset=1), "no multiple of 32"),
    bad_gguf("an offset past the end", stored("output_norm.weight", offset=1 << 40), "truncated"),
    bad_gguf("an offset of -32", stored("output_norm.weight", offset=2**64 - 32), "truncated"),
    bad_gguf("two tensors at one place", stored("output_norm.weight", offset=0), "overlap"),
    bad_gguf("type 99", stored("output_norm.weight", kind=99), "unknown type 99"),
    bad_gguf("type -1", stored("output_norm.weight", kind=2**32 - 1), "unknown type"),
    bad_gguf("half a block a row", stored("token_embd.weight", shape=[16, 544]), "multiples of 32"),
    bad_gguf("a type of no use", stored("output_norm.weight", kind=26), "I32"),
    bad_gguf("a name that is not UTF-8", stored("output_norm.weight", name=b"\xff"), "UTF-8"),
    bad_gguf("a name of two lines", stored("output_norm.weight", name="a\nb"), "missing"),
    # truncation, in every section
    bad_gguf("cut in the header", cut(lambda _: 24), "tensor count"),
    bad_gguf("cut in a key", cut(lambda _: 40), ""),
    bad_gguf("cut in the tokens", cut(lambda whole: whole.index(b"tokens") + 200), ""),
    bad_gguf("cut in the tensors", cut(lambda whole: whole.index(b"blk.1.attn_q")), ""),
    bad_gguf("cut before the data", cut(lambda whole: whole.index(b"blk.1.ffn_down") + 60), ""),
    bad_gguf("cut by a byte", cut(lambda whole: len(whole) - 33), "truncated"),
    # what the model is
    bad_gguf("no architecture", lambda m: m.drop("general.architecture"), "architecture None"),
    bad_gguf("an architecture list", meta("general.architecture", TEXT, ["llama"]), "not a text"),
    bad_gguf("an unknown one", meta("general.architecture", TEXT, "lama"), "did you mean 'llama'"),
    bad_gguf("no block count", lambda m: m.drop("llama.block_count"), "block_count is missing"),
    bad_gguf("2^31 layers", meta("llama.block_count", U32, 2**31), "block_count"),
    bad_gguf("2^31 - 1 layers", meta("llama.block_count", U32, 2**31 - 1), "blk.2."),
    bad_gguf("layers -1", meta("llama.block_count", I32, -1), "block_count is -1"),
    bad_gguf("4,444 layers of one number", many_layers, "blk.2."),
    bad_gguf("0 heads", meta("llama.attention.head_count", U32, 0), "head_count is 0"),
    bad_gguf("3 heads for 2", meta("llama.attention.head_count", U32, 3), "shape"),
    bad_gguf("3 key heads for 4 heads", three_key_heads, "divisor"),
    bad_gguf("heads by layer", meta("llama.attention.head_count", U32, [4, 4]), "is a list"),
    bad_gguf("a head of 2^31", meta("llama.attention.key_length", U32, 2**30), "key width"),
    bad_gguf("context length 0", meta("llama.context_length", U32, 0), "context_length is 0"),
    bad_gguf("context 2^31 - 1", meta("llama.context_length", U32, 2**31 - 1), "max_position"),
    bad_gguf("epsilon NaN", meta("llama.attention.layer_norm_rms_epsilon", F32, NAN), "epsilon"),
    bad_gguf("rope base NaN", meta("llama.rope.freq_base", F32, NAN), "freq_base"),
    bad_gguf("rope base infinite", meta("llama.rope.freq_base", F32, INFINITE), "freq_base"),
    bad_gguf("rope base -1", meta("llama.rope.freq_base", F32, -1.0), "freq_base"),
    bad_gguf(
        "rope base 1 and yarn",
        lambda m: (
            m.set("llama.rope.freq_base", F32, 1.0)
            .set("llama.rope.scaling.type", TEXT, "yarn")
            .set("llama.rope.scaling.factor", F32, 2.0)
            .set("llama.rope.scaling.original_context_length", U32, 16)
        ),
        "rotary",
    ),
    bad_gguf("a scaling list", meta("llama.rope.scaling.type", TEXT, ["linear"]), "not a text"),
    bad_gguf("rope factors of NaN", with_rope_factors(*[NAN] * 4), "positive"),
    bad_gguf("rope factors of 0", with_rope_factors(*[0.0] * 4), "positive"),
    bad_gguf("too many rope factors", with_rope_factors(*[1.0] * 9_000), "shape"),
    bad_gguf("experts by layer", meta("llama.expert_count", U32, [0, 8]), "experts"),
    bad_gguf("a window list", meta("llama.attention.sliding_window", U32, [8]), "is a list"),
    bad_gguf("no embedding", lambda m: m.drop("token_embd.weight"), "token_embd"),
    bad_gguf("no norm", lambda m: m.drop("output_norm.weight"), "output_norm"),
    bad_gguf(
        "a tensor more, with a long name",
        lambda m: m.tensors.update({"x" * 60_000: Stored([1], 0, b"\0" * 4)}),
        "not part of llama",
    ),
    bad_gguf(
        "a matrix turned",
        stored("blk.0.attn_k.weight", shape=[16, 32], kind=0, data=b"\0" * 2048),
        "has the shape [32, 16]",
    ),
    bad_gguf("NaN as a scale", scale("blk.1.ffn_down.weight", NAN), "not finite"),
    bad_gguf("NaN in the last of 800,000 rows", many_rows, "not finite"),
    bad_gguf("an infinite scale", scale("token_embd.weight", INFINITE), "not finite"),
    # the tokenizer
    bad_gguf("no tokens", lambda m: m.drop(TOKENS), "tokens is missing"),
    bad_gguf("tokens that are numbers", meta(TOKENS, U32, [1] * 267), "array of strings"),
    bad_gguf("one token for all", meta(TOKENS, TEXT, ["a"] * 267), "twice"),
    bad_gguf(
        "a token that is not UTF-8",
        lambda m: m.set(TOKENS, TEXT, [f"t{i}" for i in range(266)] + [b"\xff"]),
        "not UTF-8",
    ),
    bad_gguf("more tokens than rows", meta(TOKENS, TEXT, [f"t{i}" for i in range(273)]), "273"),
    bad_gguf("600,000 tokens", many_tokens, "MiB"),
    bad_gguf("a megabyte of marked tokens", long_marked_tokens, "MiB"),
    bad_gguf("token types too few", meta("tokenizer.ggml.token_type", I32, [1]), "one number"),
    bad_gguf("token types a text", meta("tokenizer.ggml.token_type", TEXT, "x"), "one number"),
    bad_gguf("a merge of one", meta(MERGES, TEXT, ["a"]), "not two tokens"),
    bad_gguf("a merge of three", meta(MERGES, TEXT, ["a b c"]), "not two tokens"),
    bad_gguf("a merge of spaces", meta(MERGES, TEXT, [" " * 1_000_000]), "not two tokens"),
    bad_gguf("a merge of strangers", meta(MERGES, TEXT, ["zq qz"]), "merges do not fit"),
    bad_gguf("merges of numbers", meta(MERGES, U32, [1]), "array of strings"),
    bad_gguf("BOS past the tokens", meta("tokenizer.ggml.bos_token_id", U32, 267), "267"),
    bad_gguf("BOS true", meta("tokenizer.ggml.bos_token_id", BOOL, 1), "bos_token_id is True"),
    bad_gguf("EOS -1", meta("tokenizer.ggml.eos_token_id", I32, -1), "eos_token_id is -1"),
    bad_gguf("add BOS a list", meta("tokenizer.ggml.add_bos_token", U32, [1, 1]), "true or false"),
    bad_gguf("a split list", meta("tokenizer.ggml.pre", TEXT, ["smollm"]), "not a text"),
    bad_gguf("a kind list", meta("tokenizer.ggml.model", U32, [1, 2]), "not a text"),
    bad_gguf("scores too few", sentencepiece(scores=(F32, [0.0])), "one number"),
    bad_gguf("scores of no kind", sentencepiece(scores=(TEXT, ["0"] * 267)), "one number"),
    bad_gguf(
        "a token of 20,000 letters without merges",
        sentencepiece(tokens=(TEXT, [*(f"t{i}" for i in range(266)), "a" * 20_000])),
        "20000 characters",
    ),
]
