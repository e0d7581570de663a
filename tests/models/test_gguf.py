"""The GGUF reader: good files exactly, bad files refused in one line within bounded memory."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from pathlib import Path

import gguf as peer
import numpy as np
import pytest
import torch
from gguf_writing import ARRAY, TEXT, array, entry, gguf, sample, tensor, text, value

from decodery.core.errors import ModelFileError
from decodery.models import embedded
from decodery.models.gguf import dequantise, read
from decodery.models.gguf_file import TENSOR_TYPES, TextArray
from decodery.models.gguf_quants import SUPPORTED, codes_of

ARCHITECTURE = entry("general.architecture", TEXT, text("llama"))
F32, Q4_1 = 0, 3
BIG = 2**64 - 1


def write(folder: Path, raw: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(raw)
    return path


def test_every_kind_of_value_and_tensor(tmp_path: Path) -> None:
    with read(write(tmp_path, sample())) as file:
        plain = {
            key: item
            for key, item in file.metadata.items()
            if not isinstance(item, (np.ndarray, TextArray, tuple))
        }
        assert plain == {
            "general.architecture": "llama",
            "u8": 200,
            "i8": -5,
            "u16": 60_000,
            "i16": -300,
            "u32": 4_000_000_000,
            "i32": -7,
            "f32": 0.5,
            "bool": True,
            "u64": 2**63,
            "i64": -(2**62),
            "f64": 0.1,
        }
        texts = file.metadata["texts"]
        assert isinstance(texts, TextArray)
        assert texts.tolist() == list(texts) == ["a", "", "é", "\U0001f600"]
        assert (texts[-1], texts[1:3], len(texts)) == ("\U0001f600", ["", "é"], 4)
        with pytest.raises(IndexError):
            texts[4]
        assert np.array_equal(file.metadata["ints"], [1, -2, 3])
        assert np.array_equal(file.metadata["bools"], [True, False])
        assert file.metadata["bools"].dtype == np.bool_
        assert len(file.metadata["empty"]) == 0
        first, second = file.metadata["nested"]
        assert (first.tolist(), second.tolist()) == ([1], ["x"])
        w, q = file.tensors["w"], file.tensors["q"]
        assert (w.shape, w.type, w.nbytes) == ((3, 2), "F32", 24)
        assert (q.shape, q.type, q.nbytes, q.offset - w.offset) == ((32,), "Q8_0", 34, 32)
        assert len(file.tensor_bytes("q")) == 34
        assert torch.equal(dequantise(file, "w"), torch.arange(6.0).view(3, 2))
        assert torch.equal(dequantise(file, "q"), torch.arange(-16, 16) / 2)


def test_version_2_is_read(tmp_path: Path) -> None:
    raw = sample()
    with read(write(tmp_path, raw[:4] + struct.pack("<I", 2) + raw[8:])) as file:
        assert file.version == 2
        assert set(file.tensors) == {"w", "q"}


def test_after_closing_reads_are_refused(tmp_path: Path) -> None:
    file = read(write(tmp_path, sample()))
    texts = file.metadata["texts"]
    file.close()
    file.close()
    with pytest.raises(ModelFileError, match="closed"):
        file.tensor_bytes("w")
    with pytest.raises(ModelFileError, match="closed"):
        texts[0]


def test_a_view_outlives_closing(tmp_path: Path) -> None:
    with read(write(tmp_path, sample())) as file:
        stored = file.tensor_bytes("w")
    assert np.array_equal(stored.view(np.float32), np.arange(6))
    assert not stored.flags.writeable


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    with read(write(tmp_path, sample())) as file, pytest.raises(ModelFileError, match="'v'"):
        file.tensor_bytes("v")


def nested(depth: int) -> bytes:
    inner = array(0, [1])
    for _ in range(depth - 1):
        inner = struct.pack("<IQ", ARRAY, 1) + inner
    return inner


def one(entry_bytes: bytes) -> bytes:
    """A file with one more entry."""
    return gguf([ARCHITECTURE, entry_bytes])


def tensors(*entries: bytes, data: int = 256) -> bytes:
    """A file with these tensors and `data` bytes of them."""
    return gguf([ARCHITECTURE], entries, b"\0" * data)


BAD = {
    "empty": (b"", "0 bytes"),
    "too short": (b"GGUF\3\0\0\0", "8 bytes"),
    "another kind of file": (b"PK\3\4" + b"\0" * 60, "not a GGUF"),
    "magic in lower case": (gguf([ARCHITECTURE], magic=b"gguf"), "not a GGUF"),
    "version 0": (gguf([ARCHITECTURE], version=0), "version 0"),
    "version 1": (gguf([ARCHITECTURE], version=1), "version 1"),
    "version 4": (gguf([ARCHITECTURE], version=4), "version 4"),
    "big-endian": (gguf([ARCHITECTURE], version=0x0300_0000), "big-endian"),
    "2^64-1 tensors": (gguf([ARCHITECTURE], tensor_count=BIG), "tensor count"),
    "2^64-1 entries": (gguf([ARCHITECTURE], entry_count=BIG), "metadata count"),
    "2^63 tensors": (gguf([ARCHITECTURE], tensor_count=2**63), "tensor count"),
    "more tensors than fit": (gguf([ARCHITECTURE], tensor_count=60_000), "tensor count"),
    "more entries than fit": (gguf([ARCHITECTURE], entry_count=60_000), "metadata count"),
    "one entry too many": (gguf([ARCHITECTURE], entry_count=2), "metadata key 1"),
    "one tensor too many": (gguf([ARCHITECTURE], tensor_count=1), "tensor 0"),
    "empty key": (one(entry("", 0, b"\1")), "empty"),
    "key not UTF-8": (one(entry(b"\xff\xfe", 0, b"\1")), "UTF-8"),
    "key of 2^64-1 bytes": (one(text("k", BIG) + b"\0" * 20), "metadata key 1"),
    "key of 65,536 bytes": (one(entry("k" * 65_536, 0, b"\1")), "65536"),
    "key twice": (one(ARCHITECTURE), "twice"),
    "value type 13": (one(entry("k", 13, b"\0" * 8)), "type 13"),
    "value type 2^32-1": (one(entry("k", 2**32 - 1, b"\0" * 8)), "type 4294967295"),
    "bool of 2": (one(entry("k", 7, b"\2")), "bool stored as 2"),
    "bool array with 3": (one(entry("k", ARRAY, array(7, [0, 3]))), "bool stored as 3"),
    "text of 2^64-1 bytes": (one(entry("k", TEXT, text("x", BIG))), "at most"),
    "text longer than the file": (one(entry("k", TEXT, text("x", 9_999))), "truncated"),
    "text not UTF-8": (one(entry("k", TEXT, text(b"\xc3\x28"))), "UTF-8"),
    "text with a surrogate": (one(entry("k", TEXT, text(b"\xed\xa0\x80"))), "UTF-8"),
    "array of 2^64-1 numbers": (one(entry("k", ARRAY, array(5, [1], BIG))), "truncated"),
    "array of 2^62 numbers": (one(entry("k", ARRAY, array(10, [1], 2**62))), "truncated"),
    "array of 2^61 texts": (one(entry("k", ARRAY, array(TEXT, ["a"], 2**61))), "entries"),
    "array of one text too many": (one(entry("k", ARRAY, array(TEXT, ["a"], 9))), "9 entries"),
    "text in an array too long": (
        one(entry("k", ARRAY, struct.pack("<IQ", TEXT, 1) + text("a", BIG))),
        "past the end",
    ),
    "array of type 13": (one(entry("k", ARRAY, struct.pack("<IQ", 13, 1) + b"\0")), "type 13"),
    "array of 2^60 arrays": (one(entry("k", ARRAY, struct.pack("<IQ", ARRAY, 2**60))), "entries"),
    "arrays 5 deep": (one(entry("k", ARRAY, nested(5))), "deeper than 4"),
    "arrays 2,000 deep": (one(entry("k", ARRAY, nested(2_000))), "deeper than 4"),
    "70,000 nested arrays": (
        one(entry("k", ARRAY, struct.pack("<IQ", ARRAY, 70_000) + array(0, []) * 70_000)),
        "more than 65536",
    ),
    "alignment 0": (one(entry("general.alignment", 4, value(4, 0))), "alignment is 0"),
    "alignment 3": (one(entry("general.alignment", 4, value(4, 3))), "alignment is 3"),
    "alignment 2^31": (one(entry("general.alignment", 4, value(4, 2**31))), "alignment"),
    "alignment a text": (one(entry("general.alignment", TEXT, text("32"))), "alignment"),
    "alignment negative": (one(entry("general.alignment", 5, value(5, -32))), "alignment"),
    "alignment a bool": (one(entry("general.alignment", 7, value(7, 1))), "alignment"),
    "tensor without a name": (tensors(tensor("", [4], F32, 0)), "empty name"),
    "tensor name not UTF-8": (tensors(tensor(b"\xff", [4], F32, 0)), "UTF-8"),
    "tensor twice": (tensors(tensor("w", [4], F32, 0), tensor("w", [4], F32, 32)), "twice"),
    "0 dimensions": (tensors(tensor("w", [], F32, 0)), "0 dimensions"),
    "5 dimensions": (tensors(tensor("w", [1] * 5, F32, 0)), "5 dimensions"),
    "2^32-1 dimensions": (tensors(tensor("w", [4], F32, 0, rank=2**32 - 1)), "dimensions"),
    "dimension 0": (tensors(tensor("w", [4, 0], F32, 0)), "0"),
    "dimension 2^64-1": (tensors(tensor("w", [BIG], F32, 0)), "bytes"),
    "product over 2^64": (tensors(tensor("w", [2**32, 2**32, 4], F32, 0)), "bytes"),
    "product wraps to 16": (tensors(tensor("w", [2**62 + 4, 4], F32, 0)), "bytes"),
    "larger than the file": (tensors(tensor("w", [1_000], F32, 0)), "4000 bytes"),
    "unknown type": (tensors(tensor("w", [4], 99, 0)), "unknown type 99"),
    "removed type": (tensors(tensor("w", [32], 4, 0)), "unknown type 4"),
    "half a block": (tensors(tensor("w", [16], Q4_1, 0)), "multiples of 32"),
    "blocks across rows": (tensors(tensor("w", [16, 2], Q4_1, 0)), "multiples of 32"),
    "offset not aligned": (tensors(tensor("w", [4], F32, 8)), "multiple of 32"),
    "offset past the end": (tensors(tensor("w", [4], F32, 4096)), "truncated"),
    "offset near 2^64": (tensors(tensor("w", [4], F32, 2**64 - 32)), "truncated"),
    "data cut by a byte": (tensors(tensor("w", [64], F32, 0), data=255), "truncated"),
    "no data": (tensors(tensor("w", [4], F32, 0), data=0), "truncated"),
    "same place": (tensors(tensor("w", [4], F32, 0), tensor("v", [4], F32, 0)), "overlap"),
    "overlap": (tensors(tensor("w", [32], F32, 32), tensor("v", [16], F32, 0)), "overlap"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    raw, said = BAD[case]
    path = write(tmp_path, raw)
    tracemalloc.start()
    with pytest.raises(ModelFileError) as caught:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message
    assert peak < 2 * len(raw) + (1 << 20)


def test_there_are_forty_bad_files() -> None:
    assert len(BAD) >= 40


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    raw = sample()
    for length in range(len(raw)):
        with pytest.raises(ModelFileError):
            read(write(tmp_path, raw[:length]))


def test_texts_of_an_array_are_checked_when_read(tmp_path: Path) -> None:
    raw = one(entry("k", ARRAY, struct.pack("<IQ", TEXT, 2) + text("a") + text(b"\xff")))
    with read(write(tmp_path, raw)) as file:
        texts = file.metadata["k"]
        assert texts[0] == "a"
        with pytest.raises(ModelFileError, match=r"'k'\[1\] is not UTF-8"):
            texts[1]
        with pytest.raises(ModelFileError, match=r"'k'\[1\] is not UTF-8"):
            texts.tolist()
    with pytest.raises(ModelFileError, match="closed"):
        texts.tolist()


def test_names_in_messages_stay_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        read(write(tmp_path, one(entry("a\nb" + "c" * 500, 13, b"\0" * 8))))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_things_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        read(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="regular file"):
        read(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ModelFileError, match="regular file"):
        read(pipe)


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """One to eight bytes changed, mostly to the values that break lengths, or a piece moved."""
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(changed))
        changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    if rng.random() < 0.2:
        place, length = rng.randrange(len(changed)), rng.randrange(64)
        del changed[place : place + length]
    return bytes(changed)


@pytest.mark.parametrize("block", range(10))
def test_mutated_files_fail_cleanly_or_read(block: int, tmp_path: Path) -> None:
    """50 seeded mutations a block, 500 in all; whatever is read can be used."""
    rng = random.Random(block)
    raw = sample()
    messages: list[str] = []
    tracemalloc.start()
    for _ in range(50):
        try:
            use_all(read(write(tmp_path, mutated(raw, rng))))
        except ModelFileError as error:
            messages.append(str(error))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert messages
    assert not any("\n" in message for message in messages)
    assert peak < 2 * len(raw) + (64 << 20)


def use_all(file) -> None:
    for item in file.metadata.values():
        if isinstance(item, TextArray):
            item.tolist()
    for name, info in file.tensors.items():
        if info.type in SUPPORTED:
            assert dequantise(file, name).shape == info.shape
            codes = codes_of(file, name)
            assert codes is None or codes.shape == info.shape


# -- values ----------------------------------------------------------------------------------------


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    theirs = {
        kind.value: (kind.name, *sizes)
        for kind, sizes in peer.GGML_QUANT_SIZES.items()
        if kind.value in TENSOR_TYPES
    }
    ours = {kind: (b.name, b.elements, b.nbytes) for kind, b in TENSOR_TYPES.items()}
    assert ours == theirs


@pytest.mark.parametrize("name", SUPPORTED)
@pytest.mark.parametrize("rows", [1, 7, 301])
def test_values_are_bit_equal_to_the_gguf_package(name: str, rows: int, tmp_path: Path) -> None:
    """Random bytes, so every pattern of quants, scales, signs, infinities and NaN occurs."""
    kind = peer.GGMLQuantizationType[name]
    elements, nbytes = peer.GGML_QUANT_SIZES[kind]
    columns = 512
    stored = np.random.default_rng(rows).integers(
        0, 256, (rows, columns // elements * nbytes), dtype=np.uint8
    )
    raw = gguf([ARCHITECTURE], [tensor("w", [columns, rows], kind.value, 0)], stored.tobytes())
    with np.errstate(invalid="ignore", over="ignore"):
        as_stored = stored.view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8))
        theirs = peer.dequantize(as_stored, kind).astype(np.float32)
    with read(write(tmp_path, raw)) as file:
        ours = dequantise(file, "w").numpy()
        rounded = dequantise(file, "w", torch.bfloat16)
    assert ours.shape == theirs.shape == (rows, columns)
    same = (ours.view(np.int32) == theirs.view(np.int32)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all()
    assert torch.equal(rounded.nan_to_num(7), torch.from_numpy(ours).bfloat16().nan_to_num(7))


def test_an_unsupported_type_names_the_supported_ones(tmp_path: Path) -> None:
    raw = gguf([ARCHITECTURE], [tensor("w", [256], 16, 0)], b"\0" * 66)
    with read(write(tmp_path, raw)) as file, pytest.raises(ModelFileError) as caught:
        dequantise(file, "w")
    assert "IQ2_XXS" in str(caught.value)
    assert ", ".join(SUPPORTED) in str(caught.value)


def test_the_embedded_file(tmp_path: Path) -> None:
    with read(embedded.gguf_path()) as file:
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert (len(tokens), tokens[1], tokens[49151]) == (
            49152,
            "<|im_start|>",
            tokens.tolist()[-1],
        )
        assert len(file.tensors) == 272
        assert file.tensors["token_embd.weight"].shape == (49152, 576)
        assert file.tensors["blk.0.ffn_down.weight"].shape == (576, 1536)
        rows = dequantise(file, "blk.7.attn_q.weight")
    theirs = {t.name: t for t in peer.GGUFReader(embedded.gguf_path()).tensors}
    t = theirs["blk.7.attn_q.weight"]
    assert torch.equal(rows, torch.from_numpy(peer.dequantize(t.data, t.tensor_type)))
