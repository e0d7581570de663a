"""Opening weights: what is refused, and that the message names file, tensor and shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from decodery.core.errors import ModelFileError
from decodery.models.transformer import load_transformer
from decodery.models.weights import (
    INDEX_FILE,
    MAX_JSON_BYTES,
    SINGLE_FILE,
    SafetensorsFolder,
    check_shapes,
    read_json,
    safetensors_files,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def _single(folder: Path) -> Path:
    save_file(TENSORS, folder / SINGLE_FILE)
    return folder


def _sharded(folder: Path, shards: dict[str, str] | None = None) -> Path:
    save_file({"a": TENSORS["a"]}, folder / "one.safetensors")
    save_file({"b": TENSORS["b"]}, folder / "two.safetensors")
    shards = shards or {"a": "one.safetensors", "b": "two.safetensors"}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": shards}))
    return folder


def _refusal(folder: Path) -> str:
    with pytest.raises(ModelFileError) as caught, SafetensorsFolder(folder):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("write", [_single, _sharded])
def test_tensors_are_read_by_name(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with SafetensorsFolder(write(tmp_path)) as weights:
        assert weights.shapes == {"a": (2, 3), "b": (4,)}
        read = {name: weights.tensor(name) for name in weights.shapes}
    for name, expected in TENSORS.items():
        assert read[name].dtype == expected.dtype
        assert torch.equal(read[name], expected)


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    weights = SafetensorsFolder(_single(tmp_path))
    weights.close()
    weights.close()


def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert "unpickling runs code" in _refusal(tmp_path)


def test_an_empty_or_absent_folder_is_refused(tmp_path: Path) -> None:
    assert "neither model.safetensors nor" in _refusal(tmp_path)
    assert "no such folder" in _refusal(tmp_path / "absent")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:0],
        lambda data: data[:7],
        lambda data: data[:-1],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: data + b"extra",
    ],
)
def test_a_corrupt_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = _single(tmp_path) / SINGLE_FILE
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path}: not a readable safetensors file" in _refusal(tmp_path)


def test_integer_tensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.int8)}, tmp_path / SINGLE_FILE)
    assert "tensor 'a' is stored as I8, expected one of F32, F16, BF16" in _refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (_sharded(tmp_path) / "two.safetensors").unlink()
    assert "two.safetensors: the shard is missing" in _refusal(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../one.safetensors", "sub\\one.safetensors", "one.bin", 3, None]
)
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, shard: object) -> None:
    _sharded(tmp_path, {"a": shard})  # pyright: ignore[reportArgumentType]
    assert "names the shard" in _refusal(tmp_path)


def test_an_index_that_disagrees_with_the_shards_is_refused(tmp_path: Path) -> None:
    _sharded(tmp_path, {"a": "two.safetensors", "b": "one.safetensors"})
    assert "tensor 'a' should be in two.safetensors" in _refusal(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    _sharded(tmp_path)
    save_file(TENSORS, tmp_path / "two.safetensors")
    assert "tensor 'a' is also in" in _refusal(tmp_path)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "{"])
def test_a_bad_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX_FILE).write_text(index)
    with pytest.raises(ModelFileError, match=r"index\.json"):
        safetensors_files(tmp_path)


def test_shapes_are_checked(tmp_path: Path) -> None:
    with SafetensorsFolder(_single(tmp_path)) as weights:
        check_shapes(weights, {"a": (2, 3)}, ignored=frozenset({"b"}))
        with pytest.raises(ModelFileError, match=r"'a' has shape \[2, 3\], expected \[3, 2\]"):
            check_shapes(weights, {"a": (3, 2), "b": (4,)}, ignored=frozenset())
        with pytest.raises(ModelFileError, match=r"'c' is missing, expected shape \[1\]"):
            check_shapes(weights, {"a": (2, 3), "c": (1,)}, ignored=frozenset())
        with pytest.raises(ModelFileError, match="'b' is unexpected"):
            check_shapes(weights, {"a": (2, 3)}, ignored=frozenset())


def test_json_is_bounded_and_an_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_json(path)
    for text in ("[1]", "{", "[" * 100_000, '"\ud800"'):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ModelFileError):
            read_json(path)
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ModelFileError, match="at most"):
        read_json(path)


def test_quantized_models_are_refused(tmp_path: Path) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="quantization_config"):
        load_transformer(tmp_path, "float32", "cpu")
