"""Plans: every value finds its owner, or is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

import decodery as dc
from decodery.api.plan import make_plan
from decodery.core.errors import ParameterError, UnknownNameError

RECOMMENDED = {"temperature": 0.2, "top_p": 0.9}


def stages(method: Any = None, recommended: Any = None, **values: Any) -> list[str]:
    plan = make_plan(method, values, recommended)
    return [type(stage).__name__ for stage in plan.sampler.stages]


def test_nothing_said_uses_the_models_settings_and_says_so() -> None:
    plan = make_plan(None, {}, RECOMMENDED)
    assert stages(None, RECOMMENDED) == ["Temperature", "TopP"]
    assert plan.describe()["top_p"] == {"value": 0.9, "from": "model"}
    assert plan.describe()["seed"]["from"] == "random"


@pytest.mark.parametrize(
    ("method", "values", "expected"),
    [
        ("sample", {}, []),
        (None, {"min_p": 0.1}, ["MinP"]),
        ("greedy", {}, []),
        ("min_p", {}, ["MinP"]),
        ("min_p", {"temperature": 1.5}, ["Temperature", "MinP"]),
        ("beam", {"beams": 2, "repetition_penalty": 1.3}, ["RepetitionPenalty"]),
    ],
)
def test_anything_said_adds_nothing(
    method: str | None, values: dict[str, Any], expected: list[str]
) -> None:
    assert stages(method, RECOMMENDED, **values) == expected


def test_the_default_order_is_by_place_whatever_order_values_come_in() -> None:
    values = {"min_p": 0.1, "temperature": 2.0, "top_k": 9, "logit_bias": {3: 1.0}}
    expected = ["LogitBias", "Temperature", "TopK", "MinP"]
    assert stages(**values) == expected
    assert stages(**dict(reversed(values.items()))) == expected


def test_sampler_order_is_kept_and_must_be_complete() -> None:
    values = {"min_p": 0.1, "temperature": 2.0}
    assert stages(**values, sampler_order=("min_p", "temperature")) == ["MinP", "Temperature"]
    for order in (("min_p",), ("min_p", "temperature", "top_k"), ("min_p", "min_p")):
        with pytest.raises(ParameterError, match="must name each active sampler once"):
            make_plan(None, {**values, "sampler_order": order})


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        (None, {"tempurature": 1.0}, "did you mean 'temperature'"),
        ("beam", {"beam": 3}, "did you mean 'beams'"),
        ("greedy", {"n": 2}, "knows no parameter 'n'"),
        ("greedy", {"temperature": 2.0}, "has no effect under Greedy"),
        ("greedy", {"min_p": 0.2}, "has no effect under Greedy"),
        ("likelihood", {}, "cannot decode alone"),
        ("beam", {"beams": 2, "n": 3}, "at most beams = 2"),
        (None, {"temperature": float("nan")}, "temperature is nan"),
        (None, {"temperature": True}, "temperature is True"),
        (None, {"top_k": 2.5}, "top_k is 2.5; allowed is a whole number"),
        (None, {"max_tokens": 0}, "max_tokens is 0"),
        (None, {"seed": -1}, "seed is -1"),
        ("best_of_n", {"scorer": "likelyhood"}, "did you mean 'likelihood'"),
    ],
)
def test_refused_with_the_reason(method: str | None, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_plan(method, values)


def test_unknown_method_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'min_p'"):
        make_plan("min-p", {})


def test_a_decoder_object_is_taken_as_it_is() -> None:
    plan = make_plan(dc.beam(beams=2), {"repetition_penalty": 1.1})
    assert plan.method == "BeamSearch"
    assert plan.decoder == dc.beam(2)


def test_values_come_back_as_json() -> None:
    plan = make_plan(None, {"logit_bias": {5: 1.5}, "stop": ["a", "b"], "seed": 3})
    described = plan.describe()
    assert described["stop"] == {"value": ["a", "b"], "from": "user"}
    assert described["seed"] == {"value": 3, "from": "user"}
    assert described["logit_bias"]["value"] in ({"5": 1.5}, {5: 1.5})
