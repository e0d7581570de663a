"""Mutants of blends: each breaks one law on purpose, and the law made for it must say so.

The honest ones beside them have all that a blend may have: prompts of their own, a preparation, a
state that reads rows, a second model. The chi-square tests have alpha 1e-6 a scene.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.requests import Grow, Open
from decodery.core.row import Row
from decodery.core.source import Blend, Policy, Recipe, total
from decodery.testing import LawBroken, check_blend, check_method, check_reductions
from decodery.testing import blend_laws as of_blends


@dataclass(frozen=True)
class Of(Recipe):
    """A blend class over the model; with `pair`, over it and a second one."""

    kind: Any
    pair: bool = False

    def __repr__(self):
        return self.kind.__name__

    def over(self, model, load):
        return self.kind(model, load("other") if self.pair else model)


# -- honest ----------------------------------------------------------------------------------------


class Mixture(Blend):
    """The mean of laws; the second member sees one token more."""

    def __init__(self, *members):
        super().__init__("mixture", members)

    def prompts(self, prompt):
        return [prompt, (0, *prompt)]

    def combine(self, rows, state, context):
        return Row.of_probabilities(np.mean([row.dense_probabilities() for row in rows], axis=0))


class Posterior(Mixture):
    """A mixture of sequences: its weights are what the path says of the members."""

    observes_rows = True

    def start(self, context):
        return (0.5, 0.5)

    def combine(self, rows, state, context):
        laws = [row.dense_probabilities() for row in rows]
        return Row.of_probabilities(sum(w * law for w, law in zip(state, laws, strict=True)))

    def advance(self, state, token, rows, context):
        found = [
            weight * row.dense_probabilities()[token]
            for weight, row in zip(state, rows, strict=True)
        ]
        return tuple(share / sum(found) for share in found)


class Opened(Mixture):
    """Draws two tokens first, and shows them to the second member."""

    drawn = ()

    def prepare(self, task):
        root = yield Open(Policy(self.members[1]), task.prompt)
        first = root.child(root.draw(purpose="opening"))
        yield Grow([first])
        prepared = copy.copy(self)
        prepared.drawn = (first.token, first.draw(purpose="opening"))
        root.drop()
        return prepared

    def slots(self, task, prompt, footprint):
        long = (*prompt, 0, 0)
        first = self.members[0].slots(task, prompt, footprint)
        return total([first, self.members[1].slots(task, long, footprint)])

    def prompts(self, prompt):
        return [prompt, (*prompt, *self.drawn)]


HONEST = [Of(Mixture), Of(Mixture, True), Of(Posterior, True), Of(Opened), Of(Opened, True)]


@pytest.mark.parametrize("recipe", HONEST, ids=lambda item: f"{item!r}-{item.pair}")
def test_an_honest_blend_passes(recipe):
    check_blend(recipe)


# -- mutants ---------------------------------------------------------------------------------------


class GlobalNoise(Mixture):
    def combine(self, rows, state, context):
        weight = np.random.random()
        laws = [row.dense_probabilities() for row in rows]
        return Row.of_probabilities(weight * laws[0] + (1 - weight) * laws[1])


class KeyedNoise(Mixture):
    """Tosses a coin of its own, which only a sampler may."""

    def combine(self, rows, state, context):
        return rows[context.uniform("coin") < 0.5]


class Remembers(Mixture):
    """Its weight is on the object, not on the node."""

    def __init__(self, *members):
        super().__init__(*members)
        self.seen = 0

    def combine(self, rows, state, context):
        self.seen += 1
        return rows[self.seen % 2]


class Diary(Mixture):
    """A list as state, appended to in place."""

    def start(self, context):
        return []

    def advance(self, state, token, rows, context):
        state.append(token)
        return state

    def combine(self, rows, state, context):
        return rows[len(state) % 3 == 1]


class Scribbler(Mixture):
    def combine(self, rows, state, context):
        made = super().combine(rows, state, context)
        rows[0].scores.base[0] = 0.0
        return made


class Editor(Mixture):
    def combine(self, rows, state, context):
        if isinstance(context.tokens, list):
            context.tokens.append(0)
        return super().combine(rows, state, context)


class Copies(Mixture):
    """A model of its own for each member: two calls where one would do."""

    def __init__(self, *members):
        super().__init__(*map(copy.copy, members))


class Again(Blend):
    """Asks the model for every row once more."""

    def __init__(self, *members):
        super().__init__("again", members)

    def combine(self, rows, state, context):
        self.members[0].forward([])
        return rows[0]


class Understated(Opened):
    """Forgets that the second member's prompt is longer."""

    def slots(self, task, prompt, footprint):
        return total(member.slots(task, prompt, footprint) for member in self.members)


class Keeps(Opened):
    """Goes on with what it prepared still in the cache, and has no room for it."""

    def prepare(self, task):
        root = yield Open(Policy(self.members[1]), task.prompt)
        prepared = copy.copy(self)
        prepared.drawn = (root.draw(purpose="opening"), 0)
        return prepared


class Leaks(Opened):
    """Makes the model forget what the preparation holds."""

    def prepare(self, task):
        root = yield Open(Policy(self.members[1]), task.prompt)
        root.handle = None
        prepared = copy.copy(self)
        prepared.drawn = (root.draw(purpose="opening"), 0)
        root.drop()
        return prepared


class Unnormalised(Mixture):
    """Takes scores for log-probabilities that sum to one."""

    def combine(self, rows, state, context):
        return Row.of_probabilities(sum(np.exp(row.dense_scores()) for row in rows))


class WholeOnly(Mixture):
    """Adds scores by place, as if no row were truncated."""

    def combine(self, rows, state, context):
        sizes = {len(row) for row in rows}
        if len(sizes) > 1:
            return rows[0]
        return Row.dense(np.resize(sum(row.scores for row in rows), rows[0].vocab_size))


class Difference(Mixture):
    """ln p - ln q, which is NaN where both are zero."""

    def combine(self, rows, state, context):
        with np.errstate(invalid="ignore"):
            return Row.dense(rows[0].dense_scores() - 0.5 * rows[1].dense_scores())


class Short(Mixture):
    """Loses the last token of the vocabulary."""

    def combine(self, rows, state, context):
        return Row.dense(rows[0].dense_scores()[:-1])


class Eager(Recipe):
    """Looks at the model before the request runs."""

    def over(self, model, load):
        model.forward([])
        return Mixture(model, model)


class Never(Recipe):
    def over(self, model, load):
        raise ParameterError("not with this model")


class Nothing(Recipe):
    def over(self, model, load):
        return "a blend"


MUTANTS = [
    (of_blends.is_pure, Of(GlobalNoise), "global random"),
    (of_blends.is_a_function_of_the_path, Of(KeyedNoise), "noise of its own"),
    (of_blends.ignores_its_neighbours, Of(Remembers), "batch mates"),
    (of_blends.has_its_state_on_the_node, Of(Remembers), "siblings"),
    (of_blends.follows_its_law, Of(Remembers), "does not follow its law"),
    (of_blends.has_its_state_on_the_node, Of(Diary), "siblings"),
    (of_blends.leaves_inputs_alone, Of(Diary), "changes its input state"),
    (of_blends.leaves_inputs_alone, Of(Scribbler), "changes its input rows"),
    (of_blends.leaves_inputs_alone, Of(Editor), "changes its input tokens"),
    (of_blends.calls_each_model_once_a_step, Of(Copies), "model of its own"),
    (of_blends.calls_each_model_once_a_step, Of(Again), "times in one step"),
    (of_blends.stays_in_its_room, Of(Understated, True), "asked for"),
    (of_blends.stays_in_its_room, Of(Keeps, True), "asked for"),
    (of_blends.gives_its_cache_back, Of(Leaks), "in the cache"),
    (of_blends.ignores_a_shift, Of(Unnormalised), "shifting"),
    (of_blends.treats_both_kinds_of_row_alike, Of(WholeOnly), "impossible tokens"),
    (of_blends.gives_laws, Of(Difference), "gives no law"),
    (of_blends.gives_laws, Of(Short), "vocabulary"),
    (of_blends.is_pure, Eager(), "before the request"),
    (of_blends.is_pure, Never(), "refuses every scene"),
    (of_blends.is_pure, Nothing(), "no source"),
]


@pytest.mark.parametrize(
    ("law", "recipe", "reason"),
    MUTANTS,
    ids=[f"{type(recipe).__name__}-{law.__name__}-{reason}" for law, recipe, reason in MUTANTS],
)
def test_a_wrong_blend_is_caught(law, recipe, reason):
    """The law made for this fault names it, and the check of the whole recipe fails too."""
    with pytest.raises(LawBroken, match=reason) as broken:
        law("mutant", recipe)
    assert "\n" not in str(broken.value)
    with pytest.raises(LawBroken):
        check_blend(recipe)


# -- methods ---------------------------------------------------------------------------------------


class Params(Parameters):
    weight: float = parameter(0.5, ge=0, le=1, help="Share of the other model.")


class Weighted(Mixture):
    def __init__(self, weight, *members):
        super().__init__(*members)
        self.weight = weight

    def combine(self, rows, state, context):
        one, other = (row.dense_probabilities() for row in rows)
        return Row.of_probabilities((1 - self.weight) * one + self.weight * other)


@dataclass(frozen=True)
class WeightedRecipe(Recipe):
    weight: float

    def over(self, model, load):
        return Weighted(self.weight, model, load("other"))


def a_method(reductions, build=None):
    card = Card(
        name="mutant",
        kind="blend",
        family="blending",
        summary="One line.",
        guarantee="law",
        law="a mixture",
        title="A title",
        authors="Nobody",
        year=2026,
        source="here",
        reductions=reductions,
    )
    return Method(card, Params, build or (lambda params: WeightedRecipe(params.weight)))


def test_an_honest_blend_method_passes():
    check_method(a_method((Reduction({"weight": 0.0}, "identity"),)))


def test_an_ignored_parameter_of_a_blend_is_caught():
    with pytest.raises(LawBroken, match="ignores its parameter weight"):
        check_method(a_method((), lambda _: WeightedRecipe(0.25)))


def test_a_false_reduction_of_a_blend_is_caught():
    with pytest.raises(LawBroken, match="off by"):
        check_reductions(a_method((Reduction({"weight": 0.5}, "identity"),)))
