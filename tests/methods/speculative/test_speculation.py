"""Whole speculative runs have the policy's law, jointly over all tokens of a text.

Exact: on tables whose probabilities and acceptances are multiples of a quarter every outcome of
every number that a run draws is tried, and the law of its texts added up.

Chi-square, through the runner: each lossless combination of drafter and rule is run under each of
five policies, 100 texts a policy; the statistics of the five are added (their degrees of freedom
too). alpha is 1e-6 for each of 17 tests. Power: the wrong variants below are rejected with 2,000
texts, most of them far beyond.

The slow test has alpha 1e-5 for each of 85 tests, 1e-3 together. 200,000 texts of each would take
many hours of one thread, so they are kept for the chain and the paper's two trees without samplers;
every other combination has 20,000 without samplers and 6,000 under each of four. Of the three a law
that moves 0.01 of mass between two texts of probability 1/20 each is rejected with chance above
0.999, of the others with 20,000 one that moves 0.03, with 6,000 one that moves 0.05 (asserted).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats
from speculative_runs import (
    DECODERS,
    DRAFT,
    count,
    law,
    policies,
    task,
)

from decodery.core.decoder import Decoder
from decodery.core.runner import Runner, run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates, Drawn
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.shapes import Branching, End, Pick, Shape
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Greedy, Match, Recursive, Rule, Trial
from decodery.methods.speculative.walks import Block, NodeWise, Place, Walk
from decodery.testing import TableModel, chi_square, decoder_law, enumerate_law

POLICIES = tuple(policies())
FEW = 100
ALPHA = 1e-5

# -- exact: every outcome of every draw ------------------------------------------------------------


def quarters(rows: dict[tuple[int, ...], Sequence[int]], size: int) -> TableModel:
    return TableModel(lambda context: np.array(rows[context]) / 4, size, 1)


# After 0, 1, 2. Ratios of the first to the draft's, and their residuals, are quarters again.
THREE = quarters({(0,): (1, 1, 2), (1,): (2, 1, 1), (2,): (0, 2, 2)}, 3)
HALVES = quarters({(token,): (2, 2, 0) for token in range(3)}, 3)
TOPPED = quarters({(token,): (2, 1, 1) for token in range(3)}, 3)
# For blocks: w = 1/2 or 1, and at the second place nothing or all is left of w p - q.
BLOCKS = quarters({(0,): (0, 0, 4), (1,): (2, 2, 0), (2,): (1, 1, 2)}, 3)

EXACT: dict[str, tuple[TableModel, Drawing, Walk, int]] = {
    "chain": (THREE, Drawing(HALVES, Branching((1, 1))), NodeWise(Recursive("distinct")), 3),
    "distinct": (THREE, Drawing(HALVES, Branching((2,))), NodeWise(Recursive("distinct")), 2),
    "iid": (THREE, Drawing(HALVES, Branching((2,), "iid")), NodeWise(Recursive("iid")), 2),
    "greedy": (THREE, Drawing(TOPPED, Branching((2,), "greedy")), NodeWise(Greedy()), 2),
    "match": (THREE, Drawing(TOPPED, Branching((2, 1), "fixed")), NodeWise(Match()), 3),
    "block": (BLOCKS, Drawing(HALVES, Branching((1, 1))), Block(), 3),
}


def distance(one: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float]) -> float:
    return max(abs(one.get(path, 0.0) - other.get(path, 0.0)) for path in {*one, *other})


def check_exact(name: str) -> None:
    table, drafter, walk, most = EXACT[name]
    policy = Policy(table)
    found = decoder_law(Speculation(drafter, walk), policy, (2,), most, grid=4)
    assert distance(found, dict(enumerate_law(policy, (2,), most))) < 1e-12


@pytest.mark.parametrize("name", ["distinct", "greedy", "match"])
def test_the_law_of_texts_is_exact(name: str) -> None:
    check_exact(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain", "iid", "block"])
def test_the_law_of_longer_texts_is_exact(name: str) -> None:
    check_exact(name)


# -- chi-square ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_texts_have_the_policys_law(name: str) -> None:
    tests = [
        chi_square(count(DECODERS[name], policies()[policy], FEW), law(policy))
        for policy in POLICIES
    ]
    statistic, degrees = sum(t.statistic for t in tests), sum(t.degrees for t in tests)
    assert stats.chi2.sf(statistic, degrees) > 1e-6


def many(name: str, policy: str) -> int:
    """How many texts the slow test draws."""
    if policy != "plain":
        return 6_000
    return 200_000 if name in ("chain", "rsd_c", "rsd_s") else 20_000


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", DECODERS)
def test_many_texts_have_the_policys_law(name: str, policy: str) -> None:
    found = count(DECODERS[name], policies()[policy], many(name, policy))
    assert chi_square(found, law(policy)).p_value > ALPHA


@pytest.mark.parametrize(("texts", "moved"), [(200_000, 0.01), (20_000, 0.03), (6_000, 0.05)])
def test_the_power_that_the_docstring_claims(texts: int, moved: float) -> None:
    degrees = max(len(law(policy)) for policy in POLICIES) - 1
    assert degrees == 30
    noncentrality = texts * 2 * moved**2 / (1 / 20)
    assert stats.ncx2.sf(stats.chi2.isf(ALPHA, degrees), degrees, noncentrality) > 0.999


@pytest.mark.parametrize("name", DECODERS)
def test_sequences_of_a_request_are_independent(name: str) -> None:
    """The last tokens of two sequences of one request, 200 requests: the product of their laws."""
    ends = Counter[int]()
    for text, chance in law("plain").items():
        ends[text[-1]] += chance  # type: ignore[assignment]
    pairs = {(one, two): ends[one] * ends[two] for one in ends for two in ends}
    found: Counter[tuple[int, int]] = Counter()
    runner = Runner()
    handles = [runner.submit(DECODERS[name](2), task(policies()["plain"], k)) for k in range(200)]
    runner.run()
    for handle in handles:
        one, two = handle.result()
        found[one.tokens[-1], two.tokens[-1]] += 1
    assert chi_square(found, pairs).p_value > 1e-6


# -- negative controls -----------------------------------------------------------------------------

ANY: frozenset[Drawn] = frozenset({"fixed", "iid", "distinct", "greedy", "hub"})


class Backwards(Recursive):
    """Children tried in the reverse of the order they were drawn in."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        trial = super().trial(target, draft, tokens[::-1])
        try:
            while True:
                number, chance = next(trial)
                yield len(tokens) - 1 - number, chance
        except StopIteration as stop:
            return stop.value


class WithReplacement(Recursive):
    """Draws without replacement, verified as if they were independent."""

    drawn = ANY

    def __init__(self) -> None:
        super().__init__("iid")


class AcceptAll(Rule):
    drawn = ANY

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        yield 0, 1.0
        return target


class NoResidual(Recursive):
    """After a refusal the token comes from p itself."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        yield from super().trial(target, draft, tokens)
        return target


class MostProbable(Branching):
    """The most probable tokens, passed off as draws."""

    def level(self, number: int, ends: Sequence[End], most: int) -> list[list[Pick]]:
        return Branching(self.branching, "fixed").level(number, ends, most)


@dataclass(frozen=True)
class SharedNoise(NodeWise):
    """The test of a candidate uses the number that the candidate was drawn with."""

    def path(self, draft: Candidates, place: Place) -> list[Node]:
        return super().path(draft, _Shared(place.task, place.sequence))


class _Shared(Place):
    def uniform(self, node: Node, purpose: str, index: int = 0) -> float:
        if purpose == "accept":
            return self.task.stream.uniform(self.sequence, node.depth, f"draft {index}", 1)
        return super().uniform(node, purpose, index)


class OneUniform(Place):
    """All of a position's draws are one number: tests, and the token after a refusal."""

    def uniform(self, node: Node, purpose: str, index: int = 0) -> float:
        return super().uniform(node, "accept", 0)


@dataclass(frozen=True)
class OneNumber(NodeWise):
    def path(self, draft: Candidates, place: Place) -> list[Node]:
        return super().path(draft, OneUniform(place.task, place.sequence))


class _ByPosition(Place):
    def uniform(self, node: Node, purpose: str, index: int = 0) -> float:
        depth = node.depth + max(0, index - 1)
        return self.task.stream.uniform(self.sequence, depth, purpose)


@dataclass(frozen=True)
class Retested(Block):
    """A position that a block tested and did not reach meets the same number in the next step."""

    def path(self, draft: Candidates, place: Place) -> list[Node]:
        return super().path(draft, _ByPosition(place.task, place.sequence))


def _wrong(shape: Shape, walk: Walk) -> Decoder:
    return Speculation(Drawing(DRAFT, shape), walk, 100)


WRONG: dict[str, Decoder] = {
    "backwards": _wrong(Branching((2, 2)), NodeWise(Backwards("distinct"))),
    "with replacement": _wrong(Branching((2, 2)), NodeWise(WithReplacement())),
    "the most probable": _wrong(MostProbable((2, 2)), NodeWise(Recursive("distinct"))),
    "accept all": _wrong(Branching((1, 1, 1)), NodeWise(AcceptAll())),
    "no residual": _wrong(Branching((1, 1, 1)), NodeWise(NoResidual("distinct"))),
    "shared with the draft": _wrong(Branching((1, 1, 1)), SharedNoise(Recursive("distinct"))),
    "one number": _wrong(Branching((2, 2)), OneNumber(Recursive("distinct"))),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_runs_are_rejected(name: str) -> None:
    found = count(lambda _: WRONG[name], policies()["plain"], 2_000)
    assert chi_square(found, law("plain")).p_value < 1e-6


def test_blocks_that_reuse_their_tests_are_rejected() -> None:
    """On the table of the exact proof, where the error is 0.06; the block itself passes."""
    table, drafter, walk, most = EXACT["block"]
    expected = enumerate_law(Policy(table), (2,), most)
    for tried, fits in ((walk, True), (Retested(), False)):
        found: Counter[tuple[int, ...]] = Counter()
        runner = Runner()
        asked = replace(task(Policy(table), stopping=Stopping(most)), prompt=(2,))
        handle = runner.submit(Speculation(drafter, tried, 1024), asked)
        runner.run()
        found.update(item.tokens for item in handle.result())
        p_value = chi_square(found, expected).p_value
        assert p_value > 1e-6 if fits else p_value < 1e-9


def test_sequences_that_share_noise_are_not_independent() -> None:
    """The control of the test above: the same request twice, taken for two sequences."""
    found: Counter[tuple[int, int]] = Counter()
    for seed in range(100):
        text = run_alone(DECODERS["chain"](1), task(policies()["plain"], seed))[0].tokens
        found[text[-1], text[-1]] += 1
    ends = Counter(text[-1] for text in law("plain"))
    even = {(one, two): 1 / 9 for one in ends for two in ends}
    assert chi_square(found, even).p_value < 1e-9
