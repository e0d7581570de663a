"""Mpg: its laws by enumeration, the limiting cases, what it refuses, and mutants that are found."""

from __future__ import annotations

import numpy as np
import pytest
from mpg_toys import PROMPT, distance, given, mixture_law, of_path, of_rows, paths, table

import decodery as dc
from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError, RowError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import run_alone
from decodery.core.sampler import Context
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.blending.mpg import Mpg, mixture, product
from decodery.testing import enumerate_law

WEIGHTS = (0.5, 0.2, 0.3)
CONTEXT = Context((0,), 1)


@pytest.fixture
def reference():
    return table(1)


@pytest.fixture
def attributes():
    return [table(2), table(3), table(4)]


def law(blend, length=4):
    return enumerate_law(Policy(blend), PROMPT, length)


def near(one, other, within=1e-12):
    return max(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other}) < within


# -- the sum, in its three scopes ----------------------------------------------------------------


@pytest.mark.parametrize(("options", "chunk"), [
    ({"scope": "token"}, 1),
    ({"scope": "chunk", "chunk": 1}, 1),
    ({"scope": "chunk", "chunk": 2}, 2),
    ({"chunk": 3}, 3),
    ({}, 8),
    ({"scope": "sequence"}, 4),
], ids=str)  # fmt: skip
def test_the_sum_is_a_mixture_of_its_scope(reference, attributes, options, chunk):
    """Spec oracle 6: of tokens, of chunks, of answers; each enumerated over all 81 answers."""
    blend = Mpg(reference, attributes, WEIGHTS, **options)
    assert near(law(blend), mixture_law(attributes, WEIGHTS, 4, chunk))


def test_the_scopes_differ_where_attributes_are_far_apart(reference):
    far = [of_rows(lambda _: [0.9, 0.05, 0.05], 3), of_rows(lambda _: [0.05, 0.05, 0.9], 3)]
    laws = {
        scope: law(Mpg(reference, far, scope=scope, chunk=2 if scope == "chunk" else None))
        for scope in ("token", "chunk", "sequence")
    }
    assert distance(laws["chunk"], laws["sequence"]) > 0.2
    assert distance(laws["token"], laws["chunk"]) > 0.2


def test_over_a_whole_answer_one_attribute_takes_over(reference):
    """The mean of the largest posterior weight nears 1; within chunks it starts again."""
    apart = [of_rows(lambda _: [0.6, 0.2, 0.2], 3), of_rows(lambda _: [0.2, 0.2, 0.6], 3)]
    largest = {}
    for scope in ("sequence", "chunk"):
        blend = Mpg(reference, apart, scope=scope, chunk=4 if scope == "chunk" else None)
        largest[scope] = np.mean([_weights_at_the_end(blend, seed).max() for seed in range(8)])
    assert largest["sequence"] > 0.999
    assert largest["chunk"] == 0.5


def _weights_at_the_end(blend, seed):
    """The weights after a sampled answer of 60 tokens."""
    task = Task(Policy(blend), PROMPT, Stopping(60), Stream(seed))
    state, context = blend.start(CONTEXT), CONTEXT
    path = list(PROMPT)
    for token in run_alone(registry.get("sample")(), task)[0].tokens:
        rows = [Row.dense(member.scores(path)) for member in blend.members]
        state = blend.advance(state, token, rows, context)
        path.append(token)
    return np.exp(state.log_weights)


def test_one_attribute_or_all_the_weight_on_one(reference, attributes):
    """Spec oracle 4."""
    alone = law(attributes[1])
    assert near(law(Mpg(reference, [attributes[1]])), alone)
    for scope in ("token", "chunk", "sequence"):
        assert near(law(Mpg(reference, attributes, (0, 7, 0), scope=scope)), alone)


def test_equal_attributes_are_the_reference(reference):
    for options in ({}, {"scope": "sequence"}, {"aggregate": "product", "strength": 3.0}):
        assert near(law(Mpg(reference, [reference] * 3, WEIGHTS, **options)), law(reference))


def test_weights_are_relative(reference, attributes):
    assert near(
        law(Mpg(reference, attributes, (5, 2, 3))), law(Mpg(reference, attributes, WEIGHTS))
    )
    assert Mpg(reference, attributes).weights.tolist() == [1 / 3] * 3


def test_the_mean_ratio_is_one(reference, attributes):
    """Spec oracle 1: E[R_l] = 1 under the reference for every l, enumerated, V = 3, L = 3."""
    for chunk in (1, 2, 3):
        target = mixture_law(attributes, WEIGHTS, 3, chunk)
        for length in (1, 2, 3):
            mean = 0.0
            for path in paths(3, length):
                ratio = sum(p for key, p in target.items() if key[:length] == path) / of_path(
                    reference, path
                )
                mean += of_path(reference, path) * ratio
            assert mean == pytest.approx(1.0, abs=1e-12)


# -- the product ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 3.0])
def test_the_product_by_hand(reference, attributes, strength):
    blend = Mpg(reference, attributes, WEIGHTS, aggregate="product", strength=strength)
    wanted = {(): 1.0}
    for _ in range(3):
        longer = {}
        for path, share in wanted.items():
            scores = np.array([_product_by_hand(reference, attributes, path, t, strength)
                               for t in range(3)])  # fmt: skip
            for token in range(3):
                longer[(*path, token)] = share * scores[token] / scores.sum()
        wanted = longer
    assert near(law(blend, 3), wanted)


def _product_by_hand(reference, attributes, path, token, strength):
    base = given(reference, path, token)
    worth = base
    for weight, model in zip(WEIGHTS, attributes, strict=True):
        worth *= (given(model, path, token) / base) ** (strength * weight)
    return worth


def test_limits_of_the_product(reference, attributes):
    def made(models, **options):
        return law(Mpg(reference, models, aggregate="product", **options))

    assert near(made(attributes, strength=0.0), law(reference))
    assert near(made([attributes[0]]), law(attributes[0]))
    assert near(made(attributes, weights=(0, 0, 4)), law(attributes[2]))


def test_what_one_attribute_excludes_is_out_of_the_product():
    first, second = np.log([0.5, 0.5]), np.array([0.0, -np.inf])
    rows = [Row.dense(scores) for scores in (first, second)]
    blend = Mpg(table(1, 2), [table(2, 2), table(3, 2)], aggregate="product")
    found = blend.combine([rows[0], *rows], blend.start(CONTEXT), CONTEXT)
    assert found.probabilities().tolist() == [1.0, 0.0]
    torn = [rows[0], Row.dense(np.array([-np.inf, 0.0])), rows[1]]
    with pytest.raises(RowError, match="no token that all attributes can write"):
        blend.combine(torn, blend.start(CONTEXT), CONTEXT)


def test_what_the_reference_excludes_stays_out_at_a_negative_exponent():
    reference = Row.dense(np.array([-np.inf, 0.0, 0.0]))
    rows = [Row.of_probabilities([0.8, 0.1, 0.1]), Row.of_probabilities([0.8, 0.1, 0.1])]
    scores = product(reference, rows, np.array([1.0, 1.0]))
    assert scores[0] == -np.inf
    assert np.isfinite(scores[1:]).all()


# -- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_underflows_to_nan(dtype):
    """Spec oracle 7: probabilities far below the smallest number, and zeros, in either dtype."""
    low = Row.dense(np.array([0.0, -2000.0, -np.inf], dtype=dtype))
    lower = Row.dense(np.array([0.0, -3000.0, -np.inf], dtype=dtype))
    scores = mixture([low, lower], np.log([0.5, 0.5]))
    assert scores.dtype == dtype
    assert scores[1] == pytest.approx(-2000 + np.log(0.5))
    assert scores[2] == -np.inf
    blend = Mpg(table(1), [table(2), table(3)], scope="sequence")
    state = blend.start(CONTEXT)
    for _ in range(50):
        state = blend.advance(state, 1, [low, low, lower], CONTEXT)
    assert np.exp(state.log_weights).tolist() == [1.0, 0.0]
    assert np.isfinite(state.log_weights).all()
    same = blend.advance(state, 2, [low, low, lower], CONTEXT)  # none can write it
    assert same.log_weights.tolist() == state.log_weights.tolist()


def test_truncated_rows_of_members_are_whole_again():
    rows = [Row.of_probabilities([0.5, 0.5, 0.0]).keep(np.array([True, True, False])),
            Row.of_probabilities([0.2, 0.2, 0.6])]  # fmt: skip
    scores = mixture(rows, np.log([0.5, 0.5]))
    assert np.exp(scores).tolist() == pytest.approx([0.35, 0.35, 0.3])


# -- names and refusals --------------------------------------------------------------------------


def test_it_is_named_and_found(reference, attributes):
    assert dc.Mpg is Mpg
    blend = Mpg(reference, attributes)
    assert blend.name == "mpg(table 2, table 3, table 4)"
    assert blend.members == (reference, *attributes)
    assert (blend.scope, blend.chunk) == ("chunk", 8)
    assert Mpg(reference, attributes, aggregate="product").scope == "token"


def test_a_recipe_loads_its_attributes_by_name(reference):
    made = registry.get("mpg", "blend")(
        attributes=("2", "3"), attribute_weights=(1.0, 3.0), scope="chunk", chunk=2
    )
    blend = made.over(reference, lambda name: table(int(name)))
    wanted = Mpg(reference, [table(2), table(3)], (0.25, 0.75), chunk=2)
    assert near(law(blend), law(wanted))


@pytest.mark.parametrize(("options", "words"), [
    ({"attributes": ()}, "attributes is empty"),
    ({"attribute_weights": (1.0,)}, "1 numbers for 2 attributes"),
    ({"attribute_weights": (1.0, -1.0)}, "at least 0"),
    ({"attribute_weights": (0.0, 0.0)}, "not all 0"),
    ({"aggregate": "product", "scope": "chunk"}, "scope 'chunk' is for the sum"),
    ({"aggregate": "product", "scope": "sequence"}, "scope 'sequence' is for the sum"),
    ({"aggregate": "product", "chunk": 4}, "chunk is for the sum"),
    ({"strength": 2.0}, "aggregate is 'sum', which has none"),
    ({"scope": "token", "chunk": 4}, "chunk is for scope 'chunk'"),
    ({"scope": "word"}, "one of 'token', 'chunk', 'sequence'"),
], ids=str)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(options, words):
    with pytest.raises(ParameterError, match=words) as refusal:
        registry.get("mpg")(**{"attributes": ("a", "b"), **options})
    assert "mpg" in str(refusal.value)


@pytest.mark.parametrize(("options", "words"), [
    ({"strength": float("nan"), "aggregate": "product"}, "strength is nan"),
    ({"strength": -1.0, "aggregate": "product"}, "strength is -1"),
    ({"weights": (1.0, float("inf"))}, "finite"),
    ({"chunk": 0}, "chunk is 0"),
], ids=str)  # fmt: skip
def test_the_class_refuses_what_the_parameters_do(reference, options, words):
    with pytest.raises(ParameterError, match=words):
        Mpg(reference, [table(2), table(3)], **options)


def test_members_of_other_vocabularies_are_refused(reference):
    with pytest.raises(ParameterError, match="different tokenizers"):
        Mpg(reference, [table(2, 4)])


# -- mutants -------------------------------------------------------------------------------------


class Forgetful(Mpg):
    """Weights stay as they began."""

    def advance(self, state, token, rows, context):
        return self.start(context)


class Shifted(Mpg):
    """Chunks end one token late."""

    def start(self, context):
        return super().start(context)._replace(drawn=-1)


class ReadsTheReference(Mpg):
    """Posterior weights from the row before the right one."""

    def advance(self, state, token, rows, context):
        return super().advance(state, token, [rows[-1], *rows[:-1]], context)


class Geometric(Mpg):
    """A mean of logs for a mean of probabilities."""

    def combine(self, rows, state, context):
        return Row.dense(product(rows[0], rows[1:], self.weights))


class Unweighted(Mpg):
    """Forgets the prior weights."""

    def start(self, context):
        return super().start(context)._replace(log_weights=np.log(np.full(3, 1 / 3)))


@pytest.mark.parametrize("mutant", [Forgetful, Shifted, ReadsTheReference, Geometric, Unweighted])
def test_mutants_are_found(reference, attributes, mutant):
    """The comparison that the blend passes at 1e-12 finds each of them."""
    wanted = mixture_law(attributes, WEIGHTS, 4, 2)
    assert not near(law(mutant(reference, attributes, WEIGHTS, chunk=2)), wanted, 1e-3)
