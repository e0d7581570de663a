"""Shapes of drafted trees draw by their laws, and the numbers they keep are what they say.

Exact where a formula exists. Chi-square tests have 4,000 draws at alpha 1e-5, eight of them, so a
correct file fails by chance less than once in 10,000 changes of seeds. Power: each wrong shape at
the end is rejected by the same test.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.shapes import Beam, Branching, End, Pick, Shape, truncated_gumbel
from decodery.testing import chi_square

RUNS = 4_000
ALPHA = 1e-5
PLENTY = 10**6
Q = Law.dense([0.5, 0.25, 0.15, 0.1])


def end(law: Law, run: int, place: int = 0) -> End:
    """A fresh end: the noise of each is its own."""
    return End(law, lambda index: Stream(run).uniform(0, place, "draft", index))


def tokens(shape: Shape, law: Law, run: int) -> tuple[int, ...]:
    (picks,) = shape.level(0, [end(law, run)], PLENTY)
    return tuple(pick.token for pick in picks)


def in_order(law: Law, count: int) -> dict[tuple[int, ...], float]:
    """The law of `count` draws without replacement, in their order."""
    found: dict[tuple[int, ...], float] = {}
    support = [token for token in range(law.size) if law[token] > 0]
    for order in itertools.permutations(support, min(count, len(support))):
        chance, left = 1.0, 1.0
        for token in order:
            chance *= law[token] / left
            left -= law[token]
        found[order] = chance
    return found


# -- the candidates of one node --------------------------------------------------------------------


def _iid() -> dict[tuple[int, ...], float]:
    return {pair: Q[pair[0]] * Q[pair[1]] for pair in itertools.product(range(4), repeat=2)}


def _greedy() -> dict[tuple[int, ...], float]:
    return {(0, 1, token): Q[token] / 0.25 for token in (2, 3)}


def _hub() -> dict[tuple[int, ...], float]:
    first = {(token, 0): Q[token] for token in (1, 2, 3)}
    return first | {(0, token): Q[0] * Q[token] / 0.5 for token in (1, 2, 3)}


NODES: dict[str, tuple[Shape, dict[tuple[int, ...], float]]] = {
    "distinct": (Branching((3,)), in_order(Q, 3)),
    "all distinct": (Branching((7,)), in_order(Q, 4)),
    "iid": (Branching((2,), "iid"), _iid()),
    "greedy": (Branching((3,), "greedy"), _greedy()),
    "hub": (Branching((2,), "hub"), _hub()),
    "beam": (Beam(3, 1), in_order(Q, 3)),
}


@pytest.mark.parametrize("name", NODES)
def test_candidates_of_a_node_have_their_law(name: str) -> None:
    shape, law = NODES[name]
    counts = Counter(tokens(shape, Q, run) for run in range(RUNS))
    assert sum(law.values()) == pytest.approx(1.0)
    assert chi_square(counts, law).p_value > ALPHA


def test_fixed_candidates_are_the_most_probable() -> None:
    assert tokens(Branching((3,), "fixed"), Q, 0) == (0, 1, 2)
    assert tokens(Branching((1,), "greedy"), Law.dense([0, 0, 1.0, 0]), 0) == (2,)


@pytest.mark.parametrize("drawn", ["iid", "distinct", "greedy", "fixed"])
def test_impossible_tokens_are_no_candidates(drawn: str) -> None:
    law = Law.dense([0.0, 0.9, 0.0, 0.1])
    for run in range(50):
        found = tokens(Branching((4,), drawn), law, run)  # type: ignore[arg-type]
        assert set(found) <= {1, 3}
        assert drawn == "iid" or sorted(found) == [1, 3]
        assert set(tokens(Beam(4, 1), law, run)) == {1, 3}
    assert tokens(Branching((2,), "hub"), Law.certain(2, 4), 0) == (2,)


# -- Gumbel keys -----------------------------------------------------------------------------------


@given(
    st.floats(-60, 20),
    st.floats(-60, 60),
    st.floats(0, 1, exclude_max=True, allow_subnormal=False),
)
def test_a_truncated_gumbel_is_the_quantile(location: float, most: float, uniform: float) -> None:
    """P(G <= g | G <= most) = exp(e^(location - most) - e^(location - g)), and that is 1 - u."""
    key = truncated_gumbel(location, most, uniform)
    assert key <= most + 1e-9
    assert math.isfinite(key)
    if location - most < 20:
        exponent = math.exp(location - most) - math.exp(location - key)
        assert math.exp(exponent) == pytest.approx(1 - uniform, abs=1e-6)


def test_without_a_bound_it_is_gumbel() -> None:
    keys = [truncated_gumbel(0.0, 50.0, (place + 0.5) / 4000) for place in range(4000)]
    assert np.mean(keys) == pytest.approx(np.euler_gamma, abs=0.01)
    assert np.var(keys) == pytest.approx(math.pi**2 / 6, rel=0.02)


# -- whole trees -----------------------------------------------------------------------------------

Path = tuple[int, ...]
Laws = Callable[[Path], Law]


def random_laws(size: int, seed: int, concentration: float = 1.0) -> Laws:
    @cache
    def law(path: Path) -> Law:
        generator = np.random.default_rng([seed, len(path), *path])
        return Law.dense(generator.dirichlet(np.full(size, concentration)))

    return law


def grow(
    shape: Shape, laws: Laws, run: int, most: int = PLENTY
) -> list[list[tuple[Path, End, list[Pick]]]]:
    """A tree, level by level: (path of an end, the end, the candidates below it)."""
    levels: list[list[tuple[Path, End, list[Pick]]]] = []
    ends: list[tuple[Path, End]] = [((), end(laws(()), run))]
    for number in range(shape.depth):
        picked = shape.level(number, [item for _, item in ends], most)
        most -= sum(map(len, picked))
        levels.append([(path, item, own) for (path, item), own in zip(ends, picked, strict=True)])
        below: list[tuple[Path, End]] = []
        for path, _, picks in levels[-1]:
            for pick in picks:
                longer = (*path, pick.token)
                place = 1 + sum((1 + token) * 50**i for i, token in enumerate(longer))
                fresh = end(laws(longer), run, place)
                below.append((longer, replace(fresh, log_chance=pick.log_chance, key=pick.key)))
        if not below:
            break
        ends = below
    return levels


def branches(shape: Shape, laws: Laws, run: int) -> list[Path]:
    """The branches of the last level, largest key first."""
    last = [
        (pick.key, (*path, pick.token))
        for path, _, picks in grow(shape, laws, run)[-1]
        for pick in picks
    ]
    return [path for _, path in sorted(last, reverse=True)]


def sequence_law(laws: Laws, size: int, levels: int) -> dict[Path, float]:
    found: dict[Path, float] = {}
    for path in itertools.product(range(size), repeat=levels):
        chance = 1.0
        for place, token in enumerate(path):
            chance *= laws(path[:place])[token]
        found[path] = chance
    return found


def pairs_without_replacement(law: dict[Path, float]) -> dict[tuple[Path, Path], float]:
    return {
        (one, other): law[one] * law[other] / (1 - law[one])
        for one, other in itertools.permutations(law, 2)
    }


LAWS = random_laws(3, 5)


def pair_test(shape: Shape, runs: int = RUNS) -> float:
    """p-value: the two last branches are draws without replacement from the sequences."""
    law = pairs_without_replacement(sequence_law(LAWS, 3, 2))
    counts = Counter(tuple(branches(shape, LAWS, run)[:2]) for run in range(runs))
    return chi_square(counts, law).p_value


def test_stochastic_beams_are_sequences_drawn_without_replacement() -> None:
    assert pair_test(Beam(2, 2)) > ALPHA


def test_the_largest_beam_is_a_draw() -> None:
    law = sequence_law(LAWS, 3, 2)
    counts = Counter(branches(Beam(3, 2), LAWS, run)[0] for run in range(RUNS))
    assert chi_square(counts, law).p_value > ALPHA


@pytest.mark.parametrize("concentration", [0.05, 1.0, 20.0])
def test_keys_of_beams_keep_their_order_and_their_parents_key(concentration: float) -> None:
    """Of the candidates below an end the first has the end's own key, and keys fall."""
    shape = Beam(4, 6)
    laws = random_laws(9, 3, concentration)
    for run in range(40):
        levels = grow(shape, laws, run)
        for number, level in enumerate(levels):
            assert 1 <= sum(len(picks) for *_, picks in level) <= shape.beams
            worth = {path: item.log_chance for path, item, _ in level}
            for path, item, picks in level:
                keys = [pick.key for pick in picks]
                assert keys == sorted(keys, reverse=True)
                assert not keys or keys[0] == item.key
                assert len({pick.token for pick in picks}) == len(picks)
                for pick in picks:
                    wanted = worth[path] + math.log(laws(path)[pick.token])
                    assert pick.log_chance == pytest.approx(wanted)
            assert number == 0 or max(item.key for _, item, _ in level) == 0.0


def test_a_beam_of_one_is_a_chain() -> None:
    laws = random_laws(5, 8)
    for run in range(200):
        chain = grow(Branching((1, 1, 1)), laws, run)[-1][0]
        beam = grow(Beam(1, 3), laws, run)[-1][0]
        assert (chain[0], chain[2][0].token) == (beam[0], beam[2][0].token)


@pytest.mark.parametrize(
    ("shape", "nodes"),
    [
        (Branching((2, 2)), 6),
        (Branching((2, 2, 1)), 10),
        (Branching((2, 2, 2)), 14),
        (Branching((3, 2, 2)), 21),
        (Branching((2, 2, 2, 2)), 30),
        (Branching((1,) * 6), 6),
        (Beam(7, 2), 14),
        (Beam(3, 7), 21),
    ],
    ids=str,
)
def test_the_nodes_of_a_shape(shape: Shape, nodes: int) -> None:
    assert shape.nodes == nodes
    laws = random_laws(12, 4)
    found = [sum(len(p) for *_, p in level) for level in grow(shape, laws, 0)]
    assert sum(found) == nodes
    assert len(found) == shape.depth
    assert max(len(p) for level in grow(shape, laws, 0) for *_, p in level) <= shape.width


@pytest.mark.parametrize("shape", [Branching((3, 2, 2)), Beam(4, 4), Branching((2, 2), "hub")])
@pytest.mark.parametrize("most", [1, 2, 3, 5, 9, 100])
def test_a_budget_cuts_a_shape(shape: Shape, most: int) -> None:
    laws = random_laws(8, 6)
    for run in range(20):
        levels = grow(shape, laws, run, most)
        assert sum(len(picks) for level in levels for *_, picks in level) <= min(most, shape.nodes)
        if isinstance(shape, Branching):  # below every end of a level equally many
            assert all(len({len(picks) for *_, picks in level}) == 1 for level in levels)


# -- the most probable branches --------------------------------------------------------------------


def test_certain_shapes_are_the_most_probable_branches() -> None:
    laws = random_laws(6, 9)
    assert Branching((3, 2)).certain() == Branching((3, 2), "fixed")
    level = grow(Branching((3, 2)).certain(), laws, 0)
    assert [pick.token for pick in level[0][0][2]] == laws(()).top(3)
    certain = Beam(36, 2).certain()
    assert certain.drawn == "fixed"
    law = sequence_law(laws, 6, 2)
    assert branches(certain, laws, 0) == sorted(law, key=lambda path: -law[path])
    first, second = grow(Beam(2, 2).certain(), laws, 0)
    kept = sorted((laws(())[token] for token in range(6)), reverse=True)[:2]
    assert [laws(())[pick.token] for pick in first[0][2]] == kept
    assert sum(len(picks) for *_, picks in second) == 2


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Branching(()),
        lambda: Branching((2, 0)),
        lambda: Branching((2, 1), "hub"),
        lambda: Beam(0, 2),
        lambda: Beam(2, 0),
        lambda: Beam(2, 2, "iid"),
    ],
    ids=["empty", "no children", "hub of one", "no beams", "no levels", "beams iid"],
)
def test_shapes_that_make_no_sense_are_refused(make: Callable[[], Shape]) -> None:
    with pytest.raises(ParameterError):
        make()


# -- negative controls -----------------------------------------------------------------------------


class FreeKeys(Beam):
    """Keys that are not bound to the parent's: perturbed anew at every level."""

    def _below(self, end: End) -> list[Pick]:
        picks = super()._below(end)
        noise = [-math.log(-math.log(end.uniform(100 + place))) for place in range(len(picks))]
        return sorted(
            (replace(p, key=p.log_chance + g) for p, g in zip(picks, noise, strict=True)),
            key=lambda pick: -pick.key,
        )


class OneNoise(Beam):
    """All candidates of an end made with one number."""

    def _below(self, end: End) -> list[Pick]:
        first = end.uniform(0)
        return super()._below(replace(end, uniform=lambda _: first))


class NotRemoved(Beam):
    """The mass left is never taken off: keys of later candidates are too large."""

    def _below(self, end: End) -> list[Pick]:
        picks = super()._below(end)
        key, found = end.key, list[Pick]()
        for place, pick in enumerate(picks):
            if place:
                key = truncated_gumbel(end.log_chance, key, end.uniform(2 * place + 1))
            found.append(replace(pick, key=key))
        return found


def likeliest(beams: int, levels: int) -> Shape:
    return Beam(beams, levels).certain()


@pytest.mark.parametrize("wrong", [FreeKeys, OneNoise, NotRemoved, likeliest])
def test_wrong_beams_are_rejected(wrong: Callable[[int, int], Shape]) -> None:
    assert pair_test(wrong(2, 2), 2_000) < 1e-9


class ByProbability(Branching):
    """The right set in a wrong order: most probable first."""

    def level(self, number: int, ends: Sequence[End], most: int) -> list[list[Pick]]:
        picked = super().level(number, ends, most)
        return [
            sorted(picks, key=lambda pick: -own.law[pick.token])
            for own, picks in zip(ends, picked, strict=True)
        ]


def test_a_wrong_order_is_rejected() -> None:
    counts = Counter(tokens(ByProbability((3,)), Q, run) for run in range(RUNS))
    assert chi_square(counts, in_order(Q, 3)).p_value < 1e-9
