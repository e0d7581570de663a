"""EDT: the formula against plain Python, its limits and its direction, then wrong variants.

Statistics: chi-square at N = 200,000 and alpha 1e-4 with a fixed seed; a total variation of 0.01
from the law is rejected with power above 0.999 at up to ten degrees of freedom.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from branching import assert_branches_are_separate

from decodery.api.plan import make_plan
from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import run_alone
from decodery.core.sampler import Context, Sampler, chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.sampling.allowed_tokens import AllowedTokens
from decodery.methods.sampling.edt import EDT, METHOD
from decodery.methods.sampling.min_p import MinP
from decodery.methods.sampling.mirostat import Mirostat
from decodery.methods.sampling.repetition_penalty import RepetitionPenalty
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_k import TopK
from decodery.methods.sampling.top_p import TopP
from decodery.methods.sampling.typical import Typical
from decodery.testing import TableModel, chi_square, enumerate_law

NOWHERE = Context((0,), 1)

# T / T0 at N = 0.8: entropy in nats, then theta 0.05, 0.1, 0.5, 1, 2.
TABLE = {
    0.05: (0.800, 0.640, 0.107, 0.012, 0.0001),
    0.3: (0.963, 0.928, 0.689, 0.475, 0.226),
    1.0: (0.989, 0.978, 0.894, 0.800, 0.640),
    2.0: (0.994, 0.989, 0.946, 0.894, 0.800),
    5.0: (0.998, 0.996, 0.978, 0.956, 0.915),
}
THETAS = (0.05, 0.1, 0.5, 1.0, 2.0)


# -- the definition, in plain Python ---------------------------------------------------------------


def entropy(law: list[float]) -> float:
    return -math.fsum(p * math.log(p) for p in law if p > 0)


def reference_temperature(law: list[float], t0: float, theta: float, n: float = 0.8) -> float:
    return t0 * n ** (theta / max(entropy(law), 1e-6))


def reference_law(law: list[float], t0: float, theta: float, n: float = 0.8) -> list[float]:
    heat = reference_temperature(law, t0, theta, n)
    if heat <= 1e-3:
        return [float(v == law.index(max(law))) for v in range(len(law))]
    weights = [(p / max(law)) ** (1 / heat) for p in law]
    return [weight / math.fsum(weights) for weight in weights]


@cache
def row_of_entropy(wanted: float, size: int = 400) -> Row:
    """A row with this entropy: a geometric law, its ratio found by bisection."""
    low, high = -50.0, 0.0
    for _ in range(64):
        slope = (low + high) / 2
        row = Row.dense(slope * np.arange(size))
        low, high = (slope, high) if row.entropy() < wanted else (low, slope)
    return row


def random_laws(count: int, size: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    spread = generator.choice([0.02, 0.3, 3.0], (count, 1))
    return np.array([generator.dirichlet(np.full(size, float(one))) for one in spread[:, 0]])


@pytest.mark.parametrize("t0", [0.3, 1.0, 1.8])
@pytest.mark.parametrize("theta", [0.0, 0.1, 1.0, 7.0])
@pytest.mark.parametrize("n", [0.1, 0.8, 1.0])
def test_the_law_is_the_definition(t0: float, theta: float, n: float) -> None:
    sampler = EDT(t0, theta, n)
    for law in random_laws(60, 6):
        row = Row.of_probabilities(law)
        exact = row.dense_probabilities().tolist()
        assert sampler.temperature_of(row) == pytest.approx(
            max(reference_temperature(exact, t0, theta, n), 1e-4), rel=1e-9
        )
        found = sampler.apply(row, None, NOWHERE).dense_probabilities()
        assert np.abs(found - reference_law(exact, t0, theta, n)).max() < 1e-9


@pytest.mark.parametrize("wanted", TABLE, ids=lambda wanted: f"H={wanted}")
def test_the_reference_table_to_three_decimals(wanted: float) -> None:
    row = row_of_entropy(wanted)
    assert row.entropy() == pytest.approx(wanted, abs=1e-9)
    for theta, ratio in zip(THETAS, TABLE[wanted], strict=True):
        for t0 in (0.7, 1.0, 1.5):
            found = EDT(t0, theta, floor=1e-9).temperature_of(row) / t0
            assert found == pytest.approx(ratio, abs=5e-5 if ratio < 0.001 else 5.01e-4)


@pytest.mark.parametrize("gap", [0.0, 0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("theta", [0.1, 1.0])
def test_two_tokens_in_closed_form(gap: float, theta: float) -> None:
    p = 1 / (1 + math.exp(-gap))
    nats = -p * math.log(p) - (1 - p) * math.log1p(-p)
    heat = 1.3 * math.exp(theta / nats * math.log(0.8))
    row = Row.dense([1.0 + gap, 1.0])
    assert EDT(1.3, theta, floor=1e-12).temperature_of(row) == pytest.approx(heat, rel=1e-12)
    if heat > 1e-3:
        law = EDT(1.3, theta).apply(row, None, NOWHERE)
        odds = law.log_probability(0) - law.log_probability(1)
        assert odds == pytest.approx(gap / heat, rel=1e-9, abs=1e-12)


def test_the_entropy_may_be_in_bits() -> None:
    """Bits with theta are nats with theta ln 2."""
    for law in random_laws(30, 9, seed=1):
        row = Row.of_probabilities(law)
        bits = EDT(1.2, 0.6, entropy_base="2").temperature_of(row)
        nats = EDT(1.2, 0.6 * math.log(2)).temperature_of(row)
        assert bits == pytest.approx(nats, rel=1e-12)


# -- what holds for every row ----------------------------------------------------------------------


def test_the_temperature_rises_with_entropy_and_never_passes_its_bound() -> None:
    grid = np.linspace(0.02, 5.9, 30).tolist()
    for theta in THETAS:
        heats = [EDT(1.4, theta, floor=1e-300).temperature_of(row_of_entropy(h)) for h in grid]
        assert all(low < high for low, high in itertools.pairwise(heats))
        assert 0 < heats[0] < heats[-1] < 1.4


def test_only_the_product_of_theta_and_ln_n_matters() -> None:
    for c in (0.25, 3.0):
        for law in random_laws(20, 8, seed=2):
            row = Row.of_probabilities(law)
            one, other = EDT(1.1, 0.4, 0.8), EDT(1.1, 0.4 * c, 0.8 ** (1 / c))
            assert one.temperature_of(row) == pytest.approx(other.temperature_of(row), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("t0", [0.4, 1.0, 1.7])
def test_without_response_it_is_the_fixed_temperature_bit_for_bit(t0: float, dtype: Any) -> None:
    for law in [*random_laws(40, 8, seed=3), np.eye(8)[2]]:
        row = Row.of_probabilities(law)
        row = row.with_scores(row.scores.astype(dtype))
        wanted = Temperature(t0).apply(row, None, NOWHERE)
        for sampler in (EDT(t0, theta=0.0), EDT(t0, theta=3.0, n=1.0)):
            found = sampler.apply(row, None, NOWHERE)
            assert found.scores.dtype == wanted.scores.dtype
            assert np.array_equal(found.scores, wanted.scores)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sure_row_is_greedy_and_gives_no_nan(dtype: Any) -> None:
    with np.errstate(divide="ignore"):
        for law in (
            np.eye(5)[3],
            np.array([0, 0, 1e-300, 1.0, 0]),
            np.full(5, 1e-12) + np.eye(5)[3],
        ):
            row = Row.dense(np.log(law).astype(dtype))
            for theta in (0.1, 1.0, 1000.0):
                sampler = EDT(1.5, theta)
                assert sampler.temperature_of(row) == pytest.approx(1e-4)
                assert sampler.apply(row, None, NOWHERE).token_ids().tolist() == [3]


def test_a_sure_row_of_ties_takes_the_lowest_id() -> None:
    row = Row.of_probabilities([0.1, 0.45, 0.45])
    assert EDT(1.0, 500.0).apply(row, None, NOWHERE).token_ids().tolist() == [1]


def test_an_even_row_stays_even() -> None:
    row = Row.dense(np.full(64, 3.0))
    sampler = EDT(1.2, 0.5)
    assert sampler.temperature_of(row) == pytest.approx(1.2 * 0.8 ** (0.5 / math.log(64)))
    assert sampler.apply(row, None, NOWHERE).probabilities() == pytest.approx(np.full(64, 1 / 64))


def test_a_shift_changes_nothing_and_the_argmax_stays() -> None:
    for law in random_laws(40, 8, seed=4):
        row = Row.of_probabilities(law)
        for sampler in (EDT(0.8, 0.1), EDT(1.6, 2.0)):
            moved = row.with_scores(np.add(row.scores, 40.0))
            assert sampler.temperature_of(row) == pytest.approx(
                sampler.temperature_of(moved), rel=1e-9
            )
            assert sampler.apply(row, None, NOWHERE).argmax() == row.argmax()


def test_never_more_open_than_the_fixed_temperature() -> None:
    for law in random_laws(60, 12, seed=5):
        row = Row.of_probabilities(law)
        fixed = Temperature(1.5).apply(row, None, NOWHERE).entropy()
        for theta in THETAS:
            assert EDT(1.5, theta).apply(row, None, NOWHERE).entropy() <= fixed + 1e-12


def test_masked_tokens_have_no_part_in_the_entropy() -> None:
    scores = np.array([1.0, 0.5, -0.3, 2.0])
    short = Row.dense(scores)
    padded = Row.dense(np.concatenate([np.full(50, -np.inf), scores]))
    allowed = AllowedTokens((50, 51, 52, 53)).apply(
        Row.dense(np.concatenate([np.full(50, 0.7), scores])), None, NOWHERE
    )
    sampler = EDT(1.0, 0.8)
    for row in (padded, allowed):
        assert sampler.temperature_of(row) == pytest.approx(
            sampler.temperature_of(short), rel=1e-12
        )


def test_a_floor_of_ones_own() -> None:
    sure = Row.of_probabilities([0.999, 0.001])
    sampler = METHOD(edt_theta=5.0, edt_floor=0.3)
    assert sampler.temperature_of(sure) == 0.3
    assert METHOD(edt_theta=1000.0).apply(sure, None, NOWHERE).token_ids().tolist() == [0]


# -- wrong variants, which the table and the definition must reject --------------------------------


class Inverted(EDT):
    """A base above 1: sure steps hot."""

    def temperature_of(self, row: Row) -> float:
        return self.t0 * math.exp(-self.theta / row.entropy() * math.log(self.n))


class Upside(EDT):
    """The exponent upside down: T falls with entropy."""

    def temperature_of(self, row: Row) -> float:
        return self.t0 * math.exp(self.theta * row.entropy() * math.log(self.n))


class Additive(EDT):
    """T0 + theta H / ln K, which circulates under the same name."""

    def temperature_of(self, row: Row) -> float:
        return self.t0 + self.theta * row.entropy() / math.log(len(row))


class OfTheHead(EDT):
    """The entropy of the ten most probable tokens only."""

    def temperature_of(self, row: Row) -> float:
        return super().temperature_of(TopK(10).apply(row, None, NOWHERE))


class InBits(EDT):
    """Entropy in bits where nats are said."""

    def temperature_of(self, row: Row) -> float:
        return self.t0 * math.exp(self.theta / (row.entropy() / math.log(2)) * math.log(self.n))


def fits_the_table(kind: type[EDT]) -> bool:
    return all(
        abs(kind(1.0, theta, floor=1e-9).temperature_of(row_of_entropy(wanted)) - ratio) < 6e-4
        for wanted, ratios in TABLE.items()
        for theta, ratio in zip(THETAS, ratios, strict=True)
    )


def test_the_control_without_a_fault_fits() -> None:
    assert fits_the_table(EDT)


@pytest.mark.parametrize("mutant", [Inverted, Upside, Additive, OfTheHead, InBits])
def test_wrong_responses_do_not_fit(mutant: type[EDT]) -> None:
    assert not fits_the_table(mutant)


# -- draws -----------------------------------------------------------------------------------------

LAW = [0.31, 0.02, 0.17, 0.005, 0.09, 0.13, 0.03, 0.21, 0.025, 0.01]


def drawn(sampler: Sampler, count: int) -> Counter[int]:
    row = sampler.apply(Row.of_probabilities(LAW), None, NOWHERE)
    ends, noise = np.cumsum(row.probabilities()), np.random.default_rng(3).random(count)
    return Counter(row.token_ids()[np.searchsorted(ends, noise * ends[-1])].tolist())


@pytest.mark.parametrize(("t0", "theta"), [(1.0, 0.1), (1.5, 1.0), (0.7, 2.0)])
def test_draws_follow_the_law(t0: float, theta: float) -> None:
    law = dict(enumerate(reference_law(LAW, t0, theta)))
    assert chi_square(drawn(EDT(t0, theta), 200_000), law).p_value > 1e-4


def test_draws_of_wrong_variants_are_rejected() -> None:
    law = dict(enumerate(reference_law(LAW, 1.5, 1.0)))
    for wrong in (Temperature(1.5), EDT(1.4, 1.0), Inverted(1.5, 1.0), InBits(1.5, 1.0)):
        assert chi_square(drawn(wrong, 200_000), law).p_value < 1e-4


# -- granularity -----------------------------------------------------------------------------------


def stepwise(table: TableModel, length: int, sequence: bool) -> dict[tuple[int, ...], float]:
    """The law of every path, by hand; with `sequence` at the temperature of the first row."""
    found: dict[tuple[int, ...], float] = {}

    def walk(path: tuple[int, ...], probability: float, heat: float | None) -> None:
        if len(path) == length:
            found[path] = probability
            return
        row = np.exp(table.scores((0, *path))).tolist()
        if heat is None or not sequence:
            heat = reference_temperature(row, 1.4, 0.6)
        weights = [p ** (1 / heat) for p in row]
        for token, weight in enumerate(weights):
            walk((*path, token), probability * weight / math.fsum(weights), heat)

    walk((), 1.0, None)
    return found


@pytest.mark.parametrize("granularity", ["token", "sequence"])
@pytest.mark.parametrize("seed", range(3))
def test_the_joint_law_of_both_granularities(granularity: Any, seed: int) -> None:
    table = TableModel.random(4, seed=seed)
    sampler = EDT(1.4, 0.6, granularity=granularity)
    found = enumerate_law(Policy(table, chain(sampler)), (0,), 3)
    expected = stepwise(table, 3, granularity == "sequence")
    for path, probability in expected.items():
        assert found[path] == pytest.approx(probability, abs=1e-12)
    other = stepwise(table, 3, granularity == "token")
    assert max(abs(found[path] - other[path]) for path in other) > 1e-3


@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_branches_of_one_tree_have_states_of_their_own(granularity: Any) -> None:
    sampler = chain(RepetitionPenalty(1.3), EDT(1.3, 0.7, granularity=granularity), TopP(0.95))
    policy = Policy(TableModel.random(6, seed=3), sampler)
    paths = [[0, 5, 1, 2, 3, 0], [0, 4, 4, 4, 4, 1], [2, 5, 1, 0, 0, 3]]
    assert_branches_are_separate(policy, (1, 0), paths)


@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_samples_side_by_side_follow_the_law(granularity: Any) -> None:
    """Even and odd sequences of four runs of 1,000, chi-square at alpha 1e-4."""
    table = TableModel.random(4, seed=1)
    policy = Policy(table, chain(EDT(1.4, 0.6, granularity=granularity)))
    law = stepwise(table, 3, granularity == "sequence")
    counts: list[Counter[tuple[int, ...]]] = [Counter(), Counter()]
    items = run_alone(registry.get("sample")(1000), Task(policy, (0,), Stopping(3), Stream(5)))
    for seed in range(3):
        task = Task(policy, (0,), Stopping(3), Stream(6 + seed))
        items += run_alone(registry.get("sample")(1000), task)
    for place, item in enumerate(items):
        counts[place % 2][item.tokens] += 1
    for count in counts:
        assert chi_square(count, law).p_value > 1e-4


@pytest.mark.parametrize("granularity", ["token", "sequence"])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best_path_of_the_law(granularity: Any, seed: int) -> None:
    table = TableModel.random(4, seed=seed)
    law = stepwise(table, 3, granularity == "sequence")
    wanted = sorted(law.items(), key=lambda item: -item[1])[:4]
    policy = Policy(table, chain(EDT(1.4, 0.6, granularity=granularity)))
    found = run_alone(
        registry.get("beam")(beams=64, n=4, length_penalty=0.0),
        Task(policy, (0,), Stopping(3), Stream(0)),
    )
    assert [item.tokens for item in found] == [path for path, _ in wanted]
    for item, (_, probability) in zip(found, wanted, strict=True):
        assert item.log_probability == pytest.approx(math.log(probability), abs=1e-10)


# -- the chain -------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [Temperature(0.7), Temperature(0.0), EDT(0.9)], ids=repr)
def test_a_second_temperature_is_refused(other: Sampler) -> None:
    for stages in ((other, EDT()), (EDT(), other), (EDT(), TopP(0.9), other)):
        with pytest.raises(ParameterError, match=r"would multiply it.*edt_t0"):
            chain(*stages)
    chain(Temperature(1.0), EDT())


@pytest.mark.parametrize(
    "cut", [TopK(40), TopP(0.9), MinP(0.1), Typical(0.9), Mirostat(3.0)], ids=repr
)
def test_the_full_entropy_needs_a_row_before_truncation(cut: Sampler) -> None:
    with pytest.raises(ParameterError, match="entropy of the full row"):
        chain(cut, EDT())
    chain(EDT(), cut)
    chain(cut, EDT(entropy_of="surviving"))
    with pytest.raises(ParameterError, match="truncates only after edt"):
        chain(EDT(entropy_of="surviving"), cut)


def test_truncations_that_are_off_and_masks_are_no_conflict() -> None:
    chain(TopK(0), TopP(1.0), MinP(0.0), Typical(1.0), AllowedTokens((1, 2)), EDT())


def test_surviving_entropy_is_that_of_what_is_left() -> None:
    row = Row.of_probabilities([0.5, 0.3, 0.1, 0.06, 0.04])
    sampler = chain(TopK(2), EDT(1.5, 1.0, entropy_of="surviving"))
    left = [0.5 / 0.8, 0.3 / 0.8]
    found = sampler.apply(row, sampler.start(NOWHERE), NOWHERE).probabilities()
    assert found == pytest.approx(reference_law(left, 1.5, 1.0))


def test_the_plan_refuses_before_anything_runs() -> None:
    with pytest.raises(ParameterError, match="edt_t0"):
        make_plan("edt", {"temperature": 0.7})
    with pytest.raises(ParameterError, match="entropy of the full row"):
        make_plan("edt", {"top_p": 0.9, "sampler_order": ("top_p", "edt")})
    plan = make_plan("edt", {"top_p": 0.9, "edt_t0": 1.2})
    assert plan.sampler.stages == (EDT(1.2), TopP(0.9))
    with pytest.raises(ParameterError, match="no effect under"):
        make_plan("greedy", {"edt_theta": 1.0})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"edt_theta": -0.1}, "0 <= x <= 1000"),
        ({"edt_n": 1.2}, "0 < x <= 1"),
        ({"edt_n": 0.0}, "0 < x <= 1"),
        ({"edt_t0": 0.0}, "0.001 < x"),
        ({"edt_t0": 0.5, "edt_floor": 0.6}, "at most edt_t0, 0.5"),
        ({"edt_entropy_base": "10"}, "'e', '2'"),
        ({"edt_granularity": "word"}, "'token', 'sequence'"),
        ({"theta": 1.0}, "no parameter 'theta'"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        METHOD(**values)
