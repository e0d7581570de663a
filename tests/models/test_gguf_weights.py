"""Weights straight from a GGUF file: the same values as converted, codes untouched, and the folder
that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf_models import F32, HEADS, LAYERS, PAIRS, Model, model, to_llama_cpp
from safetensors.torch import save_file

from decodery.core.errors import ModelFileError
from decodery.models import embedded, gguf
from decodery.models.convert import converted, prepared
from decodery.models.gguf_architectures import ARCHITECTURES
from decodery.models.gguf_quants import codes_of
from decodery.models.gguf_weights import GgufWeights
from decodery.models.quantised_weights import QuantisedWeights
from decodery.models.weight_store import REFERENCE, open_weights, stored_precision
from decodery.models.weights import SINGLE_FILE, SafetensorsFolder

TYPES = {
    "token_embd.weight": "Q8_0",
    "attn_q.weight": "Q4_1",
    "attn_k.weight": "Q4_0",
    "attn_v.weight": "Q5_1",
    "attn_output.weight": "F16",
    "ffn_gate.weight": "BF16",
    "ffn_down.weight": "Q5_0",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own cache."""
    monkeypatch.setenv("DECODERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quantised(kind: str = "llama", tied: bool = True, seed: int = 0) -> Model:
    made = model(kind, tied, seed, hidden=64)
    made.types = dict(TYPES)
    return made


# -- the store -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_values_are_those_of_the_converted_folder(kind: str, tied: bool, tmp_path: Path) -> None:
    path = quantised(kind, tied).write(tmp_path / "m.gguf")
    with GgufWeights(path) as ours, SafetensorsFolder(converted(path, "float32")) as theirs:
        assert ours.shapes == theirs.shapes
        with_codes = set()
        for name in ours.shapes:
            values, codes = ours.tensor(name), ours.codes(name)
            assert torch.equal(values.float(), theirs.tensor(name)), name
            if codes is not None:
                with_codes.add(name)
                assert torch.equal(codes.dequantise(), values), name
    stored = ("embed_tokens", "q_proj.w", "k_proj.w", "v_proj.w", "down_proj.w")
    assert with_codes == {name for name in ours.shapes if any(part in name for part in stored)}


def test_head_rows_come_back_in_their_own_order(tmp_path: Path) -> None:
    """The store's codes are the file's, moved as whole rows."""
    made = quantised()
    original = dict(made.tensors)
    for index in range(LAYERS):
        for name, heads in (("attn_q", HEADS), ("attn_k", PAIRS)):
            stored = f"blk.{index}.{name}.weight"
            made.tensors[stored] = to_llama_cpp(original[stored], heads)
    path = made.write(tmp_path / "m.gguf")
    with GgufWeights(path) as store, gguf.read(path) as file:
        codes = store.codes("model.layers.1.self_attn.q_proj.weight")
        stored = codes_of(file, "blk.1.attn_q.weight")
    assert codes is not None
    assert stored is not None
    step = original["blk.1.attn_q.weight"].abs().max() / 8
    assert (codes.dequantise() - original["blk.1.attn_q.weight"]).abs().max() < step
    assert torch.equal(to_llama_cpp(codes.codes, HEADS), stored.codes)
    assert not torch.equal(codes.codes, stored.codes)


def test_floats_keep_the_precision_of_the_file(tmp_path: Path) -> None:
    with GgufWeights(quantised().write(tmp_path / "m.gguf")) as store:
        layer = "model.layers.0."
        assert store.tensor(f"{layer}self_attn.o_proj.weight").dtype == torch.float16
        assert store.tensor(f"{layer}mlp.gate_proj.weight").dtype == torch.bfloat16
        kept = store.tensor(f"{layer}mlp.up_proj.weight")
        assert store.source(f"{layer}mlp.up_proj.weight").endswith("m.gguf (blk.0.ffn_up.weight)")
        assert store.source("absent") == str(tmp_path / "m.gguf")
    assert kept.dtype == torch.float32
    assert kept.isfinite().all()  # it outlives the store
    with pytest.raises(ModelFileError, match="after the file was closed"):
        store.tensor(f"{layer}mlp.up_proj.weight")
    store.close()


@pytest.mark.parametrize(
    ("types", "precision"),
    [
        ({}, "float32"),
        ({"attn_q.weight": "Q4_0"}, "codes"),
        (dict.fromkeys((*TYPES, "ffn_up.weight"), "F16"), "float32"),
        (dict.fromkeys((*TYPES, "ffn_up.weight"), "BF16"), "bf16"),
        ({"token_embd.weight": "BF16"}, "float32"),
    ],
)
def test_what_a_file_stores(types: dict[str, str], precision: str, tmp_path: Path) -> None:
    made = model("llama", hidden=64)
    made.types = types
    path = made.write(tmp_path / "m.gguf")
    with GgufWeights(path) as store:
        assert store.precision == precision
    assert stored_precision(prepared(path)) == precision


def test_an_architecture_that_is_not_ours(tmp_path: Path) -> None:
    made = model("llama")
    made.kind = "rwkv"
    with pytest.raises(ModelFileError, match="cannot convert the architecture 'rwkv'"):
        GgufWeights(made.write(tmp_path / "m.gguf"))


def test_the_embedded_model_has_codes_for_every_matrix() -> None:
    with GgufWeights(embedded.gguf_path()) as store:
        assert store.precision == "codes"
        found = {name: store.codes(name) for name in store.shapes}
    matrices = {name: codes for name, codes in found.items() if codes is not None}
    assert len(matrices) == 211
    assert sum(codes.codes.numel() for codes in matrices.values()) == 134_479_872
    assert {codes.scale.dtype for codes in matrices.values()} == {torch.float16}
    assert {name for name, codes in matrices.items() if codes.bits == 8} == {
        "model.embed_tokens.weight"
    }


# -- quantised as they are read --------------------------------------------------------------------


def test_floats_are_quantised_and_the_embedding_keeps_eight_bits(tmp_path: Path) -> None:
    made = model("llama", tied=False, hidden=64)
    made.metadata["llama.feed_forward_length"] = (4, 80)  # a row of 80 has no whole groups
    for index in range(LAYERS):
        for name, shape in (("gate", (80, 64)), ("up", (80, 64)), ("down", (64, 80))):
            made.tensors[f"blk.{index}.ffn_{name}.weight"] = torch.rand(shape) - 0.5
    with GgufWeights(made.write(tmp_path / "m.gguf")) as floats:
        for bits in (4, 8):
            store = QuantisedWeights(floats, bits)
            assert store.shapes == floats.shapes
            for name in store.shapes:
                codes, values = store.codes(name), store.tensor(name)
                whole = floats.shapes[name][-1] % 32 == 0 and values.dim() == 2
                assert (codes is not None) == whole
                if codes is None:
                    assert torch.equal(values, floats.tensor(name))
                    continue
                eight = name in ("model.embed_tokens.weight", "lm_head.weight")
                assert codes.bits == (8 if eight else bits)
                assert torch.equal(codes.dequantise(), values)


def test_the_tensor_that_cannot_be_quantised_is_named(tmp_path: Path) -> None:
    made = model("llama", hidden=64)
    made.tensors["blk.1.ffn_up.weight"][3, 4] = torch.nan
    with (
        GgufWeights(made.write(tmp_path / "m.gguf")) as floats,
        pytest.raises(ModelFileError, match=r"'model.layers.1.mlp.up_proj.weight': .* not finite"),
    ):
        QuantisedWeights(floats, 8).codes("model.layers.1.mlp.up_proj.weight")


# -- the folder that names the file ----------------------------------------------------------------


def test_a_prepared_folder_holds_no_tensors(tmp_path: Path) -> None:
    path = quantised().write(tmp_path / "m.gguf")
    folder = prepared(path, generation={"top_p": 0.9})
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "decodery.json",
        REFERENCE,
    }
    status = path.stat()
    assert json.loads((folder / REFERENCE).read_text()) == {
        "gguf": str(path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "precision": "codes",
    }
    assert json.loads((folder / "generation_config.json").read_text())["top_p"] == 0.9
    stamp = (folder / "tokenizer.json").stat().st_mtime_ns
    assert prepared(path, generation={"top_p": 0.9}) == folder
    assert (folder / "tokenizer.json").stat().st_mtime_ns == stamp
    with open_weights(folder) as store:
        assert isinstance(store, GgufWeights)


def test_a_file_that_changed_or_moved_gets_another_folder(tmp_path: Path) -> None:
    path = quantised().write(tmp_path / "m.gguf")
    first = prepared(path)
    quantised(seed=1).write(path)
    second = prepared(path)
    assert second != first
    path.rename(tmp_path / "n.gguf")
    third = prepared(tmp_path / "n.gguf")
    assert third != second
    with open_weights(third) as store:
        assert store.source("absent") == str(tmp_path / "n.gguf")
    with pytest.raises(ModelFileError, match=r"m\.gguf: No such file .*load the \.gguf file"):
        open_weights(first)


def test_a_folder_whose_file_has_changed_is_refused(tmp_path: Path) -> None:
    path = quantised().write(tmp_path / "m.gguf")
    folder = prepared(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelFileError, match="has changed since its folder was made") as caught:
        open_weights(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.pop("gguf"),
        lambda c: c.update(gguf=3),
        lambda c: c.update(size="12"),
        lambda c: c.update(mtime_ns=True),
        lambda c: c.update(precision="codes", size=None),
    ],
)
def test_a_damaged_reference_is_refused(
    damage: Callable[[dict[str, object]], object], tmp_path: Path
) -> None:
    folder = prepared(quantised().write(tmp_path / "m.gguf"))
    content = json.loads((folder / REFERENCE).read_text())
    damage(content)
    (folder / REFERENCE).write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=r"weights\.json: '\w+' is .*, expected (str|int)"):
        open_weights(folder)


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    (tmp_path / REFERENCE).write_text('{"precision": "int3"}')
    with pytest.raises(ModelFileError, match="'int3'; allowed are codes, float32, bf16"):
        stored_precision(tmp_path)


def test_tensors_of_the_folder_itself_come_first(tmp_path: Path) -> None:
    """A reference in a downloaded folder cannot take the place of its weights."""
    (tmp_path / REFERENCE).write_text('{"gguf": "elsewhere.gguf"}')
    for dtype, precision in (
        (torch.float32, "float32"),
        (torch.float16, "float32"),
        (torch.bfloat16, "bf16"),
    ):
        save_file({"a": torch.ones(8, 8, dtype=dtype), "b": torch.ones(8)}, tmp_path / SINGLE_FILE)
        with open_weights(tmp_path) as store:
            assert isinstance(store, SafetensorsFolder)
            assert store.codes("a") is None
        assert stored_precision(tmp_path) == precision


def test_metadata_still_decides(tmp_path: Path) -> None:
    made = quantised()
    made.metadata["llama.attention.layer_norm_rms_epsilon"] = (F32, -1.0)
    with pytest.raises(ModelFileError, match="layer_norm_rms_epsilon"):
        prepared(made.write(tmp_path / "m.gguf"))
