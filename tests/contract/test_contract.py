"""Every registered method keeps the laws of its kind; no method is listed by hand.

The chi-square tests of exact decoders have alpha 1e-6 each; with fewer than a thousand of them in
the suite, a correct suite fails by chance less than once in a thousand changes of its seeds.
"""

from __future__ import annotations

import pytest

from decodery.core import registry
from decodery.testing import check_card, check_guarantee, check_law, check_reductions
from decodery.testing.laws import LAWS, check_parameters

METHODS = list(registry.methods().values())
NAMES = [method.name for method in METHODS]
PAIRS = [(method, law) for method in METHODS for law in LAWS[method.card.kind]]
PAIR_NAMES = [f"{method.name}-{law.__name__}" for method, law in PAIRS]


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_the_card_is_complete(method):
    check_card(method.card)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_parameters_are_strict_and_matter(method):
    check_parameters(method)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_reductions_hold(method):
    check_reductions(method)


@pytest.mark.parametrize(("method", "law"), PAIRS, ids=PAIR_NAMES)
def test_laws_hold(method, law):
    check_law(method, law)


EXACT = [method for method in METHODS if method.card.guarantee == "exact"]


@pytest.mark.parametrize("method", EXACT, ids=[method.name for method in EXACT])
def test_exact_is_exact(method):
    """1,000 runs: a total variation of 0.17 is rejected with power above 0.99."""
    check_guarantee(method, runs=1000)


@pytest.mark.slow
@pytest.mark.parametrize("method", EXACT, ids=[method.name for method in EXACT])
def test_exact_is_exact_at_length(method):
    """40,000 runs: a total variation of 0.03 is rejected with power above 0.99."""
    check_guarantee(method, runs=40_000)


def test_there_is_something_to_test():
    assert {method.card.kind for method in METHODS} == {"sampler", "decoder", "blend", "scorer"}
    assert EXACT
