"""Integrative decoding: the joint row in closed form, streams in step, answers drawn first.

Oracles 1 to 7 of the method are exact. One chi-square test, N = 2,000, alpha 1e-6: the law of the
answers that are drawn; a temperature of 1 instead of 0.7 (total variation 0.12) is rejected with
power above 0.99.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations, product
from typing import Any

import numpy as np
import pytest

import decodery as dc
from decodery.api.plan import make_plan
from decodery.cli import main
from decodery.core import registry
from decodery.core.decoder import Decoder, Task
from decodery.core.errors import ParameterError, PromptError, RowError, TreeError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.blending import asking, streams
from decodery.methods.blending.integrative import Integrative, Params
from decodery.methods.blending.streams import Streams, mixture, votes
from decodery.testing import TableModel, WatchedTable, enumerate_law, require_law
from decodery.testing.blend_scenes import ToyLanguage

GREEDY, SAMPLE, BEAM = (registry.get(name) for name in ("greedy", "sample", "beam"))
WHOLE = 1 << 20
END = frozenset({3})
ANSWERS = [(0, 1), (2,), (1, 1, 0)]


def table(seed: int = 1, vocab_size: int = 4, ends: bool = True) -> WatchedTable:
    """A table that remembers its whole context."""
    law = TableModel.random(vocab_size, WHOLE, seed=seed).law
    return WatchedTable(
        law, vocab_size, WHOLE, eos_ids=END if ends else frozenset(), name=f"table {seed}"
    )


def task(source: Any, seed: int = 0, length: int = 4, prompt: tuple[int, ...] = (0, 2)) -> Task:
    return Task(Policy(source), prompt, Stopping(length, source.eos_ids), Stream(seed))


def prepared(source: Any, **options: Any) -> Streams:
    """What a run decodes from."""
    seen: list[Any] = []

    class Look(Decoder):
        def decode(self, task: Task):
            seen.append(task.policy.source)
            return []
            yield

    run_alone(Look(), task(source, **options))
    return seen[0]


def logits(seed: int, count: int, size: int = 6) -> list[Row]:
    generator = np.random.default_rng(seed)
    return [Row.dense(generator.normal(0, 4, size)) for _ in range(count)]


# -- the joint row ---------------------------------------------------------------------------------


def test_the_mean_of_logits_is_the_product_of_experts():
    """Oracle 1: constants of the rows cancel, in the argmax and in the whole law."""
    for seed in range(400):
        rows = logits(seed, 2 + seed % 4)
        joint = streams.product(rows, [1 / len(rows)] * len(rows))
        logs = np.array([np.log(row.probabilities()) for row in rows])
        geometric = np.exp(logs.mean(axis=0))
        assert joint.argmax() == np.argmax(logs.sum(axis=0))
        assert np.abs(joint.probabilities() - geometric / geometric.sum()).max() < 1e-12


@pytest.mark.parametrize("aggregate", ["logits", "mixture", "vote"])
def test_the_law_of_an_answer_by_hand(aggregate: Any):
    """Every path of three tokens, from the table alone."""
    model, weights = table(), (0.5, 0.2, 0.3)
    blend = Integrative(model, ANSWERS, aggregate=aggregate, answer_weights=(5, 2, 3))
    law = enumerate_law(Policy(prepared(blend)), (0, 2), Stopping(3, END))

    def joined(path: tuple[int, ...]) -> Any:
        rows = [np.exp(model.scores([0, 2, *answer, 0, 2, *path])) for answer in ANSWERS]
        if aggregate == "logits":
            made = np.prod([row**w for row, w in zip(rows, weights, strict=True)], axis=0)
        elif aggregate == "mixture":
            made = np.sum([w * row for row, w in zip(rows, weights, strict=True)], axis=0)
        else:
            tops = [w * np.eye(4)[row.argmax()] for row, w in zip(rows, weights, strict=True)]
            made = np.sum(tops, axis=0)
        return made / made.sum()

    for path, probability in law.items():
        wanted = np.prod([joined(path[:place])[token] for place, token in enumerate(path)])
        assert abs(probability - wanted) < 1e-12
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)


def test_one_stream_can_forbid_a_token_only_in_the_product():
    """Oracle 5: the veto."""
    rows = [Row.of_probabilities([0.9, 0.1, 0.0]), Row.of_probabilities([0.0, 0.5, 0.5])]
    assert streams.product(rows, [0.5, 0.5]).dense_probabilities().tolist() == [0, 1, 0]
    assert mixture(rows, [0.5, 0.5]).argmax() == 0
    assert votes(rows, [0.5, 0.5]).dense_probabilities().tolist() == [0.5, 0.5, 0]


def counts_of(size: int, total: int) -> list[tuple[int, ...]]:
    return [item for item in product(range(total + 1), repeat=size) if sum(item) == total]


BIAS = np.array([0.3, 0.1, -0.2, 0.05])


@pytest.mark.parametrize("push", [0.0, 0.4, 2.0, 30.0])
def test_it_counts_votes_with_a_prior(push: float):
    """Oracle 6: streams that each prefer their answer by `push`; all 56 counts of 5 answers."""

    def law(context: tuple[int, ...]) -> Any:
        return np.exp(BIAS + push * (np.arange(4) == context[1]) - push)

    model = TableModel(law, 4, WHOLE)
    for counts in counts_of(4, 5):
        answers = [(token,) for token in range(4) for _ in range(counts[token])]
        blend = Integrative(model, answers)
        (item,) = run_alone(GREEDY(), task(blend, length=1, prompt=(0,)))
        assert item.tokens == (int(np.argmax(BIAS + push * np.array(counts) / 5)),)
        if push == 0:
            assert item.tokens == (0,)
        if push == 30:
            assert counts[item.tokens[0]] == max(counts)


def test_truncation_comes_after_the_streams_are_joined():
    """Oracle 7: cut first, and streams that disagree leave nothing; the run's chain cuts last."""
    laws = [[0.6, 0.3, 0.1, 0.0], [0.0, 0.3, 0.1, 0.6]]
    cut = dc.top_p(0.5)
    kept = [cut.apply(Row.of_probabilities(law), None, None) for law in laws]
    with pytest.raises(RowError, match="no token"):
        streams.product(kept, [0.5, 0.5])

    model = TableModel(lambda context: laws[context[1] % 2], 4, WHOLE)
    blend = Integrative(model, [(0,), (1,)])
    law = enumerate_law(Policy(prepared(blend, prompt=(0,)), chain(cut)), (0,), 1)
    assert law == {(1,): 1.0}


# -- limits and invariances ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("decoder", [GREEDY(), BEAM(beams=2)], ids=repr)
def test_one_answer_however_often_is_its_prompt_alone(count: int, decoder: Decoder):
    """Oracle 2: K = 1, and K equal prompts, are the model on that prompt; K = 1 bit for bit."""
    for seed in range(6):
        model = table(seed)
        long = (0, 2, 1, 2, 0, 2)
        fused = run_alone(decoder, task(Integrative(model, [(1, 2)] * count)))
        alone = run_alone(decoder, task(model, prompt=long))
        assert [item.tokens for item in fused] == [item.tokens for item in alone]
        law = enumerate_law(Policy(prepared(Integrative(model, [(1, 2)] * count))), (0, 2), 3)
        wanted = enumerate_law(Policy(model), long, 3)
        assert law == wanted or count > 1
        assert all(abs(law[path] - wanted[path]) < 1e-12 for path in wanted)


@pytest.mark.parametrize("aggregate", ["logits", "mixture", "vote"])
def test_the_order_of_answers_changes_no_bit(aggregate: Any):
    """Oracle 2: streams are put into one order, so that not even rounding tells orders apart."""
    model = table(4)
    seen = set()
    for order in permutations(range(3)):
        answers = [ANSWERS[place] for place in order]
        weights = [(0.1, 0.7, 0.3)[place] for place in order]
        blend = Integrative(model, answers, aggregate=aggregate, answer_weights=weights)
        law = enumerate_law(Policy(prepared(blend)), (0, 2), 2)
        seen.add(tuple(value.hex() for value in law.values()))
    assert len(seen) == 1


def test_a_weight_of_zero_leaves_its_stream_out():
    model = table(5)
    with_it = prepared(Integrative(model, ANSWERS, answer_weights=(1, 0, 3)))
    without = prepared(Integrative(model, [ANSWERS[0], ANSWERS[2]], answer_weights=(1, 3)))
    assert len(with_it.members) == 2
    assert enumerate_law(Policy(with_it), (0,), 2) == enumerate_law(Policy(without), (0,), 2)


def test_the_plain_prompt_can_be_a_stream():
    model = table(6)
    blend = prepared(Integrative(model, ANSWERS[:2], plain_weight=0.5))
    assert sorted(zip(blend.contexts, blend.weights, strict=True)) == [
        ((0, 2), 0.5),
        ((0, 2, 0, 1, 0, 2), 0.25),
        ((0, 2, 2, 0, 2), 0.25),
    ]
    alone = Integrative(model, ANSWERS, plain_weight=1.0)
    model.calls = 0
    (item,) = run_alone(GREEDY(), task(alone))
    assert item.tokens == run_alone(GREEDY(), task(model))[0].tokens
    assert prepared(alone) is model


def test_two_questions_at_once_are_answered_as_alone():
    """Oracle 3: each of four requests, in one runner, gets what it gets alone."""
    for options in ({"answers": ANSWERS}, {"samples": 3, "answer_tokens": 5}):
        model = table(7)
        blend = Integrative(model, **options)
        asked = [
            task(blend, seed, prompt=prompt) for prompt in ((0,), (1, 2, 0)) for seed in (0, 1)
        ]
        alone = [[item.tokens for item in run_alone(SAMPLE(n=2), one)] for one in asked]
        runner = Runner()
        handles = [runner.submit(SAMPLE(n=2), one) for one in asked]
        runner.run()
        assert [[item.tokens for item in handle.result()] for handle in handles] == alone
        assert model.tokens_alive == model.reserved == 0


def test_all_streams_carry_the_same_text():
    """Oracle 4: after every step the generated ids of all streams are equal."""
    checked = []

    class Watch(type(GREEDY())):
        def decode(self, task: Task):
            inner = super().decode(task)
            answer = None
            while True:
                try:
                    asked = inner.send(answer)
                except StopIteration as stop:
                    return stop.value
                answer = yield asked
                for item in answer if isinstance(answer, list) else [answer]:
                    nodes = item if isinstance(item, list) else [item]
                    for node in nodes:
                        if node is not None:
                            texts = {tuple(member.generated) for member in node.members}
                            assert texts == {tuple(node.generated)}
                            checked.append(len(node.members))

    run_alone(Watch(), task(Integrative(table(8, ends=False), ANSWERS), length=6))
    assert checked == [3] * 6


# -- cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 16])
def test_all_streams_of_a_token_are_one_call(count: int):
    model = table(9, ends=False)
    blend = Integrative(model, [(place % 4, place // 4) for place in range(count)])
    (item,) = run_alone(GREEDY(), task(blend, length=7))
    assert len(item.tokens) == 7
    assert model.calls == 7
    assert model.tokens_alive == model.reserved == 0


def test_answers_are_drawn_side_by_side():
    """As many calls as the longest answer has tokens, then one a token."""
    model = table(10, ends=False)
    run_alone(GREEDY(), task(Integrative(model, samples=6, answer_tokens=5), length=3))
    assert model.calls == 5 + 3


def test_no_more_room_is_used_than_was_asked_for():
    for samples, answer_tokens, length in product((1, 5), (1, 9), (1, 6)):
        model = table(11, ends=False)
        blend = Integrative(model, samples=samples, answer_tokens=answer_tokens)
        runner = Runner()
        handle = runner.submit(SAMPLE(n=2), task(blend, length=length))
        room = handle.needs[model]
        runner.run()
        assert handle.result()
        assert model.peak == room - 2 * samples  # the last token of a text is not grown


# -- the answers -----------------------------------------------------------------------------------


def drawn(source: Any, seed: int = 0, **options: Any) -> list[tuple[int, ...]]:
    """The answers that a run draws, read from its prompts."""
    contexts = prepared(source, seed=seed, **options).contexts
    return [context[2:-2] for context in contexts]


def test_answers_follow_the_tempered_law():
    model = table(12)
    blend = Integrative(model, samples=20, answer_tokens=2)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(100):
        counts.update(drawn(blend, seed))
    law: dict[tuple[int, ...], float] = {}
    cooled = Policy(model, chain(dc.temperature(0.7)))
    for path, probability in enumerate_law(cooled, (0, 2), Stopping(2, END)).items():
        text = path[:-1] if path[-1] in END else path
        law[text] = law.get(text, 0.0) + probability
    require_law(counts, law, 1e-6, "answers")


def test_fewer_answers_are_the_first_of_more():
    model = table(13)
    by_count = [
        Counter(drawn(Integrative(model, samples=count, answer_tokens=4), seed=5))
        for count in (1, 2, 5, 9)
    ]
    assert all(few <= more for few, more in pairwise(by_count))


def test_answers_have_noise_of_their_own():
    """Answers at temperature 1 are not what `sample` draws from the same seed."""
    model = table(14)
    own = Integrative(model, samples=12, answer_temperature=1.0, answer_tokens=4)
    plain = run_alone(SAMPLE(n=12), task(model, 3))
    texts = Counter(item.tokens[:-1] if item.tokens[-1] in END else item.tokens for item in plain)
    assert Counter(drawn(own, 3)) != texts


def test_answers_of_temperature_zero_are_greedy():
    model = table(15)
    (item,) = run_alone(GREEDY(), task(model))
    text = item.tokens[:-1] if item.tokens[-1] in END else item.tokens
    blend = Integrative(model, samples=3, answer_temperature=0.0, answer_tokens=4)
    assert drawn(blend) == [text] * 3


# -- prompts ---------------------------------------------------------------------------------------


def spoken(**options: Any) -> tuple[WatchedTable, Task]:
    toy = ToyLanguage()
    model = WatchedTable(TableModel.random(6, WHOLE, seed=2).law, 6, WHOLE, eos_ids=frozenset({5}))
    model.language = toy
    messages = ({"role": "system", "content": "."}, {"role": "user", "content": " the cat"})
    plan = Task(
        Policy(Integrative(model, **options)),
        toy.chat(messages),
        Stopping(3, model.eos_ids),
        Stream(0),
        messages=messages,
    )
    return model, plan


def contexts_of(plan: Task) -> list[tuple[int, ...]]:
    blend = plan.policy.source
    assert isinstance(blend, Integrative)
    return [blend._context(plan, plan.prompt, answer) for answer in blend.answers or ()]


def test_a_conversation_is_asked_again_with_the_answer_in_its_last_message():
    template = "{question} cats{answer}."
    _, plan = spoken(answers=[" the{question}", (1, 5)], template=template)
    toy = ToyLanguage()
    for context, answer in zip(contexts_of(plan), ("the{question}", "cat"), strict=True):
        asked = template.replace("{question}", "the cat", 1).replace("{answer}", answer)
        system = {"role": "system", "content": "."}
        assert context == toy.chat([system, {"role": "user", "content": asked}])


def test_a_plain_text_is_asked_again_as_a_whole():
    _, plan = spoken(answers=["s"], template="{question}.{answer}")
    plan = replace(plan, messages=(), prompt=ToyLanguage().encode(" the cat"))
    assert contexts_of(plan) == [ToyLanguage().encode(" the cat.s")]


def test_stop_strings_end_answers_too():
    _, plan = spoken(answers=["s. the"], template="{question}{answer}")
    toy = ToyLanguage()
    stopping = replace(plan.stopping, stop=(".",), decode=toy.decode)
    context = contexts_of(replace(plan, stopping=stopping, messages=(), prompt=toy.encode("s")))
    assert context == [toy.encode("ss")]


def test_an_answer_that_reads_longer_than_it_was_drawn_is_cut():
    """A language that reads every text as three times as many tokens as it has."""

    class Stutter(ToyLanguage):
        def encode(self, text: str) -> tuple[int, ...]:
            return tuple(token for token in super().encode(text) for _ in range(3))

    for seed in range(5):
        model, plan = spoken(samples=4, answer_tokens=12, template="{question}{answer}")
        model.language = Stutter()
        blend = Integrative(model, samples=4, answer_tokens=12, template="{question}{answer}")
        runner = Runner()
        asked = replace(plan, policy=Policy(blend), stream=Stream(seed))
        handle = runner.submit(GREEDY(), asked)
        runner.run()
        assert handle.result()
        assert model.peak <= handle.needs[model]


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": []}, "answers is empty"),
        ({"answers": [(0,)], "samples": 2}, "answers are given and samples is 2"),
        ({"answers": [(0,)], "answer_weights": (1, 2)}, "2 entries; allowed is one for each of 1"),
        ({"samples": 2, "answer_weights": (-1, 2)}, "allowed are numbers 0 <= x, not all 0"),
        ({"samples": 2, "answer_weights": (0, 0)}, "not all 0"),
        ({"plain_weight": 1.5}, "plain_weight is 1.5"),
        ({"template": "brief"}, "tokens of table 1 are numbers"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ParameterError, match=message):
        Integrative(table(), **options)


def test_refused_before_the_first_forward():
    model = table()
    with pytest.raises(ParameterError, match="give answers as token ids"):
        Runner().submit(GREEDY(), task(Integrative(model, ["a text"])))
    model.context_length = 20
    with pytest.raises(PromptError, match="exceed the context of 20 tokens"):
        Runner().submit(GREEDY(), task(Integrative(model, samples=2, answer_tokens=15)))
    speaking, plan = spoken(samples=1)
    ends_oddly = ({"role": "assistant", "content": "s"},)
    with pytest.raises(ParameterError, match="must end with the user's"):
        Runner().submit(GREEDY(), replace(plan, messages=ends_oddly))
    assert model.calls == speaking.calls == 0


@pytest.mark.parametrize("text", ["{question}", "{answer}", "a", "{questions} {answer}"])
def test_a_template_without_its_parts_is_refused(text: str):
    with pytest.raises(ParameterError, match=r"with \{question\} and \{answer\}"):
        dc.integrative(template=text)


def test_it_has_no_row_before_a_run():
    with pytest.raises(TreeError, match="before a run has prepared it"):
        enumerate_law(Policy(Integrative(table(), ANSWERS)), (0,), 1)


# -- negative controls -----------------------------------------------------------------------------


def veto_free(rows, weights):
    return mixture(rows, weights)


PRODUCT = streams.product


def hot(rows, weights):
    return PRODUCT(rows, [2 * weight for weight in weights])


def summed(rows, weights):
    return PRODUCT(rows, [1.0] * len(rows))


def first_only(rows, weights):
    return rows[0]


def raw_sum_of_exponentials(rows, weights):
    return Row.of_probabilities(np.mean([np.exp(row.dense_scores()) for row in rows], axis=0))


@pytest.mark.parametrize(
    "wrong", [veto_free, hot, summed, first_only, raw_sum_of_exponentials], ids=lambda f: f.__name__
)
def test_wrong_aggregates_fail_the_closed_form(wrong: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "product", wrong)
    with pytest.raises(AssertionError):
        test_the_law_of_an_answer_by_hand("logits")


def test_streams_in_the_order_given_would_be_found(monkeypatch: pytest.MonkeyPatch):
    """Without one order the last bits tell permutations apart."""
    monkeypatch.setattr(streams, "sorted", list, raising=False)
    with pytest.raises(AssertionError):
        test_the_order_of_answers_changes_no_bit("logits")


def test_the_noise_of_tokens_would_be_found(monkeypatch: pytest.MonkeyPatch):
    from decodery.core.tree import Node

    draw = Node.draw
    monkeypatch.setattr(Node, "draw", lambda self, key=None, **_: draw(self, key))
    with pytest.raises(AssertionError):
        test_answers_have_noise_of_their_own()


# -- plans and the real model ----------------------------------------------------------------------


def test_it_is_greedy_unless_a_decoder_is_named():
    """The card names the decoder; the paper's is greedy."""
    assert type(make_plan("integrative", {}).decoder).__name__ == "Greedy"
    assert type(make_plan(None, {"blend": "integrative"}).decoder).__name__ == "Greedy"
    assert type(make_plan("sample", {"blend": "integrative"}).decoder).__name__ == "Sample"
    assert type(make_plan("min_p", {"blend": "integrative"}).decoder).__name__ == "Sample"
    with pytest.raises(ParameterError, match="has no effect under Greedy"):
        make_plan("integrative", {"temperature": 0.5})
    assert make_plan("integrative", {}, {"temperature": 0.5}).sampler.stages == ()
    assert Params().samples == 8


QUESTION = "What do bees make?"


def test_on_the_model_one_answer_is_its_own_prompt(lm: Any):
    """Greedy on the real model, K = 1 and 2 equal answers: the tokens of that prompt alone."""
    answer = "Bees make honey."
    messages = [{"role": "user", "content": QUESTION}]
    template = asking.template_text(None)
    context = asking.again(lm.language, messages, (), template, answer)
    assert answer in lm.tokenizer.decode(context)
    wanted = lm.generate(list(context), method="greedy", max_tokens=10).tokens
    for count in (1, 2):
        fused = dc.generate(
            dc.Integrative(lm, answers=[answer] * count), QUESTION, decoder="greedy", max_tokens=10
        )
        assert fused.tokens == wanted


@pytest.mark.parametrize("template", list(asking.TEMPLATES))
def test_every_template_asks_on_the_model(lm: Any, template: str):
    made = dc.generate(
        dc.Integrative(lm, answers=["Honey.", "Wax."], template=template),
        QUESTION,
        decoder="greedy",
        max_tokens=3,
    )
    assert len(made.tokens) == 3
    assert made.report.model_calls == 3


def test_from_the_command_line(lm: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr("decodery.api.load.load", lambda *_, **__: lm)
    arguments = ["run", QUESTION, "--method", "integrative", "--samples", "3"]
    arguments += ["--answer-tokens", "6", "--max-tokens", "5", "--seed", "1", "--json"]
    assert main.run_command(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "integrative"
    assert found["parameters"]["samples"] == {"value": 3, "from": "user"}
    assert found["parameters"]["answer_temperature"] == {"value": 0.7, "from": "default"}
    assert len(found["tokens"]) == 5
    assert found["report"]["model_calls"] == 6 + 5
