"""Model files that are bad on purpose, each in a way of its own: two tables, one for each format.

A case is a name, what to do to a good model, and words that the refusal has to say. Changes to raw
bytes come last. What must not be read as a path inside the temporary folder is written below it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from gguf_writing import ARRAY, TEXT, array, entry, text, vocabulary
from good_files import (
    F32,
    I32,
    TYPE_IDS,
    U32,
    FolderModel,
    GgufModel,
    Stored,
    folder_model,
    gguf_model,
    header_of,
    safetensors,
)

BIG = 2**64 - 1
U64, BOOL = 10, 7
NAN, INFINITE = float("nan"), float("inf")
TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"


@dataclass(frozen=True)
class BadFile:
    """`write` makes the file in an empty folder and returns what to load."""

    name: str
    write: Callable[[Path], Path]
    said: str


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


# -- safetensors -----------------------------------------------------------------------------------


def bad_folder(name: str, change: Callable[[FolderModel], Any], said: str) -> BadFile:
    """`change` alters the model; bytes that it returns are its safetensors file."""

    def write(folder: Path) -> Path:
        made = folder_model()
        changed = change(made)
        made.write(folder)
        if isinstance(changed, bytes):
            (folder / "model.safetensors").write_bytes(changed)
        return folder

    return BadFile(f"folder: {name}", write, said)


def config(name: str, said: str, **fields: Any) -> BadFile:
    return bad_folder(name, lambda made: made.set(**fields), said)


def other(name: str, said: str, **fields: Any) -> BadFile:
    """A config of a kind that goes through transformers."""
    return config(f"another kind, {name}", said, model_type="gpt2", **fields)


def header(name: str, said: str, change: Callable[[dict[str, Any]], Any]) -> BadFile:
    """`change` alters the header of the safetensors file, or returns another."""

    def changed(made: FolderModel) -> bytes:
        fields, data = header_of(made.tensors)
        return safetensors(change(fields) or fields, data)

    return bad_folder(name, changed, said)


def length(name: str, length: int, said: str = "header") -> BadFile:
    return bad_folder(name, lambda made: safetensors(*header_of(made.tensors), length=length), said)


def file(name: str, path: str, content: Any, said: str) -> BadFile:
    """Another content of a file of the folder: JSON, or bytes as they are."""
    return bad_folder(name, lambda made: made.files.update({path: content}), said)


def index(name: str, weight_map: Any, said: str) -> BadFile:
    """Two shards and this index."""

    def write(folder: Path) -> Path:
        made = folder_model()
        tensors, made.tensors = made.tensors, {}
        made.write(folder)
        names = list(tensors)
        for shard, kept in (("a.safetensors", names[:5]), ("b.safetensors", names[5:])):
            raw = safetensors(*header_of({name: tensors[name] for name in kept}))
            (folder / shard).write_bytes(raw)
        right = {
            name: "a.safetensors" if i < 5 else "b.safetensors" for i, name in enumerate(names)
        }
        content = weight_map(right) if callable(weight_map) else weight_map
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / "model.safetensors.index.json").write_bytes(raw)
        return folder

    return BadFile(f"folder: {name}", write, said)


def reference(name: str, said: str, **fields: Any) -> BadFile:
    """A folder that says its weights are in another file, and no lie about size and time."""

    def write(folder: Path) -> Path:
        made = folder_model()
        made.tensors.clear()
        (folder / "sub").mkdir()
        link(folder, "zero.gguf", "/dev/zero")
        target = fields.get("gguf", "sub")
        target = str(folder / target) if isinstance(target, str) else target
        known = target in (str(folder / "sub"), str(folder / "zero.gguf"))
        status = Path(target).stat() if known else None
        made.files["weights.json"] = {
            "size": status.st_size if status else 0,
            "mtime_ns": status.st_mtime_ns if status else 0,
            "precision": "codes",
            **fields,
            "gguf": target,
        }
        return made.write(folder)

    return BadFile(f"folder: {name}", write, said)


def special(name: str, make: Callable[[Path], Path], said: str) -> BadFile:
    """Things that are not files, made beside a good folder."""

    def write(folder: Path) -> Path:
        folder_model().write(folder)
        return make(folder)

    return BadFile(f"place: {name}", write, said)


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
MODEL, TOKENIZER = "model.safetensors", "tokenizer.json"


def repeated(key: str) -> Callable[[dict[str, Any]], bytes]:
    """The header with one tensor twice, both alike: the library takes it."""

    def change(fields: dict[str, Any]) -> bytes:
        raw = json.dumps(fields).encode()
        return raw[:-1] + b", " + json.dumps({key: fields[key]}).encode()[1:]

    return change


def empty_tensors(count: int) -> bytes:
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return safetensors({f"{index:x}": one for index in range(count)}, b"")


def tokenizer(name: str, change: Callable[[dict[str, Any]], Any], said: str) -> BadFile:
    return bad_folder(name, lambda made: change(made.files[TOKENIZER]), said)


def fifo(folder: Path, name: str) -> Path:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    return folder


def link(folder: Path, name: str, target: str) -> Path:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    return folder / name


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}

SAFETENSORS = [
    # the header
    bad_folder("an empty file", lambda _: b"", MODEL),
    bad_folder("7 bytes", lambda _: b"\1\0\0\0\0\0\0", MODEL),
    length("a header of 0 bytes", 0, MODEL),
    length("a header of 2^63 bytes", 2**63),
    length("a header of -1 bytes", BIG),
    length("a header longer than the file", 10**6),
    length("a header a byte short", 100, MODEL),
    header("a header that is not JSON", MODEL, lambda _: b"{nothing"),
    header("a header that is a list", "object", lambda _: b"[]"),
    header("a header 100,000 deep", MODEL, lambda _: b'{"a":' + b"[" * 100_000),
    header("a header that is not UTF-8", MODEL, lambda _: b'{"\xff": 1}'),
    header("a tensor twice", "there twice", repeated(NORM)),
    header("a key of a tensor twice", MODEL, lambda _: b'{"a":{"dtype":"F32","dtype":"F32"}}'),
    header("an unknown type", "F33", lambda fields: fields[NORM].update(dtype="F33")),
    header("a type of two lines", MODEL, lambda fields: fields[NORM].update(dtype="F\n3" * 9_999)),
    header("integers", MODEL, lambda fields: fields[NORM].update(dtype="I32")),
    header("a shape of -32", MODEL, lambda fields: fields[NORM].update(shape=[-32])),
    header("a shape of 2^62 x 4", "overflow", lambda fields: fields[NORM].update(shape=[2**62, 4])),
    header("a shape of text", MODEL, lambda fields: fields[NORM].update(shape="32")),
    header("a shape of 9 dimensions", "9 dim", lambda f: f[NORM].update(shape=[32] + [1] * 8)),
    header("no shape", MODEL, lambda fields: fields[NORM].pop("shape")),
    header("another shape than bytes", MODEL, lambda fields: fields[NORM].update(shape=[31])),
    header("offsets turned", MODEL, lambda f: f[NORM]["data_offsets"].reverse()),
    header("offsets that overlap", MODEL, lambda f: f[NORM].update(data_offsets=[0, 128])),
    header(
        "offsets past the end", MODEL, lambda f: f[NORM].update(data_offsets=[2**40, 2**40 + 128])
    ),
    header("offsets of 2^64", MODEL, lambda f: f[NORM].update(data_offsets=[2**64, 2**64 + 128])),
    header("a hole", MODEL, lambda fields: fields.pop(NORM) and None),
    header("metadata of numbers", MODEL, lambda fields: fields.update(__metadata__={"a": 1})),
    bad_folder("data a byte short", lambda m: safetensors(*header_of(m.tensors))[:-1], MODEL),
    bad_folder("data a byte long", lambda m: safetensors(*header_of(m.tensors)) + b"\0", MODEL),
    bad_folder("200,000 empty tensors", lambda _: empty_tensors(200_000), "MiB"),
    bad_folder(
        "a million pairs of metadata",
        lambda _: safetensors({"__metadata__": {f"{i:x}": "" for i in range(10**6)}}, b""),
        "MiB",
    ),
    bad_folder(
        "4 million dimensions",
        lambda _: safetensors(
            {"a": {"dtype": "F32", "shape": [1] * 4_000_000, "data_offsets": [0, 4]}}, b"\0" * 4
        ),
        "MiB",
    ),
    # tensors that are not those of the model
    bad_folder("no norm", lambda made: made.drop(NORM), "is missing"),
    bad_folder("no tensors", lambda _: safetensors({}, b""), "is missing"),
    bad_folder(
        "a tensor more",
        lambda made: made.tensors.update({"x\n" * 9_999: np.zeros(1)}),
        "unexpected",
    ),
    bad_folder(
        "a norm of other width",
        lambda made: made.tensors.update({NORM: np.zeros(31)}),
        "has shape [31]",
    ),
    bad_folder("a norm of 0 rows", lambda made: made.tensors.update({NORM: np.zeros(0)}), "shape"),
    bad_folder(
        "a head that differs from the embedding",
        lambda made: made.tensors.update({"lm_head.weight": made.tensors[EMBEDDING] + 1}),
        "differs",
    ),
    # shards
    index("an index that is not JSON", b"{", "index.json"),
    index("an index without a map", {"weight_map": []}, "weight_map"),
    index("an index of nothing", {"weight_map": {}}, "weight_map"),
    index("an index 100,000 deep", b'{"weight_map":' + b"[" * 100_000, "index.json"),
    index("an index with a name twice", b'{"weight_map": {"a": "x", "a": "x"}}', "twice"),
    index(
        "a shard that is not there", lambda m: {"weight_map": m | {NORM: "c.safetensors"}}, "miss"
    ),
    index("a shard above", lambda m: {"weight_map": m | {NORM: "../a.safetensors"}}, "shard"),
    index("a shard at a root", lambda m: {"weight_map": m | {NORM: "/a.safetensors"}}, "shard"),
    index(
        "a shard on another drive", lambda m: {"weight_map": m | {NORM: "\\a.safetensors"}}, "shard"
    ),
    index("a shard of two lines", lambda m: {"weight_map": m | {NORM: "\n.safetensors"}}, "shard"),
    index(
        "a shard of a surrogate",
        lambda m: {"weight_map": m | {NORM: "\ud800.safetensors"}},
        "shard",
    ),
    index("a shard with a null", lambda m: {"weight_map": m | {NORM: "\0.safetensors"}}, "shard"),
    index(
        "a shard of 9,999 letters",
        lambda m: {"weight_map": m | {NORM: "a" * 9999 + ".safetensors"}},
        "shard",
    ),
    index("a shard that is a number", lambda m: {"weight_map": m | {NORM: 1}}, "shard"),
    index(
        "a tensor in the wrong shard",
        lambda m: {"weight_map": m | {NORM: "b.safetensors"}},
        "should be in",
    ),
    index(
        "a tensor in no shard", lambda m: {"weight_map": m | {"x": "b.safetensors"}}, "should be in"
    ),
    # a folder whose weights are in a GGUF file
    reference("a reference to nothing", "No such file", gguf="nothing.gguf"),
    reference("a reference with a null", "the path of a file", gguf="a\0.gguf"),
    reference("a reference of 9,999 letters", "the path of a file", gguf="a" * 9999),
    reference("a reference that is a list", "'gguf' is a list", gguf=["a"]),
    reference("a reference to a folder", "regular file"),
    reference("a reference to a device", "regular file", gguf="zero.gguf"),
    reference("a reference of another precision", "'precision'", precision="x\n" * 999),
    # config.json
    file("no config", "config.json", b"", "config.json"),
    file("a config that is a list", "config.json", [], "object"),
    file("a config 100,000 deep", "config.json", b'{"a":' + b"[" * 100_000, "config.json"),
    file(
        "a config 950 deep", "config.json", b'{"model_type":' + b"[" * 950 + b"]" * 950 + b"}", ""
    ),
    file("a config of Latin-1", "config.json", b'{"model_type": "\xe9"}', "config.json"),
    file("a config of brackets", "config.json", b'{"a": [' + b"[]," * 10**6 + b"[]]}", "MiB"),
    file("a config in UTF-16", "config.json", '{"model_type": "llama"}'.encode("utf-16"), "config"),
    config("a model type list", "", model_type=["llama"]),
    config("an unknown model type", "", model_type="lama"),
    config("width 0", "hidden_size", hidden_size=0),
    config("width -1", "hidden_size", hidden_size=-1),
    config("width a text", "hidden_size", hidden_size="32"),
    config("width true", "hidden_size", hidden_size=True),
    config("width 32.0", "hidden_size", hidden_size=32.0),
    config("width NaN", "hidden_size", hidden_size=NAN),
    config("0 heads", "num_attention_heads", num_attention_heads=0),
    config("3 heads of a width of 32", "multiple", num_attention_heads=3, head_dim=None),
    config("3 key heads", "divisor", num_key_value_heads=3),
    config("heads of 7", "even", head_dim=7),
    config("heads of 2^24", "head_dim", head_dim=2**24),
    config("10^12 layers", "num_hidden_layers", num_hidden_layers=10**12),
    config("a vocabulary of 10^15", "vocab_size", vocab_size=10**15),
    config("a vocabulary of 2^24", "embed_tokens", vocab_size=2**24),
    config("a context of 0", "max_position", max_position_embeddings=0),
    config("a context of 10^15", "max_position", max_position_embeddings=10**15),
    config("epsilon NaN", "rms_norm_eps", rms_norm_eps=NAN),
    config("epsilon infinite", "rms_norm_eps", rms_norm_eps=INFINITE),
    config("epsilon of 400 digits", "rms_norm_eps", rms_norm_eps=10**400),
    config("rope base 0", "rope_theta", rope_theta=0),
    config("rope base -5", "rope_theta", rope_theta=-5.0),
    config("rope base infinite", "rope_theta", rope_theta=INFINITE),
    config("rope scaling a list", "rope_scaling", rope_scaling=[]),
    config("rope scaling unknown", "rope_type", rope_scaling={"rope_type": "dynamic"}),
    config("rope type a list", "rope_type", rope_scaling={"rope_type": [["yarn"]]}),
    config("rope factor 1e-300", "rotary", rope_scaling={"rope_type": "linear", "factor": 1e-300}),
    config("yarn with base 1", "rotary", rope_theta=1.0, rope_scaling=YARN),
    config("yarn with beta 5e-324", "rotary", rope_scaling=YARN | {"beta_fast": 5e-324}),
    config(
        "yarn with an infinite scale",
        "rotary",
        rope_scaling=YARN | {"mscale": 1e308, "mscale_all_dim": 1},
    ),
    config("an activation list", "hidden_act", hidden_act=["silu"]),
    config("an activation of a megabyte", "hidden_act", hidden_act="silu\n" * 200_000),
    config("quantised", "quantization_config", quantization_config={}),
    # config.json of models that go through transformers
    other("10^12 layers", "at most", num_hidden_layers=10**12),
    other("10^12 layers inside", "at most", text_config={"n_layers": 10**12}),
    other("4,000 layers", "tensors", num_hidden_layers=4_000),
    other("a width of 2^20", "parameters", num_hidden_layers=1, hidden_size=2**20),
    other("2^29 positions", "parameters", max_position_embeddings=2**29),
    other("0 heads", "transformers cannot", num_attention_heads=0),
    other("a width of NaN", "transformers cannot", hidden_size=NAN),
    other("no vocabulary", "", vocab_size=0),
    other("none of its tensors", "missing keys"),
    config("another kind with code", "", model_type="x", auto_map={"AutoConfig": "evil.Config"}),
    # the tokenizer
    file("no tokenizer at all", TOKENIZER, b"", TOKENIZER),
    file("a tokenizer that is a list", TOKENIZER, [], TOKENIZER),
    file("a tokenizer 100,000 deep", TOKENIZER, b'{"a":' + b"[" * 100_000, TOKENIZER),
    tokenizer("no model", lambda made: made.pop("model"), TOKENIZER),
    tokenizer("a model of no kind", lambda made: made["model"].update(type="X"), TOKENIZER),
    tokenizer("ids of text", lambda made: made["model"].update(vocab={"a": "b"}), TOKENIZER),
    tokenizer("ids of -1", lambda made: made["model"].update(vocab={"a": -1}), TOKENIZER),
    tokenizer("ids of 2^40", lambda made: made["model"].update(vocab={"a": 2**40}), TOKENIZER),
    tokenizer("a merge of one", lambda made: made["model"].update(merges=[["a"]]), TOKENIZER),
    tokenizer(
        "a merge of strangers", lambda made: made["model"].update(merges=["zq qz"]), TOKENIZER
    ),
    tokenizer(
        "a pattern that is none",
        lambda made: made.update(
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": "("},
                "behavior": "Isolated",
                "invert": False,
            }
        ),
        TOKENIZER,
    ),
    file("settings that are no JSON", "tokenizer_config.json", b"{", "tokenizer_config.json"),
    file("settings 100,000 deep", "tokenizer_config.json", b"[" * 100_000, "tokenizer_config"),
    file("settings that are a list", "tokenizer_config.json", [], "object"),
    file("a template that is not UTF-8", "chat_template.jinja", b"\xff", "UTF-8"),
    file("ends that are no JSON", "generation_config.json", b"nothing", "generation_config"),
    # places
    special("a pipe for the weights", lambda folder: fifo(folder, MODEL), "neither"),
    special("a pipe for the config", lambda folder: fifo(folder, "config.json"), "regular file"),
    special("a pipe for the tokenizer", lambda folder: fifo(folder, TOKENIZER), "tokenizer"),
    special("a pipe for the settings", lambda f: fifo(f, "tokenizer_config.json"), "regular file"),
    special("a pipe as .gguf", lambda folder: fifo(folder, "m.gguf") / "m.gguf", ""),
    special(
        "a device for the config", lambda f: link(f, "config.json", "/dev/zero").parent, "regular"
    ),
    special("a device for the weights", lambda f: link(f, MODEL, "/dev/zero").parent, "neither"),
    special("a link to itself", lambda folder: link(folder, "m.gguf", "m.gguf"), ""),
    special("a link to itself for the weights", lambda f: link(f, MODEL, MODEL).parent, "neither"),
    special("a folder named .gguf", lambda folder: folder / "x.gguf", "does not exist"),
    special("a folder without a model", lambda folder: _empty(folder / "x.gguf"), "config.json"),
    special(
        "a folder for the config", lambda f: _empty(_gone(f / "config.json")).parent, "regular"
    ),
    special("a file of another kind", lambda folder: folder / "config.json", "no .gguf"),
    special("a null in the name", lambda folder: folder / "a\0.gguf", "exist"),
]


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _gone(path: Path) -> Path:
    path.unlink()
    return path


BAD_FILES: Mapping[str, BadFile] = {bad.name: bad for bad in (*GGUF, *SAFETENSORS)}
