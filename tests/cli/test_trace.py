"""`decodery trace show`: what a person sees of a run, in the terminal and on a page."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from decodery.cli import main
from decodery.core import registry
from decodery.core.decoder import Task, completion
from decodery.core.requests import Call, Emit, Grow, Open, Score
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.scorer import Candidate, Scorer
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.trace import Trace
from decodery.testing import TableModel
from decodery.testing.spelling import speller
from decodery.viewer.page import page
from decodery.viewer.steps import TracedRun, read_run

NASTY = "</script><b>\"'&amp;\\\u2028<!--"
PIECES = (b"a", b" b", b"\n", NASTY.encode(), b"\xe4\xb8", b"\x1b[2J", b"http://x.y", None)
END = len(PIECES) - 1
TARGET = speller(PIECES, seed=3, order=2)
DRAFT = speller(PIECES, seed=3, order=1)
PROMPT = (0, 1, 0, 1, 3)


class Lengths(Scorer):
    name = "lengths"

    def score(self, candidates):
        return [float(len(item.tokens)) for item in candidates]


class Chooses:
    """Two branches, of which a scorer chooses one; a function is called on the model."""

    sequences = 1

    def decode(self, task):
        root = yield Open(task.policy, task.prompt)
        branches = [root.child(0), root.child(1)]
        yield Grow(branches)
        yield Call(task.policy.source, lambda own: own.name)
        tips = [branch.child(3) for branch in branches]
        yield Grow(tips[:1])
        worth = yield Score(
            Lengths(), [Candidate("", "", tuple(tip.generated), 0.0) for tip in tips]
        )
        assert list(worth) == [2.0, 2.0]
        yield Emit(tuple(tips[1].generated))
        return [completion(tips[1], "max_tokens", score=2.0)]

    def totals(self, completions):
        return {}

    def slots(self, task):
        return {}


DECODERS: dict[str, Any] = {
    "sample": registry.get("sample")(n=2),
    "beam": registry.get("beam")(beams=3, n=2),
    "rsd": registry.get("rsd")(draft=DRAFT),
    "rsd_of_two": registry.get("rsd")(draft=DRAFT, n=2, tree="branching", branching=(2, 2)),
    "prompt_lookup": registry.get("prompt_lookup")(lookup_shortest=1),
    "sjd": registry.get("sjd")(jacobi_window=4),
    "chooses": Chooses(),
}


def record(
    name: str, folder: Path, *, rows: int = 0, length: int = 12, seed: int = 5, source: Any = TARGET
) -> Path:
    """The trace file of a run."""
    trace = Trace(rows=rows, about={"method": name, "model": "<table>", "seed": seed})
    runner = Runner()
    task = Task(Policy(source), PROMPT, Stopping(length), Stream(seed))
    handle = runner.submit(DECODERS[name], task, trace=trace)
    runner.run()
    handle.result()
    path = folder / f"{name}.json"
    trace.save(path)
    return path


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `decodery trace show`; its exit code and what it printed."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main.run_command(["trace", "show", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# -- steps -----------------------------------------------------------------------------------------


def emitted(path: Path) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for event in json.loads(path.read_text())["events"]:
        if event["event"] == "emit":
            found.setdefault(event["sequence"], []).extend(event["tokens"])
    return found


@pytest.mark.parametrize("name", DECODERS)
def test_the_steps_are_the_run(name: str, tmp_path: Path) -> None:
    """Every token of every answer has its node; calls and nodes are all in some step."""
    path = record(name, tmp_path)
    run = read_run(path)
    tokens = {number: [item.token for item in items] for number, items in run.sequences.items()}
    assert tokens == emitted(path)
    for items in run.sequences.values():
        above = None
        for item in items:
            assert item.node is not None
            assert item.node.token == item.token
            assert item.node.taken
            assert above in (None, item.node.parent)
            above = item.node
    events = json.loads(path.read_text())["events"]
    assert sum(len(step.calls) for step in run.steps) == sum(e["event"] == "call" for e in events)
    placed = [node for step in run.steps for node in step.nodes]
    assert len(placed) == len(set(placed))
    main_tree = {e["node"] for e in events if e["event"] in ("node", "leaf") and e["tree"] == 0}
    assert {node.number for node in placed} == main_tree - {0}
    for step in run.steps:
        drawn = [step.below(top, sequence) for top, sequence in step.tops]
        reached = [node for children in drawn for node in children]
        for node in reached:
            reached += step.below(node, node.sequence)
        assert sorted(node.number for node in reached) == sorted(n.number for n in step.nodes)


def test_the_steps_of_speculation_are_those_of_its_tally(tmp_path: Path) -> None:
    for name in ("rsd", "prompt_lookup", "sjd"):
        path = record(name, tmp_path)
        run, tally = read_run(path), json.loads(path.read_text())["report"]["details"]
        assert len(run.steps) == tally["speculation"]["steps"]
        accepted = sum(step.count("accepted") for step in run.steps)
        assert accepted == tally["speculation"]["accepted"]
        proposed = sum(node.fate != "drawn" for step in run.steps for node in step.nodes)
        assert proposed == tally["speculation"]["nodes"]
        assert all(step.count("drawn") <= 1 for step in run.steps)


def test_fates(tmp_path: Path) -> None:
    """A chain of which two are accepted, one is refused, and what hangs below it."""
    certain = TableModel(lambda path: _one_hot((path[-1] + 1) % 4), 4, 1)
    runner, trace = Runner(), Trace()

    class Drafts(Chooses):
        def decode(self, task):
            root = yield Open(task.policy, task.prompt)
            chain = [root.child(1)]
            for token in (2, 0, 3):
                chain.append(chain[-1].child(token))
            yield Grow(chain, keep_rows=True)
            last = chain[1].child(3)
            chain[2].drop()
            yield Emit((1, 2, 3))
            yield Grow([last])
            tip = last.child(0)
            yield Emit((0,))
            return [completion(tip, "max_tokens")]

    runner.submit(Drafts(), Task(Policy(certain), (0,), Stopping(9)), trace=trace)
    runner.run()
    trace.save(tmp_path / "t.json")
    run = read_run(tmp_path / "t.json")
    first, second = run.steps
    fates = {node.number: (node.token, node.fate) for node in first.nodes}
    assert fates == {
        1: (1, "accepted"),
        2: (2, "accepted"),
        3: (0, "refused"),
        4: (3, "unreached"),
        5: (3, "drawn"),
    }
    assert [(node.token, node.fate, node.p) for node in second.nodes] == [(0, "drawn", 1.0)]
    assert [node.p for node in first.nodes] == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert run.context(first.nodes[1], 100) == "<0><1><2>"


def _one_hot(token: int) -> list[float]:
    return [float(index == token) for index in range(4)]


# -- the terminal ----------------------------------------------------------------------------------


def test_a_speculative_run_in_the_terminal(show: Any, tmp_path: Path) -> None:
    path = record("rsd", tmp_path)
    code, out, err = show(path, "--width", 100)
    assert (code, err) == (0, "")
    tally = json.loads(path.read_text())["report"]["details"]["speculation"]
    assert "rsd, <table>, seed 5" in out
    assert "step 1  +" in out
    assert f"{tally['tokens_per_step']:.2f}" in out
    assert "accepted at depth" in out
    assert re.search(r"[✓✗] “.*”  p \S+  q \S+", out)
    assert re.search(r"speller +\d+ +\d+ +\d+\.\d\d", out)
    assert "\x1b" not in out
    assert all(len(line) <= 100 for line in out.splitlines())


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_can_be_shown(name: str, show: Any, tmp_path: Path) -> None:
    path = record(name, tmp_path, rows=3)
    code, out, err = show(path, "--steps", "all", "--width", 60)
    assert (code, err) == (0, "")
    assert all(len(line) <= 60 for line in out.splitlines())
    kind = "step" if read_run(path).streams else "round"
    assert len(re.findall(rf"^{kind} \d+", out, re.M)) == len(read_run(path).steps)
    assert ("lengths: 2 2" in out) == (name == "chooses")


def test_steps_are_chosen(show: Any, tmp_path: Path) -> None:
    path = record("sample", tmp_path, length=30, source=TableModel.random(4, seed=1))

    def shown(*options: object) -> list[int]:
        out = show(path, *options)[1]
        return [int(number) for number in re.findall(r"^step (\d+)", out, re.M)]

    assert shown("--steps", "3-5") == [3, 4, 5]
    assert shown("--steps", "7, 1,2-3") == [1, 2, 3, 7]
    assert shown("--steps", "28-") == [28, 29, 30]
    assert shown("--steps", "all") == [*range(1, 31)]
    assert shown() == [*range(1, 21)]
    assert "10 more steps: --steps 21-30" in show(path)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "has steps 1 to 12"),
        (["--steps", "5-3"], "has steps 1 to 12"),
        (["--steps", "12-13"], "has steps 1 to 12"),
        (["--steps", "x"], "allowed are 5, 3-7, 1,4-6 or all"),
        (["--steps", ""], "allowed are 5, 3-7, 1,4-6 or all"),
        (["--width", "5"], "--width is 5; allowed is 20 or more"),
        (["--html", "no/such/x.html"], "the folder no/such does not exist"),
        (["--html", "x.html", "--steps", "1"], "leave --steps and --width out"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(
    options: list[str], message: str, show: Any, tmp_path: Path
) -> None:
    path = record("sample", tmp_path, source=TableModel.random(4, seed=1))
    code, out, err = show(path, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


# -- files that are no traces ----------------------------------------------------------------------


def damaged(change: Any, folder: Path) -> Path:
    content = json.loads(record("rsd", folder).read_text())
    change(content)
    path = folder / "damaged.json"
    path.write_text(json.dumps(content))
    return path


def _first(content: Any, kind: str) -> Any:
    return next(event for event in content["events"] if event["event"] == kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=1), "has trace format 1; this version reads 2"),
        (lambda c: c.update(format="x"), "has trace format 'x'"),
        (lambda c: c.pop("format"), "is no trace"),
        (lambda c: c.pop("events"), "is no trace"),
        (lambda c: c.pop("report"), "damaged trace: report"),
        (lambda c: c.update(events=[]), "ended before its first forward"),
        (lambda c: c.update(events=5), "damaged trace: events"),
        (lambda c: c["events"].append({"event": "jump"}), "damaged trace: events"),
        (lambda c: _first(c, "emit").update(tokens="ab"), "damaged trace: events"),
        (lambda c: _first(c, "node").update(node=-1), "damaged trace: events"),
        (lambda c: _first(c, "node").update(parent=7), "has no root|hangs on nothing"),
        (lambda c: _first(c, "leaf").update(parent=10**6), "hangs on nothing"),
        (lambda c: c["events"].remove(_first(c, "node")), "has no root|hangs on nothing"),
    ],
)
def test_damaged_and_foreign_files(change: Any, message: str, show: Any, tmp_path: Path) -> None:
    code, out, err = show(damaged(change, tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "damaged.json" in err
    assert re.search(message, err)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"format": 2, "events": null}'],
    ids=["empty", "cut", "list", "null", "bytes", "deep", "nothing"],
)
def test_what_is_no_trace_at_all(content: bytes, show: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    code, out, err = show(path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(r"x\.json is (no trace|a damaged trace)", err)


def test_files_that_cannot_be_read(show: Any, tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        code, out, err = show(path)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "cannot be read" in err


# -- the page --------------------------------------------------------------------------------------


class Elements(html.parser.HTMLParser):
    """The start tags of a page, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.titles: list[str] = []
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        if self._inside == "title":
            self.titles.append(data)


def embedded(text: str) -> Any:
    data, code = Elements(text).scripts
    assert '"use strict"' in code
    return json.loads(data)


@pytest.mark.parametrize("name", DECODERS)
def test_a_page_asks_nobody_for_anything(name: str, tmp_path: Path) -> None:
    """No address, no file, no request, and a policy that forbids them; addresses in texts stay."""
    run = read_run(record(name, tmp_path))
    written = page(run)
    frame = page(TracedRun({}, {}, {}, [0], True, [], []))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp|import\(", frame)
    tags = Elements(written).tags
    assert tags == Elements(frame).tags  # whatever the texts are
    assert not any(set(given) & {"src", "href", "action", "srcset"} for _, given in tags)
    policies = [given["content"] for tag, given in tags if "http-equiv" in given]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]
    assert (f"Trace: {name}, <table>, seed 5") == Elements(written).titles[0]


def test_the_data_of_a_page(tmp_path: Path) -> None:
    path = record("rsd_of_two", tmp_path, rows=4)
    run, data = read_run(path), embedded(page(read_run(path)))
    shown = {item["number"]: [token[0] for token in item["tokens"]] for item in data["sequences"]}
    assert shown == {
        number: [run.text(token) for token in tokens] for number, tokens in emitted(path).items()
    }
    assert len(data["steps"]) == len(run.steps)
    for step, drawn in zip(run.steps, data["steps"], strict=True):
        nodes = [node for tree in drawn["trees"] for node in tree["nodes"]]
        assert sum(node[2] != "other" for node in nodes) == len(step.nodes)
        assert any(node[2] == "other" for node in nodes)
        for tree in drawn["trees"]:
            assert all(-1 <= node[0] < place for place, node in enumerate(tree["nodes"]))
    assert data["models"][0][0] == "speller"
    assert [offered for _, offered in data["depths"]]


def test_texts_cannot_leave_the_data(tmp_path: Path) -> None:
    """A token that would end the script, open a comment or a tag, or end a line of it."""
    path = record("sample", tmp_path, length=40, seed=1)
    text = page(read_run(path))
    assert NASTY in "".join(
        token[0] for item in embedded(text)["sequences"] for token in item["tokens"]
    )
    assert NASTY in embedded(text)["prompt"]
    data = text.split('id="data">')[1].split("</script>")[0]
    assert not set("<>&\u2028") & set(data)
    hostile = read_run(path)
    hostile.about["method"] = "</title><script>alert(1)</script>{{ data }}"
    assert len(Elements(page(hostile)).scripts) == 2
    assert embedded(page(hostile))["headline"].startswith("</title>")


def test_a_page_is_written(show: Any, tmp_path: Path) -> None:
    path, target = record("beam", tmp_path), tmp_path / "run.html"
    assert show(path, "--html", target) == (0, "", "")
    assert target.read_text(encoding="utf-8") == page(read_run(path))
    assert embedded(target.read_text(encoding="utf-8"))["kind"] == "round"


# -- with the embedded model -----------------------------------------------------------------------


def test_from_the_command_line_to_the_page(
    default_lm: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr("decodery.api.load.load", lambda *_, **__: default_lm)
    file, target = tmp_path / "run.json", tmp_path / "run.html"
    asked = "Say this again: one two three four five six seven eight nine ten."
    options = ["--method", "prompt_lookup", "--max-tokens", "24", "--temperature", "0.2"]
    traced = ["--seed", "1", "--trace", str(file), "--trace-rows", "3"]
    assert main.run_command(["run", asked, *options, *traced]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^speculation: \d\.\d\d tokens a step, .* \(.* by depth\)$", err, re.M)
    assert main.run_command(["trace", "show", str(file), "--html", str(target)]) == 0
    assert main.run_command(["trace", "show", str(file), "--steps", "all"]) == 0
    shown = capsys.readouterr().out
    assert "prompt_lookup, SmolLM2-135M-Instruct, seed 1" in shown
    data = embedded(target.read_text(encoding="utf-8"))
    text = "".join(token[0] for token in data["sequences"][0]["tokens"])
    assert text.replace("<|im_end|>", "").strip() == out.strip()
    assert "Say this again" in data["prompt"]
