"""The tools of decodery.testing themselves: chi-square against scipy, laws against closed forms."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import stats

from decodery.core import registry
from decodery.core.decoder import Completion, Decoder
from decodery.core.errors import MissingPackageError, ParameterError
from decodery.core.requests import Open
from decodery.core.rng import Stream
from decodery.core.sampler import chain
from decodery.core.source import Model, Policy
from decodery.testing import (
    LawBroken,
    TableModel,
    chi_square,
    decoder_law,
    edge_table,
    enumerate_law,
    random_policy,
    require_law,
    row_bank,
)
from decodery.testing.observe import fingerprint, without_global_randomness
from decodery.testing.samplers import Coin, CoinLaw

HALF = {"a": 0.5, "b": 0.5}


def test_chi_square_is_scipys_where_nothing_is_merged():
    counts, law = {"a": 18, "b": 55, "c": 27}, {"a": 0.2, "b": 0.5, "c": 0.3}
    ours = chi_square(counts, law)
    theirs = stats.chisquare([18, 55, 27], [20, 50, 30])
    assert ours.statistic == pytest.approx(theirs.statistic)
    assert ours.p_value == pytest.approx(theirs.pvalue)
    assert ours.degrees == 2


def test_thin_cells_are_merged():
    law = {"a": 0.97, "b": 0.01, "c": 0.01, "d": 0.01}
    assert chi_square({"a": 97, "b": 3}, law).degrees == 0
    assert chi_square({"a": 291, "b": 9}, law).degrees == 1
    assert chi_square({"a": 970, "b": 10, "c": 10, "d": 10}, law).degrees == 3


def test_what_the_law_forbids_is_a_certain_rejection():
    assert chi_square({"a": 10, "z": 1}, HALF).p_value == 0.0
    assert chi_square({"a": 10, "z": 0}, HALF | {"z": 0.0}).p_value > 0


def test_p_values_of_true_counts_are_uniform():
    """400 draws of counts; Kolmogorov-Smirnov at alpha 1e-4, seed fixed."""
    generator = np.random.default_rng(0)
    law = dict(enumerate(generator.dirichlet(np.ones(8))))
    values = [
        chi_square(dict(enumerate(generator.multinomial(5000, list(law.values())))), law).p_value
        for _ in range(400)
    ]
    assert stats.kstest(values, "uniform").pvalue > 1e-4


def test_require_law_says_what_is_wrong_in_one_line():
    with pytest.raises(LawBroken, match=r"^coin does not follow its law: chi-square .* N = 100$"):
        require_law({"a": 90, "b": 10}, HALF, 1e-4, "coin")


def test_without_scipy_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'decodery\[testing\]'"):
        chi_square({"a": 50, "b": 50}, HALF)


@pytest.mark.parametrize("seed", range(20))
def test_enumerated_laws_sum_to_one(seed):
    law = enumerate_law(random_policy(seed, 3, eos_ids=frozenset({1})), (0,), 4)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)


def test_the_mean_over_noise_is_the_average_law():
    """The coin has two sides: the law at 4,000 seeds averages to `CoinLaw` within five errors."""
    table = TableModel.random(3, seed=2)
    noisy, average = Policy(table, chain(Coin())), Policy(table, chain(CoinLaw()))
    laws = [enumerate_law(noisy, (0,), 1, stream=Stream(seed)) for seed in range(4000)]
    for path, probability in enumerate_law(average, (0,), 1).items():
        seen = np.array([law[path] for law in laws])
        assert abs(seen.mean() - probability) < 5 * seen.std() / np.sqrt(len(seen))


def test_only_tables_are_enumerated():
    class Unknown(Model):
        name, vocab_size = "unknown", 2

        def forward(self, growths):
            return []

    with pytest.raises(ParameterError, match="unknown cannot be enumerated"):
        enumerate_law(Policy(Unknown()), (0,), 1)


class Accepts(Decoder):
    """One accept test at a half, then the token of one draw: two purposes, two numbers."""

    def decode(self, task):
        root = yield Open(task.policy, task.prompt)
        if task.stream.uniform(0, 1, "accept") < 0.5:
            return [Completion((0,), "max_tokens")]
        return [Completion((root.draw(),), "max_tokens")]


def test_decoder_law_tries_all_noise():
    policy = Policy(TableModel(lambda _: [0.25, 0.5, 0.25], 3, 0))
    law = decoder_law(Accepts(), policy, (0,), 1, grid=4)
    assert law == {(0,): 0.625, (1,): 0.25, (2,): 0.125}


def test_decoder_law_refuses_what_it_cannot_enumerate():
    class Arrays(Decoder):
        def decode(self, task):
            yield Open(task.policy, task.prompt)
            task.stream.generator(0, 0, "x")
            return []

    policy = Policy(TableModel(lambda _: [0.5, 0.5], 2, 0))
    with pytest.raises(ParameterError, match="whole arrays"):
        decoder_law(Arrays(), policy, (0,), 1, grid=2)
    with pytest.raises(ParameterError, match="more than 3 outcomes"):
        decoder_law(registry.get("sample")(), policy, (0,), 4, grid=2, max_runs=3)


def test_fingerprints_tell_values_apart():
    same = [({"a": np.zeros(2)}, {"a": np.zeros(2)}), ((1, "x"), (1, "x"))]
    other = [(np.zeros(2), np.zeros(2, dtype=np.float32)), (0.0, -0.0), ({1, 2}, {1, 3})]
    assert all(fingerprint(one) == fingerprint(two) for one, two in same)
    assert all(fingerprint(one) != fingerprint(two) for one, two in other)


def test_global_random_state_is_put_back():
    np.random.seed(5)
    expected = np.random.RandomState(5).random_sample()
    without_global_randomness("nothing", lambda: 1)
    assert np.random.random() == expected


def test_banks_and_tables_have_every_edge():
    bank = row_bank()
    assert {row.vocab_size for row in bank} == {1, 2, 5, 12}
    assert {row.scores.dtype.name for row in bank} == {"float32", "float64"}
    assert any(row.ids is not None for row in bank)
    assert any(row.possible() == 1 < row.vocab_size for row in bank)
    assert any((row.scores == row.maximum).sum() > 1 for row in bank)
    table = edge_table(3, 5)
    assert np.exp(table.scores([0, 1])).sum() == pytest.approx(1.0)
