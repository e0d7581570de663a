"""What a trace says of the nodes of a run, so that a viewer can draw it without a model."""

from __future__ import annotations

import json
import math

import pytest

import decodery as dc
from decodery.core import registry
from decodery.core.decoder import Decoder, Task, completion
from decodery.core.requests import Emit, Grow, Open
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.trace import FORMAT, Trace
from decodery.testing import TableModel
from decodery.testing.toys import ToySource

TABLE = TableModel.random(5, 2, seed=4, eos_ids=frozenset({4}))
DRAFT = TableModel.random(5, 1, seed=5, eos_ids=frozenset({4}))
POLICY = Policy(TABLE, dc.chain(dc.temperature(1.5), dc.top_k(4)))
DECODERS = {
    "sample": registry.get("sample")(n=2),
    "beam": registry.get("beam")(beams=3, n=2),
    "rsd": registry.get("rsd")(draft=DRAFT, n=2),
    "prompt_lookup": registry.get("prompt_lookup")(lookup_shortest=1),
    "sjd": registry.get("sjd")(jacobi_window=3),
}


def traced(decoder, policy=POLICY, *, rows=0, seed=2, length=8, trace=True):
    """The events of a run, its completions and its report."""
    record = Trace(rows=rows) if trace else None
    runner = Runner()
    stopping = Stopping(length, policy.source.eos_ids)
    task = Task(policy, (0, 1, 0), stopping, Stream(seed), decode=str)
    handle = runner.submit(decoder, task, trace=record)
    runner.run()
    return record, handle.result(), handle.report


def nodes(trace, tree=0):
    return {
        event["node"]: event
        for event in trace.events
        if event["event"] in ("node", "leaf") and event["tree"] == tree
    }


def path(known, number):
    """The tokens down to a node, the prompt's left out."""
    found = []
    while known[number]["parent"] is not None:
        found.insert(0, known[number]["token"])
        number = known[number]["parent"]
    return tuple(found)


def log_p(tokens, policy=POLICY):
    """ln p of the last token, from a tree of its own."""
    run = Runner()

    def walk(task):
        node = yield Open(task.policy, task.prompt)
        for token in tokens[:-1]:
            node = node.child(token)
            yield Grow([node])
        found.append(node.policy_row().log_probability(tokens[-1]))
        return [completion(node, "max_tokens")]

    class Walk(Decoder):
        def decode(self, task):
            return walk(task)

    found: list[float] = []
    run.submit(Walk(), Task(policy, (0, 1, 0), Stopping(99)))
    run.run()
    return found[0]


@pytest.mark.parametrize("name", DECODERS)
def test_to_record_a_run_changes_nothing(name):
    _, plain, cost = traced(DECODERS[name], trace=False)
    for rows in (0, 3):
        _, recorded, own = traced(DECODERS[name], rows=rows)
        assert recorded == plain
        assert own.model_calls == cost.model_calls
        assert own.tokens_evaluated == cost.tokens_evaluated


@pytest.mark.parametrize("name", DECODERS)
def test_every_node_has_the_policy_s_probability(name):
    """Drawn and proposed ones, grown or not, in the middle of a draft as at its top."""
    trace, found, _ = traced(DECODERS[name])
    known = nodes(trace)
    assert len(known) > 4
    grown = [event for event in trace.events if event["event"] == "node"]
    assert len(grown) == len({(event["tree"], event["node"]) for event in grown})
    for number, event in known.items():
        if event["parent"] is None:
            continue
        if event["event"] == "node" or "log_p" in event:
            assert event["log_p"] == pytest.approx(log_p(path(known, number)), abs=1e-12)
    paths = {path(known, number) for number in known}
    for item in found:
        assert item.tokens in paths
        assert {item.tokens[:end] for end in range(1, len(item.tokens))} <= paths


def test_candidates_have_the_draft_s_probability_too():
    trace, _, _ = traced(DECODERS["rsd"])
    draft = Policy(DRAFT, POLICY.sampler)
    known = nodes(trace)
    proposed = [number for number, event in known.items() if "log_q" in event]
    assert len(proposed) > 8
    for number in proposed:
        expected = log_p(path(known, number), draft)
        assert known[number]["log_q"] == pytest.approx(expected, abs=1e-12)
    emitted = sum(len(event["tokens"]) for event in trace.events if event["event"] == "emit")
    assert len(proposed) < len(known) < len(proposed) + emitted + 2  # the others were drawn
    assert not any("log_q" in event for event in nodes(traced(DECODERS["sample"])[0]).values())


def test_the_head_of_a_trace():
    trace, _, report = traced(DECODERS["rsd"])
    assert trace.report == report.to_dict()
    assert trace.report["details"]["speculation"]["steps"] > 0
    roots = [event for event in trace.events if event.get("parent", 0) is None]
    assert [(root["tree"], root["source"]) for root in roots] == [
        (0, TABLE.name),
        (1, DRAFT.name),
    ]
    assert all(root["prompt"] == [0, 1, 0] for root in roots)
    assert trace.texts == {}
    ends = [event for event in trace.events if event["event"] == "completion"]
    assert [end["text"] for end in ends] == [str(tuple(end["tokens"])) for end in ends]
    assert trace.events[-len(ends) :] == ends


def test_calls_and_nodes_say_in_which_round_they_were():
    trace, _, _ = traced(DECODERS["rsd"])
    rounds = [event["step"] for event in trace.events if event["event"] == "call"]
    assert rounds == sorted(rounds)
    now = None
    for event in trace.events:
        if event["event"] == "call":
            now = event["step"]
        elif event["event"] == "node":
            assert event["step"] == now


def test_leaves_come_when_they_are_dropped_or_at_the_end():
    """A node that was drawn for and dropped, one below a node that never grew, and the last one."""

    class Leafy(Decoder):
        def decode(self, task):
            root = yield Open(task.policy, task.prompt)
            left, right = root.child(1), root.child(2)
            left.child(3)
            yield Grow([right])
            left.drop()
            last = right.child(0)
            yield Emit(tuple(last.generated))
            yield Grow([right.child(1)])
            return [completion(last, "max_tokens")]

    trace, _, _ = traced(Leafy())
    kinds = [(event["event"], event.get("node")) for event in trace.events]
    assert kinds.index(("leaf", 1)) < kinds.index(("leaf", 3)) < kinds.index(("drop", None))
    assert (
        kinds.index(("drop", None)) < kinds.index(("leaf", 4)) < kinds.index(("completion", None))
    )
    known = nodes(trace)
    assert "log_p" not in known[3]  # its parent has no row
    assert known[4]["log_p"] == pytest.approx(log_p((2, 0)), abs=1e-12)
    assert sorted(known) == [0, 1, 2, 3, 4, 5]


def test_texts_of_all_tokens_that_occur():
    toy = ToySource()
    trace, (item,), _ = traced(registry.get("sample")(), Policy(toy), rows=12)
    assert trace.texts == {token: toy.language.shown(token) for token in range(toy.vocab_size)}
    assert toy.language.shown(0) == "<0>"
    assert toy.language.shown(1) == "A"
    assert toy.language.shown(11) == "\\xe4\\xb8"  # not a whole character
    assert toy.language.shown(99) == toy.language.shown(-1)[:1] + "99>"
    short, (item,), _ = traced(registry.get("sample")(), Policy(toy))
    assert set(short.texts) == {0, 1, *item.tokens}


def test_a_policy_that_allows_nothing_is_recorded_all_the_same():
    """A candidate after which no token is allowed ends nothing until it is accepted."""
    never = TableModel(lambda path: [1, 1, 0] if path[-1] != 1 else [0, 0, 1], 3, 1)
    policy = Policy(never, dc.chain(dc.banned_tokens((2,))))

    class Looks(Decoder):
        def decode(self, task):
            root = yield Open(task.policy, task.prompt)
            dead = root.child(1)
            yield Grow([dead, dead.child(0)], keep_rows=True)
            dead.child(0)
            return [completion(dead, "max_tokens")]

    record = Trace(rows=2)
    runner = Runner()
    handle = runner.submit(Looks(), Task(policy, (0,), Stopping(9)), trace=record)
    runner.run()
    assert handle.result()[0].tokens == (1,)
    known = nodes(record)
    assert known[1]["policy_row"] is None
    assert "log_p" not in known[2]
    assert known[1]["log_p"] == pytest.approx(math.log(0.5))


def test_a_file_is_json_for_every_reader(tmp_path):
    """An impossible token has null, and what is no data its text."""
    certain = Policy(TableModel(lambda _: [1, 0, 0], 3, 0))

    class Forces(Decoder):
        def decode(self, task):
            root = yield Open(task.policy, task.prompt)
            yield Grow([root.child(2)])
            return [completion(root.child(1), "max_tokens")]

    trace, _, _ = traced(Forces(), certain, rows=3)
    trace.about = {"parameters": {"draft": TABLE}}
    assert nodes(trace)[1]["log_p"] == -math.inf
    trace.save(tmp_path / "trace.json")
    found = json.loads((tmp_path / "trace.json").read_text(), parse_constant=pytest.fail)
    assert found["format"] == FORMAT == 2
    assert nodes(Trace(events=found["events"]))[1]["log_p"] is None
    assert isinstance(found["about"]["parameters"]["draft"], str)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_the_top_of_a_row(count):
    ties = Policy(TableModel(lambda _: [0.25, 0.125, 0.25, 0.25, 0.125], 5, 0))
    trace, _, _ = traced(registry.get("sample")(), ties, rows=count, length=1)
    row = nodes(trace)[0]["policy_row"]
    assert [value for _, value in row] == pytest.approx(
        [math.log(p) for p in (0.25, 0.25, 0.25, 0.125, 0.125)][:count]
    )
    assert len({token for token, _ in row}) == min(count, 5)
    if count >= 5:
        assert [token for token, _ in row] == [0, 2, 3, 1, 4]
