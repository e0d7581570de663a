"""`speculation`: which runs it makes faster, what it refuses, and that the text stays."""

from __future__ import annotations

from typing import Any

import pytest

import decodery as dc
from decodery.api.plan import make_plan
from decodery.core.errors import ParameterError
from decodery.methods.speculative.adaptive import Adaptive
from decodery.methods.speculative.lookup import Lookup
from decodery.methods.speculative.speculation import Speculation


def planned(method: Any = None, **values: Any) -> Any:
    return make_plan(method, values).decoder


@pytest.mark.parametrize("method", [None, "sample", "greedy", "min_p"])
def test_auto_takes_the_place_of_plain_decoding(method):
    decoder = planned(method, speculation="auto")
    assert isinstance(decoder, Speculation)
    assert isinstance(decoder.drafter, Adaptive)
    assert decoder.greedy == (method == "greedy")


@pytest.mark.parametrize("values", [{}, {"speculation": "off"}], ids=["unsaid", "off"])
def test_off_is_the_default(values):
    assert not isinstance(planned("sample", **values), Speculation)


def test_a_name_brings_its_parameters():
    decoder = planned("greedy", speculation="prompt_lookup", lookup_tokens=3)
    assert isinstance(decoder.drafter, Lookup)
    assert decoder.drafter.nodes == 3
    assert decoder.greedy


@pytest.mark.parametrize("method", ["beam", "prompt_lookup", "rsd"])
def test_auto_leaves_other_decoders_alone(method):
    assert planned(method, speculation="auto") == planned(method)
    assert "speculation" not in make_plan(method, {"speculation": "auto"}).parameters


@pytest.mark.parametrize(
    ("method", "values", "words"),
    [
        ("beam", {"speculation": "rsd"}, "makes methods sample and greedy faster, not beam"),
        ("sample", {"speculation": "alignment_augmented"}, "would not keep the law of sample"),
        ("sample", {"speculation": "rsx"}, "did you mean 'rsd'"),
        ("greedy", {"speculation": "optimal_multi_draft", "optimum": True}, "draws nothing"),
        ("sample", {"speculation": "beam"}, "speculation is 'beam'"),
        ("greedy", {"speculation": "prompt_lookup", "n": 2}, "greedy decoding has one answer"),
        ("greedy", {"speculation": "auto", "temperature": 0.5}, "has no effect"),
        ("sample", {"speculation": "auto", "lookup_tokens": 3}, "knows no parameter"),
    ],
)
def test_what_would_do_nothing_is_refused(method, values, words):
    with pytest.raises(ParameterError, match=words):
        planned(method, **values)


def test_the_report_names_the_speculation_and_only_what_was_set():
    plan = make_plan("sample", {"speculation": "auto", "seed": 1})
    assert set(plan.describe()) == {"max_tokens", "speculation", "seed"}
    plan = make_plan("sample", {"speculation": "auto", "seed": 1, "n": 2})
    assert plan.describe()["n"] == {"value": 2, "from": "user"}


def test_a_decoder_object_is_left_alone():
    decoder = dc.sample(n=2)
    assert planned(decoder, speculation="auto") is decoder
    with pytest.raises(ParameterError, match="a decoder object"):
        planned(decoder, speculation="rsd")
