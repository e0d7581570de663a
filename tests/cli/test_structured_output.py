"""Grammars on the command line: as a text, as a file, and refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from decodery.api.language_model import LanguageModel
from decodery.cli import main

SCHEMA = {
    "type": "object",
    "properties": {"bird": {"enum": ["robin", "heron"]}, "eggs": {"type": "integer", "maximum": 9}},
    "required": ["bird", "eggs"],
    "additionalProperties": False,
}


@pytest.fixture
def run(
    default_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run a command line in this process, with the model that is loaded already."""
    monkeypatch.setattr("decodery.api.load.load", lambda *_, **__: default_lm)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main.run_command(["run", "Name a bird.", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("given", ["text", "file"])
def test_a_schema_as_text_and_as_a_file(given: str, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "bird.json"
    file.write_text(json.dumps(SCHEMA, indent=2))
    value = str(file) if given == "file" else json.dumps(SCHEMA)
    code, out, _ = run(
        "--json-schema", value, "--json-spaces", "0", "--temperature", "2", "--seed", "1"
    )
    assert code == 0
    assert " " not in out
    jsonschema.validate(json.loads(out), SCHEMA)


def test_a_pattern_and_a_grammar(run: Any, tmp_path: Path) -> None:
    _, out, _ = run("--method", "greedy", "--regex", "(robin|heron), [0-9] eggs")
    assert re.fullmatch(r"(robin|heron), [0-9] eggs\n", out)
    file = tmp_path / "sum.lark"
    file.write_text('start: NUMBER ("+" NUMBER){1,3}\nNUMBER: /[0-9]{1,3}/\n')
    _, out, _ = run("--grammar", str(file), "--seed", "2", "--json")
    found = json.loads(out)
    assert re.fullmatch(r"[0-9]{1,3}(\+[0-9]{1,3}){1,3}", found["text"])
    assert found["finish_reason"] == "eos"
    assert found["parameters"]["grammar"]["value"] == file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--json-schema", "{bird: 1}"), "json_schema '{bird: 1}' is no JSON"),
        (("--json-schema", "no_such_file.json"), "json_schema 'no_such_file.json' is no JSON"),
        (("--json-schema", '{"type": "objct"}'), "json_schema is refused by llguidance"),
        (("--regex", "(a"), "regex is refused by llguidance"),
        (("--grammar", "start: nothing"), "grammar is refused by llguidance"),
        (("--regex", "a", "--json-schema", "{}"), "are both given"),
        (("--regex", "a", "--method", "mirostat"), "forces have none"),
        (("--method", "regex"), "regex needs regex"),
        (
            ("--regex", "a", "--top-p", "0.5", "--sampler-order", "top_p,regex"),
            "put regex first",
        ),
    ],
)
def test_refused_in_one_line(arguments: tuple[str, ...], message: str, run: Any) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_file_that_is_no_text_is_refused(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_bytes(b"\xff\xfe\x00")
    code, _, err = run("--json-schema", str(file))
    assert code == 2
    assert "cannot be read" in err


def test_a_long_text_is_no_file(run: Any) -> None:
    pattern = "|".join(f"robin number {number}" for number in range(60))
    code, out, _ = run("--regex", pattern, "--method", "greedy")
    assert code == 0
    assert re.fullmatch(r"robin number [0-9]+\n", out)
