"""Trained parts: written and read bit for bit, and refused where they are another model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from decodery.api.language_model import LanguageModel
from decodery.core.errors import ModelFileError, ParameterError
from decodery.models import parts
from decodery.models.parts import MadeFor, read_part, vocabulary_of, write_part

MODEL = MadeFor("small", vocabulary_of((b"a", b"b", None)), 4)
TENSORS = {
    "A1": np.arange(8, dtype=np.float32).reshape(2, 4),
    "A2": np.array([[0.5, -1.25]], dtype=np.float16),
}


def written(folder: Path, model: MadeFor = MODEL, tensors: Any = TENSORS) -> str:
    path = folder / "gate.safetensors"
    write_part(path, "gate", model, tensors)
    return str(path)


def test_a_part_comes_back_as_float32(tmp_path: Path) -> None:
    found = read_part("gate", MODEL, written(tmp_path))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == np.float32
        assert (found[name] == tensor.astype(np.float32)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["gate.safetensors"]


def test_equal_parts_are_equal_files(tmp_path: Path) -> None:
    files = {Path(written(tmp_path)).read_bytes() for _ in range(10)}
    assert len(files) == 1


def test_a_part_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(written(tmp_path))
    before = path.read_bytes()

    def fails(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        write_part(path, "gate", MODEL, {})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["gate.safetensors"]


def test_a_part_with_strided_tensors_keeps_their_values(tmp_path: Path) -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    file = written(tmp_path, tensors={"A": turned})
    assert (read_part("gate", MODEL, file)["A"] == turned).all()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (MadeFor("other", MODEL.vocabulary, 4), "was trained for the model 'small'; it does not"),
        (MadeFor("small", MODEL.vocabulary, 8), "was trained for hidden states of width 4"),
        (MadeFor("small", vocabulary_of((b"a", b"c", None)), 4), "trained for another vocabulary"),
    ],
    ids=["model", "width", "vocabulary"],
)
def test_another_models_part_is_refused(tmp_path: Path, model: MadeFor, reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        read_part("gate", model, written(tmp_path))


def test_another_part_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    with pytest.raises(ParameterError, match="is a 'gate', not a head"):
        read_part("head", MODEL, file)
    with pytest.raises(ParameterError, match="does not exist; name the file of a trained gate"):
        read_part("gate", MODEL, str(tmp_path / "none.safetensors"))
    with pytest.raises(ParameterError, match="no gate was trained for small; train one with"):
        read_part("gate", MODEL)
    for name in ("../gate", "/gate", "a/b", ""):
        assert parts.shipped(name, "small") is None
        assert parts.shipped("gate", name) is None


def test_files_that_are_no_parts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    metadata = {"decodery": json.dumps({"format": 1, "part": "gate", **MODEL.to_dict()})}
    cases: list[tuple[dict[str, Any], dict[str, str] | None, str]] = [
        ({"A": np.zeros(2, np.float32)}, None, "is no trained part"),
        ({"A": np.zeros(2, np.float32)}, {"decodery": "{}"}, "is no trained part"),
        ({"A": np.zeros(2, np.float32)}, {"decodery": "[" * 9999}, "is no trained part"),
        ({"A": np.zeros(2, np.float32)}, {"decodery": " " * 99999}, "is no trained part"),
        ({"A": np.zeros(2, np.int64)}, metadata, "tensor 'A' is I64 of 1 dimensions"),
        ({"A": np.zeros((1,) * 9, np.float32)}, metadata, "F32 of 9 dimensions"),
        ({"A": np.array([1, np.nan], np.float32)}, metadata, "holds NaN or infinity"),
        ({"A": np.array([np.inf], np.float16)}, metadata, "holds NaN or infinity"),
    ]
    for tensors, about, reason in cases:
        save_file(tensors, path, about)
        with pytest.raises(ModelFileError, match=reason):
            read_part("gate", MODEL, str(path))
    for raw in (b"", b"x" * 100, path.read_bytes()[:-1]):
        path.write_bytes(raw)
        with pytest.raises(ModelFileError):
            read_part("gate", MODEL, str(path))
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_part("gate", MODEL, str(tmp_path))


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path)
    monkeypatch.setattr(parts, "MAX_PART_BYTES", 10)
    with pytest.raises(ModelFileError, match="is larger than"):
        read_part("gate", MODEL, file)


def test_the_fingerprint_knows_every_token() -> None:
    some = (b"a", b"bc", None)
    variants = [(b"ab", b"c", None), (b"a", b"bc", b""), (b"bc", b"a", None), (b"a", b"bc")]
    assert len({vocabulary_of(pieces) for pieces in (some, *variants)}) == 5


def test_the_embedded_models_parts(default_lm: LanguageModel, tmp_path: Path) -> None:
    gate = default_lm.part("language_gate")
    assert {name: tensor.shape for name, tensor in gate.items()} == {
        "A1": (576, 576), "A2": (4, 576),
    }  # fmt: skip
    identity = default_lm.identity
    assert identity.width == 576
    again = written(tmp_path, identity, gate)
    assert all((default_lm.part("gate", again)[name] == gate[name]).all() for name in gate)
    with pytest.raises(ParameterError, match="no nonsense was trained for SmolLM2-135M-Instruct"):
        default_lm.part("nonsense")
