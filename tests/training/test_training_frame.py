"""The frame of trainings: what is refused, what is saved, and that a run goes on bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_training import MODEL, toy

from decodery.core.errors import ModelFileError, ParameterError, UnknownNameError
from decodery.models.parts import read_part
from decodery.training import run as runs
from decodery.training.frame import get, train, trainings

STEPS = 12


@pytest.fixture(autouse=True)
def few_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weight(folder: Path) -> bytes:
    return read_part("toy", MODEL, str(folder / "toy.safetensors"))["weight"].tobytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that nothing disturbed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(toy(), {}, folder)
    return weight(folder)


def interrupt_at(phase: str, number: int) -> Callable[[str, int], None]:
    """Ctrl-C in the middle of a step."""

    def hook(now: str, step: int) -> None:
        if (now, step) == (phase, number):
            signal.raise_signal(signal.SIGINT)

    return hook


def die_at(number: int) -> Callable[[str, int], None]:
    """An end without a word: nothing is saved after it."""

    def hook(now: str, step: int) -> None:
        if (now, step) == ("fit", number):
            raise SystemExit

    return hook


# -- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(STEPS))
def test_a_run_interrupted_at_any_step_ends_as_if_it_was_not(
    step: int, whole: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(toy(interrupt_at("fit", step)), {}, folder)
    assert json.loads((folder / "state.json").read_text())["step"] == step + 1
    seen: list[int] = []
    train(toy(lambda _, now: seen.append(now)), {}, folder, resume=True)
    assert seen == list(range(step + 1, STEPS))  # neither the data nor a step is done again
    assert weight(folder) == whole


def test_a_run_interrupted_again_and_again_ends_as_if_it_was_not(
    whole: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for place in [("data", 0), *(("fit", step) for step in (0, 1, 4, 11))]:
        with pytest.raises(KeyboardInterrupt):
            train(toy(interrupt_at(*place)), {}, folder, resume=folder.exists())
    train(toy(), {}, folder, resume=True)
    assert weight(folder) == whole


def test_a_run_that_died_goes_on_from_its_last_checkpoint(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(runs, "SAVE_SECONDS", -1.0)  # after every step
    with pytest.raises(SystemExit):
        train(toy(die_at(7)), {}, folder)
    assert [path.name for path in folder.glob("state-*")] == ["state-7.safetensors"]
    seen: list[int] = []
    train(toy(lambda _, now: seen.append(now)), {}, folder, resume=True)
    assert seen[0] == 7
    assert weight(folder) == whole


def test_a_resume_that_forgets_its_state_is_noticed(whole: bytes, tmp_path: Path) -> None:
    """A negative control: with the moments left out of the checkpoint the weights differ."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(toy(interrupt_at("fit", 5)), {}, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toy_training.restore_optimizer", lambda *_: None)
        train(toy(), {}, folder, resume=True)
    assert weight(folder) != whole


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    def twice(phase: str, step: int) -> None:
        if (phase, step) == ("fit", 3):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(toy(twice), {}, tmp_path / "run")
    assert not (tmp_path / "run" / "state.json").exists()


def test_ctrl_c_is_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    train(toy(), {}, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        train(toy(interrupt_at("fit", 2)), {}, tmp_path / "other")
    assert signal.getsignal(signal.SIGINT) is before


# -- what a run leaves ---------------------------------------------------------------------------


def test_a_finished_run_leaves_the_part_and_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    told: list[tuple[str, int, int, str]] = []

    def tell(phase: str, done: int, total: int, note: str = "") -> None:
        told.append((phase, done, total, note))

    result = train(toy(), {"steps": 3}, folder, progress=tell)
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.json", "run.json", "toy.safetensors",
    ]  # fmt: skip
    report = json.loads((folder / "report.json").read_text())
    assert report["parameters"]["steps"] == 3
    assert report["made_for"]["model"] == "toy"
    assert report["facts"] == dict(result.facts)
    assert [call[:3] for call in told if call[0] == "fit"] == [("fit", n, 3) for n in range(4)]
    assert told[-1][3].startswith("loss ")


def test_the_parameters_of_a_resumed_run_are_those_it_began_with(tmp_path: Path) -> None:
    given = {"steps": 5, "rates": (0.2, 0.3)}
    with pytest.raises(KeyboardInterrupt):
        train(toy(interrupt_at("fit", 1)), given, tmp_path / "run")
    train(toy(), {"rates": (0.2, 0.3)}, tmp_path / "run", resume=True)
    train(toy(), given, tmp_path / "other")
    assert weight(tmp_path / "run") == weight(tmp_path / "other")


# -- what is refused -----------------------------------------------------------------------------


def refused(reason: str, *args: Any, kind: type[Exception] = ParameterError, **named: Any) -> None:
    with pytest.raises(kind, match=reason):
        train(*args, **named)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(toy(interrupt_at("fit", 4)), {}, folder)
    return folder


def test_bad_input_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused("steps is 0; allowed is a whole number with 1 <= x", toy(), {"steps": 0}, out)
    refused("toy has no parameter 'stepps'; did you mean 'steps'", toy(), {"stepps": 1}, out)
    refused("holds no run to resume", toy(), {}, out, resume=True)
    assert not out.exists()


def test_a_folder_with_something_in_it_is_refused(begun: Path, tmp_path: Path) -> None:
    refused("has not ended; resume it, or name another", toy(), {}, begun)
    train(toy(), {}, begun, resume=True)
    refused("is not empty; name a new folder", toy(), {}, begun)
    refused("has ended; begin another one", toy(), {}, begun, resume=True)
    file = tmp_path / "file"
    file.write_text("")
    refused("is a file; name a folder", toy(), {}, file)
    refused("cannot be written", toy(), {}, file / "below")


def test_a_resumed_run_may_not_change(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("steps is 13 now and was 12 when", toy(), {"steps": 13}, begun, resume=True)
    run = runs.Run.begin

    def other(self: runs.Run, **pinned: Any) -> None:
        run(self, **(pinned | {"data": "other"}))

    monkeypatch.setattr(runs.Run, "begin", other)
    refused("data is other now and was dddddddd when", toy(), {}, begun, resume=True)


def test_another_trainings_folder_is_refused(begun: Path) -> None:
    content = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps(content | {"training": "else"}))
    refused("holds a run of the training 'else', not of 'toy'", toy(), {}, begun, resume=True)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("run.json", b"{", "not valid JSON"),
        ("run.json", b"{}", "is not the run.json of a training"),
        ("state.json", b"[]", "not valid JSON"),
        ("state.json", b"{}", "is not a checkpoint of this version"),
        ("state.json", b'{"phase": "fit", "step": 5}', "is not the checkpoint that state.json"),
        ("state-5.safetensors", b"x", "is not the checkpoint that state.json names"),
        ("kept/data.safetensors", b"x", "not a readable safetensors file"),
    ],
)
def test_damaged_files_are_refused(begun: Path, name: str, content: bytes, reason: str) -> None:
    assert (begun / name).exists()
    (begun / name).write_bytes(content)
    refused(reason, toy(), {}, begun, resume=True, kind=ModelFileError)


def test_what_cannot_be_written_leaves_what_was_there(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in begun.glob("state*")}

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "write_whole", full)
    monkeypatch.setattr(runs, "SAVE_SECONDS", -1.0)
    refused("cannot be written: No space left on device", toy(), {}, begun, resume=True)
    assert {path.name: path.read_bytes() for path in begun.glob("state*")} == before


def test_phases_are_kept_apart(tmp_path: Path) -> None:
    """A checkpoint of one phase is none of another."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(toy(interrupt_at("fit", 4)), {}, folder)
    run = runs.Run(folder, "toy", resume=True)
    assert run.restored("fit") is not None
    assert run.restored("warm-up") is None
    with pytest.raises(ParameterError, match="cannot name a file"):
        run.kept("../data", lambda: {"x": torch.zeros(1)})


# -- the registry --------------------------------------------------------------------------------


def test_trainings_are_found_by_module() -> None:
    assert "language_gate" in trainings()
    assert get("language-gate") is get("language_gate")
    with pytest.raises(UnknownNameError, match="did you mean 'language_gate'"):
        get("language_gates")
    for name, training in trainings().items():
        assert training.name == name
        assert training.summary
        assert "\n" not in training.summary


def test_listing_trainings_imports_no_torch() -> None:
    code = "import sys; from decodery.training.frame import trainings; trainings();"
    code += "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_tensors_survive_the_way_through_a_file(tmp_path: Path) -> None:
    run = runs.Run(tmp_path / "run", "toy")
    run.begin()
    made = {"a": torch.arange(6).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    run.kept("some", lambda: made)
    again = runs.Run(tmp_path / "run", "toy", resume=True).kept("some", lambda: {})
    assert all(torch.equal(made[name], again[name]) for name in made)
    assert np.array_equal(again["a"].numpy(), made["a"].numpy())
