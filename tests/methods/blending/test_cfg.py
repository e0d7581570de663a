"""Guidance: the rule of transformers on random rows, laws on tables, prompts as users give them.

The chi-square test has N = 1,024 and alpha 1e-6; a law at a total variation of 0.2 (the model's own
is farther) is rejected with power above 0.999.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

import decodery as dc
from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import Context
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.blending.cfg import Cfg
from decodery.testing import LawBroken, TableModel, enumerate_law, require_law
from decodery.testing.blend_scenes import ToyLanguage

CFG, SAMPLE = registry.get("cfg"), registry.get("sample")
PLACE = Context((0,), 1)


class Answers:
    """A model for transformers' processor: says the rows it is given, one after another."""

    def __init__(self, rows):
        self.rows = list(rows)

    def __call__(self, input_ids, **_):
        logits = self.rows.pop(0)[None, None]
        return SimpleNamespace(logits=logits, get=lambda *_: None)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 3.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_rule_of_transformers(scale, dtype):
    """200 rows: log-probabilities equal, to rounding of the dtype; its constant is the same too."""
    generator = torch.Generator().manual_seed(0)
    close = {torch.float32: 2e-4, torch.float64: 1e-11}[dtype] * max(1.0, scale)
    for size in (2, 11, 400):
        own, other = (6 * torch.randn((40, size), generator=generator, dtype=dtype) for _ in "ab")
        theirs = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, Answers(other))
        blend = Cfg(TableModel.random(size), scale)
        for row, second in zip(own, other, strict=True):
            wanted = theirs(torch.zeros((1, 1), dtype=torch.int64), row[None])[0].numpy()
            rows = [Row.dense(row.numpy()), Row.dense(second.numpy())]
            found = blend.combine(rows, None, PLACE)
            assert found.scores.dtype == row.numpy().dtype
            shift = rows[0].log_normaliser if scale == 1 else 0.0
            assert np.abs(found.scores - shift - wanted).max() < close


def test_a_wrong_rule_is_noticed():
    """Negative control: guidance on logits with the scale one off."""
    own, other = np.random.default_rng(0).normal(0, 3, (2, 50))
    rows = [Row.dense(own), Row.dense(other)]
    right = Cfg(TableModel.random(50), 1.5).combine(rows, None, PLACE)
    wrong = Row.dense(own + 1.5 * (own - other))
    assert np.abs(right.probabilities() - wrong.probabilities()).max() > 0.01


# -- laws on tables --------------------------------------------------------------------------------


def by_hand(source, prompt, other, scale, length):
    law = {}

    def walk(path, probability):
        if len(path) == length:
            law[path] = probability
            return
        own, second = (np.exp(source.scores([*start, *path])) for start in (prompt, other))
        made = own**scale * second ** (1 - scale)
        for token, share in enumerate(made / made.sum()):
            walk((*path, token), probability * share)

    walk((), 1.0)
    return law


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0, 2.0])
@pytest.mark.parametrize("negative", [None, (2, 1), (1,)], ids=str)
def test_the_law_by_hand(scale, negative):
    source, prompt = TableModel.random(3, 3, seed=4), (0, 1)
    law = enumerate_law(Policy(Cfg(source, scale, negative)), prompt, 3)
    wanted = by_hand(source, prompt, negative or prompt[-1:], scale, 3)
    assert all(abs(law[path] - wanted[path]) < 1e-12 for path in wanted)


def test_limits():
    """Scale 1 is the model, scale 0 the model under the negative prompt."""
    source, prompt = TableModel.random(3, 3, seed=5), (0, 1)
    one = enumerate_law(Policy(Cfg(source, 1.0, (2,))), prompt, 3)
    none = enumerate_law(Policy(Cfg(source, 0.0, (2,))), prompt, 3)
    own, other = (enumerate_law(Policy(source), start, 3) for start in (prompt, (2,)))
    assert one == pytest.approx(own, abs=1e-14)
    assert none == pytest.approx(other, abs=1e-14)


def test_what_is_drawn_follows_the_law():
    source, prompt = TableModel.random(3, 3, seed=4), (0, 1)
    policy = Policy(Cfg(source, 2.0, (2, 2)))
    handle, runner = _submitted(policy, prompt)
    runner.run()
    counts = Counter(item.tokens for item in handle.result())
    require_law(counts, by_hand(source, prompt, (2, 2), 2.0, 2), 1e-6, "cfg")
    with pytest.raises(LawBroken):
        require_law(counts, enumerate_law(Policy(source), prompt, 2), 1e-6, "the model")


def _submitted(policy, prompt):
    runner = Runner()
    return runner.submit(SAMPLE(n=1024), Task(policy, prompt, Stopping(2))), runner


def test_one_forward_a_step_of_two_tokens():
    source = TableModel.random(3, seed=1)
    runner = Runner()
    handle = runner.submit(SAMPLE(), Task(Policy(Cfg(source, 2.0, (1, 2))), (0,), Stopping(5)))
    runner.run()
    assert handle.report.model_calls == source.calls == 5
    assert handle.report.tokens_evaluated == 1 + 2 + 2 * 4
    assert source.tokens_alive == source.reserved == 0


# -- prompts ---------------------------------------------------------------------------------------


def spoken(messages=(), text=""):
    source = TableModel.random(6, 3, seed=2)
    source.language = toy = ToyLanguage()
    prompt = toy.chat(messages) if messages else toy.encode(text)
    return source, Task(Policy(source), prompt, Stopping(2), prompt_text=text, messages=messages)


def members(source, task):
    """The prompts that the members see inside a request."""
    seen = []

    class Look(type(SAMPLE())):
        def decode(self, task):
            seen.extend(task.policy.source.prompts(task.prompt))
            return (yield from super().decode(task))

    run_alone(
        Look(),
        Task(
            Policy(source),
            task.prompt,
            task.stopping,
            prompt_text=task.prompt_text,
            messages=task.messages,
        ),
    )
    return seen


def test_a_negative_text_takes_the_place_of_the_last_user_message():
    talk = (
        {"role": "system", "content": " the"},
        {"role": "user", "content": " cat"},
        {"role": "assistant", "content": "s"},
        {"role": "user", "content": "."},
    )
    source, task = spoken(talk)
    wanted = ToyLanguage().chat([*talk[:3], {"role": "user", "content": " cats"}])
    assert members(Cfg(source, 2.0, " cats"), task) == [task.prompt, wanted]


def test_a_negative_text_takes_the_place_of_a_plain_prompt():
    source, task = spoken(text=" the cat.")
    assert members(Cfg(source, 2.0, " cats"), task) == [task.prompt, (1, 2)]
    assert members(Cfg(source, 2.0, (4, 4)), task) == [task.prompt, (4, 4)]
    assert members(Cfg(source, 2.0), task) == [task.prompt, task.prompt[-1:]]


def test_the_negative_prompt_counts_for_the_cache():
    source, task = spoken(text=" cat")
    needs = Cfg(source, 2.0, " the cat.").slots(task, task.prompt, lambda p, m: p + m)
    assert needs == {source: (1 + 2) + (3 + 2)}


def test_a_text_without_a_language_is_refused_before_a_forward():
    source = TableModel.random(3)
    with pytest.raises(ParameterError, match="give the second prompt as token ids"):
        Runner().submit(SAMPLE(), Task(Policy(Cfg(source, 2.0, "a")), (0,), Stopping(2)))
    for make in (lambda: CFG(negative_prompt=()), lambda: Cfg(source, 2.0, ())):
        with pytest.raises(ParameterError, match="has no tokens"):
            make()
    only_system = ({"role": "system", "content": " cat"},)
    source, task = spoken(only_system)
    with pytest.raises(ParameterError, match="there is none"):
        Cfg(source, 2.0, "a").slots(task, task.prompt, lambda p, m: p + m)
    assert source.calls == 0


# -- the embedded model ----------------------------------------------------------------------------


def test_the_embedded_model_by_name_and_by_hand(lm):
    options = {"max_tokens": 6, "seed": 3}
    negative = "Write something sad."
    named = lm.generate(
        "Write something happy.",
        method="cfg",
        guidance_scale=2.0,
        negative_prompt=negative,
        **options,
    )
    made = dc.generate(dc.Cfg(lm, 2.0, negative), "Write something happy.", **options)
    plain = lm.generate("Write something happy.", method="sample", **options)
    assert named.tokens == made.tokens != plain.tokens
    assert named.report.model_calls == 6
    same = lm.generate("Write something happy.", method="cfg", guidance_scale=1.0, **options)
    assert same.tokens == plain.tokens
    greedy = lm.generate("Say hi.", method="greedy", blend="cfg", guidance_scale=1.2, max_tokens=4)
    assert greedy.report.tokens_emitted <= 4
