"""Contrastive decoding: its law by hand on tables, what the amateur sees, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import decodery as dc
from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.runner import Runner
from decodery.core.sampler import Context
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.blending.contrastive import Contrastive
from decodery.testing import TableModel, enumerate_law

CONTRASTIVE, SAMPLE = registry.get("contrastive"), registry.get("sample")
PLACE = Context((0,), 1)


def tables():
    return TableModel.random(4, 3, seed=1, name="expert"), TableModel.random(4, 3, seed=2)


def by_hand(expert, amateur, prompt, other, alpha, temperature, length):
    law = {}

    def walk(path, probability):
        if len(path) == length:
            law[path] = probability
            return
        own = np.exp(expert.scores([*prompt, *path]))
        second = np.exp(amateur.scores([*other, *path]) / temperature)
        made = np.where(own >= alpha * own.max(), own / second, 0.0)
        for token, share in enumerate(made / made.sum()):
            if share:
                walk((*path, token), probability * share)

    walk((), 1.0)
    return law


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(
    ("options", "other"),
    [({}, (0, 1, 2)), ({"amateur_context": 1}, (2,)), ({"amateur_prompt": (3, 3)}, (3, 3))],
    ids=["whole prompt", "its end", "another"],
)
def test_the_law_by_hand(alpha, temperature, options, other):
    expert, amateur = tables()
    blend = Contrastive(expert, amateur, alpha, amateur_temperature=temperature, **options)
    law = enumerate_law(Policy(blend), (0, 1, 2), 3)
    wanted = by_hand(expert, amateur, (0, 1, 2), other, alpha, temperature, 3)
    assert law.keys() == wanted.keys()
    assert all(abs(law[path] - wanted[path]) < 1e-12 for path in wanted)


def test_scores_are_differences_of_log_probabilities():
    """What a penalty on logits sees has the zero of the formula."""
    expert, amateur = Row.of_probabilities([0.5, 0.3, 0.2]), Row.of_probabilities([0.2, 0.2, 0.6])
    moved = [row.with_scores(row.scores + 7) for row in (expert, amateur)]
    found = Contrastive(*tables(), alpha=0.5).combine(moved, None, PLACE)
    assert found.token_ids().tolist() == [0, 1]
    assert found.scores == pytest.approx(np.log([0.5 / 0.2, 0.3 / 0.2]), abs=1e-14)


def test_an_amateur_that_knows_nothing_leaves_the_head_of_the_expert():
    expert = Row.of_probabilities([0.5, 0.3, 0.02, 0.18])
    blind = Row.of_probabilities(np.full(4, 0.25))
    found = Contrastive(*tables(), alpha=0.1).combine([expert, blind], None, PLACE)
    wanted = np.array([0.5, 0.3, 0.0, 0.18])
    assert found.dense_probabilities() == pytest.approx(wanted / wanted.sum(), abs=1e-14)


def test_alpha_one_is_greedy():
    expert, amateur = tables()
    law = enumerate_law(Policy(Contrastive(expert, amateur, 1.0)), (0,), 3)
    path = []
    for _ in range(3):
        path.append(int(expert.scores([0, *path]).argmax()))
    assert law == {tuple(path): 1.0}


def test_wrong_variants_are_noticed():
    """Negative controls: the other way round, without a head, the head of the amateur."""
    expert, amateur = tables()
    right = enumerate_law(Policy(Contrastive(expert, amateur, 0.3)), (0,), 2)
    for wrong in (
        Contrastive(amateur, expert, 0.3),
        Contrastive(expert, amateur, 0.0),
        Contrastive(expert, amateur, 0.3, amateur_temperature=1.3),
    ):
        law = enumerate_law(Policy(wrong), (0,), 2)
        assert sum(abs(law.get(path, 0) - right.get(path, 0)) for path in {*law, *right}) > 0.05


def test_one_call_of_each_model_a_step():
    expert, amateur = tables()
    runner = Runner()
    runner.submit(SAMPLE(), Task(Policy(Contrastive(expert, amateur)), (0, 1), Stopping(4)))
    runner.run()
    assert expert.calls == amateur.calls == 4


def test_the_recipe_takes_names_sources_and_the_model_itself():
    model, other = tables()
    loaded = []

    def load(name):
        loaded.append(name)
        return other

    assert CONTRASTIVE("folder").over(model, load).members == (model, other)
    assert loaded == ["folder"]
    assert CONTRASTIVE(other).over(model, load).members == (model, other)
    same = CONTRASTIVE("same", amateur_context=1).over(model, load)
    assert same.members == (model, model)
    assert loaded == ["folder"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "contrastive needs amateur"),
        ({"amateur": "same"}, "both would say the same"),
        ({"amateur": "x", "amateur_context": 2, "amateur_prompt": "a"}, "give one of them"),
        ({"amateur": "x", "alpha": 1.5}, "alpha is 1.5"),
        ({"amateur": "x", "amateur_temperature": 0.0}, "amateur_temperature is 0"),
    ],
)
def test_what_cannot_be_honoured_is_refused(values, message):
    with pytest.raises(ParameterError, match=message):
        CONTRASTIVE(**values)


def test_other_tokens_are_refused():
    expert, _ = tables()
    with pytest.raises(ParameterError, match="different tokenizers"):
        Contrastive(expert, TableModel.random(5))
    with pytest.raises(ParameterError, match="both would say the same"):
        Contrastive(expert, expert)


def test_the_embedded_model_by_name_and_by_hand(lm):
    """The amateur is the model itself, which sees no more than the last token of the prompt."""
    options = {"max_tokens": 5, "seed": 3}
    named = lm.generate(
        "Name a bird.", method="contrastive", amateur="same", amateur_context=1, **options
    )
    made = dc.generate(dc.Contrastive(lm, lm, amateur_context=1), "Name a bird.", **options)
    assert named.tokens == made.tokens
    assert named.report.model_calls == 5
