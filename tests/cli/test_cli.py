"""The command line as a user meets it: output, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from decodery.api.language_model import LanguageModel
from decodery.cli import main
from decodery.cli.flags import declaration
from decodery.core import registry
from decodery.core.params import describe


@pytest.fixture
def run(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process, with the model that is loaded already."""

    def given(model: Any = None, **options: Any) -> LanguageModel:
        assert model is None
        return lm

    monkeypatch.setattr("decodery.api.load.load", given)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main.run_command(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_run_prints_text_on_stdout_and_the_report_on_stderr(run: Any) -> None:
    code, out, err = run("run", "Why is the sea salty?", "--method", "greedy", "--max-tokens", "5")
    assert code == 0
    assert out == "The sea is salty because\n"
    assert "5 tokens in" in err
    assert "method greedy" in err
    assert run("run", "Hi", "-m", "greedy", "--max-tokens", "2", "--quiet")[2] == ""


def test_json_holds_what_was_in_force(run: Any) -> None:
    code, out, _ = run(
        "run", "Name a bird.", "--temperature", "0.7", "--min-p", "0.1", "--seed", "3",
        "--max-tokens", "4", "--stop", "x,y", "--stop", "zz", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found["seed"] == 3
    assert found["parameters"]["min_p"] == {"value": 0.1, "from": "user"}
    assert found["parameters"]["stop"]["value"] == ["x,y", "zz"]
    assert len(found["tokens"]) == found["report"]["tokens_emitted"] <= 4
    for name in ("model_calls", "tokens_evaluated", "seconds", "tokens_per_second"):
        assert found["report"][name] > 0


def test_several_samples_are_a_list(run: Any) -> None:
    _, out, _ = run("run", "Name a bird.", "--n", "2", "--max-tokens", "3", "--json", "--seed", "1")
    samples = json.loads(out)["samples"]
    assert [len(sample["tokens"]) for sample in samples] == [3, 3]
    _, text, _ = run("run", "Name a bird.", "--n", "2", "--max-tokens", "3", "--seed", "1")
    assert all(sample["text"] in text for sample in samples)


def test_trace_file(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    assert run("run", "Hi", "--max-tokens", "2", "--trace", str(path), "--trace-rows", "3")[0] == 0
    events = json.loads(path.read_text())["events"]
    assert {event["event"] for event in events} >= {"node", "call", "emit", "completion"}


def test_every_parameter_has_a_flag(run: Any) -> None:
    _, out, _ = run("run", "--help")
    for method in registry.methods().values():
        if method.card.kind != "scorer":
            for info in describe(method.params):
                assert declaration(info) in out


def test_a_flag_of_two_methods_takes_the_choices_of_both(run: Any) -> None:
    asked = ["run", "Hi", "--samples", "1", "--answer-tokens", "2", "--max-tokens", "2", "-q"]
    code, _, err = run(*asked, "--method", "integrative", "--aggregate", "vote")
    assert (code, err) == (0, "")
    code, _, err = run(*asked, "--method", "integrative", "--aggregate", "product")
    assert code != 0
    assert "aggregate is 'product'; allowed is one of 'logits', 'mixture', 'vote'" in err
    code, _, err = run("run", "Hi", "--method", "mpg", "--attributes", "x", "--aggregate", "vote")
    assert code != 0
    assert "aggregate is 'vote'; allowed is one of 'sum', 'product'" in err


def test_what_is_on_by_default_has_a_flag_to_turn_it_off(run: Any) -> None:
    arguments = ["run", "Hi", "--repetition-penalty", "1.5", "--max-tokens", "1", "--json"]
    assert json.loads(run(*arguments)[1])["parameters"]["repetition_prompt"]["value"] is True
    changed = json.loads(run(*arguments, "--no-repetition-prompt")[1])["parameters"]
    assert changed["repetition_prompt"] == {"value": False, "from": "user"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "x", "--method", "mirp"], "there is no method 'mirp'"),
        (["run", "x", "--min-q", "1"], "No such option: --min-q"),
        (["run", "x", "--temperature", "nan"], "temperature is nan; allowed is a number"),
        (["run", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["run", "x", "--top-p", "0"], "top_p is 0.0"),
        (["run", "x", "--top-p", "2"], "top_p is 2.0"),
        (["run", "x", "--n", "0"], "n is 0"),
        (["run", "x", "--n", "two"], "Invalid value for '--n'.* integer"),
        (["run", ""], "the prompt is empty"),
        (["run"], "Missing argument"),
        (["run", "x", *["--stop", "a"] * 10_000], "10000 stop strings; at most 64"),
        (["run", "x", "--stop-ids", "1,b"], "stop_ids has 'b'"),
        (["run", "x", "--stop-ids", "99999999"], "outside the vocabulary"),
        (["run", "word " * 9000], "exceed the context of 8192|leaves no room in the context"),
        (["run", "x", "-m", "greedy", "--min-p", "0.1"], "has no effect under"),
        (["run", "x", "--trace", "no/such/folder/t.json"], "does not exist"),
        (["run", "x", "--trace-rows", "3"], "needs --trace"),
        (["methods", "show", "min_q"], "did you mean 'min_p'"),
        (["frobnicate"], "No such command"),
        (["cache", "clear", "nothing"], "no cache entry 'nothing'"),
        (["new-method", "Bad-Name"], "allowed are lower-case letters"),
        (["new-method", "min_p"], "there is a method 'min_p' already"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Any, arguments: list[str], message: str
) -> None:
    import re

    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such/model.gguf"], "does not exist"),
        (["--model", "pyproject.toml"], "is a file that is no .gguf"),
        (["--model", "nonsense"], "no hub id"),
        (["--weights", "float12"], "weights is 'float12'"),
        (["--weights", "int8"], "quantised already: auto uses its codes"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--cache-tokens", "20"], "cache slots"),
    ],
)
def test_bad_models_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main.run_command(["run", "x", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_truncated_and_corrupt_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from decodery.models import embedded

    content = embedded.gguf_path().read_bytes()[: 1 << 20]
    for name, data in (("cut.gguf", content), ("noise.gguf", b"noise" * 100), ("no.gguf", b"")):
        (tmp_path / name).write_bytes(data)
        assert main.run_command(["run", "x", "--model", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert name in err
        assert err.count("\n") == 1


def test_unwritable_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DECODERY_CACHE", str(tmp_path / "file" / "cache"))
    assert main.run_command(["run", "x"]) == 2
    assert "set DECODERY_CACHE" in capsys.readouterr().err


def test_methods_json(run: Any) -> None:
    listed = json.loads(run("methods", "--json")[1])
    assert {item["name"] for item in listed} == set(registry.methods())
    for item in listed:
        for key in ("name", "family", "guarantee", "paper", "arxiv", "summary"):
            assert key in item
    shown = json.loads(run("methods", "show", "min_p", "--json")[1])
    assert shown["arxiv"] == "2407.01082"
    assert shown["parameters"]["properties"]["min_p"]["maximum"] == 1.0


def test_methods_table_and_card(run: Any) -> None:
    assert "min_p" in run("methods")[1]
    assert "2407.01082" in run("methods", "show", "min_p")[1]


def test_doctor_without_speed(run: Any) -> None:
    code, out, _ = run("doctor", "--json", "--no-speed")
    found = json.loads(out)
    assert code == 0
    assert found["packages"]["torch"]
    assert found["machine"]["cores"] >= 1
    assert "speed" not in found


@pytest.mark.parametrize("kind", ["sampler", "decoder", "scorer"])
def test_new_method_writes_two_files_that_pass(tmp_path: Path, kind: str) -> None:
    """The skeleton, in a copy of the checkout, under its own test and the contract."""
    import shutil

    root = Path(__file__).parents[2]
    shutil.copytree(root / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    for folder in ("contract", "methods"):
        shutil.copytree(root / "tests" / folder, tmp_path / "tests" / folder)
    assert (
        main.run_command(["new-method", "my_idea", "--kind", kind, "--folder", str(tmp_path)]) == 0
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "100"}
    checked = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-k", "my_idea",
            "tests/methods/test_my_idea.py", "tests/contract/test_contract.py",
        ],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout[-3000:]
    assert "passed" in checked.stdout
    again = main.run_command(["new-method", "my_idea", "--kind", kind, "--folder", str(tmp_path)])
    assert again == 2


def test_python_m_decodery_end_to_end() -> None:
    """One real process: load, chat template, decode, print."""
    done = subprocess.run(
        [sys.executable, "-m", "decodery", "run", "Why is the sea salty?", "-m", "greedy",
         "--max-tokens", "5"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert done.stdout == "The sea is salty because\n"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Processes started here heed Ctrl-C, also where these tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_the_text_and_exits_130() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "decodery", "run", "Tell me a long story.", "-m", "greedy",
         "--max-tokens", "2000", "--ignore-eos"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.read(1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(first + rest) > 1
    assert "Traceback" not in err
    assert "tokens in" in err
