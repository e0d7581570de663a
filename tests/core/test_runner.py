"""The runner: one forward a step for all, and each request alone with its faults and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from decodery.core import registry
from decodery.core.decoder import Completion, Decoder, Task, completion
from decodery.core.errors import (
    BudgetExhausted,
    CapacityError,
    DecoderyError,
    ParameterError,
    PromptError,
    RowError,
    TreeError,
)
from decodery.core.handle import Budget
from decodery.core.requests import Call, Emit, Grow, Open, Score
from decodery.core.rng import Stream
from decodery.core.runner import Runner, run_alone
from decodery.core.scorer import Candidate, Scorer
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.trace import Trace
from decodery.testing import TableModel, WatchedTable

SAMPLE = registry.get("sample")()
END = frozenset({2})


def table(seed=1, size=3, capacity=None, eos_ids=frozenset(), context_length=None):
    law = TableModel.random(size, seed=seed).law
    return WatchedTable(
        law, size, 2, eos_ids=eos_ids, capacity=capacity, context_length=context_length
    )


def task(model, seed=0, length=4, prompt=(0,), **given):
    return Task(Policy(model), prompt, Stopping(length, model.eos_ids), Stream(seed), **given)


class Scripted(Decoder):
    """A decoder whose coroutine is a function."""

    def __init__(self, coroutine):
        self.coroutine = coroutine

    def decode(self, task):
        return self.coroutine(task)


def failed(coroutine, model=None):
    """The error of a request that runs beside a healthy one, after a check of that one."""
    model = model or table()
    runner = Runner()
    sick = runner.submit(Scripted(coroutine), task(model))
    well = runner.submit(SAMPLE, task(table(), seed=5))
    runner.run()
    assert well.result() == run_alone(SAMPLE, task(table(), seed=5))
    assert model.tokens_alive == 0
    assert model.reserved == 0
    return sick.error


# -- batching --------------------------------------------------------------------------------------


def test_any_number_of_requests_is_one_call_a_step():
    model = table()
    runner = Runner()
    handles = [runner.submit(SAMPLE, task(model, seed, length=7)) for seed in range(50)]
    runner.run()
    assert model.calls == 7
    assert all(handle.report.model_calls == 7 for handle in handles)
    assert all(handle.report.tokens_evaluated == 7 for handle in handles)
    assert all(handle.report.tokens_emitted == 7 for handle in handles)


def test_each_model_has_one_call_a_step():
    models = [table(1), table(2)]
    runner = Runner()
    for seed in range(10):
        runner.submit(SAMPLE, task(models[seed % 2], seed, length=5))
    runner.run()
    assert [model.calls for model in models] == [5, 5]


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_requests_changes_nothing(order):
    model = table(eos_ids=END)
    runner = Runner()
    handles = {seed: runner.submit(SAMPLE, task(model, seed)) for seed in range(64)[::order]}
    runner.run()
    for seed, handle in handles.items():
        assert handle.result() == run_alone(SAMPLE, task(model, seed))


def test_a_request_may_join_while_others_run():
    model = table()
    runner = Runner()
    first = runner.submit(SAMPLE, task(model, 1))
    runner.step()
    runner.step()
    second = runner.submit(SAMPLE, task(model, 2))
    runner.run()
    assert first.result() == run_alone(SAMPLE, task(model, 1))
    assert second.result() == run_alone(SAMPLE, task(model, 2))


def test_four_thousand_requests_at_once():
    model = table(size=4, eos_ids=frozenset({3}))
    runner = Runner()
    handles = [runner.submit(SAMPLE, task(model, seed, length=3)) for seed in range(4000)]
    runner.run()
    assert model.calls == 3
    assert all(handle.done for handle in handles)
    assert model.tokens_alive == 0
    counts = np.bincount([handle.result()[0].tokens[0] for handle in handles], minlength=4)
    law = np.exp(model.scores([0]))
    assert np.abs(counts / 4000 - law).max() < 5 * math.sqrt(0.25 / 4000)


def test_a_chain_in_one_request_is_one_call():
    model = table()

    def draft(task):
        root = yield Open(task.policy, task.prompt)
        one = root.child(1)
        two, fork = one.child(0), one.child(2)
        grown = yield Grow([one, two, fork])
        assert [node.generated for node in grown] == [[1], [1, 0], [1, 2]]
        for node in grown:
            np.testing.assert_array_equal(node.row.scores, model.scores(node.tokens))
        return [completion(two, "max_tokens")]

    assert run_alone(Scripted(draft), task(model))[0].tokens == (1, 0)
    assert model.calls == 2


def test_several_requests_are_answered_in_their_order():
    model = table()

    def both(task):
        answers = yield Open(task.policy, (0,)), Emit((1,)), Open(task.policy, (1, 2))
        assert [answers[0].depth, answers[1], answers[2].depth] == [1, None, 2]
        return [Completion((1,), "max_tokens")]

    run_alone(Scripted(both), task(model))
    assert model.calls == 1


# -- admission -------------------------------------------------------------------------------------


def test_requests_queue_for_capacity_first_come_first_served():
    model = table(capacity=12)
    runner = Runner()
    handles = [runner.submit(SAMPLE, task(model, seed)) for seed in range(7)]
    finished = []
    while runner.step():
        assert len(runner.live) <= 2
        finished += [h for h in handles if h.done and h not in finished]
    assert [
        h.task.stream.seed for h in [*finished, *(h for h in handles if h not in finished)]
    ] == [*range(7)]
    assert model.peak <= 12
    assert model.reserved == 0
    for seed, handle in enumerate(handles):
        assert handle.result() == run_alone(SAMPLE, task(table(), seed))


def test_two_runners_share_a_models_capacity():
    model = table(capacity=5)
    one, two = Runner(), Runner()
    first, second = one.submit(SAMPLE, task(model, 1)), two.submit(SAMPLE, task(model, 2))
    one.step()
    two.step()
    assert not two.live
    one.run()
    two.run()
    assert first.done
    assert second.result() == run_alone(SAMPLE, task(table(), 2))


def test_a_promise_is_taken_back_after_its_slots():
    """Between the two another thread's request would be admitted to a cache that is full."""

    class Watchful(WatchedTable):
        def release(self, handles):
            assert self.tokens_alive <= self.reserved
            super().release(handles)

    law = TableModel.random(3, seed=1).law
    model = Watchful(law, 3, 2, capacity=12)
    runner = Runner()
    handles = [runner.submit(SAMPLE, task(model, seed)) for seed in range(5)]
    runner.step()
    handles[0].cancel()
    runner.run()
    assert all(handle.error is None for handle in handles)
    assert (model.tokens_alive, model.reserved) == (0, 0)


def test_what_can_never_run_is_refused_at_once():
    with pytest.raises(CapacityError, match="may need 5 cache slots and table has 4"):
        Runner().submit(SAMPLE, task(table(capacity=4)))
    with pytest.raises(PromptError, match="prompt is empty"):
        Runner().submit(SAMPLE, task(table(), prompt=()))
    with pytest.raises(PromptError, match="outside the vocabulary of 3"):
        Runner().submit(SAMPLE, task(table(), prompt=(0, 3)))
    with pytest.raises(PromptError, match="context of 4 tokens"):
        Runner().submit(SAMPLE, task(table(context_length=4)))


# -- ends ------------------------------------------------------------------------------------------


def test_cancel_while_live_keeps_what_was_emitted():
    model = table()
    runner = Runner()
    handle, other = runner.submit(SAMPLE, task(model, 1)), runner.submit(SAMPLE, task(model, 2))
    runner.step()
    runner.step()
    runner.step()
    handle.cancel()
    runner.run()
    (item,) = handle.result()
    assert item.finish_reason == "cancelled"
    assert item.tokens == run_alone(SAMPLE, task(model, 1))[0].tokens[:2]
    assert other.result() == run_alone(SAMPLE, task(model, 2))


def test_cancel_while_waiting_ends_at_the_next_step():
    model = table(capacity=5)
    runner = Runner()
    handles = [runner.submit(SAMPLE, task(model, seed)) for seed in range(3)]
    runner.step()
    handles[2].cancel()
    runner.step()
    assert handles[2].done
    assert handles[2].result() == []
    assert not handles[1].done
    runner.run()
    assert handles[1].result()[0].finish_reason == "max_tokens"


def test_close_releases_everything():
    model = table(capacity=10)
    runner = Runner()
    handles = [runner.submit(SAMPLE, task(model, seed)) for seed in range(5)]
    runner.step()
    runner.step()
    runner.close()
    assert all(handle.done for handle in handles)
    assert model.tokens_alive == 0
    assert model.reserved == 0
    assert not runner.step()


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_budget_of_calls_uses_every_call(calls):
    runner = Runner()
    handle = runner.submit(SAMPLE, task(table()), budget=Budget(max_calls=calls))
    runner.run()
    (item,) = handle.result()
    assert item.finish_reason == "max_calls"
    assert item.tokens == run_alone(SAMPLE, task(table()))[0].tokens[:calls]
    assert handle.report.model_calls == calls


def test_a_budget_of_seconds():
    runner = Runner()
    handle = runner.submit(SAMPLE, task(table()), budget=Budget(max_seconds=1e-9))
    other = runner.submit(SAMPLE, task(table()), budget=Budget(max_seconds=1e9))
    runner.run()
    assert all(item.finish_reason == "max_seconds" for item in handle.result())
    assert other.result()[0].finish_reason == "max_tokens"


@pytest.mark.parametrize(
    "given", [{"max_calls": 0}, {"max_seconds": 0}, {"max_seconds": math.nan}], ids=str
)
def test_impossible_budgets_are_refused(given):
    with pytest.raises(ParameterError, match=next(iter(given))):
        Budget(**given)


def test_a_decoder_may_catch_the_end_of_its_budget():
    def careful(task):
        tip = yield Open(task.policy, task.prompt)
        try:
            while True:
                tip = tip.child(1)
                yield Grow([tip])
        except BudgetExhausted as spent:
            return [completion(tip, spent.reason, score=1.0)]

    runner = Runner()
    handle = runner.submit(Scripted(careful), task(table()), budget=Budget(max_calls=3))
    runner.run()
    (item,) = handle.result()
    assert (item.score, item.finish_reason) == (1.0, "max_calls")


# -- faults ----------------------------------------------------------------------------------------


def opened(then):
    """A decoder that opens its prompt and goes on with `then(root)`."""

    def coroutine(task):
        root = yield Open(task.policy, task.prompt)
        return (yield from then(root))

    return coroutine


def test_an_exception_ends_its_own_request_only():
    def broken(root):
        yield Grow([root.child(1)])
        raise ValueError("a fault")

    assert str(failed(opened(broken))) == "a fault"


def test_a_row_with_nan_names_the_model_and_the_step():
    sick = WatchedTable(lambda c: [np.nan] * 3 if len(c) == 2 else [1, 1, 1], 3, 2, name="sick")
    error = failed(lambda task: SAMPLE.decode(task), sick)
    assert isinstance(error, RowError)
    assert str(error) == "sick at step 1: the row holds NaN"


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (lambda root: (yield Grow([root])), "grown already"),
        (lambda root: (yield Grow([root.child(1)] * 2)), "grown already"),
        (lambda root: (yield Grow([root.child(1).child(1)])), "not grown"),
        (lambda root: (yield dropped(root.child(1))), "was dropped"),
    ],
    ids=["root", "twice", "orphan", "dropped"],
)
def test_nodes_used_against_the_rules_are_refused(then, reason):
    error = failed(opened(then))
    assert isinstance(error, TreeError)
    assert reason in str(error)


def dropped(node):
    node.drop()
    return Grow([node])


def test_what_is_no_request_is_refused():
    assert "no request" in str(failed(opened(lambda _: (yield "nonsense"))))


@pytest.mark.parametrize("value", [None, "text", [1]], ids=repr)
def test_what_is_no_list_of_completions_is_refused(value):
    def returns(root):
        yield Grow([root.child(0)])
        return value

    error = failed(opened(returns))
    assert isinstance(error, DecoderyError)
    assert "completions" in str(error)


def test_a_decoder_that_misbehaves_while_it_is_closed():
    def clings(task):
        try:
            return (yield from SAMPLE.decode(task))
        finally:
            yield Emit((0,))

    sick = WatchedTable(lambda c: [np.nan] * 3 if len(c) == 2 else [1, 1, 1], 3, 2)
    assert isinstance(failed(clings, sick), RowError)


def test_a_model_that_raises_ends_the_requests_of_its_forward():
    class Exploding(WatchedTable):
        def forward(self, growths):
            raise RuntimeError("out of memory")

    error = failed(lambda task: SAMPLE.decode(task), Exploding(lambda _: [1, 1, 1], 3, 0))
    assert "out of memory" in str(error)


def test_the_result_of_a_running_request_is_refused():
    runner = Runner()
    handle = runner.submit(SAMPLE, task(table()))
    with pytest.raises(TreeError, match="still running"):
        handle.result()


# -- scores and calls ------------------------------------------------------------------------------


class Recorder(Scorer):
    name = "recorder"

    def __init__(self, score=lambda items: np.array([len(item.text) for item in items])):
        self.batches = []
        self.function = score

    def score(self, candidates):
        self.batches.append(len(candidates))
        return self.function(candidates)


def scores(scorer, *texts):
    def coroutine(task):
        got = yield Score(scorer, [Candidate("", text, (0,), 0.0) for text in texts])
        return [Completion((), "max_tokens", details={"scores": got.tolist()})]

    return Scripted(coroutine)


def test_scores_of_many_decoders_are_one_call():
    scorer = Recorder()
    runner = Runner()
    given = [("a",), ("bb", "ccc"), ()]
    handles = [runner.submit(scores(scorer, *texts), task(table())) for texts in given]
    runner.run()
    assert scorer.batches == [3]
    got = [handle.result()[0].details["scores"] for handle in handles]
    assert got == [[1.0], [2.0, 3.0], []]
    assert [handle.report.items_scored for handle in handles] == [1, 2, 0]


@pytest.mark.parametrize("wrong", [lambda _: np.zeros(7), lambda _: 1 / 0], ids=["shape", "raises"])
def test_a_scorer_that_fails_ends_those_who_asked(wrong):
    runner = Runner()
    sick = runner.submit(scores(Recorder(wrong), "a"), task(table()))
    well = runner.submit(scores(Recorder(), "a"), task(table()))
    runner.run()
    assert isinstance(sick.error, (ParameterError, ZeroDivisionError))
    assert well.result()[0].details["scores"] == [1.0]


def test_call_runs_a_function_on_the_model():
    model = table()

    def calls(task):
        name = yield Call(model, lambda own: own.name)
        return [Completion((), "max_tokens", details={"name": name})]

    runner = Runner()
    handle = runner.submit(Scripted(calls), task(model))
    runner.run()
    assert handle.result()[0].details["name"] == "table"
    assert handle.report.model_calls == 1


def test_a_call_that_raises_ends_its_request():
    assert isinstance(failed(lambda _: (yield Call(None, lambda _: 1 / 0))), ZeroDivisionError)


# -- streams and traces ----------------------------------------------------------------------------


def test_stream_gives_tokens_as_they_are_drawn_while_others_advance():
    runner = Runner()
    other = runner.submit(SAMPLE, task(table(), 9))
    handle = runner.submit(SAMPLE, task(table(), 3))
    seen = [emit.tokens for emit in runner.stream(handle)]
    assert [token for tokens in seen for token in tokens] == list(handle.result()[0].tokens)
    assert len(seen) == 4
    assert other.done


def test_stream_raises_what_ended_the_request():
    runner = Runner()
    handle = runner.submit(Scripted(opened(lambda root: (yield Grow([root])))), task(table()))
    with pytest.raises(TreeError):
        list(runner.stream(handle))


def test_a_trace_holds_the_run(tmp_path):
    trace = Trace(rows=2)
    model = table(eos_ids=END)
    (item,) = run_alone(SAMPLE, task(model, 4), trace=trace)
    kinds = [event["event"] for event in trace.events]
    assert kinds.count("call") == kinds.count("node") == len(item.tokens)
    assert kinds[-1] == "completion"
    root, *others = [event for event in trace.events if event["event"] == "node"]
    assert root["prompt"] == [0]
    assert root["parent"] is None
    assert tuple(node["token"] for node in others) == item.tokens[:-1]
    assert len(root["row"]) == 2
    assert root["row"][0][1] == pytest.approx(model.scores([0]).max())
    emitted = [
        token for event in trace.events if event["event"] == "emit" for token in event["tokens"]
    ]
    assert tuple(emitted) == item.tokens
    trace.save(tmp_path / "trace.json")
    assert (tmp_path / "trace.json").read_text().startswith('{"format": 2')


def test_a_trace_notes_dropped_nodes():
    def prunes(root):
        left, right = root.child(0), root.child(1)
        yield Grow([left, right])
        left.drop()
        tip = right.child(2)
        yield Grow([tip])
        return [completion(tip, "max_tokens")]

    trace = Trace()
    run_alone(Scripted(opened(prunes)), task(table()), trace=trace)
    drops = [event for event in trace.events if event["event"] == "drop"]
    assert [event["nodes"] for event in drops] == [[1]]


def test_rows_are_released_as_a_path_grows_unless_kept():
    def looks_back(root):
        one = root.child(1)
        yield Grow([one], keep_rows=True)
        assert root.has_row
        two = one.child(1)
        yield Grow([two])
        assert not root.has_row
        assert not one.has_row
        assert two.has_row
        return [completion(two, "max_tokens")]

    assert failed(opened(looks_back)) is None


def test_hidden_states_come_when_asked_for():
    def asks(root):
        assert root.hidden is None
        (one,) = yield Grow([root.child(1)], hidden=True)
        assert one.hidden is not None
        return [completion(one, "max_tokens")]

    assert failed(opened(asks)) is None
