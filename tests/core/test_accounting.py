"""What a request is told it cost, model by model, and what its method counted."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from decodery.core import registry
from decodery.core.decoder import Completion, Decoder, Task, completion
from decodery.core.handle import Cost, Report
from decodery.core.requests import Call, Grow, Open
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Grown, Policy
from decodery.core.stopping import Stopping
from decodery.testing import MixtureBlend, TableModel

SAMPLE = registry.get("sample")()


def named(name, seed=1, parameters=None):
    model = TableModel.random(3, seed=seed, name=name)
    model.parameters = parameters
    return model


def task(source, seed=0, length=4):
    return Task(Policy(source), (0, 1), Stopping(length), Stream(seed))


@dataclass(frozen=True)
class Scripted(Decoder):
    """A decoder whose coroutine is a function, and whose totals are another one."""

    coroutine: object
    summary: object = lambda _: {}

    def decode(self, task):
        return self.coroutine(task)

    def totals(self, completions):
        return self.summary(completions)


def ran(decoder, *tasks):
    runner = Runner()
    handles = [runner.submit(decoder, item) for item in tasks]
    runner.run()
    return handles


def test_each_model_of_a_blend_has_its_share():
    one, other = named("one"), named("other", 2)
    (handle,) = ran(SAMPLE, task(MixtureBlend(one, other, openings=((), (2, 2, 2)))))
    report = handle.report
    assert list(report.models) == ["one", "other"]
    assert (report.models["one"].calls, report.models["other"].calls) == (4, 4)
    assert report.models["one"].tokens_evaluated == 2 + 3
    assert report.models["other"].tokens_evaluated == 5 + 3
    assert report.model_calls == 8
    assert report.tokens_evaluated == 13


def test_one_model_with_several_prompts_is_called_once_a_step():
    model = named("one")
    (handle,) = ran(SAMPLE, task(MixtureBlend(model, model, openings=((), (2,)))))
    assert handle.report.models == {"one": handle.report.cost("one")}
    assert (handle.report.models["one"].calls, model.calls) == (4, 4)
    assert handle.report.models["one"].tokens_evaluated == 2 + 3 + 2 * 3


def test_requests_of_a_batch_each_have_their_own_tokens_and_the_whole_time():
    model = named("one")
    handles = ran(SAMPLE, *(task(model, seed) for seed in range(3)))
    assert model.calls == 4
    assert [handle.report.models["one"].calls for handle in handles] == [4, 4, 4]
    assert [handle.report.models["one"].tokens_evaluated for handle in handles] == [5, 5, 5]
    (seconds,) = {handle.report.models["one"].seconds for handle in handles}
    assert 0 < seconds <= min(handle.report.seconds for handle in handles)


def test_shares_add_up_to_the_report():
    drafts, large = named("small"), named("large", 2)
    speculation = registry.get("rsd")(draft=drafts, levels=2)
    (handle,) = ran(speculation, task(large, length=12))
    report, shares = handle.report, handle.report.models.values()
    assert sorted(report.models) == ["large", "small"]
    assert {model.name: model.calls for model in (drafts, large)} == {
        name: cost.calls for name, cost in report.models.items()
    }
    assert report.model_calls == sum(cost.calls for cost in shares)
    assert report.tokens_evaluated == sum(cost.tokens_evaluated for cost in shares)
    assert sum(cost.seconds for cost in shares) <= report.seconds


def test_tokens_from_the_cache_are_their_model_s():
    class Remembers(TableModel):
        def forward(self, growths):
            known = super().forward(growths)
            return [
                Grown(item.scores, cached=len(growth.tokens) - 1)
                for item, growth in zip(known, growths, strict=True)
            ]

    model = Remembers(TableModel.random(3).law, 3, 2, name="remembers")
    (handle,) = ran(SAMPLE, task(model))
    share = handle.report.models["remembers"]
    assert (share.tokens_evaluated, share.cached_tokens) == (4, 1)
    assert (handle.report.tokens_evaluated, handle.report.cached_tokens) == (4, 1)


def test_calls_of_functions_count_for_their_model():
    model = named("one")

    def calls(task):
        yield Call(model, lambda own: own.name)
        yield Call(model, lambda own: own.name)
        return [Completion((), "max_tokens")]

    (handle,) = ran(Scripted(calls), task(model))
    assert handle.report.models["one"].calls == handle.report.model_calls == 2
    assert handle.report.models["one"].tokens_evaluated == 0


def grows(task):
    root = yield Open(task.policy, task.prompt)
    (tip,) = yield Grow([root.child(1)])
    return [completion(tip, "max_tokens", details={"seen": 2})]


def test_a_decoder_sums_up_its_completions():
    decoder = Scripted(grows, lambda found: {"seen": sum(item.details["seen"] for item in found)})
    (handle,) = ran(decoder, task(named("one")))
    assert handle.report.details == {"seen": 2}
    assert ran(SAMPLE, task(named("one")))[0].report.details == {}


def test_totals_that_fail_end_their_own_request():
    runner = Runner()
    model = named("one")
    sick = runner.submit(Scripted(grows, lambda _: 1 / 0), task(model))
    well = runner.submit(SAMPLE, task(model))
    runner.run()
    assert isinstance(sick.error, ZeroDivisionError)
    assert len(well.result()[0].tokens) == 4
    assert (model.tokens_alive, model.reserved) == (0, 0)


def test_a_report_is_data():
    (handle,) = ran(SAMPLE, task(named("one")))
    found = json.loads(json.dumps(handle.report.to_dict()))
    assert found["models"]["one"] == {
        "calls": 4,
        "tokens_evaluated": 5,
        "cached_tokens": 0,
        "seconds": handle.report.models["one"].seconds,
    }
    assert found["tokens_per_second"] > 0
    assert Report().to_dict()["models"] == {}
    assert Report().cost("new") == Cost()


@pytest.mark.parametrize(
    ("counts", "expected"), [((3, 4), 7), ((3, None), None), ((None, None), None)], ids=str
)
def test_parameters_of_a_blend(counts, expected):
    members = [named(str(index), index, count) for index, count in enumerate(counts)]
    assert MixtureBlend(*members).parameters == expected


def test_a_model_that_is_in_a_blend_twice_is_read_once():
    one, other = named("one", parameters=5), named("other", parameters=2)
    assert MixtureBlend(one, MixtureBlend(one, other), one).parameters == 7
