"""Base-aligned collaboration: routing rules, words with one writer, and the law of the coin.

Everything is exact: rules on hand-made rows, laws by enumeration, properties along whole trees.
Oracles 1 to 6 of the method are named where they are checked; 7 and 8 are metrics.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

import decodery as dc
from decodery.cli import main
from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import Context
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.blending.baco import Baco
from decodery.methods.blending.routers import Router, make_router, threshold
from decodery.methods.blending.words import belongs, words_of
from decodery.reproductions.baco_measure import base_share
from decodery.reproductions.drawing import NotedDraws
from decodery.testing import TableModel, WatchedTable, enumerate_law
from decodery.testing.blend_scenes import ToyLanguage
from decodery.testing.tables import random_probabilities

GREEDY, SAMPLE = registry.get("greedy"), registry.get("sample")
WHOLE = 1 << 20
THE, CAT, S, DOT, LINE, EOS = range(6)
TOY = ToyLanguage()
WORDS = words_of(TOY)
SIGNALS = ("rand", "p", "h")
SURE = ("p", "h", "punc", "fc", "p_punc", "h_punc", "p_fc", "h_fc")  # no coin
ALL = ("rand", *SURE)


def table(seed: int, *, kinds: tuple[str, ...] = ("flat",), language: Any = TOY) -> WatchedTable:
    """A table of the toy language that remembers its whole context."""

    def law(context: tuple[int, ...]) -> Any:
        generator = np.random.default_rng([seed, len(context), *context])
        return random_probabilities(generator, 6, kinds[int(generator.integers(len(kinds)))])

    made = WatchedTable(law, 6, WHOLE, eos_ids=frozenset({EOS}), name=f"table {seed}")
    made.language = language
    return made


def task(source: Any, seed: int = 0, length: int = 5, **changes: Any) -> Task:
    plain = Task(
        Policy(source),
        (THE, DOT),
        Stopping(length, source.eos_ids),
        Stream(seed),
        decode=TOY.decode,
    )
    return replace(plain, **changes)


def settings(name: str) -> list[dict[str, Any]]:
    if name in ("punc", "fc"):
        return [{}]
    return [{"diversity": value} for value in (0.2, 0.5, 0.8)]


def law_of(source: Any, length: int = 3) -> dict[tuple[int, ...], float]:
    return enumerate_law(Policy(source), (THE, DOT), Stopping(length, source.eos_ids))


def same(one: Any, other: Any, tolerance: float = 1e-12) -> bool:
    return all(
        abs(one.get(path, 0.0) - other.get(path, 0.0)) < tolerance for path in {*one, *other}
    )


def writers(blend: Baco, path: tuple[int, ...]) -> list[float]:
    """The base model's share in every token of a text that is given."""
    seen: list[float] = []

    class Forced(type(GREEDY())):
        def decode(self, task: Task):
            node = yield Open(task.policy, task.prompt)
            for token in path:
                child = node.child(token)
                yield Grow([child], keep_rows=True)
                seen.append(child.blend_state)
                node = child
            return []

    run_alone(Forced(), task(blend, length=len(path) + 1))
    return seen


# -- routers ---------------------------------------------------------------------------------------


def row(*probabilities: float) -> Row:
    return Row.of_probabilities(probabilities)


UNSURE_CAT = row(0.1, 0.4, 0.1, 0.2, 0.1, 0.1)
UNSURE_DOT = row(0.1, 0.2, 0.1, 0.4, 0.1, 0.1)
UNSURE_THE = row(0.4, 0.2, 0.1, 0.1, 0.1, 0.1)
SURE_CAT = row(0.02, 0.9, 0.02, 0.02, 0.02, 0.02)


@pytest.mark.parametrize(
    ("name", "gamma", "base", "share"),
    [
        ("p", 0.5, UNSURE_CAT, 1),
        ("p", 0.5, SURE_CAT, 0),
        ("p", 0.399999, UNSURE_CAT, 0),
        ("p", 0.400001, UNSURE_CAT, 1),
        ("h", 1.0, UNSURE_CAT, 1),
        ("h", 1.0, SURE_CAT, 0),
        ("h", UNSURE_CAT.entropy() - 1e-9, UNSURE_CAT, 1),
        ("h", UNSURE_CAT.entropy() + 1e-9, UNSURE_CAT, 0),
        ("punc", None, UNSURE_DOT, 0),
        ("punc", None, UNSURE_THE, 1),
        ("punc", None, SURE_CAT, 1),
        ("fc", None, UNSURE_THE, 0),
        ("fc", None, UNSURE_DOT, 0),
        ("fc", None, SURE_CAT, 1),
        ("p_punc", 0.5, UNSURE_CAT, 1),
        ("p_punc", 0.5, UNSURE_DOT, 0),
        ("p_punc", 0.5, SURE_CAT, 0),
        ("h_fc", 1.0, UNSURE_THE, 0),
        ("h_fc", 1.0, UNSURE_CAT, 1),
        ("rand", 0.3, SURE_CAT, 0.3),
    ],
)
def test_the_rules_as_they_are_written(name: Any, gamma: float | None, base: Row, share: float):
    assert make_router(name, gamma).base_share(UNSURE_DOT, base, WORDS, False) == share


@pytest.mark.parametrize(("content_from", "share"), [("base", 1), ("aligned", 0), ("either", 0)])
def test_whose_likeliest_token_tells(content_from: Any, share: float):
    router = make_router("punc", content_from=content_from)
    assert router.base_share(UNSURE_DOT, UNSURE_CAT, WORDS, False) == share
    assert router.base_share(UNSURE_CAT, UNSURE_CAT, WORDS, False) == 1
    assert router.base_share(UNSURE_CAT, UNSURE_DOT, WORDS, False) == (content_from == "aligned")


def test_a_function_word_is_one_only_as_a_whole_word():
    """`the` inside a word, as in "ba|the", is no article."""

    class Glued(ToyLanguage):
        def pieces(self):
            return (b"the", b" ba", b"s", b".", b"\n", None)

    words, router = words_of(Glued()), make_router("fc")
    likely_the = row(0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
    assert router.base_share(likely_the, likely_the, words, False) == 0
    assert router.base_share(likely_the, likely_the, words, True) == 1


@pytest.mark.parametrize("signal", SIGNALS)
def test_diversity_is_one_scale(signal: Any):
    """It grows from the aligned model to the base model, whatever the direction of gamma."""
    scale = [threshold(signal, value) for value in np.linspace(0, 1, 21)]
    assert sorted(scale, reverse=signal == "h") == scale
    for base in (row(1, 0), row(0.5, 0.5), UNSURE_CAT, SURE_CAT):
        shares = [
            make_router(signal, diversity=value).base_share(base, base, None, False)
            for value in np.linspace(0, 1, 21)
        ]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 1)


def test_words_signs_and_function_words():
    assert TOY.pieces()[:3] == (b" the", b" cat", b"s")
    assert WORDS.begins.tolist() == [False, False, True, False, False, False]
    assert WORDS.ends.tolist() == [True, True, True, False, False, False]
    assert WORDS.sign.tolist() == [False, False, False, True, True, True]
    assert WORDS.function.tolist() == [True, False, False, False, False, False]
    split = "é".encode()

    class Other(ToyLanguage):
        def pieces(self):
            return (split[:1], split[1:], "中".encode(), b"**", b" The\n", "e\u0301".encode())

    words = words_of(Other())
    assert words.begins.tolist() == [True, True, False, False, False, True]
    assert words.ends.tolist() == [True, True, False, False, False, True]
    assert words.sign.tolist() == [False, False, False, True, False, False]
    assert words.function.tolist() == [False, False, False, False, True, False]
    assert belongs("ß")
    assert belongs("д")
    assert not belongs("ก")


# -- limits ----------------------------------------------------------------------------------------

TO_ALIGNED = [("p", {"gamma": 0.0}), ("p", {"gamma": -1.0}), ("rand", {"gamma": 0.0})]
TO_ALIGNED += [(name, {"diversity": 0.0}) for name in ALL if name not in ("punc", "fc")]
TO_BASE = [("p", {"gamma": 1.1}), ("h", {"gamma": -0.5}), ("rand", {"gamma": 1.0})]
TO_BASE += [(name, {"diversity": 1.0}) for name in SIGNALS]


@pytest.mark.parametrize(("name", "options"), TO_ALIGNED, ids=str)
@pytest.mark.parametrize("boundary", [True, False])
def test_at_one_end_it_is_the_aligned_model(name: Any, options: Any, boundary: bool):
    """Oracle 1: bit for bit, with the same seed."""
    base, aligned = table(1), table(2)
    blend = Baco(base, aligned, name, word_boundary=boundary, **options)
    assert law_of(blend) == law_of(aligned)
    for seed in range(10):
        drawn = run_alone(SAMPLE(n=3), task(blend, seed))
        wanted = run_alone(SAMPLE(n=3), task(aligned, seed))
        assert [item.tokens for item in drawn] == [item.tokens for item in wanted]


@pytest.mark.parametrize(("name", "options"), TO_BASE, ids=str)
@pytest.mark.parametrize("boundary", [True, False])
def test_at_the_other_end_it_is_the_base_model(name: Any, options: Any, boundary: bool):
    """Oracle 1: all words but the first are begun by base, so it is base from the first token."""
    base, aligned = table(1), table(2)
    blend = Baco(base, aligned, name, word_boundary=boundary, **options)
    assert law_of(blend) == law_of(base)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize("content_from", ["base", "aligned", "either"])
def test_two_equal_models_are_one(name: Any, boundary: bool, content_from: Any):
    """Oracle 2: whoever writes, the law is the same."""
    if content_from != "base" and make_router(name).content is None:
        return
    for kinds in (("flat",), ("zeros", "steep", "one_hot")):
        one, other = table(3, kinds=kinds), table(3, kinds=kinds)
        for options in settings(name):
            blend = Baco(
                one,
                other,
                name,
                word_boundary=boundary,
                content_from=content_from,
                **options,
            )
            assert same(law_of(blend), law_of(one))


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SURE)
@pytest.mark.parametrize("boundary", [True, False])
def test_every_token_has_one_writer_and_every_word_too(name: Any, boundary: bool):
    """Oracle 3 on all texts of four tokens that are possible: the writer's share is 0 or 1, the
    writer gives the token probability, and inside a word of the decoded text it does not change."""
    switched_inside = 0
    for seed, options in product((1, 2, 3), settings(name)):
        kinds = ("flat", "zeros", "steep")
        base, aligned = table(seed, kinds=kinds), table(seed + 50, kinds=kinds)
        blend = Baco(base, aligned, name, word_boundary=boundary, **options)
        paths = [path for path in law_of(blend, 3) if path[-1] != EOS]
        for path in paths[::7]:
            shares = writers(blend, path)
            assert set(shares) <= {0.0, 1.0}
            for place, (token, share) in enumerate(zip(path, shares, strict=True)):
                writer = base if share else aligned
                assert writer.scores([THE, DOT, *path[:place]])[token] > -np.inf
            text = "".join(character * 1 for token in path for character in TOY.decode([token]))
            by_character = [
                share
                for token, share in zip(path, shares, strict=True)
                for _ in TOY.decode([token])
            ]
            for place in range(1, len(text)):
                inside = belongs(text[place - 1]) and belongs(text[place])
                switched_inside += inside and by_character[place] != by_character[place - 1]
    assert (switched_inside == 0) == boundary


@pytest.mark.parametrize("boundary", [True, False])
def test_the_coin_is_the_coin(boundary: bool):
    """The law of `rand` with its coins tossed one by one, summed over all of them."""
    kinds = ("flat", "zeros", "steep")
    for seed, gamma in product((1, 2, 3), (0.25, 0.6)):
        models = table(seed + 50, kinds=kinds), table(seed, kinds=kinds)  # aligned, base
        law: dict[tuple[int, ...], float] = {}
        _toss(models, gamma, boundary, law, (), 0, 1.0)
        blend = Baco(models[1], models[0], "rand", gamma=gamma, word_boundary=boundary)
        assert same(law_of(blend), law)


def _toss(
    models: Any, gamma: float, boundary: bool, law: Any, path: Any, writer: int, probability: float
) -> None:
    """Add what follows `path`, whose last token `writer` wrote, to the law."""
    if probability == 0:
        return
    if len(path) == 3 or (path and path[-1] == EOS):
        law[path] = law.get(path, 0.0) + probability
        return
    laws = [np.exp(model.scores([THE, DOT, *path])) for model in models]
    going_on = boundary and bool(path) and WORDS.ends[path[-1]]
    fresh, ends = np.ones(6, dtype=bool), 1.0
    if going_on:
        for token in np.flatnonzero(WORDS.begins):
            share = probability * laws[writer][token]
            _toss(models, gamma, boundary, law, (*path, int(token)), writer, share)
        fresh = ~WORDS.begins
        ends = laws[writer][fresh].sum()
    for coin, chance in enumerate((1 - gamma, gamma)):
        mass = laws[coin][fresh].sum()
        assert mass > 0
        for token in np.flatnonzero(fresh):
            share = probability * ends * chance * laws[coin][token] / mass
            _toss(models, gamma, boundary, law, (*path, int(token)), coin, share)


def test_writers_without_a_coin_are_those_of_the_law():
    """The short way to the next state, against the shares that each model has in the row."""
    kinds = ("flat", "zeros", "steep", "one_hot")
    for seed in range(40):
        base, aligned = table(seed, kinds=kinds), table(seed + 50, kinds=kinds)
        blend = Baco(base, aligned, "p", diversity=0.6)
        for old, last in product((0.0, 1.0), (CAT, S, DOT)):
            path = [THE, DOT, last]
            rows = [Row.dense(model.scores(path)) for model in (aligned, base)]
            context = Context(path, 2)
            going_on = bool(WORDS.ends[last])
            new = blend.router.base_share(*rows, WORDS, going_on)
            parts = blend._parts(*rows, old, new, going_on)
            joint = blend.combine(rows, old, context).dense_probabilities()
            assert np.abs(sum(parts) - joint).max() < 1e-12
            for token in np.flatnonzero(joint):
                wanted = parts[1][token] / (parts[0][token] + parts[1][token])
                assert blend.advance(old, int(token), rows, context) == wanted


def test_a_model_that_can_only_go_on_leaves_the_next_word_to_the_other():
    """Base is named, and has nothing that could begin a word: the aligned model keeps writing."""
    only_s = TableModel(lambda _: np.eye(6)[S], 6, WHOLE, eos_ids=frozenset({EOS}))
    only_s.language = TOY
    aligned = table(4)
    blend = Baco(only_s, aligned, "p", diversity=1.0)
    law = enumerate_law(Policy(blend), (THE, DOT), 1)
    assert law == {(S,): 1.0}  # a sign came before: every token may begin here
    rows = [Row.dense(aligned.scores([THE, DOT, CAT])), Row.dense(only_s.scores([]))]
    context = Context((THE, DOT, CAT), 2)
    joint = blend.combine(rows, 0.0, context)
    assert np.abs(joint.dense_probabilities() - rows[0].dense_probabilities()).max() < 1e-12
    assert blend.advance(0.0, DOT, rows, context) == 0.0
    assert blend.combine(rows, 1.0, context).argmax() == S


# -- where base writes -----------------------------------------------------------------------------

TEXTS = [tuple(np.random.default_rng(seed).integers(0, 5, 8).tolist()) for seed in range(12)]


@pytest.mark.parametrize("name", ["p", "h", "p_punc", "h_punc", "p_fc", "h_fc"])
@pytest.mark.parametrize("boundary", [True, False])
def test_base_positions_only_grow_with_diversity(name: Any, boundary: bool):
    """Oracle 4, on given texts; for p they grow with gamma, for h they shrink."""
    base, aligned = table(6, kinds=("flat", "steep")), table(7)

    def chosen(**options: Any) -> list[float]:
        blend = Baco(base, aligned, name, word_boundary=boundary, **options)
        return [share for text in TEXTS for share in writers(blend, text)]

    grid = [chosen(diversity=value) for value in (0.0, 0.2, 0.3, 0.5, 0.8, 1.0)]
    assert all(
        few <= more for low, high in pairwise(grid) for few, more in zip(low, high, strict=True)
    )
    assert sum(grid[0]) == 0 < sum(grid[2]) < sum(grid[-1])
    by_gamma = [chosen(gamma=value) for value in (0.2, 0.6, 1.2)]
    if name.startswith("h"):
        by_gamma.reverse()
    assert all(
        few <= more for low, high in pairwise(by_gamma) for few, more in zip(low, high, strict=True)
    )


@pytest.mark.parametrize(("signal", "content"), list(product(("p", "h"), ("punc", "fc"))))
@pytest.mark.parametrize("content_from", ["base", "aligned", "either"])
def test_a_joint_router_is_the_meeting_of_its_parts(signal: Any, content: Any, content_from: Any):
    """Oracle 5, without the rule of word boundaries."""
    base, aligned = table(8, kinds=("flat", "steep")), table(9)
    common = {"word_boundary": False}
    both = Baco(
        base, aligned, f"{signal}_{content}", diversity=0.5, content_from=content_from, **common
    )
    first = Baco(base, aligned, signal, diversity=0.5, **common)
    second = Baco(base, aligned, content, content_from=content_from, **common)
    for text in TEXTS:
        shares = [writers(blend, text) for blend in (both, first, second)]
        assert shares[0] == [min(pair) for pair in zip(shares[1], shares[2], strict=True)]


class Four(ToyLanguage):
    def pieces(self):
        return (b" red", b" blue", b" green", b" pink", b".", None)


def test_the_number_of_different_answers_as_a_function_of_gamma():
    """Oracle 6: aligned always says one of four sentences that base says equally often."""
    start = np.array([1, 1, 1, 1, 0, 0]) / 4

    def law(first: Any):
        def after(context: tuple[int, ...]) -> Any:
            last = context[-1]
            return np.eye(6)[4] if last < 4 else (np.eye(6)[5] if len(context) > 1 else first)

        made = TableModel(after, 6, WHOLE, eos_ids=frozenset({5}))
        made.language = Four()
        return made

    base, aligned = law(start), law(np.eye(6)[0])
    draws = 10

    def expected(name: Any, gamma: float) -> float:
        blend = Baco(base, aligned, name, gamma=gamma)
        found = enumerate_law(Policy(blend), (4,), Stopping(4, frozenset({5})))
        assert all(path[1:] == (4, 5) for path in found)
        return sum(1 - (1 - share) ** draws for share in found.values())

    several = 4 * (1 - 0.75**draws)
    for gamma in (0.0, 0.1, 0.2499, 0.2501, 0.5, 1.0):
        wanted = several if gamma > 0.25 else 1.0
        assert expected("p", gamma) == pytest.approx(wanted, abs=1e-9)
        assert expected("p_punc", gamma) == pytest.approx(wanted, abs=1e-9)
        others, own = 3 * (1 - (1 - gamma / 4) ** draws), 1 - (3 * gamma / 4) ** draws
        assert expected("rand", gamma) == pytest.approx(own + others, abs=1e-9)
    for gamma in (1.0, math.log(4) - 1e-6, math.log(4) + 1e-6, 3.0):
        wanted = several if gamma < math.log(4) else 1.0
        assert expected("h", gamma) == pytest.approx(wanted, abs=1e-9)


# -- ends, prompts, cost ---------------------------------------------------------------------------


def test_the_base_models_end_counts_as_the_aligned_models():
    base, aligned = table(10), table(11)
    base.eos_ids, aligned.eos_ids = frozenset({LINE, EOS}), frozenset({EOS})
    blend = Baco(base, aligned, "rand", gamma=1.0)
    assert blend.eos_ids == aligned.eos_ids
    law = enumerate_law(Policy(blend), (THE, DOT), 1)
    own = np.exp(base.scores([THE, DOT]))
    assert law[EOS,] == pytest.approx(own[EOS] + own[LINE], abs=1e-12)
    assert (LINE,) not in law
    assert [law[token,] for token in (THE, CAT, S, DOT)] == pytest.approx(own[:4].tolist())
    (item,) = run_alone(SAMPLE(), task(blend, length=40))
    assert item.finish_reason == "eos"


def test_base_sees_the_request_as_plain_text():
    base, aligned = table(12), table(13)
    messages = (
        {"role": "system", "content": " the"},
        {"role": "user", "content": [{"type": "text", "text": "s cat"}]},
    )
    asked = task(Baco(base, aligned), messages=messages)
    for template, text in (
        (None, "the\n\ns cat\n\n"),
        ("question", "Question: the\n\ns cat\n\nAnswer:"),
        ("s.{prompt}", "s.the\n\ns cat"),
    ):
        blend = Baco(base, aligned, base_template=template)
        read = blend._read(replace(asked, policy=Policy(blend)))
        assert read.prompts(asked.prompt) == [asked.prompt, TOY.encode(text)]
    assert Baco(base, aligned)._read(task(base)).prompts((THE,)) == [(THE,), (THE,)]


@pytest.mark.parametrize("pair", [True, False])
def test_a_token_is_one_call_of_each_model(pair: bool):
    aligned = table(14)
    aligned.eos_ids = frozenset()
    base = table(15) if pair else aligned
    base.eos_ids = frozenset()
    blend = Baco(base, aligned)
    messages = ({"role": "user", "content": "s cat"},)
    runner = Runner()
    handle = runner.submit(SAMPLE(), task(blend, length=6, messages=messages))
    runner.run()
    assert len(handle.result()[0].tokens) == 6
    assert aligned.calls == base.calls == 6
    assert aligned.peak <= handle.needs[aligned]
    assert base.tokens_alive == base.reserved == aligned.reserved == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router": "punc", "gamma": 0.3}, "router punc has no threshold; leave out gamma"),
        ({"router": "fc", "diversity": 0.3}, "router fc has no threshold; leave out diversity"),
        ({"router": "p", "gamma": 0.3, "diversity": 0.3}, "each sets the threshold"),
        ({"router": "rand", "gamma": 1.5}, "for router rand allowed is a number with 0 <= x <= 1"),
        ({"router": "h", "content_from": "either"}, "leave out content_from"),
        ({"base_template": "Answer:"}, "a text with {prompt}"),
        ({"diversity": 1.5}, "diversity is 1.5"),
        ({"router": "p-punc"}, "did you mean 'p_punc'"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ParameterError, match=message):
        dc.baco(**options)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "router p_punc"),
        ({"router": "p"}, "word_boundary"),
        ({"router": "h", "word_boundary": False, "base_template": "plain"}, "base_template"),
    ],
    ids=str,
)
def test_tokens_that_are_numbers_have_no_words(options: dict[str, Any], what: str):
    numbers = table(1, language=None), table(2, language=None)
    with pytest.raises(ParameterError, match=f"{what} reads text, and the tokens"):
        Baco(*numbers, **options)
    Baco(*numbers, "p", word_boundary=False)


def test_one_model_on_one_prompt_is_no_pair():
    model = table(1)
    with pytest.raises(ParameterError, match="name a base model, or give a conversation"):
        Runner().submit(SAMPLE(), task(Baco(model, model)))
    assert model.calls == 0


def test_models_of_other_tokens_do_not_collaborate():
    with pytest.raises(ParameterError, match="different tokenizers"):
        Baco(table(1, language=Four()), table(2))


# -- negative controls -----------------------------------------------------------------------------


def swapped(self: Router, aligned: Row, base: Row, words: Any, going_on: bool) -> float:
    """Nudging's rule: the aligned model where base is unsure."""
    own = RIGHT(self, aligned, base, words, going_on)
    return 1.0 - own if self.signal in ("p", "h") else own


RIGHT = Router.base_share


def test_the_swapped_inequality_would_be_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Router, "base_share", swapped)
    with pytest.raises(AssertionError):
        test_the_rules_as_they_are_written("p", 0.5, UNSURE_CAT, 1)
    with pytest.raises(AssertionError):
        test_base_positions_only_grow_with_diversity("p", True)
    with pytest.raises(AssertionError):
        test_the_number_of_different_answers_as_a_function_of_gamma()


def test_a_switch_on_the_likeliest_token_would_be_found(monkeypatch: pytest.MonkeyPatch):
    """Letting the named model write whenever its likeliest token begins anew: words get two
    writers, and two equal models are no longer one when its other tokens are cut off."""

    def parts(self: Baco, aligned: Row, base: Row, writer: float, share: float, going_on: bool):
        laws = aligned.dense_probabilities(), base.dense_probabilities()
        named = laws[int(share)]
        stays = going_on and WORDS.begins[int(np.argmax(named))]
        part = writer if stays else share
        return (1 - part) * laws[0], part * laws[1]

    def writer(self: Baco, named: Row, old: float, new: float, token: int) -> float:
        return old if WORDS.begins[named.argmax()] else new

    monkeypatch.setattr(Baco, "_parts", parts)
    monkeypatch.setattr(Baco, "_writer", writer)
    with pytest.raises(AssertionError):
        test_every_token_has_one_writer_and_every_word_too("p", True)

    def cut(self: Baco, aligned: Row, base: Row, writer: float, share: float, going_on: bool):
        one, other = parts(self, aligned, base, writer, share, going_on)
        keep = ~WORDS.begins if going_on else True
        whole = ((one + other) * keep).sum()
        return (one * keep / whole, other * keep / whole) if whole else (one, other)

    monkeypatch.setattr(Baco, "_parts", cut)
    with pytest.raises(AssertionError):
        test_two_equal_models_are_one("p", True, "base")


def test_a_coin_that_forgets_the_word_would_be_found(monkeypatch: pytest.MonkeyPatch):
    """Tossing anew inside a word."""

    def parts(self: Baco, aligned: Row, base: Row, writer: float, share: float, going_on: bool):
        return (1 - share) * aligned.dense_probabilities(), share * base.dense_probabilities()

    monkeypatch.setattr(Baco, "_parts", parts)
    test_the_coin_is_the_coin(False)
    with pytest.raises(AssertionError):
        test_the_coin_is_the_coin(True)


def test_a_lost_end_would_be_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Baco, "_with_one_end", lambda _, base: base)
    with pytest.raises((AssertionError, KeyError)):
        test_the_base_models_end_counts_as_the_aligned_models()


# -- the real model --------------------------------------------------------------------------------

REQUEST = "Write a line about the sea."


def test_the_proxy_pair_from_the_command_line(
    lm: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr("decodery.api.load.load", lambda *_, **__: lm)
    arguments = ["run", REQUEST, "--method", "baco", "--router", "p_fc", "--diversity", "0.4"]
    assert main.run_command([*arguments, "--max-tokens", "6", "--seed", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "baco"
    assert found["parameters"]["diversity"] == {"value": 0.4, "from": "user"}
    assert len(found["tokens"]) == 6
    assert found["report"]["model_calls"] == 6
    assert main.run_command([*arguments, "--raw"]) == 2
    assert "name a base model, or give a conversation" in capsys.readouterr().err


def test_a_second_model_is_loaded_by_name(lm: Any, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def load(name: str, **_: Any) -> Any:
        asked.append(name)
        return lm

    monkeypatch.setattr("decodery.api.load.load", load)
    lm.generate(REQUEST, method="baco", base="some/base", max_tokens=2, seed=1)
    assert asked == ["some/base"]


def test_on_the_model_the_ends_of_the_scale_are_the_models(lm: Any):
    """Diversity 0 is the conversation, 1 the plain text, with the tokens of their own runs."""
    plain = lm.language.encode(f"{REQUEST}\n\n")
    runs = {"max_tokens": 8, "method": "greedy"}
    aligned, base = lm.generate(REQUEST, **runs), lm.generate(list(plain), **runs)
    for diversity, wanted in ((0.0, aligned), (1.0, base)):
        pair = Baco(lm, lm, "p", diversity=diversity)
        made = dc.generate(pair, REQUEST, decoder="greedy", max_tokens=8)
        assert made.tokens == wanted.tokens


def test_on_the_model_no_word_has_two_writers(lm: Any):
    """Oracle 3 on real text: six answers of 30 tokens, both models writing."""
    words, read = words_of(lm.language), lm.read(REQUEST)
    pair = Policy(Baco(lm, lm, "p_punc", diversity=0.6))
    asked = Task(pair, read.tokens, Stopping(30, lm.eos_ids), Stream(4), messages=read.messages)
    written: list[float] = []
    for item in run_alone(NotedDraws(6, {"share": base_share}), asked):
        shares = item.details["share"]
        assert set(shares) <= {0.0, 1.0}
        for place, (before, token) in enumerate(pairwise(item.tokens)):
            if words.ends[before] and words.begins[token]:
                assert shares[place] == shares[place + 1]
        written += shares
    assert 0.05 < np.mean(written) < 0.95
