"""Ends inside drafts, what lives in the caches after every step, and company in one runner.

Greedy decoding from tables that draft for themselves accepts whole drafts, so every end lies
inside one: the text must be plain greedy decoding's, cut at the same token for the same reason. The
chi-square tests have 400 texts each at alpha 1e-6.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from speculative_runs import (
    DECODERS,
    DRAFT,
    END,
    PIECES,
    PROMPT,
    STOPPING,
    TARGET,
    count,
    law,
    policies,
    task,
)

import decodery as dc
from decodery.core.decoder import Completion, Decoder, Decoding, Task
from decodery.core.handle import Budget
from decodery.core.requests import Emit, Grow, Open, Request
from decodery.core.runner import Runner, run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node, Tree
from decodery.methods.speculative.consensus import Consensus
from decodery.methods.speculative.jacobi import Jacobi
from decodery.methods.speculative.lookup import Lookup
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.shapes import Beam, Branching
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match, Recursive
from decodery.methods.speculative.walks import Block, NodeWise
from decodery.testing import chi_square, enumerate_law
from decodery.testing.scenes import run, scenes
from decodery.testing.spelling import speller

MATCH = NodeWise(Match())
DISTINCT = NodeWise(Recursive("distinct"))


def from_itself(shape: Any, walk: Any) -> Speculation:
    return Speculation(Drawing("same", shape), walk)


# Whole drafts are accepted in these where the policy is greedy.
OWN: dict[str, Speculation] = {
    "chain": from_itself(Branching((1,) * 5), DISTINCT),
    "block": from_itself(Branching((1,) * 5), Block()),
    "rsd_c": from_itself(Branching((2, 1, 1)), DISTINCT),
    "rsd_s": from_itself(Beam(2, 4), DISTINCT),
    "iid": from_itself(Branching((2, 2, 1), "iid"), NodeWise(Recursive("iid"))),
    "fixed": from_itself(Branching((2, 2), "fixed"), MATCH),
    "other_draft": Speculation(Drawing(DRAFT, Beam(3, 3)), DISTINCT),
    "lookup": Speculation(Lookup(6, 1, 3), MATCH),
    "consensus": Speculation(Consensus(tokens=6, shortest=1, own=True, prompt=True), MATCH),
}

END_TOKENS = frozenset({END})
DECODE = TARGET.language.decode  # type: ignore[union-attr]
STOPPINGS: dict[str, Stopping] = {
    "end token": Stopping(12, END_TOKENS),
    "end token ignored": Stopping(9, END_TOKENS, ignore_eos=True),
    "stop id": Stopping(12, stop_ids=frozenset({1})),
    "stop string": Stopping(12, END_TOKENS, stop=("ab",), decode=DECODE),
    "long stop string": Stopping(12, stop=("babb", "aaba"), decode=DECODE),
    "max tokens 1": Stopping(1),
    "max tokens 2": Stopping(2, END_TOKENS),
    "max tokens 5": Stopping(5, END_TOKENS),
}


def ends(item: Completion) -> tuple[tuple[int, ...], str]:
    return item.tokens, item.finish_reason


@pytest.mark.parametrize("stopping", STOPPINGS)
@pytest.mark.parametrize("name", OWN)
def test_greedy_texts_end_where_plain_ones_do(name: str, stopping: str) -> None:
    """Four tables; the draft is the table itself, but for `other_draft` and the lookups."""
    for seed in range(4):
        table = speller(PIECES, seed=seed, order=3)
        asked = task(Policy(table), seed, STOPPINGS[stopping])
        (plain,) = run_alone(dc.greedy(), asked)
        (found,) = run_alone(OWN[name].certain(), asked)
        assert ends(found) == ends(plain)
        assert table.tokens_alive == 0


@pytest.mark.parametrize("stopping", STOPPINGS)
@pytest.mark.parametrize("name", ["fixed", "lookup", "consensus"])
def test_matched_texts_are_those_of_plain_sampling(name: str, stopping: str) -> None:
    """Rule Match draws with plain sampling's own numbers: the same texts, each sequence."""
    for seed, policy in enumerate(policies().values()):
        asked = task(policy, seed, STOPPINGS[stopping])
        plain = run_alone(dc.sample(3), asked)
        found = run_alone(replace(OWN[name], n=3), asked)
        assert [ends(item) for item in found] == [ends(item) for item in plain]


@pytest.mark.parametrize(
    ("name", "stopping"),
    [
        ("chain", "stop id"),
        ("block", "stop string"),
        ("rsd_c", "stop id"),
        ("rsd_s", "stop string"),
    ],
)
def test_sampled_texts_end_by_the_law(name: str, stopping: str) -> None:
    stop = replace(STOPPINGS[stopping], max_tokens=4)
    expected = enumerate_law(Policy(TARGET), PROMPT, stop)
    decoder = replace(OWN[name], n=400)
    found = Counter(item.tokens for item in run_alone(decoder, task(Policy(TARGET), 5, stop)))
    assert chi_square(found, expected).p_value > 1e-6


@pytest.mark.parametrize(
    ("shape", "walk"),
    [
        (Branching((1, 1, 1)), DISTINCT),
        (Branching((1, 1, 1)), Block()),
        (Beam(2, 3), DISTINCT),
        (Branching((2, 2), "fixed"), MATCH),
    ],
    ids=["chain", "block", "beam", "match"],
)
def test_a_draft_may_leave_the_grammar(shape: Any, walk: Any) -> None:
    """The draft has samplers of its own, and none of the grammar that the policy has."""
    asked = task(policies()["grammar"], 2)
    decoder = Speculation(Drawing(DRAFT, shape, dc.chain(dc.temperature(2.0))), walk, 400)
    found = Counter(item.tokens for item in run_alone(decoder, asked))
    assert chi_square(found, law("grammar")).p_value > 1e-6


@pytest.mark.parametrize("name", OWN)
def test_a_budget_cuts_a_text_short_and_changes_nothing_before(name: str) -> None:
    for calls in (1, 2, 3, 5):
        asked = task(Policy(TARGET), 3, Stopping(12))
        (whole,) = run_alone(OWN[name], asked)
        runner = Runner()
        handle = runner.submit(OWN[name], asked, Budget(max_calls=calls))
        runner.run()
        assert handle.report.model_calls <= calls
        for item in handle.result():
            assert item.tokens == whole.tokens[: len(item.tokens)]
            assert item.finish_reason == "max_calls" or ends(item) == ends(whole)


# -- after every step ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked(Decoder):
    """A decoder whose trees are looked at whenever a step of it ends.

    `nodes` and `depth` bound the candidates of a sequence in one step.
    """

    inner: Decoder
    nodes: int
    depth: int

    @property
    def sequences(self) -> int:
        return self.inner.sequences

    def slots(self, task: Task) -> Any:
        return self.inner.slots(task)

    def decode(self, task: Task) -> Decoding:
        watch = _Watch(self, task)
        inner = self.inner.decode(task)
        asked = next(inner)
        try:
            while True:
                requests = asked if isinstance(asked, tuple) else (asked,)
                watch.see(requests)
                answer = yield asked
                if isinstance(asked, Open):
                    watch.trees.append(answer.tree)
                asked = inner.send(answer)
        except StopIteration as stop:
            watch.over()
            return stop.value


class _Watch:
    def __init__(self, decoder: Checked, task: Task) -> None:
        self.decoder, self.task = decoder, task
        self.trees: list[Tree] = []
        self.texts: defaultdict[int, list[int]] = defaultdict(list)
        self.steps = 0

    def see(self, requests: Sequence[Request]) -> None:
        emits = [request for request in requests if isinstance(request, Emit)]
        if emits:
            self.steps += 1
            for emit in emits:
                assert 1 <= len(emit.tokens) <= self.decoder.depth + 1
                self.texts[emit.sequence] += emit.tokens
            self._check_trees(requests)
        for request in requests:
            if isinstance(request, Grow):
                self._check_growth(request.nodes)

    def _check_growth(self, nodes: Sequence[Node]) -> None:
        own = Counter(node.sequence for node in nodes if node.tree is self.trees[0])
        for sequence, asked in own.items():
            tip = 1 if self.texts[sequence] else 0  # not grown before, but for the prompt
            assert asked <= self.decoder.nodes + tip

    def _live(self) -> dict[int, tuple[int, ...]]:
        """The texts that go on."""
        return {
            sequence: tuple(tokens)
            for sequence, tokens in self.texts.items()
            if not (tokens[-1] == END or len(tokens) == self.task.stopping.max_tokens)
        }

    def _check_trees(self, requests: Sequence[Request]) -> None:
        """The trees, but for candidates that the same requests ask for."""
        grown = {node for item in requests if isinstance(item, Grow) for node in item.nodes}
        candidates = {node for node in grown if node.parent in grown}
        live = self._live()
        wanted = sorted(
            (sequence, tokens[:length])
            for sequence, tokens in live.items()
            for length in range(1, len(tokens) + 1)
        )
        policy, *drafts = self.trees
        assert sorted(paths(policy, candidates)) == wanted  # the path, and no draft
        assert policy.alive == 1 + sum(len(tokens) - 1 for tokens in live.values())
        assert not any(node.has_row for node in below(policy.root))  # used, and let go
        for tree in drafts:
            assert set(paths(tree)) <= set(wanted)
            assert tree.alive <= 1 + len(wanted)

    def over(self) -> None:
        assert self._live() == {}
        for tree in self.trees:
            assert list(paths(tree)) == []
            assert tree.alive == 1  # the prompt


def below(root: Node) -> Iterator[Node]:
    stack = list(root.children)
    while stack:
        node = stack.pop()
        yield node
        stack += node.children


def paths(tree: Tree, without: Set[Node] = frozenset()) -> Iterator[tuple[int, tuple[int, ...]]]:
    for node in below(tree.root):
        if node not in without:
            yield node.sequence, tuple(node.generated)


BOUNDS: dict[str, tuple[int, int]] = {
    "chain": (3, 3),
    "rsd_c": (6, 2),
    "rsd_s": (6, 3),
    "iid": (6, 2),
    "k_seq": (6, 2),
    "greedy": (6, 2),
    "hub": (6, 2),
    "match_fixed": (4, 2),
    "match_beam": (4, 2),
    "block": (3, 3),
    "lookup": (3, 3),
    "consensus": (3, 3),
    "sjd": (3, 3),
    "sjd_uniform": (3, 3),
    "mc_sjd": (3, 3),
    "mc_sjd_half": (3, 3),
    "gs_sjd": (3, 3),
}


@pytest.mark.parametrize("name", DECODERS)
def test_after_every_step_only_the_texts_are_alive(name: str) -> None:
    """Tokens alive are the path's, the draft's tree has nothing else either, budgets hold."""
    nodes, depth = BOUNDS[name]
    for policy, stopping in product(policies().values(), (STOPPING, Stopping(9, END_TOKENS))):
        plain = DECODERS[name](4)
        assert isinstance(plain, Jacobi) or plain.drafter.nodes == nodes  # type: ignore[attr-defined]
        found = run_alone(Checked(plain, nodes, depth), task(policy, 1, stopping))
        assert len(found) == 4
        assert TARGET.tokens_alive == DRAFT.tokens_alive == 0


def test_the_check_sees_what_is_left_behind() -> None:
    """The control: a session that does not follow its stream leaves its drafts alive."""

    @dataclass(frozen=True)
    class Littering(Drawing):
        def session(self, task: Task) -> Any:
            session = super().session(task)
            session.ended = print  # type: ignore[method-assign]
            return session

    decoder = Speculation(Littering(DRAFT, Branching((2, 2))), DISTINCT, 2)
    with pytest.raises(AssertionError):
        run_alone(Checked(decoder, 6, 2), task(policies()["plain"], 1))
    with pytest.raises(AssertionError):
        run_alone(Checked(DECODERS["rsd_c"](2), 3, 2), task(policies()["plain"], 1))


# -- company ---------------------------------------------------------------------------------------


def test_every_decoder_beside_every_other_has_the_text_it_has_alone() -> None:
    """Seventeen decoders under five policies each, two sequences a request, in one runner."""
    runner = Runner()
    asked = {
        (name, policy): (DECODERS[name](2), task(policies()[policy], place))
        for place, (name, policy) in enumerate(product(DECODERS, policies()))
    }
    handles = {key: runner.submit(decoder, item) for key, (decoder, item) in asked.items()}
    runner.run()
    for key, (decoder, item) in asked.items():
        alone = [ends(one) for one in run_alone(decoder, item)]
        assert [ends(one) for one in handles[key].result()] == alone, key


@pytest.mark.parametrize("name", OWN)
def test_a_sequence_is_the_same_among_more(name: str) -> None:
    """Sequence i of a request does not depend on how many there are; consensus neither."""
    for seed in range(3):
        asked = task(policies()["penalty"], seed, Stopping(8, END_TOKENS))
        few, many = (run_alone(replace(OWN[name], n=n), asked) for n in (2, 9))
        assert [ends(item) for item in many[:2]] == [ends(item) for item in few]


def test_greedy_scenes_of_the_contract() -> None:
    """The contract's scenes, blends and noise among them: greedy text, whoever drafts."""
    for place, scene in enumerate(scenes()):
        plain = run(dc.greedy(), scene).result()
        for name in ("chain", "rsd_c", "rsd_s", "lookup", "consensus"):
            found = run(OWN[name].certain(), scenes()[place]).result()
            assert [ends(item) for item in found] == [ends(item) for item in plain], scene.label


def test_few_texts_are_counted_once() -> None:
    assert sum(count(DECODERS["chain"], policies()["plain"], 200).values()) == 200
