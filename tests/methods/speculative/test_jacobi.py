"""Jacobi decoding: exact by trying all noise, then by statistics, then wrong steps, then costs.

Chi-square tests have alpha 1e-5 each. With 600 runs (58 cells merged to about 30) a law at a total
variation of 0.2 from the policy's is rejected with power above 0.99; the slow ones, with 200,000,
do so at 0.01.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from jacobi_cases import (
    COUPLINGS,
    GUESSES,
    MUTANTS,
    TOYS,
    EveryThird,
    ScriptedStep,
    coins,
    counted,
)

from decodery.core import registry
from decodery.core.decoder import Completion, Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.sampler import Chain, chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.methods.autoregressive.greedy import Greedy
from decodery.methods.autoregressive.sample import Sample
from decodery.methods.speculative import jacobi
from decodery.methods.speculative.guesses import Lookup, Random, Repeat
from decodery.methods.speculative.jacobi import (
    Coupling,
    Jacobi,
    Step,
    gumbel_max,
    maximal_coupling,
)
from decodery.methods.speculative.law import Law, overlap, ratio
from decodery.models.table import TableModel
from decodery.reproductions.sjd_grid import Grid
from decodery.testing import decoder_law, enumerate_law, require_law
from decodery.testing.samplers import Shy, Surprised

ALPHA = 1e-5
ENDS = Stopping(4)


def run(decoder: Any, source: TableModel, stopping: Stopping = ENDS, seed: int = 0) -> Completion:
    return run_alone(decoder, Task(Policy(source), (0,), stopping, Stream(seed)))[0]


def distance(one: dict[Any, float], other: dict[Any, float]) -> float:
    """The total variation of two laws."""
    return 0.5 * sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other})


def laws(count: int, size: int = 6) -> list[tuple[Law, Law]]:
    """Pairs of laws: flat and peaked, equal, disjoint, with zeros, over some of the ids."""
    generator = np.random.default_rng(5)
    pairs = []
    for number in range(count):
        p, q = generator.dirichlet(np.full(size, (0.3, 1.0, 3.0)[number % 3]), 2)
        p[generator.random(size) < 0.3], q[generator.random(size) < 0.3] = 0.0, 0.0
        p[0] += 0.1
        q[1] += 0.1
        target, law = Law.dense(p), Law.dense(q)
        if number % 4 == 3:
            kept = np.flatnonzero(p)
            target = Law(p[kept] / p.sum(), size, kept)
        pairs.append((target, law))
    one = pairs[0][0]
    return [*pairs, (one, one), (Law.certain(2, size), one), (one, Law.certain(2, size))]


# -- couplings -------------------------------------------------------------------------------------


def outcomes(target: Law, law: Law) -> np.ndarray:
    """The joint law [old, new] of a token from `law` and its maximal coupling, by both chances."""
    joint = np.zeros((target.size, target.size))
    for token in range(target.size):
        stays = ratio(target[token], law[token])
        joint[token, token] += law[token] * stays
        if stays < 1.0:
            joint[token] += law[token] * (1.0 - stays) * target.residual(law).whole()
    return joint


@pytest.mark.parametrize("number", range(35))
def test_the_maximal_coupling_by_enumeration(number):
    """The new token has the new law, stays with probability 1 - TV, and is never one refused."""
    target, law = laws(32)[number]
    joint = outcomes(target, law)
    np.testing.assert_allclose(joint.sum(axis=0), target.whole(), atol=1e-12)
    np.testing.assert_allclose(joint.sum(axis=1), law.whole(), atol=1e-12)
    assert np.trace(joint) == pytest.approx(overlap(target, law), abs=1e-12)
    for token in range(target.size):
        if law[token] > 0.0 and law[token] > target[token]:
            assert target.residual(law)[token] == 0.0


def test_the_function_is_the_coupling_it_describes():
    """On a fine grid of both numbers; 1e-3 is the grid's own error."""
    target, law = Law.dense([0.5, 0.3, 0.2]), Law.dense([0.1, 0.3, 0.6])
    grid = (np.arange(1000) + 0.5) / 1000
    for token in range(3):
        counts = np.zeros(3)
        for accept in grid:
            middle = {"accept": float(accept), "residual": 0.5}
            counts[maximal_coupling(target, law, token, middle.__getitem__)] += 1e-3
        wanted = outcomes(target, law)[token] / law[token]
        np.testing.assert_allclose(counts, wanted, atol=2e-3)


def gumbel_stays(target: Law, law: Law) -> float:
    """How often shared Gumbel noise draws the same token: sum_x 1 / sum_y max(p_y/p_x, q_y/q_x)."""
    p, q = target.whole(), law.whole()
    both = np.flatnonzero((p > 0) & (q > 0))
    return float(sum(1.0 / np.maximum(p / p[x], q / q[x]).sum() for x in both))


@pytest.mark.parametrize("number", range(6))
def test_gumbel_noise_keeps_tokens_as_often_as_its_bounds_say(number):
    """(1 - TV) / (1 + TV) at least and 1 - TV at most, by closed form, and drawn 4,000 times."""
    target, law = laws(6)[number]
    stays, most = gumbel_stays(target, law), overlap(target, law)
    assert most / (2.0 - most) - 1e-12 <= stays <= most + 1e-12
    noises = np.random.default_rng(number).gumbel(size=(4000, target.size))
    pairs = [(gumbel_max(law, noise), gumbel_max(target, noise)) for noise in noises]
    seen = np.mean([old == new for old, new in pairs])
    assert abs(seen - stays) <= 4.0 * math.sqrt(stays * (1.0 - stays) / 4000) + 1e-12
    fresh = np.bincount([new for _, new in pairs], minlength=target.size) / 4000
    np.testing.assert_allclose(fresh, target.whole(), atol=0.04)


# -- the whole, exactly ----------------------------------------------------------------------------


def exact(
    decoder: Jacobi, policy: Policy, prompt: tuple[int, ...], stopping: Stopping, grid: int
) -> float:
    """The total variation of the decoder's law from the policy's, every number tried."""
    found = decoder_law(decoder, policy, prompt, stopping, grid=grid)
    return distance(found, enumerate_law(policy, prompt, stopping))


@pytest.mark.parametrize("stages", [(), (EveryThird(),)], ids=["plain", "stateful"])
@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_every_coupling_with_every_guess_is_exact(monkeypatch, coupling, guess, stages):
    monkeypatch.setattr(jacobi, "Step", ScriptedStep)
    policy = Policy(coins(2), chain(*stages))
    assert exact(Jacobi(2, coupling, GUESSES[guess]), policy, (0, 1), Stopping(3), 2) < 1e-12


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_coupling_now_and_then_is_exact(strength):
    policy = Policy(coins(2))
    decoder = Jacobi(2, "mc", Random(spread=True), strength)
    assert exact(decoder, policy, (0, 1), Stopping(3), 2) < 1e-12


def exact_on(name: str, coupling: Coupling) -> float:
    toy = TOYS[name]
    decoder = Jacobi(toy.stopping.max_tokens - 1, coupling, Repeat())
    return exact(decoder, Policy(toy.model()), (2,), toy.stopping, toy.grid)


@pytest.mark.parametrize(
    ("coupling", "toy"),
    [
        (coupling, toy)
        for coupling in COUPLINGS
        for toy in TOYS
        if (coupling, toy) != ("mc", "quarters")  # its residual has thirds
    ],
)
def test_what_the_wrong_steps_are_tried_on_is_exact(monkeypatch, coupling, toy):
    monkeypatch.setattr(jacobi, "Step", ScriptedStep)
    assert exact_on(toy, coupling) < 1e-12


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_steps_are_not_exact(monkeypatch, name):
    step, coupling, toy = MUTANTS[name]
    monkeypatch.setattr(jacobi, "Step", step)
    assert exact_on(toy, coupling) > 0.03


# -- the whole, by statistics ----------------------------------------------------------------------

STATEFUL = chain(Shy(1.5), Surprised())
POLICIES = {"plain": chain(), "stateful": STATEFUL}


def follows(decoder: Jacobi, sampler: Chain, runs: int) -> None:
    policy = Policy(TableModel.random(3, 3, seed=1), sampler)
    law = enumerate_law(policy, (0,), ENDS)
    require_law(counted(decoder, policy, ENDS, runs), law, ALPHA, repr(decoder))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_through_the_runner(coupling, policy):
    follows(Jacobi(3, coupling, Random(spread=True)), POLICIES[policy], 600)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("guess", ["random", "uniform"])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_through_the_runner_at_length(coupling, guess):
    """The definition's setting: three tokens, laws of order three, four tokens, three guesses."""
    follows(Jacobi(3, coupling, GUESSES[guess]), chain(), 200_000)


@pytest.mark.slow
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_stateful_policies_at_length(coupling):
    follows(Jacobi(3, coupling, Lookup(1, 2)), STATEFUL, 50_000)


@pytest.mark.parametrize("step", [jacobi.Step, None], ids=["right", "wrong"])
def test_the_statistics_see_a_wrong_step(monkeypatch, step):
    """A step that accepts all is rejected by the same test at the same number of runs."""
    if step is not None:
        follows(Jacobi(3, "mc"), chain(), 600)
        return
    monkeypatch.setattr(jacobi, "Step", MUTANTS["accepts all, mc"][0])
    with pytest.raises(AssertionError):
        follows(Jacobi(3, "mc"), chain(), 600)


class MatchesTheSharedNoise(Step):
    """A guess is accepted where the noise of its position draws it again, which else is taken."""

    def verify(self, parent: Node, law: Law, guess: int) -> int:
        return gumbel_max(self.law(parent), self.gumbel(parent))

    def _bonus(self, end: Node) -> int:
        return gumbel_max(self.law(end), self.gumbel(end))


def test_exact_match_on_shared_noise_is_gumbel_max_sampling(monkeypatch):
    """The companion of `gs`: token for token the sequence that its noise draws one by one."""
    monkeypatch.setattr(jacobi, "Step", MatchesTheSharedNoise)
    source, stopping = TableModel.random(5, 2, seed=3), Stopping(20)
    for seed in range(5):
        stream, text = Stream(seed), [0]
        while len(text) <= 20:
            noise = stream.generator(0, len(text), "gumbel").gumbel(size=5)
            text.append(int(np.argmax(source.scores(text) + noise)))
        assert run(Jacobi(6, "gs"), source, stopping, seed).tokens == tuple(text[1:])


# -- limiting cases --------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_without_a_window_it_is_plain_sampling(coupling):
    task = Task(Policy(TableModel.random(5, seed=2)), (0, 1), Stopping(9), Stream(4))
    plain = run_alone(Sample(3), task)
    found = run_alone(Jacobi(0, coupling, n=3), task)
    assert [item.tokens for item in found] == [item.tokens for item in plain]
    assert all(item.details["speculation"]["steps"] == 9 for item in found)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_model_that_forgets_accepts_all_but_first_guesses(coupling):
    """Q = P for every guess that a law has drawn: only first guesses, one a step at the end of the
    window, are ever refused. With first guesses of the same law nothing is."""
    flat = TableModel(lambda _: [0.25] * 4, 4, 0)
    details = run(Jacobi(4, coupling, Random(spread=True)), flat, Stopping(50)).details
    assert details["speculation"]["steps"] == 10
    uneven = TableModel(lambda _: [0.7, 0.2, 0.1, 0.0], 4, 0)
    seen: list[tuple[bool, bool]] = []

    class Watched(Step):
        def verify(self, parent: Node, law: Law, guess: int) -> int:
            token = super().verify(parent, law, guess)
            seen.append((law.masses.size == 1, token == guess))
            return token

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jacobi, "Step", Watched)
        run(Jacobi(4, coupling), uneven, Stopping(200))
    assert all(kept for first, kept in seen if not first)
    assert {kept for first, kept in seen if first} == {True, False}


def sure(seed: int) -> TableModel:
    """One token is certain everywhere."""
    other = TableModel.random(6, 2, seed=seed)
    return TableModel(lambda context: np.eye(6)[other.scores(context).argmax()], 6, 2)


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_certain_laws_give_greedy_decoding(coupling, guess):
    for seed in range(3):
        found = run(Jacobi(5, coupling, GUESSES[guess]), sure(seed), Stopping(30))
        assert found.tokens == run(Greedy(), sure(seed), Stopping(30)).tokens
        assert found.details["speculation"]["steps"] <= 30


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_greedy_form_is_greedy_decoding(coupling, guess):
    """`certain()`: classic Jacobi iteration, on laws that are anything but certain."""
    decoder = Jacobi(5, coupling, GUESSES[guess]).certain()
    for seed in range(3):
        source = TableModel.random(6, 2, seed=seed, eos_ids=frozenset({5}))
        stopping = Stopping(30, frozenset({5}))
        for sampler in (chain(), chain(Shy(2.0))):
            task = Task(Policy(source, sampler), (0,), stopping)
            assert run_alone(decoder, task)[0].tokens == run_alone(Greedy(), task)[0].tokens


def test_classic_jacobi_by_hand():
    """Tokens count up: a window of zeros becomes right one place a step, and in one step where the
    law looks at the position alone."""
    up = TableModel(lambda context: np.eye(8)[(context[-1] + 1) % 8], 8, 1)
    steps = run(Jacobi(3, guess=Repeat()).certain(), up, Stopping(8)).details["speculation"]
    assert steps["steps"] == 8
    by_place = TableModel(lambda context: np.eye(8)[len(context)], 8, 7)
    found = run(Jacobi(3, guess=Repeat()).certain(), by_place, Stopping(7))
    assert found.tokens == (1, 2, 3, 4, 5, 6, 7)
    assert found.details["speculation"]["steps"] == 4


def test_strength_zero_is_sjd():
    for coupling in ("mc", "gs"):
        for seed in range(4):
            source, stopping = TableModel.random(4, seed=seed), Stopping(20)
            weak = run(Jacobi(4, coupling, strength=0.0), source, stopping, seed)
            assert weak.tokens == run(Jacobi(4, "sjd"), source, stopping, seed).tokens


# -- what is accepted ------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("guess", [Random(), Random(spread=True)], ids=["random", "uniform"])
def test_acceptance_is_one_minus_the_total_variation(monkeypatch, coupling, guess):
    """Of the tests that were made; three standard errors. A first guess x is accepted with P(x)."""
    gaps: list[float] = []

    class Watched(Step):
        def verify(self, parent: Node, law: Law, guess: int) -> int:
            target = self.law(parent)
            chance = target[guess] if law.masses.size == 1 else overlap(target, law)
            token = super().verify(parent, law, guess)
            gaps.append((token == guess) - chance)
            return token

    monkeypatch.setattr(jacobi, "Step", Watched)
    decoder = replace(Jacobi(4, coupling, guess), n=40)
    run(decoder, TableModel.random(5, seed=7), Stopping(40))
    assert len(gaps) > 1200
    assert abs(np.mean(gaps)) < 3.0 * np.std(gaps) / math.sqrt(len(gaps))


def tokens_per_step(decoder: Jacobi, grid: Grid) -> float:
    found = run(decoder, grid.model(), Stopping(grid.width**2))
    return found.details["speculation"]["tokens_per_step"]


def test_couplings_gain_with_the_window_and_plain_redraws_do_not():
    """The definition's toy at a quarter of its size: laws of about 4.6 nats over 256 codes.

    The definition has 2.0 to 2.1 tokens a step for sjd at 8 to 32 guesses, and 2.6, 4.1, 5.6 for
    mc; here only the direction is asked for.
    """
    grid = Grid(codes=256, width=12, spread=1.4)
    speed = {
        (coupling, window): tokens_per_step(Jacobi(window, coupling), grid)
        for coupling, window in itertools.product(COUPLINGS, (8, 32))
    }
    assert speed["sjd", 32] < 1.3 * speed["sjd", 8]
    for coupling in ("mc", "gs"):
        assert speed[coupling, 32] > 1.4 * speed[coupling, 8]
        assert speed[coupling, 32] > 1.5 * speed["sjd", 32]


def test_guesses_change_less_where_they_are_coupled():
    grid = Grid(codes=64, width=8, spread=1.0)
    changed = {
        coupling: run(Jacobi(16, coupling), grid.model(), Stopping(64)).details["guesses_changed"]
        for coupling in COUPLINGS
    }
    assert changed["sjd"] > 0.9
    assert max(changed["mc"], changed["gs"]) < 0.8


def test_the_grid_looks_left_and_up():
    """By hand: first row, first column, inside; and entropies near ln(codes) - spread^2 / 2."""
    grid = Grid(codes=5, width=3)
    model, text = grid.model(), [0, 1, 2, 3, 4, 0, 1]
    left, above = grid._scores
    for place, upper in ((1, None), (3, None), (4, 1), (5, 2), (6, 3)):
        wanted = left[text[place - 1]] + above[5 if upper is None else upper]
        found = model.scores(text[:place])
        np.testing.assert_allclose(found - found[0], wanted - wanted[0], atol=1e-12)
    big = Grid(spread=1.0)
    text = np.random.default_rng(0).integers(256, size=200).tolist()
    assert big.entropy(text) == pytest.approx(math.log(256) - 0.5, abs=0.1)


# -- guesses ---------------------------------------------------------------------------------------


def test_guesses_by_hand():
    text = [7, 1, 2, 3, 1, 2]
    assert Random().after(text, 10, 0.37)[0] == 3
    assert Random().after(text, 10, 0.37)[1][3] == 1.0
    token, law = Random(spread=True).after(text, 10, 0.99)
    assert (token, law[token], law[0]) == (9, 0.1, 0.1)
    assert Repeat().after(text, 10, 0.5)[0] == 2
    assert Repeat(4).after(text, 10, 0.5)[0] == 2
    assert Repeat(6).after(text, 10, 0.5)[0] == 7
    assert Repeat(7).after(text, 10, 0.5)[0] == 5
    assert Lookup().instead(text, 5) == [3, 1, 2, 3, 1]
    assert Lookup().instead(text, 0) == []
    assert Lookup().instead([1, 2, 3], 5) == []
    assert Lookup(1, 1).instead([4, 5, 4, 6, 4], 3) == [6, 4, 6]
    assert Lookup().after(text, 10, 0.37)[0] == 3


@pytest.mark.parametrize("distance", [1, 3])
def test_a_grid_that_repeats_is_guessed_by_its_row(distance):
    """Every token is the one `distance` before: a repeat at that distance is always right."""
    period = TableModel(lambda context: np.eye(4)[context[-distance]], 4, distance)
    task = Task(Policy(period), (0, 1, 2)[:distance], Stopping(24))
    right = run_alone(Jacobi(7, guess=Repeat(distance)), task)[0]
    assert right.details["speculation"]["steps"] == 3


def test_a_lookup_takes_the_place_of_guesses():
    """A text that repeats itself after one turn: the rest is accepted in whole windows."""
    period = TableModel(lambda context: np.eye(8)[(context[-1] + 1) % 8], 8, 1)
    task = Task(Policy(period), (0,), Stopping(64))
    slow = run_alone(Jacobi(7, guess=Repeat()), task)[0].details["speculation"]["steps"]
    fast = run_alone(Jacobi(7, guess=Lookup(1, 2)), task)[0].details["speculation"]["steps"]
    assert (slow, fast) == (64, 15)


@pytest.mark.parametrize("name", ["sjd", "mc_sjd"])
def test_parameters_that_would_be_ignored_are_refused(name):
    method = registry.get(name)
    with pytest.raises(ParameterError, match=f"{name}: jacobi_distance has no effect on"):
        method(jacobi_distance=3)
    assert method(jacobi_guess="repeat", jacobi_distance=3).guess == Repeat(3)
    assert method(jacobi_guess="uniform").guess == Random(spread=True)
    assert method(jacobi_guess="lookup").guess == Lookup()


# -- reports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_details_add_up(coupling: Coupling):
    source = TableModel.random(5, seed=3, eos_ids=frozenset({4}))
    task = Task(Policy(source), (0,), Stopping(30, frozenset({4})), Stream(1))
    for item in run_alone(Jacobi(4, coupling, n=5), task):
        tally = item.details["speculation"]
        assert tally["emitted"] == len(item.tokens)
        assert tally["steps"] <= len(item.tokens)
        assert tally["tokens_per_step"] == len(item.tokens) / tally["steps"]
        assert len(tally["acceptance_by_depth"]) <= 4
        assert tally["nodes"] <= 4 * tally["steps"]
    short = run_alone(Jacobi(4, coupling), replace(task, stopping=Stopping(1)))[0]
    assert short.details["guesses_changed"] is None


def test_on_the_embedded_model(lm):
    """Greedy decoding and its Jacobi form agree; sampling runs, and reports what it did."""
    prompt, options = "Repeat: one two three one two three one two", {"max_tokens": 12}
    plain = lm.generate(prompt, method="greedy", **options)
    jacobi_form = Jacobi(4, guess=Lookup()).certain()
    assert lm.generate(prompt, method=jacobi_form, **options).text == plain.text
    drawn = lm.generate(prompt, method="mc_sjd", jacobi_guess="lookup", seed=1, **options)
    assert drawn.samples[0].details["speculation"]["emitted"] == len(drawn.samples[0].tokens)
