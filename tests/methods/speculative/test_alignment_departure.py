"""How far a text departs from the policy: the report of alignment-augmented decoding, by hand.

Its sums are computed again from a table and the steps; and the distance of the laws of whole texts,
by enumeration, is below the mean of what is reported. Negative controls: two wrong reports.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from alignment_cases import LOOPING, METHOD, completed, prompts, quarters

from decodery.core.decoder import Decoder
from decodery.core.source import Policy
from decodery.methods.speculative.alignment_departure import Departure
from decodery.methods.speculative.walks import Conditional
from decodery.testing import TableModel, decoder_law, enumerate_law

POLICIES = (
    Policy(TableModel.random(4, seed=21)),
    Policy(TableModel.random(4, seed=22, eos_ids=frozenset({2}))),
)


def departure_by_hand(policy, prompt, item, against, steps):
    """The report out of the tokens and the steps: all but the last of a step are accepted."""
    table, path = policy.source, list(prompt)
    found = {"accepted": 0, "log_probability": 0.0, "not_argmax": 0, "distance": 0.0}
    for step in steps:
        for place, token in enumerate(step):
            law = np.exp(table.scores(path))
            law = law / law.sum()
            ended = token in table.eos_ids and place == len(step) - 1
            if place < len(step) - 1 or (ended and step.accepted_all):
                other = token != int(law.argmax())
                found["accepted"] += 1
                found["log_probability"] += math.log(law[token])
                found["not_argmax"] += other
                found["distance"] += float(other) if against == "argmax" else 1.0 - law[token]
            path.append(token)
    count = max(1, found["accepted"])
    assert tuple(path[len(prompt) :]) == item.tokens
    return {
        "accepted": found["accepted"],
        "log_probability": found["log_probability"] / count,
        "not_argmax": found["not_argmax"] / count,
        "total_variation": found["distance"] / len(item.tokens),
    }


class Step(tuple):
    accepted_all = False


def steps_of(monkeypatch):
    """Notes the paths of all steps, as tuples of tokens."""
    seen = []
    proper = Conditional.path

    def path(self, draft, place):
        nodes = proper(self, draft, place)
        step = Step(node.token for node in nodes)
        step.accepted_all = nodes[-1].grown
        seen.append(step)
        return nodes

    monkeypatch.setattr(Conditional, "path", path)
    return seen


def check_departure(monkeypatch, next_token):
    seen = steps_of(monkeypatch)
    accepted = 0
    for seed, prompt in enumerate(prompts(12)):
        policy = POLICIES[seed % 2]
        decoder = METHOD(next_token=next_token, threshold=0.25, misaligned=0.6)
        seen.clear()
        (item,) = completed(decoder, policy, prompt, 12, seed)
        wanted = departure_by_hand(policy, prompt, item, next_token, seen)
        found = item.details["departure"]
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, abs=1e-9)
        accepted += found["accepted"]
    assert accepted > 20


@pytest.mark.parametrize("next_token", ["argmax", "draw"])
def test_the_departure_by_hand(monkeypatch, next_token) -> None:
    check_departure(monkeypatch, next_token)


def test_the_departure_of_several_texts_weighs_their_tokens() -> None:
    decoder = METHOD(next_token="draw", threshold=0.25, misaligned=0.6, n=3)
    items = completed(decoder, POLICIES[0], next(iter(prompts(1))), 12, 1)
    found = [item.details["departure"] for item in items]
    whole = decoder.totals(items)["departure"]
    assert whole["tokens"] == sum(len(item.tokens) for item in items)
    mean = sum(item["total_variation"] * item["tokens"] for item in found) / whole["tokens"]
    assert whole["total_variation"] == pytest.approx(mean, abs=1e-12)
    assert mean > 0.0


def test_the_share_of_alternatives() -> None:
    """On even rows of tokens that the context never has, nothing but alternatives can be taken."""
    policy = Policy(TableModel(lambda _: [0, 0, 0.5, 0.5], 4, 0))
    prompt = (0, 1, 0, 1, 0, 1)
    decoder = METHOD(next_token="argmax", match_shortest=1, misaligned=0.5, alternatives=2)
    (item,) = completed(decoder, policy, prompt, 1 + 4)
    assert item.details["departure"]["from_alternatives"] == 1.0
    plain = METHOD(next_token="argmax", match_shortest=1, alignment="off")
    (item,) = completed(plain, policy, prompt, 5)
    assert item.details["departure"]["accepted"] == 0


class Noting(Decoder):
    """A decoder that keeps the summed distance of every text that it made."""

    def __init__(self, decoder):
        self.decoder, self.sums = decoder, {}

    def decode(self, task):
        items = yield from self.decoder.decode(task)
        for item in items:
            whole = len(item.tokens) * item.details["departure"]["total_variation"]
            assert self.sums.setdefault(item.tokens, whole) == whole
        return items


def check_bound():
    """The distance of whole texts' laws, by enumeration, is below the mean of the summed report."""
    values = {"alignment": "top", "misaligned": 0.6, "threshold": 0.2, "match_shortest": 1}
    for seed in range(3):
        policy = quarters(seed)
        noting = Noting(METHOD(next_token="draw", **values))
        law = decoder_law(noting, policy, LOOPING, 3, grid=4)
        own = enumerate_law(policy, LOOPING, 3)
        distance = 0.5 * sum(abs(law.get(text, 0.0) - own.get(text, 0.0)) for text in {*law, *own})
        assert distance > 0.05  # there is something to bound
        assert distance <= sum(law[text] * noting.sums[text] for text in law) + 1e-12


def test_the_reported_distance_bounds_that_of_the_texts() -> None:
    check_bound()


def test_a_report_that_forgets_the_doubt_is_found(monkeypatch) -> None:
    proper = Departure.to_dict

    def to_dict(self):
        return {**proper(self), "total_variation": self.others / max(1, self.tokens)}

    monkeypatch.setattr(Departure, "to_dict", to_dict)
    with pytest.raises(AssertionError):
        check_bound()
    with pytest.raises(AssertionError):
        check_departure(monkeypatch, "draw")


def test_a_report_that_counts_drawn_tokens_is_found(monkeypatch) -> None:
    def note(self, draft, path, place):
        self.tokens += len(path)
        for node in path:
            self._accept(node, place)

    monkeypatch.setattr(Departure, "note", note)
    with pytest.raises(AssertionError):
        check_departure(monkeypatch, "argmax")
