"""Folders of safetensors that are bad on purpose, each in a way of its own.

A case is a name, what to do to a good model, and words that the refusal has to say. Changes to raw
bytes come last. What must not be read as a path inside the temporary folder is written below it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bad_file import BIG, INFINITE, NAN, BadFile
from good_files import (
    FolderModel,
    folder_model,
    header_of,
    safetensors,
)


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
