"""Every sampler against its definition, exactly: all rows over a small grid of scores.

The grid holds ties and impossible tokens; vocabularies have 1 to 4 tokens, 336 rows in all, each
whole and truncated. Laws agree to 1e-12.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import reference_laws as reference

from decodery.core.card import Method
from decodery.core.errors import ParameterError, RowError
from decodery.core.row import Row
from decodery.core.sampler import Context
from decodery.methods.sampling import (
    allowed_tokens,
    banned_tokens,
    frequency_penalty,
    logit_bias,
    min_p,
    min_tokens,
    no_repeat_ngram,
    presence_penalty,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
    typical,
)

METHODS = [
    module.METHOD
    for module in (
        temperature,
        top_k,
        top_p,
        min_p,
        typical,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        no_repeat_ngram,
        min_tokens,
        logit_bias,
        allowed_tokens,
        banned_tokens,
    )
]
NOWHERE = Context((0,), 1)
PATH = Context((0, 1, 0, 2, 2, 0), 2, eos_ids=frozenset({1}))  # prompt 0 1, output 0 2 2 0


@cache
def grid() -> list[tuple[float, ...]]:
    """All rows of 1 to 4 tokens over four scores, at least one possible."""
    values = (-math.inf, -1.0, 0.5, 2.0)
    rows = itertools.chain.from_iterable(
        itertools.product(values, repeat=size) for size in range(1, 5)
    )
    return [row for row in rows if max(row) > -math.inf]


@cache
def forms(scores: tuple[float, ...]) -> tuple[Row, Row]:
    """The row whole, and with its impossible tokens dropped."""
    whole = Row.dense(np.array(scores))
    return whole, whole.keep(whole.scores > -np.inf)


def assert_law(
    method: Method,
    values: dict[str, Any],
    law: Callable[[Sequence[float]], list[float]],
    at: Context,
) -> None:
    sampler = method(**values)
    for scores in grid():
        expected = law(scores)
        for row in forms(scores):
            got = sampler.apply(row, sampler.start(at), at).dense_probabilities()
            assert np.abs(got - expected).max() < 1e-12, (sampler, scores, got, expected)


@pytest.mark.parametrize("heat", [0.0, 0.05, 0.5, 1.0, 3.0, 100.0])
def test_temperature_law(heat: float) -> None:
    assert_law(
        temperature.METHOD, {"temperature": heat}, lambda z: reference.temperature(z, heat), NOWHERE
    )


@pytest.mark.parametrize("k", [0, 1, 2, 3, 9])
def test_top_k_law(k: int) -> None:
    assert_law(top_k.METHOD, {"top_k": k}, lambda z: reference.top_k(z, k), NOWHERE)


@pytest.mark.parametrize("p", [1e-9, 0.25, 0.5, 0.75, 0.9137, 0.999999, 1.0])
def test_top_p_law(p: float) -> None:
    assert_law(top_p.METHOD, {"top_p": p}, lambda z: reference.top_p(z, p), NOWHERE)


@pytest.mark.parametrize("base", [0.0, 0.05, math.exp(-1.5), 0.5, 1.0])
@pytest.mark.parametrize("keep", [1, 2, 9])
def test_min_p_law(base: float, keep: int) -> None:
    values = {"min_p": base, "min_p_keep": keep}
    assert_law(min_p.METHOD, values, lambda z: reference.min_p(z, base, keep), NOWHERE)


@pytest.mark.parametrize("mass", [1e-9, 0.2, 0.5, 0.9137, 0.999999, 1.0])
def test_typical_law(mass: float) -> None:
    assert_law(typical.METHOD, {"typical_p": mass}, lambda z: reference.typical(z, mass), NOWHERE)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 7.0])
@pytest.mark.parametrize(
    ("window", "prompt", "seen"),
    [
        (0, True, {0, 1, 2}),
        (3, True, {0, 2}),
        (5, True, {0, 1, 2}),
        (0, False, {0, 2}),
        (1, False, {0}),
    ],
)
def test_repetition_law(penalty: float, window: int, prompt: bool, seen: set[int]) -> None:
    values = {
        "repetition_penalty": penalty,
        "repetition_window": window,
        "repetition_prompt": prompt,
    }
    assert_law(
        repetition_penalty.METHOD, values, lambda z: reference.repetition(z, seen, penalty), PATH
    )


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.7, 100.0])
@pytest.mark.parametrize(("prompt", "counted"), [(False, (0, 2, 2, 0)), (True, tuple(PATH.tokens))])
def test_presence_and_frequency_laws(
    penalty: float, prompt: bool, counted: tuple[int, ...]
) -> None:
    assert_law(
        presence_penalty.METHOD,
        {"presence_penalty": penalty, "presence_prompt": prompt},
        lambda z: reference.presence(z, counted, penalty),
        PATH,
    )
    assert_law(
        frequency_penalty.METHOD,
        {"frequency_penalty": penalty, "frequency_prompt": prompt},
        lambda z: reference.frequency(z, counted, penalty),
        PATH,
    )


def test_logit_bias_law() -> None:
    def law(scores: Sequence[float]) -> list[float]:
        return reference.softmax([s + (0.7 if v == 0 else 0.0) for v, s in enumerate(scores)])

    assert_law(logit_bias.METHOD, {"logit_bias": {0: 0.7}}, law, NOWHERE)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 7])
def test_no_repeat_ngram_bans_what_completes_an_ngram(n: int) -> None:
    generator = np.random.default_rng(n)
    row = Row.dense(np.zeros(4))
    sampler = no_repeat_ngram.METHOD(n)
    for _ in range(300):
        path = generator.integers(0, 3, generator.integers(1, 12)).tolist()
        banned = {v for v in range(4) if reference.repeats_ngram(path, v, n)}
        result = sampler.apply(row, None, Context(path, 1))
        assert set(np.flatnonzero(result.dense_scores() == -np.inf)) == banned, path


def test_min_tokens_holds_the_end_back_and_then_lets_it_go() -> None:
    row = Row.dense([0.0, 1.0, 2.0])
    sampler = min_tokens.METHOD(2)
    for generated in range(4):
        at = Context([0] * (3 + generated), 3, eos_ids=frozenset({1, 2}))
        expected = [0.0, 1.0, 2.0] if generated >= 2 else [0.0, -np.inf, -np.inf]
        assert sampler.apply(row, None, at).dense_scores().tolist() == expected


@pytest.mark.parametrize("chosen", [(0,), (1, 3), (3, 1, 1), (0, 1, 2, 3)])
def test_allowed_and_banned_tokens(chosen: tuple[int, ...]) -> None:
    for scores in (row for row in grid() if len(row) == 4):
        others = set(range(4)) - set(chosen)
        for method, kept in ((allowed_tokens.METHOD, set(chosen)), (banned_tokens.METHOD, others)):
            possible = any(scores[v] > -math.inf for v in kept)
            for row in forms(scores):
                if not possible:
                    with pytest.raises(RowError, match="no token"):
                        method(chosen).apply(row, None, NOWHERE)
                    continue
                got = method(chosen).apply(row, None, NOWHERE).dense_probabilities()
                assert np.abs(got - reference.restricted(scores, kept)).max() < 1e-12


# -- golden examples and limiting cases ------------------------------------------------------------


def kept(method: Method, values: dict[str, Any], row: Row) -> list[int]:
    result = method(**values).apply(row, None, NOWHERE)
    return result.token_ids()[result.scores > -np.inf].tolist()


def test_golden_sets() -> None:
    row = Row.of_probabilities([0.05, 0.5, 0.15, 0.3])
    assert kept(top_k.METHOD, {"top_k": 2}, row) == [1, 3]
    assert kept(top_p.METHOD, {"top_p": 0.79}, row) == [1, 3]
    assert kept(top_p.METHOD, {"top_p": 0.81}, row) == [1, 2, 3]
    assert kept(min_p.METHOD, {"min_p": 0.29}, row) == [1, 2, 3]
    assert kept(min_p.METHOD, {"min_p": 0.31}, row) == [1, 3]
    assert kept(min_p.METHOD, {"min_p": 0.1}, row) == [0, 1, 2, 3]  # 0.05 is exactly on the floor
    # Entropy 1.142; the deviations are 1.85, 0.45, 0.76, 0.06: token 3 comes first.
    assert kept(typical.METHOD, {"typical_p": 0.2}, row) == [3]
    assert kept(typical.METHOD, {"typical_p": 0.7}, row) == [1, 3]


def test_golden_temperature_and_penalties() -> None:
    row = Row.of_probabilities([0.8, 0.2])
    assert temperature.METHOD(2.0).apply(row, None, NOWHERE).probabilities() == pytest.approx(
        [2 / 3, 1 / 3]
    )
    scores = Row.dense([2.0, -2.0, 0.0, 2.0])
    at = Context((3, 0, 1, 1, 2), 1)
    for method, expected in (
        (repetition_penalty.METHOD(2.0), [1.0, -4.0, 0.0, 1.0]),
        (presence_penalty.METHOD(0.5), [1.5, -2.5, -0.5, 2.0]),
        (frequency_penalty.METHOD(0.5), [1.5, -3.0, -0.5, 2.0]),
        (logit_bias.METHOD("1=2.5, 3=-1"), [2.0, 0.5, 0.0, 1.0]),
        (no_repeat_ngram.METHOD(1), [-np.inf] * 4),
    ):
        if max(expected) == -np.inf:
            with pytest.raises(RowError, match="no token"):
                method.apply(scores, None, at)
        else:
            assert method.apply(scores, None, at).scores.tolist() == expected


def test_ties_go_to_the_lowest_ids() -> None:
    flat = Row.dense(np.zeros(8, dtype=np.float32))
    assert kept(temperature.METHOD, {"temperature": 0}, flat) == [0]
    assert kept(top_p.METHOD, {"top_p": 0.3}, flat) == [0, 1, 2]
    assert kept(top_k.METHOD, {"top_k": 3}, flat) == list(range(8))
    assert kept(typical.METHOD, {"typical_p": 0.3}, flat) == list(range(8))
    assert kept(min_p.METHOD, {"min_p": 1.0}, flat) == list(range(8))
    stairs = Row.dense([0.0, 1.0, 0.0, 9.0, 0.0])
    assert kept(min_p.METHOD, {"min_p": 0.9, "min_p_keep": 3}, stairs) == [0, 1, 3]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_neutral_values_return_the_row_itself(method: Method) -> None:
    neutral = [item for item in method.card.reductions if item.equals == "identity"]
    assert neutral
    for reduction in neutral:
        for row in forms((0.5, -math.inf, 2.0)):
            assert method(**reduction.parameters).apply(row, None, PATH) is row


def test_min_p_one_is_top_k_one() -> None:
    for scores in grid():
        row = Row.dense(np.array(scores))
        assert kept(min_p.METHOD, {"min_p": 1.0}, row) == kept(top_k.METHOD, {"top_k": 1}, row)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("heat", [5e-324, 1e-300, 1e-46, 1e-38, 1e-20, 1e-6])
@pytest.mark.parametrize("origin", [0.0, 1e30, -1e30, 12.5])
def test_cold_limit_is_greedy(dtype: type, heat: float, origin: float) -> None:
    row = Row.dense(np.array([-np.inf, origin - abs(origin), origin - 3, origin], dtype))
    best = int(row.scores.argmax())
    law = temperature.METHOD(heat).apply(row, None, NOWHERE).dense_probabilities()
    level = row.scores == row.scores[best]  # near 1e30 the scores 3 apart are one
    assert law == pytest.approx(level / level.sum())


def test_extreme_scores_survive_truncation() -> None:
    for scores in ([3e38, -3e38, 0.0], [-3e38, -3e38, -3.3e38], [1e-45, 0.0, -1e-45]):
        row = Row.dense(np.array(scores, np.float32))
        with np.errstate(over="ignore"):
            for method, values in (
                (top_k.METHOD, {"top_k": 1}),
                (top_p.METHOD, {"top_p": 0.3}),
                (min_p.METHOD, {"min_p": 0.5}),
                (typical.METHOD, {"typical_p": 0.3}),
            ):
                assert row.argmax() in kept(method, values, row)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "values", "said"),
    [
        (temperature.METHOD, {"temperature": -0.1}, "0 <= x <= 100"),
        (temperature.METHOD, {"temperature": 101.0}, "0 <= x <= 100"),
        (temperature.METHOD, {"temperature": math.nan}, "temperature is nan"),
        (temperature.METHOD, {"temperature": math.inf}, "temperature is inf"),
        (top_k.METHOD, {"top_k": -1}, "0 <= x"),
        (top_k.METHOD, {"top_k": 2.5}, "a whole number"),
        (top_p.METHOD, {"top_p": 0.0}, "0 < x <= 1"),
        (top_p.METHOD, {"top_p": 1.01}, "0 < x <= 1"),
        (min_p.METHOD, {"min_p": 1.5}, "0 <= x <= 1"),
        (min_p.METHOD, {"min_p_keep": 0}, "1 <= x"),
        (min_p.METHOD, {"min_keep": 2}, "min_p_keep"),
        (typical.METHOD, {"typical_p": 0.0}, "0 < x <= 1"),
        (repetition_penalty.METHOD, {"repetition_penalty": 0.0}, "0 < x"),
        (repetition_penalty.METHOD, {"repetition_window": -1}, "0 <= x"),
        (presence_penalty.METHOD, {"presence_penalty": math.nan}, "presence_penalty is nan"),
        (frequency_penalty.METHOD, {"frequency_penalty": 1000.0}, "<= 100"),
        (no_repeat_ngram.METHOD, {"no_repeat_ngram": -1}, "0 <= x"),
        (min_tokens.METHOD, {"min_tokens": -1}, "0 <= x"),
        (allowed_tokens.METHOD, {"allowed_tokens": (3, -1)}, "token -1"),
        (banned_tokens.METHOD, {"banned_tokens": (-5,)}, "token -5"),
        (banned_tokens.METHOD, {"banned_tokens": ("a",)}, "a list of whole numbers"),
        (logit_bias.METHOD, {"logit_bias": "5"}, "ID=BIAS"),
        (logit_bias.METHOD, {"logit_bias": "5=x"}, "5=x"),
        (logit_bias.METHOD, {"logit_bias": "5=1,5=2"}, "twice"),
        (logit_bias.METHOD, {"logit_bias": "-1=2"}, "-1=2"),
        (logit_bias.METHOD, {"logit_bias": {3: 101.0}}, "banned_tokens"),
        (logit_bias.METHOD, {"logit_bias": {3: math.nan}}, "3=nan"),
        (logit_bias.METHOD, {"logit_bias": {1.5: 1.0}}, "1.5=1.0"),
        (logit_bias.METHOD, {"logit_bias": {1: True}}, "1=True"),
        (logit_bias.METHOD, {"logit_bias": 3}, "3"),
    ],
)
def test_impossible_values_are_refused(method: Method, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        method(**values)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({5: 1, 2: -0.5}, ((2, -0.5), (5, 1.0))),
        ({"5": 1.0}, ((5, 1.0),)),
        ("5=1", ((5, 1.0),)),
        (" 5 = 1 , 2=-0.5 ", ((2, -0.5), (5, 1.0))),
        (["5=1", "2=-5e-1"], ((2, -0.5), (5, 1.0))),
        ("", ()),
        ({}, ()),
    ],
)
def test_logit_bias_is_read_from_mappings_and_texts(value: Any, expected: Any) -> None:
    assert logit_bias.METHOD(value).pairs == expected


@pytest.mark.parametrize(
    "sampler",
    [
        allowed_tokens.METHOD((1, 50)),
        banned_tokens.METHOD((50,)),
        logit_bias.METHOD({50: 1.0}),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(sampler: Any) -> None:
    with pytest.raises(ParameterError, match=r"token 50; the vocabulary has 3 tokens, 0\.\.2"):
        sampler.apply(Row.dense(np.zeros(3)), None, NOWHERE)


def test_ids_of_the_path_outside_the_row_do_not_matter() -> None:
    at = Context((9, 9, 1, 9), 1, eos_ids=frozenset({8}))
    row = Row.dense([1.0, 1.0])
    assert repetition_penalty.METHOD(2.0).apply(row, None, at).scores.tolist() == [1.0, 0.5]
    assert frequency_penalty.METHOD(1.0).apply(row, None, at).scores.tolist() == [1.0, 0.0]
    assert min_tokens.METHOD(9).apply(row, None, at) is row
    assert no_repeat_ngram.METHOD(2).apply(row, None, at).scores.tolist() == [1.0, -np.inf]


def test_each_parameter_belongs_to_one_sampler() -> None:
    names = [name for method in METHODS for name in method.params.model_fields]
    assert len(names) == len(set(names))


def test_the_default_chain_puts_penalties_and_masks_before_temperature_before_truncation() -> None:
    order = [method.name for method in sorted(METHODS, key=lambda method: method.card.place)]
    assert order[8:] == ["temperature", "top_k", "top_p", "min_p", "typical"]
    assert order[:4] == [
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
    ]
