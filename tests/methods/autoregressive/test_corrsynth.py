"""CorrSynth's rows: every oracle of the definition, by closed form; whole runs are in
`test_corrsynth_runs.py`.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from corrsynth_cases import FLAT, laws, normalised, random_laws, rows_of, table, task

from decodery.core import registry
from decodery.core.row import Row
from decodery.core.runner import Runner
from decodery.core.sampler import Context
from decodery.methods.autoregressive.corrsynth import CorrSynth
from decodery.methods.blending.cfg import Cfg

CORRSYNTH, SAMPLE = registry.get("corrsynth"), registry.get("sample")

# -- rows: the formula -----------------------------------------------------------------------------

GROUPS = [(0,), (0, 0), (0, 1), (0, 0, 1), (0, 0, 1, 1), (0, 0, 0, 1, 1, 2), (2, 0, 0, 1)]
MODES = [
    ("hybrid", 0.5),
    ("hybrid", 0.2),
    ("hybrid", 0.0),
    ("hybrid", 1.0),
    ("cross", 0.5),
    ("intra", 0.5),
]


def siblings(groups, n, contrast):
    """The two sets of siblings that count, by hand."""
    others = [j for j in range(len(groups)) if j != n]
    intra = [j for j in others if groups[j] == groups[n]] if contrast != "cross" else []
    cross = [j for j in others if groups[j] != groups[n]] if contrast != "intra" else []
    return intra, cross


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize(("contrast", "rho"), MODES, ids=str)
def test_exponents_sum_as_specified(groups, contrast, rho):
    """A row of shares sums to one where there is a sibling, by kind as rho says, else to zero."""
    shares = CorrSynth(contrast=contrast, rho=rho).shares(groups)
    assert (np.diag(shares) == 0).all()
    assert (shares >= 0).all()
    for n, row in enumerate(shares):
        intra, cross = siblings(groups, n, contrast)
        want_intra = rho if contrast == "hybrid" else 1.0
        want_cross = 1 - rho if contrast == "hybrid" else 1.0
        budget = {"intra": want_intra if intra else 0.0, "cross": want_cross if cross else 0.0}
        total = sum(budget.values())
        assert row.sum() == pytest.approx(1.0 if total else 0.0, abs=1e-15)
        if total:
            assert row[intra].sum() == pytest.approx(budget["intra"] / total, abs=1e-15)
            assert row[cross].sum() == pytest.approx(budget["cross"] / total, abs=1e-15)
        for peers in (intra, cross):
            assert len(set(row[peers].tolist())) <= 1


def test_uniform_over_all_siblings_is_a_hybrid():
    """rho = |intra| / (M - 1) divides the contrast equally."""
    groups = (0, 0, 0, 1, 1, 1)
    shares = CorrSynth(contrast="hybrid", rho=2 / 5).shares(groups)
    assert shares == pytest.approx((1 - np.eye(6)) / 5, abs=1e-15)


@pytest.mark.parametrize("groups", GROUPS[1:], ids=str)
@pytest.mark.parametrize(("contrast", "rho"), MODES, ids=str)
@pytest.mark.parametrize(("gamma", "delta"), [(1.0, 0.9), (1.0, 0.3), (1.5, 0.5), (2.0, 2.0)])
def test_the_row_is_a_quotient_by_geometric_means(groups, contrast, rho, gamma, delta):
    """P_n^gamma / GM(intra)^a / GM(cross)^b with a + b = gamma - delta, as probabilities."""
    given = random_laws(len(groups), 7, seed=3)
    decoder = CorrSynth(contrast=contrast, rho=rho, gamma=gamma, delta=delta, **FLAT)
    found = laws(decoder.joint(rows_of(*given), groups))
    for n, law in enumerate(given):
        intra, cross = siblings(groups, n, contrast)
        means = [
            (share, np.prod([given[j] ** (1 / len(peers)) for j in peers], axis=0))
            for peers, share in ((intra, rho), (cross, 1 - rho))
            if peers and (contrast != "hybrid" or share)
        ]
        if contrast != "hybrid":
            means = [(1.0, mean) for _, mean in means]
        total = sum(share for share, _ in means)
        wanted = law**gamma if means else law
        for share, mean in means:
            wanted = wanted / mean ** ((gamma - delta) * share / total)
        assert found[n] == pytest.approx(normalised(wanted), abs=1e-12)


def test_without_contrast_every_row_is_its_own():
    """Oracle 1: delta = gamma is P^gamma; at gamma 1 the very row."""
    given = rows_of(*random_laws(4, 6))
    for gamma in (0.7, 1.0, 2.0):
        joint = CorrSynth(gamma=gamma, delta=gamma, **FLAT).joint(given, (0, 0, 1, 1))
        for row, own in zip(joint, given, strict=True):
            assert row.probabilities() == pytest.approx(
                normalised(own.probabilities() ** gamma), abs=1e-14
            )
    plain = CorrSynth(gamma=1.0, delta=1.0, **FLAT).joint(given, (0, 0, 1, 1))
    assert all((a.scores == b.scores).all() for a, b in zip(plain, given, strict=True))


@pytest.mark.parametrize("delta", [1.0, 0.5, 0.1, 1e-6])
def test_siblings_of_one_law_flatten_it(delta):
    """Oracle 2: P^delta exactly; as delta goes to 0, uniform on the plausible set."""
    law = random_laws(1, 8, seed=1)[0]
    for gamma, groups in product((1.0, 1.5), [(0, 0), (0, 1, 1), (0, 0, 1, 2)]):
        joint = CorrSynth(gamma=gamma, delta=delta, **FLAT).joint(
            rows_of(*[law] * len(groups)), groups
        )
        for row in joint:
            assert row.probabilities() == pytest.approx(normalised(law**delta), abs=1e-12)
    near_zero = CorrSynth(delta=1e-9, alpha=0.05).joint(rows_of(law, law), (0, 0))[0]
    kept = law >= 0.05 * law.max()
    assert near_zero.dense_probabilities() == pytest.approx(kept / kept.sum(), abs=1e-7)


@pytest.mark.parametrize(("gamma", "delta"), [(1.0, 0.5), (1.3, 0.9), (2.0, 0.1)])
def test_two_tokens_in_logits(gamma, delta):
    """Oracle 3."""

    def logit(p):
        return math.log(p / (1 - p))

    for one, other in [(0.3, 0.8), (0.01, 0.5), (0.999, 0.9)]:
        pair = rows_of([one, 1 - one], [other, 1 - other])
        joint = laws(CorrSynth(gamma=gamma, delta=delta, **FLAT).joint(pair, (0, 1)))
        assert logit(joint[0][0]) == pytest.approx(
            gamma * logit(one) - (gamma - delta) * logit(other), abs=1e-10
        )
        assert logit(joint[1][0]) == pytest.approx(
            gamma * logit(other) - (gamma - delta) * logit(one), abs=1e-10
        )


def test_permuting_streams_permutes_rows():
    """Oracle 4, the first half."""
    given, groups = rows_of(*random_laws(6, 9)), np.array((0, 0, 1, 1, 1, 2))
    decoder = CorrSynth(rho=0.3, delta=0.4)
    joint = decoder.joint(given, groups)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(6)
        moved = decoder.joint([given[n] for n in order], groups[order])
        assert laws(moved) == pytest.approx(laws(joint)[order], abs=1e-14)


def test_a_stream_without_siblings_is_the_sources():
    """Oracle 4, the second half: the very row, whatever gamma and alpha are."""
    given = rows_of(*random_laws(3, 5))
    for contrast, groups in (("intra", (0, 1, 2)), ("cross", (0, 0, 0)), ("hybrid", (0,))):
        decoder = CorrSynth(contrast=contrast, gamma=3.0, delta=0.5, alpha=0.9)
        rows = given[: len(groups)]
        joint = decoder.joint(rows, groups)
        assert all(a is b for a, b in zip(joint, rows, strict=True))


def test_constants_on_a_row_change_nothing():
    """Oracle 5."""
    given, groups = rows_of(*random_laws(4, 6)), (0, 0, 1, 1)
    decoder = CorrSynth(delta=0.3)
    moved = [
        row.with_scores(row.scores + shift)
        for row, shift in zip(given, (5, -3, 0, 40), strict=True)
    ]
    assert laws(decoder.joint(moved, groups)) == pytest.approx(
        laws(decoder.joint(given, groups)), abs=1e-12
    )


def test_the_plausible_set_is_the_streams_own():
    """Oracle 6: alpha 1 is the argmax, alpha 0 everything, and siblings have no say."""
    given = random_laws(4, 9, seed=5)
    groups = (0, 0, 1, 1)
    for alpha in (0.0, 1e-3, 0.05, 0.5, 1.0):
        for others in (given, random_laws(4, 9, seed=6)):
            rows = rows_of(given[0], *others[1:])
            (kept, *_) = CorrSynth(delta=0.2, alpha=alpha).joint(rows, groups)
            assert (
                kept.token_ids().tolist()
                == np.flatnonzero(given[0] >= alpha * given[0].max()).tolist()
            )
    (best, *_) = CorrSynth(delta=0.2, alpha=1.0).joint(rows_of(*given), groups)
    assert best.token_ids().tolist() == [given[0].argmax()]


def test_the_floor_bounds_what_a_sibling_gives():
    """A token that a sibling excludes is worth at most floor^-(gamma - delta) more."""
    own, other = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    for floor in (1e-8, 1e-2):
        joint = CorrSynth(delta=0.5, alpha=0.0, floor=floor).joint(rows_of(own, other), (0, 1))[0]
        assert joint.probabilities() == pytest.approx(normalised(np.array([1, floor**-0.5])))
    impossible = CorrSynth(delta=0.5).joint(rows_of(other, own), (0, 1))[0]
    assert impossible.dense_probabilities().tolist() == [1.0, 0.0]


# -- oracle 7: siblings collide less ---------------------------------------------------------------


def entropies(given):
    return -(given * np.log(np.where(given > 0, given, 1.0))).sum(axis=1)


def tempered_to(given, wanted):
    """Laws [n, V] to powers that have the entropies [n], by bisection."""
    low, high = np.full(len(given), 1e-6), np.full(len(given), 50.0)
    for _ in range(60):
        middle = np.sqrt(low * high)
        powers = given ** middle[:, None]
        made = powers / powers.sum(axis=1, keepdims=True)
        flat = entropies(made) > wanted
        low, high = np.where(flat, middle, low), np.where(flat, high, middle)
    return made


def collisions(draws, decoder):
    """Collision probabilities [draws, 3]: contrasted, tempered to the same entropies, plain."""
    generator = np.random.default_rng(0)
    own, joint = np.empty((2, draws, 10)), np.empty((2, draws, 10))
    for draw in range(draws):
        base = generator.dirichlet(np.full(10, 0.7))
        for sibling in own:
            sibling[draw] = normalised(base * np.exp(0.7 * generator.normal(size=10)))
        joint[:, draw] = laws(decoder.joint(rows_of(*own[:, draw]), (0, 1)))
    equal = [tempered_to(one, entropies(other)) for one, other in zip(own, joint, strict=True)]
    return np.stack([(a * b).sum(axis=1) for a, b in (joint, equal, own)], axis=1)


def test_siblings_avoid_each_other():
    """The specification's 3,000 draws: 0.093 against 0.152 and 0.198, lower in every draw."""
    found = collisions(3000, CorrSynth(gamma=1.0, delta=0.5, alpha=1e-3))
    assert found.mean(axis=0) == pytest.approx([0.093, 0.152, 0.198], abs=0.004)
    assert (found[:, 0] < found[:, 1]).all()
    assert (found[:, 0] < found[:, 2]).all()


def test_a_contrast_with_the_wrong_sign_would_be_found():
    class Attracted(CorrSynth):
        def shares(self, groups):
            return -super().shares(groups)

    found = collisions(50, Attracted(gamma=1.0, delta=0.5, alpha=1e-3))
    assert found[:, 0].mean() > found[:, 2].mean()


# -- oracle 8: guidance fades, the contrast does not -----------------------------------------------


def test_guidance_fades_at_once_where_the_contrast_stays():
    """On a Markov chain of order 1 the prompt is forgotten after one token."""
    source = table(4, vocab_size=4, eos_ids=frozenset(), order=1)
    guided = Cfg(source, 3.0, (1,))
    prompt, other = (0,), (1,)
    for text in ((), (2,), (2, 3), (1, 1, 3)):
        own, second = (Row.dense(source.scores([*start, *text])) for start in (prompt, other))
        row = guided.combine([own, second], None, Context((*prompt, *text), 1))
        apart = np.abs(row.probabilities() - own.probabilities()).max()
        term = own.scores - second.scores
        assert (apart > 0.01) if not text else ((term == 0).all() and apart < 1e-14)
    decoder = CorrSynth(delta=0.5, **FLAT)
    for one, another in [((2,), (3,)), ((2, 3), (2, 0)), ((1, 1, 3), (0, 0, 1))]:
        rows = [
            Row.dense(source.scores([*start, *text]))
            for start, text in ((prompt, one), (other, another))
        ]
        joint = decoder.joint(rows, (0, 1))
        assert np.abs(joint[0].probabilities() - rows[0].probabilities()).max() > 0.02


# -- oracle 9: what it costs -----------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "repeats"), [((), 1), ((), 4), (("a", "b", "c"), 2)])
def test_one_forward_a_step_and_one_token_a_stream(labels, repeats):
    source, length = table(1, eos_ids=frozenset()), 6
    decoder = CORRSYNTH(labels=labels, repeats=repeats)
    runner = Runner()
    handle = runner.submit(decoder, task(source, "a{label}" if labels else "a", max_tokens=length))
    runner.run()
    streams = max(1, len(labels)) * repeats
    prompts = sum(map(len, decoder.prompts(handle.task)))
    assert len(handle.result()) == streams
    assert source.calls == handle.report.model_calls == length
    assert handle.report.tokens_evaluated == prompts + streams * (length - 1)
    guided = runner.submit(SAMPLE(n=streams), task(Cfg(source, 1.5), max_tokens=length))
    runner.run()
    drawn = streams * (length - 1)  # after each prompt's own row
    assert guided.report.tokens_evaluated == 2 * (1 + drawn)
