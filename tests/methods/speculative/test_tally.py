"""What the numbers of a speculative run are: by hand, in limiting cases, and of whole runs.

Hand-made steps have every number written out. Drafts from the policy's own source are always
accepted, drafts of other tokens never: both limits are exact. Whole runs of random tables check the
sums against what models and texts say. Four wrong tallies must fail the same checks.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from decodery.core.decoder import Completion, Task
from decodery.core.errors import BudgetExhausted
from decodery.core.handle import Budget
from decodery.core.requests import Emit, Grow, Open
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Tree
from decodery.methods.speculative import tally as module
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.draft_model import METHOD as CHAIN
from decodery.methods.speculative.lookup import Lookup
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.rsd import METHOD as RSD
from decodery.methods.speculative.shapes import Branching
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.tally import KEY, Tallies, Tally, totals
from decodery.methods.speculative.verifiers import Match, Recursive
from decodery.methods.speculative.walks import NodeWise
from decodery.testing import TableModel

# -- steps by hand ---------------------------------------------------------------------------------

# candidates at each depth, how deep they were accepted, tokens, a forward of the policy's source?
STEPS = [
    ([], 0, 1, False),  # the first token of all, nothing drafted: the prompt's own forward
    ([2, 4, 2], 2, 3, True),  # two levels of three accepted, then a drawn token
    ([2, 4, 2], 0, 1, True),  # the first candidates refused
    ([3, 1], 2, 3, True),  # all accepted, and the bonus token
    ([], 0, 1, True),  # nothing drafted: a plain step
    ([1, 1, 1, 1], 2, 2, True),  # the second candidate ends the text: nothing behind it counts
]


def by_hand(kind: type[Tally] = Tally) -> Tally:
    tally = kind()
    for widths, accepted, emitted, forward in STEPS:
        tally.note_counts(widths, accepted, emitted, forward=forward)
        tally.note_draft(calls=len(widths), work=0.25 * len(widths))
    return tally


def check_by_hand(tally: Tally) -> None:
    assert (tally.steps, tally.forwards) == (6, 5)
    assert (tally.emitted, tally.gained) == (11, 10)
    assert (tally.accepted, tally.nodes) == (6, 24)
    assert (tally.offered, tally.taken) == ([4, 4, 2], [3, 3, 0])
    assert tally.draft_calls == 12
    assert tally.acceptance == [0.75, 0.75, 0.0]
    assert tally.block_efficiency == 2.0
    assert tally.mbsu == 10 / (5 + 3)
    found = tally.to_dict()
    assert found["tokens_per_step"] == 11 / 6
    assert found["accepted_per_step"] == 1.0
    assert found["nodes_per_step"] == 4.0


def test_steps_by_hand() -> None:
    check_by_hand(by_hand())


def test_the_memory_bound_speed_up_is_its_formula() -> None:
    """tau / (1 + L r), with L sequential draft forwards a step and r the ratio of parameters."""
    tally = Tally()
    for _ in range(10):
        tally.note_counts([1] * 4, 2, 3)
        tally.note_draft(calls=4, work=4 * 0.1)
    tau, levels, ratio = 3.0, 4, 0.1
    assert tally.mbsu == pytest.approx(tau / (1 + levels * ratio), abs=1e-12)


def test_no_forward_no_ratio() -> None:
    tally = Tally()
    tally.note_counts([], 0, 1, forward=False)
    assert (tally.block_efficiency, tally.mbsu, tally.acceptance) == (None, None, [])
    tally.note_counts([1], 1, 2)
    tally.note_draft(1, None)
    assert tally.block_efficiency == 2.0
    assert tally.mbsu is None  # nobody knows what the draft reads
    tally.note_draft(1, 0.5)
    assert tally.mbsu is None
    assert Tally().to_dict()["tokens_per_step"] == 0.0


def test_sums_and_data() -> None:
    whole = by_hand()
    assert Tally.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    one, other = Tally(), Tally()
    for index, (widths, accepted, emitted, forward) in enumerate(STEPS):
        part = (one, other)[index % 2]
        part.note_counts(widths, accepted, emitted, forward=forward)
        part.note_draft(len(widths), 0.25 * len(widths))
    assert one + other == other + one == whole
    assert one + Tally() == one
    details = [{KEY: item.to_dict()} for item in (one, other)]
    made = [Completion((), "eos", details=item) for item in (*details, {})]
    assert totals(made) == {KEY: whole.to_dict()}
    assert totals(made[2:]) == {}


def test_a_step_of_nodes_is_the_same_step_in_numbers() -> None:
    """A tree with a node drawn twice; paths that leave it at every depth, or end inside it."""
    table = TableModel.random(5)

    def step(tokens: tuple[int, ...], drawn: bool) -> tuple[Tally, Tally]:
        root = Tree(Policy(table), (0,), Stream(0)).root
        draft = Candidates(root, 0)
        one, two, _ = draft.add(root, [1, 2, 1])
        three, _ = draft.add(one, [3, 4])
        draft.add(two, [3])
        (four,) = draft.add(three, [1])
        nodes = {1: one, 3: three, 4: four}
        path = [nodes[token] for token in tokens]
        accepted = len(path)
        if drawn:
            path.append((path[-1] if path else root).child(0))
        by_nodes, by_counts = Tally(), Tally()
        by_nodes.note(draft, path)
        by_counts.note_counts([2, 3, 1], accepted, len(path))
        return by_nodes, by_counts

    for tokens in ((), (1,), (1, 3), (1, 3, 4)):
        for drawn in (False, True):
            if tokens or drawn:
                by_nodes, by_counts = step(tokens, drawn)
                assert by_nodes == by_counts


# -- limiting cases --------------------------------------------------------------------------------


def run(decoder, source, length=30, n=1, seed=3, **stopping):
    """The handle of a run, after its numbers were compared with the texts and the models'."""
    runner = Runner()
    ends = Stopping(length, source.eos_ids, **stopping)
    handle = runner.submit(replace(decoder, n=n), Task(Policy(source), (0, 1), ends, Stream(seed)))
    runner.run()
    found = handle.result()
    tallies = [Tally.from_dict(item.details[KEY]) for item in found]
    assert [tally.emitted for tally in tallies] == [len(item.tokens) for item in found]
    assert sum((tally for tally in tallies), Tally()) == whole(handle)
    assert json.loads(json.dumps(handle.report.to_dict()))["details"] == handle.report.details
    return handle


def whole(handle) -> Tally:
    return Tally.from_dict(handle.report.details[KEY])


def sized(table: TableModel, parameters: int | None, name: str) -> TableModel:
    table.parameters, table.name = parameters, name
    return table


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_the_source_itself_drafts(levels: int) -> None:
    """Everything is accepted: tau = levels + 1, at almost the cost of plain sampling."""
    source = TableModel.random(4, seed=1)
    shape = Branching((1,) * levels, "iid")
    decoder = Speculation(Drawing(source, shape), NodeWise(Recursive("iid")))
    length = 4 * (levels + 1)
    tally = whole(run(decoder, source, length))
    assert (tally.steps, tally.acceptance) == (4, [1.0] * levels)
    assert tally.block_efficiency == levels + 1
    assert tally.draft_calls == 4 * levels - 1  # the first tip is the prompt, which has a row
    assert tally.mbsu == length / (4 + 4 * levels - 1)


@pytest.mark.parametrize(("size", "ratio"), [(1000, 0.125), (None, None)])
def test_a_draft_of_other_tokens_is_always_refused(size: int | None, ratio: float | None) -> None:
    """tau = 1, and the memory-bound speed-up is what the draft costs."""
    source = sized(TableModel(lambda _: [0.5, 0.5, 0, 0], 4, 0), 8000, "large")
    draft = sized(TableModel(lambda _: [0, 0, 0.5, 0.5], 4, 0), size, "small")
    shape = Branching((2, 2), "distinct")
    decoder = Speculation(Drawing(draft, shape), NodeWise(Recursive("distinct")))
    handle = run(decoder, source, 20)
    tally = whole(handle)
    assert tally.block_efficiency == 1.0
    assert set(tally.acceptance) == {0.0}
    assert (tally.steps, tally.forwards, tally.accepted) == (20, 20, 0)
    costs = handle.report.models
    assert tally.draft_calls == costs["small"].calls - 1
    expected = None if ratio is None else 20 / (20 + ratio * tally.draft_calls)
    assert tally.mbsu == expected


# -- whole runs ------------------------------------------------------------------------------------

END = frozenset({3})


@pytest.mark.parametrize("name", ["rsd", "draft_model", "lookup"])
@pytest.mark.parametrize("n", [1, 3])
def test_sums_are_what_models_and_texts_say(name: str, n: int) -> None:
    """Calls and nodes against the models' own counts, over runs that end in every way."""
    for seed in range(20):
        source = sized(TableModel.random(4, 2, seed=5, eos_ids=END), 100, "large")
        draft = sized(TableModel.random(4, 1, seed=6, eos_ids=END), 10, "small")
        decoders = {
            "rsd": RSD.build(RSD.params(draft=draft)),
            "draft_model": CHAIN.build(CHAIN.params(draft=draft)),
            "lookup": Speculation(Lookup(4, 1, 2), NodeWise(Match())),
        }
        handle = run(decoders[name], source, length=9, n=n, seed=seed)
        tally, costs = whole(handle), handle.report.models
        assert tally.emitted == handle.report.tokens_emitted
        assert tally.accepted == sum(tally.taken)
        assert tally.offered == sorted(tally.offered, reverse=True)
        if n == 1:
            assert tally.forwards == costs["large"].calls - 1
            tips = tally.steps - 1  # each but the root goes through the source with its candidates
            assert costs["large"].tokens_evaluated == 2 + tips + tally.nodes
            assert tally.draft_calls == (0 if name == "lookup" else costs["small"].calls - 1)
        else:
            assert tally.forwards >= costs["large"].calls - 1
        if name != "lookup":
            assert tally.draft_work == pytest.approx(0.1 * tally.draft_calls)


def test_what_comes_behind_an_end_is_not_counted() -> None:
    """A certain text with its end in the middle of a draft, with every kind of end."""
    row = np.eye(4)
    source = TableModel(lambda path: row[(path[-1] + 1) % 4], 4, 1, eos_ids=END)
    shape = Branching((1,) * 4, "iid")
    decoder = Speculation(Drawing(source, shape), NodeWise(Recursive("iid")))
    for ends, text in (({}, (2, 3)), ({"stop_ids": frozenset({2})}, (2,))):
        handle = run(decoder, source, 30, **ends)
        assert handle.result()[0].tokens == text
        tally = whole(handle)
        assert (tally.emitted, tally.accepted, tally.steps) == (len(text), len(text), 1)
        assert tally.acceptance == [1.0] * len(text)
        assert tally.block_efficiency == len(text)
    handle = run(decoder, source, 7, ignore_eos=True)
    tally = whole(handle)
    assert (tally.emitted, tally.block_efficiency) == (7, 3.5)
    assert tally.acceptance == [1.0] * 4


@pytest.mark.parametrize("calls", [1, 2, 4, 5, 9])
def test_a_budget_that_is_spent_inside_a_draft(calls: int) -> None:
    """The drafter is told, and the numbers of the steps before stand."""
    source = sized(TableModel.random(4, seed=1), 5, "large")
    draft = sized(TableModel.random(4, seed=2), 1, "small")
    runner = Runner()
    task = Task(Policy(source), (0,), Stopping(50), Stream(0))
    handle = runner.submit(CHAIN.build(CHAIN.params(draft=draft)), task, Budget(max_calls=calls))
    runner.run()
    found = handle.result()
    assert handle.report.model_calls <= calls
    assert sum(len(item.tokens) for item in found) == (whole(handle).emitted if found else 0)
    assert all(item.finish_reason == "max_calls" for item in found)


def test_drafting_is_the_same_coroutine() -> None:
    """Answers and exceptions go in, requests come out, and a forward counts once a source."""
    target, small = sized(TableModel.random(3), 40, "a"), sized(TableModel.random(3), 10, "b")
    roots = [Tree(Policy(source), (0,), Stream(0)).root for source in (small, small, target)]
    nodes = [root.child(1) for root in roots]
    seen: list[object] = []

    def steps():
        seen.append((yield Open(Policy(small), (0,))))
        seen.append((yield Grow(nodes[:2])))
        try:
            seen.append((yield (Grow(nodes[:1]), Grow(nodes[2:]))))
        except BudgetExhausted as spent:
            seen.append(spent.reason)
        return [Candidates(roots[0], 4)]

    tallies = Tallies(target)
    emits = [Emit((1,))]
    drafting = tallies.drafting(steps(), emits)
    assert next(drafting) == (Emit((1,)),)  # what is final does not wait for a draft model
    assert isinstance(drafting.send([None]), Open)
    assert emits == []
    assert drafting.send("first") == Grow(nodes[:2])
    drafting.send("second")
    with pytest.raises(StopIteration) as ended:
        drafting.throw(BudgetExhausted("max_calls"))
    assert seen == ["first", "second", "max_calls"]
    (draft,) = ended.value.value
    tallies.note(draft, [roots[0].child(2)])
    tallies.note(Candidates(roots[0], 7), [roots[0].child(2)])
    for sequence in (4, 7):  # streams that are drafted for together share what it took
        assert tallies[sequence].draft_calls == 4
        assert tallies[sequence].draft_work == 3 * 0.25 + 1.0
    emits = [Emit((1,))]
    with pytest.raises(StopIteration):
        next(tallies.drafting(iter(()), emits))  # type: ignore[arg-type]
    assert emits == [Emit((1,))]  # nothing was asked: they go out with the next forward
    tallies.note(Candidates(roots[0], 4), [roots[0].child(2)])
    assert tallies[4].draft_calls == 4


# -- negative controls -----------------------------------------------------------------------------


class CountsBehindTheEnd(Tally):
    """What was drafted beyond the end of a text counts as refused."""

    def note_counts(self, widths, accepted, emitted, *, forward=True):
        super().note_counts(widths, accepted, emitted, forward=forward)
        beyond = len(widths) - accepted if emitted == accepted else 0
        self.offered = module._sum(self.offered, [0] * accepted + [1] * beyond)
        self.taken = module._sum(self.taken, [0] * len(self.offered))


class CountsThePrompt(Tally):
    """The token that the prompt's own forward gives counts for the block efficiency."""

    def note_counts(self, widths, accepted, emitted, *, forward=True):
        super().note_counts(widths, accepted, emitted, forward=forward)
        self.gained = self.emitted


class ForgetsTheBonus(Tally):
    """Only accepted tokens count: tau - 1 under the name of tau."""

    @property
    def block_efficiency(self):
        return self.accepted / self.forwards if self.forwards else None


class OneLevelOff(Tally):
    """A candidate accepted at depth d is counted at depth d + 1."""

    def note_counts(self, widths, accepted, emitted, *, forward=True):
        super().note_counts(widths, accepted, emitted, forward=forward)
        if accepted:
            self.taken[0] -= 1
            self.taken = module._sum(self.taken, [0] * accepted + [1])
            self.offered = module._sum(self.offered, [0] * len(self.taken))


class PaysForNodes(Tally):
    """The memory-bound speed-up divides by nodes, not by forwards one after the other."""

    @property
    def mbsu(self):
        return self.gained / (self.forwards + 0.25 * self.nodes)


@pytest.mark.parametrize(
    "wrong",
    [CountsBehindTheEnd, CountsThePrompt, ForgetsTheBonus, OneLevelOff, PaysForNodes],
    ids=lambda kind: kind.__name__,
)
def test_wrong_tallies_are_rejected(wrong: type[Tally]) -> None:
    with pytest.raises(AssertionError):
        check_by_hand(by_hand(wrong))
