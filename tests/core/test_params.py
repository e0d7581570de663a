"""Parameters: refused with the name, the value, the range and the nearest valid name."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from decodery.core.card import Card, Method
from decodery.core.errors import ParameterError, nearest
from decodery.core.params import Parameters, describe, make, parameter


class Params(Parameters):
    top_p: float = parameter(0.9, gt=0, le=1, unit="mass", help="How much to keep.")
    top_k: int = parameter(50, ge=1, help="How many to keep.")
    mode: Literal["fast", "exact"] = parameter("fast", help="How to do it.")
    tokens: tuple[int, ...] = parameter((), max_length=2, help="Which ones.")
    limit: int | None = parameter(None, ge=0, help="Where to stop.")
    flag: bool = parameter(False, help="Whether.")


class Needy(Parameters):
    draft: str = parameter(help="The draft model.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_q": 1}, "m has no parameter 'top_q'; did you mean 'top_p'?"),
        ({"zzz": 1}, "m has no parameter 'zzz'; known: flag, limit, mode, tokens, top_k, top_p"),
        ({"top_p": 1.5}, "m: top_p is 1.5; allowed is a number with 0 < x <= 1"),
        ({"top_p": 0.0}, "m: top_p is 0.0; allowed is a number with 0 < x <= 1"),
        ({"top_p": "0.5"}, "m: top_p is '0.5'; allowed is a number with 0 < x <= 1"),
        ({"top_k": 0}, "m: top_k is 0; allowed is a whole number with 1 <= x"),
        ({"top_k": 2.0}, "m: top_k is 2.0; allowed is a whole number with 1 <= x"),
        ({"top_k": True}, "m: top_k is True; allowed is a whole number with 1 <= x"),
        (
            {"mode": "fats"},
            "m: mode is 'fats'; allowed is one of 'fast', 'exact'; did you mean 'fast'?",
        ),
        ({"limit": -1}, "m: limit is -1; allowed is"),
        ({"flag": 1}, "m: flag is 1; allowed is true or false"),
        ({"tokens": (1, 2, 3)}, "m: tokens is (1, 2, 3); allowed is a list of whole numbers"),
        ({"tokens": ("a",)}, "m: tokens is 'a'; allowed is a list of whole numbers"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_message_says_what_is_wrong_and_what_is_right(values, message):
    with pytest.raises(ParameterError) as refused:
        make(Params, values, "m")
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_infinity_and_no_nan(value):
    with pytest.raises(ParameterError, match="top_p"):
        make(Params, {"top_p": value}, "m")


def test_a_missing_value_is_named_with_its_help():
    with pytest.raises(ParameterError, match=r"m needs draft: The draft model\."):
        make(Needy, {}, "m")


def test_numpy_numbers_and_lists_are_taken():
    made = make(Params, {"top_p": np.float64(0.5), "top_k": np.int64(3), "tokens": [1, 2]}, "m")
    assert (made.top_p, made.top_k, made.tokens) == (0.5, 3, (1, 2))


def test_a_whole_number_is_a_number():
    assert make(Params, {"top_p": 1}, "m").top_p == 1


def test_parameters_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        Params().top_k = 3


def test_description():
    by_name = {info.name: info for info in describe(Params)}
    assert list(by_name) == ["top_p", "top_k", "mode", "tokens", "limit", "flag"]
    assert by_name["top_p"].allowed == "a number with 0 < x <= 1"
    assert by_name["top_p"].unit == "mass"
    assert by_name["top_k"].default == 50
    assert not by_name["top_k"].required
    assert by_name["mode"].allowed == "one of 'fast', 'exact'"
    assert describe(Needy)[0].required
    assert describe(Needy)[0].default is None


def method():
    card = Card("m", "sampler", "f", "s", "law", "l", "t", "a", 2026)
    return Method(card, Params, lambda params: params)


def test_positional_values_follow_the_order():
    made = method()(0.5, 7, mode="exact")
    assert (made.top_p, made.top_k, made.mode) == (0.5, 7, "exact")


def test_values_given_twice_or_too_many_are_refused():
    with pytest.raises(ParameterError, match="m: top_p is given twice"):
        method()(0.5, top_p=0.5)
    with pytest.raises(ParameterError, match="m takes 6 parameters and was given 7"):
        method()(*range(7))


def test_nearest():
    assert nearest("topk", ["top_k", "min_p"]) == "did you mean 'top_k'?"
    assert nearest("xyz", ["b", "a"]) == "known: a, b"
    assert nearest("xyz", []) == "none is known"
    assert nearest("q", [f"name{i:02}" for i in range(20)]).endswith("name11, ...")
