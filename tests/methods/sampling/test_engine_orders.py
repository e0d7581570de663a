"""The default chain and the orders of three engines: transformers, vLLM, llama.cpp.

transformers' order is read from its source. vLLM and llama.cpp are written out from the definitions
on 300 rows without ties, and met by `sampler_order` to 1e-12.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

import numpy as np
import pytest
import reference_laws as reference
from transformers import GenerationMixin

from decodery.api.plan import make_plan
from decodery.core import registry
from decodery.core.row import Row
from decodery.core.sampler import Context

NOWHERE = Context((0,), 1)
DEFAULT_ORDER = [
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "dry",
    "logit_bias",
    "no_repeat_ngram",
    "min_tokens",
    "banned_tokens",
    "allowed_tokens",
    "top_n_sigma",
    "temperature",
    "dynamic_temperature",
    "quadratic",
    "top_h",
    "top_k",
    "top_p",
    "top_a",
    "min_p",
    "typical",
    "epsilon",
    "eta",
    "xtc",
    "repetition_aware",
    "adaptive_p",
]


def test_the_default_order() -> None:
    samplers = {method.name: method for method in registry.of_kind("sampler")}
    places = [samplers[name].card.place for name in DEFAULT_ORDER]
    assert places == sorted(places)
    assert len(set(places)) == len(places)  # none is left to the alphabet


def test_each_parameter_belongs_to_one_sampler() -> None:
    names = [name for method in registry.of_kind("sampler") for name in method.params.model_fields]
    assert len(names) == len(set(names))


def test_the_default_order_is_that_of_transformers() -> None:
    classes = {
        "repetition_penalty": "RepetitionPenaltyLogitsProcessor(",
        "no_repeat_ngram": "NoRepeatNGramLogitsProcessor(",
        "min_tokens": "MinNewTokensLengthLogitsProcessor(",
        "banned_tokens": "SuppressTokensLogitsProcessor(",
        "temperature": "TemperatureLogitsWarper(",
        "top_h": "TopHLogitsWarper(",
        "top_k": "TopKLogitsWarper(",
        "top_p": "TopPLogitsWarper(",
        "min_p": "MinPLogitsWarper(",
        "typical": "TypicalLogitsWarper(",
        "epsilon": "EpsilonLogitsWarper(",
        "eta": "EtaLogitsWarper(",
    }
    source = inspect.getsource(GenerationMixin._get_logits_processor)
    theirs = sorted(classes, key=lambda name: source.index(classes[name]))
    assert theirs == [name for name in DEFAULT_ORDER if name in classes]


def logs(law: Sequence[float]) -> list[float]:
    return [math.log(p) if p else -math.inf for p in law]


def vllm(scores: list[float]) -> list[float]:
    """temperature, min-p, top-k, top-p."""
    law = reference.min_p(logs(reference.temperature(scores, 1.7)), 0.05)
    return reference.top_p(logs(reference.top_k(logs(law), 6)), 0.8)


def llama_cpp(scores: list[float]) -> list[float]:
    """top-k, typical, top-p, min-p, temperature."""
    law = reference.typical(logs(reference.top_k(scores, 12)), 0.95)
    law = reference.min_p(logs(reference.top_p(logs(law), 0.9)), 0.05)
    return reference.temperature(logs(law), 1.7)


VALUES = {"temperature": 1.7, "min_p": 0.05, "seed": 0}
VLLM = {**VALUES, "top_k": 6, "top_p": 0.8}
VLLM_ORDER = ("temperature", "min_p", "top_k", "top_p")
LLAMA_CPP = {**VALUES, "top_k": 12, "typical_p": 0.95, "top_p": 0.9}
LLAMA_CPP_ORDER = ("top_k", "typical", "top_p", "min_p", "temperature")


def widest_gap(values, order, law) -> float:
    sampler = make_plan(None, {**values, "sampler_order": order}).sampler
    widest = 0.0
    for scores in np.random.default_rng(15).normal(0, 3, (300, 30)):
        row = Row.dense(scores)
        got = sampler.apply(row, sampler.start(NOWHERE), NOWHERE).dense_probabilities()
        widest = max(widest, float(np.abs(got - law(scores.tolist())).max()))
    return widest


@pytest.mark.parametrize(
    ("values", "order", "law"),
    [(VLLM, VLLM_ORDER, vllm), (LLAMA_CPP, LLAMA_CPP_ORDER, llama_cpp)],
    ids=["vllm", "llama.cpp"],
)
def test_an_engine_is_met_by_naming_its_order(values, order, law) -> None:
    assert widest_gap(values, order, law) < 1e-12


@pytest.mark.parametrize(
    ("values", "law"), [(VLLM, vllm), (LLAMA_CPP, llama_cpp)], ids=["vllm", "llama.cpp"]
)
def test_without_its_order_it_is_not(values, law) -> None:
    """The default order differs from both on some row."""
    assert widest_gap(values, (), law) > 0.01
