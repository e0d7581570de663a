"""DoLa: its law by hand on layered tables, its candidates, its divergence, the real model."""

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
from decodery.methods.blending.dola import Dola, candidates, divergence
from decodery.testing import TableModel, enumerate_law

DOLA, SAMPLE = registry.get("dola"), registry.get("sample")
PLACE = Context((0,), 1)


class Layered(TableModel):
    """A table whose layers are other random tables."""

    depth = 6

    def exit(self, layer):
        return self.layers.setdefault(layer, TableModel.random(4, 2, seed=100 + layer))

    @classmethod
    def make(cls):
        made = cls(TableModel.random(4, 2, seed=3).law, 4, 2, name="layered")
        made.layers = {}
        return made


def jensen_shannon(one, other):
    """H(middle) - the mean of the entropies."""

    def entropy(law):
        law = law[law > 0]
        return -(law * np.log(law)).sum()

    return entropy((one + other) / 2) - (entropy(one) + entropy(other)) / 2


def by_hand(source, layers, alpha, prompt, length):
    law, chosen = {}, set()

    def walk(path, probability):
        if len(path) == length:
            law[path] = probability
            return
        own = np.exp(source.scores([*prompt, *path]))
        early = [np.exp(source.exit(layer).scores([*prompt, *path])) for layer in layers]
        place = max(range(len(layers)), key=lambda i: jensen_shannon(own, early[i]))
        chosen.add(layers[place])
        made = np.where(own >= alpha * own.max(), own / early[place], 0.0)
        for token, share in enumerate(made / made.sum()):
            if share:
                walk((*path, token), probability * share)

    walk((), 1.0)
    return law, chosen


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("layers", [(1, 2, 5), (4,), (2, 3)], ids=str)
def test_the_law_by_hand(alpha, layers):
    source = Layered.make()
    law = enumerate_law(Policy(Dola(source, layers, alpha)), (0, 1), 3)
    wanted, chosen = by_hand(source, layers, alpha, (0, 1), 3)
    assert law.keys() == wanted.keys()
    assert all(abs(law[path] - wanted[path]) < 1e-12 for path in wanted)
    assert len(chosen) > 1 or len(layers) == 1  # the choice is exercised


def test_the_nearest_layer_would_be_noticed():
    """Negative control: one candidate alone has another law."""
    source = Layered.make()
    right = enumerate_law(Policy(Dola(source, (1, 2, 5))), (0, 1), 2)
    for layer in (1, 2, 5):
        law = enumerate_law(Policy(Dola(source, (layer,))), (0, 1), 2)
        assert sum(abs(law.get(path, 0) - right.get(path, 0)) for path in {*law, *right}) > 0.05


def test_divergence():
    generator = np.random.default_rng(0)
    for _ in range(50):
        one, other = generator.dirichlet(np.full(7, 0.3), size=2)
        assert divergence(one, other) == pytest.approx(jensen_shannon(one, other), abs=1e-13)
        assert divergence(one, other) == pytest.approx(divergence(other, one), abs=1e-15)
    assert divergence(one, one) == 0
    apart = divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert apart == pytest.approx(np.log(2), abs=1e-15)
    zeros = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    assert divergence(*zeros) == pytest.approx(jensen_shannon(*zeros), abs=1e-15)


@pytest.mark.parametrize(
    ("layers", "depth", "wanted"),
    [
        ("low", 30, (2, 4, 6, 8, 10, 12, 14)),
        ("high", 30, (15, 17, 19, 21, 23, 25, 27, 29)),
        ("low", 48, tuple(range(2, 20, 2))),
        ("high", 48, tuple(range(28, 48, 2))),
        ("low", 2, (1,)),
        ("high", 2, (1,)),
        ("high", 3, (1,)),
        ("7, 3", 30, (3, 7)),
        ((29,), 30, (29,)),
    ],
)
def test_candidates(layers, depth, wanted):
    assert candidates(layers, depth) == wanted


@pytest.mark.parametrize("layers", ["", "middle", "1,x", (), (0,), (2, 2), (-1,), "low,high"])
def test_layers_that_are_none_are_refused(layers):
    with pytest.raises(ParameterError, match="allowed is low, high, or distinct"):
        DOLA(layers)


def test_layers_the_model_does_not_have_are_refused():
    with pytest.raises(ParameterError, match=r"has 6; of 6 layers allowed are 1\.\.5"):
        Dola(Layered.make(), (2, 6))
    with pytest.raises(ParameterError, match="has no layers before its last"):
        Dola(TableModel.random(3))


def test_impossible_tokens():
    source = Layered.make()
    rows = [Row.of_probabilities(law) for law in ([0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0])]
    found = Dola(source, (2,)).combine(rows, None, PLACE)
    assert found.dense_probabilities().tolist() == [1, 0, 0, 0]


def test_one_call_of_every_exit_a_step():
    source = Layered.make()
    runner = Runner()
    runner.submit(SAMPLE(), Task(Policy(Dola(source, (2, 4))), (0, 1), Stopping(4)))
    runner.run()
    assert source.calls == source.exit(2).calls == source.exit(4).calls == 4


def test_the_embedded_model_by_name_and_by_hand(lm):
    options = {"max_tokens": 4, "seed": 2}
    named = lm.generate("Name a bird.", method="dola", dola_layers="8,14", **options)
    made = dc.generate(dc.Dola(lm, (8, 14)), "Name a bird.", **options)
    assert named.tokens == made.tokens
    for layer in (8, 14):
        early = lm.exit(layer)
        assert early.cache.free == early.cache.slots
        assert early.reserved == 0
