"""`decodery train` as a user meets it: the list, flags from parameters, Ctrl-C, going on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from decodery.api.language_model import LanguageModel
from decodery.cli import main, train
from decodery.cli.flags import declaration
from decodery.core.params import describe
from decodery.training import frame
from decodery.training.frame import trainings

SMALL = ["--continuations", "0", "--epochs", "150", "--batch", "16", "--seed", "5"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main.run_command(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("Море солёное.\nThe sea is salty.\n海水是咸的。\n", encoding="utf-8")
    return str(path)


def test_train_lists_the_trainings(run: Any) -> None:
    code, out, _ = run("train")
    assert code == 0
    assert "language-gate" in out
    assert [item["name"] for item in json.loads(run("train", "--json")[1])] == list(trainings())


def test_every_parameter_has_a_flag(run: Any) -> None:
    for name, training in trainings().items():
        code, out, _ = run("train", name.replace("_", "-"), "--help")
        assert code == 0
        for info in describe(training.params):
            assert declaration(info) in out
        for flag in ("--out", "--resume", "--json"):
            assert flag in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["language-gates", "--out", "x"], "No such command"),
        (["language-gate"], "Missing option '--out'"),
        (["language-gate", "--out", "{out}", "--epochs", "0"], "epochs is 0; allowed is"),
        (["language-gate", "--out", "{out}", "--norm-adjust", "max"], "Invalid value"),
        (["language_gate", "--out", "{out}", "--batch", "-1"], "batch is -1"),
        (["language-gate", "--out", "{out}", "--learning-rate", "nan"], "learning_rate is nan"),
        (["language-gate", "--out", "{out}", "--resume"], "holds no run to resume"),
        (["language-gate", "--out", "{out}", "--texts", "none.txt"], "none.txt: cannot be read"),
        (["language-gate", "--out", "{full}"], "is not empty; name a new folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Any, arguments: list[str], message: str, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    given = [item.format(out=tmp_path / "out", full=full) for item in arguments]
    code, out, err = run("train", *given)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not (tmp_path / "out").exists()


def command(folder: Path, *arguments: str) -> list[str]:
    start = [sys.executable, "-m", "decodery", "train", "language-gate", "--out", str(folder)]
    return [*start, *arguments]


def test_ctrl_c_exits_130_and_resume_goes_on_bit_for_bit(
    default_lm: LanguageModel, texts: str, tmp_path: Path
) -> None:
    """A real process on the embedded model, interrupted before the fit and continued by another;
    a run in this process, which nothing disturbs, makes the same file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder, whole = tmp_path / "run", tmp_path / "whole"
    begun = subprocess.Popen(
        command(folder, "--texts", texts, *SMALL),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    features = folder / "kept" / "features-held-0000.safetensors"
    while not features.exists() and begun.poll() is None:
        time.sleep(0.01)
    begun.send_signal(signal.SIGINT)
    out, err = begun.communicate(timeout=120)
    assert begun.returncode == 130
    assert out == ""
    assert "interrupted; --resume goes on with" in err
    assert re.search(r"^features-learnt \d+/\d+", err, re.MULTILINE)
    assert not (folder / "report.json").exists()
    ended = subprocess.run(
        command(folder, "--resume", "--json"), capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["part"] == str(folder / "language_gate.safetensors")
    assert said["facts"]["texts"] == 3
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    values = {"texts": (texts,), "continuations": 0, "epochs": 150, "batch": 16, "seed": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decodery.api.load.load", lambda _: default_lm)
        frame.train(frame.get("language_gate"), values, whole)
    torch.set_num_threads(threads)
    name = "language_gate.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_progress_is_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with train._progress() as progress:
        for step in range(1000):
            progress("fit", step, 1000, "loss 1")
        progress("fit", 1000, 1000, "loss 0")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fit 0/1000 loss 1"
    assert lines[-1] == "fit 1000/1000 loss 0"
    assert len(lines) < 10


def test_the_registry_is_the_frames(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """A training that is there when the command line starts is a command."""
    gate = trainings()["language_gate"]
    other = frame.Training("other_one", "Another.", gate.params, gate.run)
    monkeypatch.setattr(frame, "trainings", lambda: {"other_one": other})
    assert "Another." in run("train")[1]
    assert run("train", "other-one", "--help")[0] == 0
