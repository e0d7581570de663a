"""A drafted chain: its text has the policy's law exactly, for every way to verify it."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from every_outcome import completions, distance
from wrong_blocks import WRONG_BLOCKS, PlainBlock

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.methods.speculative.draft_model import METHOD
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.shapes import Branching
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.tally import Tally
from decodery.methods.speculative.walks import Block, Walk
from decodery.models.table import TableModel

VERIFY = ("token", "block", "match")
DRAFT = TableModel.random(3, 1, seed=8)
END = frozenset({2})


def tables(seed: int) -> TableModel:
    return TableModel.random(3, 1, seed=seed, eos_ids=END)


def constant(law: list[float]) -> TableModel:
    """The same law after every text."""
    return TableModel(lambda _: law, len(law), 0)


# -- the law ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verify", "draft_tokens"),
    [
        (verify, count)
        for verify in VERIFY
        for count in (1, 2, 3)
        if (verify, count) != ("match", 3)
    ],
)
def test_the_text_has_the_law_of_the_policy(verify: str, draft_tokens: int) -> None:
    """All outcomes of all noise, texts of up to four tokens that may end."""
    decoder = METHOD(draft=DRAFT, draft_tokens=draft_tokens, verify=verify)
    assert distance(decoder, Policy(tables(5)), draft_tokens + 1) < 1e-12


@pytest.mark.parametrize("verify", VERIFY)
def test_zeros_on_either_side_are_no_trouble(verify: str) -> None:
    """The draft cannot draw what the policy may, and draws what it may not."""
    policy, draft = Policy(constant([0.6, 0.4, 0.0])), constant([0.0, 0.3, 0.7])
    decoder = METHOD(draft=draft, draft_tokens=2, verify=verify)
    assert distance(decoder, policy, 3) < 1e-12


@pytest.mark.parametrize("verify", VERIFY)
def test_samplers_shape_both_laws(verify: str) -> None:
    policy = Policy(tables(6), chain(dc.temperature(0.7), dc.top_k(2)))
    for temperature in (None, 0.4, 2.5):
        decoder = METHOD(draft=DRAFT, draft_tokens=2, verify=verify, draft_temperature=temperature)
        assert distance(decoder, policy, 3) < 1e-12


def after_two_zeros(law: list[float], otherwise: list[float]) -> TableModel:
    return TableModel(lambda last: law if last == (0, 0) else otherwise, 3, 2)


# The prompt is a 0. The draft likes another 0 too much, and behind it a 2.
POLICY = Policy(after_two_zeros([0.45, 0.45, 0.1], [0.3, 0.6, 0.1]))
UNLIKE = after_two_zeros([0.02, 0.2, 0.78], [0.6, 0.2, 0.2])


def block_of(walk: Walk) -> Speculation:
    return Speculation(Drawing(UNLIKE, Branching((1, 1), "iid")), walk)


def test_block_verification_written_twice_is_the_same() -> None:
    assert distance(block_of(PlainBlock()), POLICY, 3) < 1e-12
    assert distance(block_of(Block()), POLICY, 3) < 1e-12


@pytest.mark.parametrize("walk", WRONG_BLOCKS, ids=lambda walk: type(walk).__name__)
def test_a_mistake_in_block_verification_is_seen(walk: Walk) -> None:
    """Off by more than 0.01 in the probability of a text of three tokens, of which there are 27;
    the right one by 1e-12."""
    assert distance(block_of(walk), POLICY, 3) > 0.01


# -- how much is accepted --------------------------------------------------------------------------

P, Q = np.array([0.75, 0.25]), np.array([0.4, 0.6])
ALPHA = float(np.minimum(P, Q).sum())


@functools.cache
def tallies(verify: str, draft_tokens: int) -> list[tuple[Tally, float]]:
    decoder = METHOD(draft=constant(Q.tolist()), draft_tokens=draft_tokens, verify=verify)
    found = completions(decoder, Policy(constant(P.tolist())), draft_tokens + 1)
    return [(Tally.from_dict(item.details["speculation"]), share) for item, share in found]


def all_accepted(verify: str, draft_tokens: int) -> float:
    """The chance that the whole first draft is accepted: only it is so deep."""
    found = tallies(verify, draft_tokens)
    return sum(share * tally.taken[draft_tokens - 1] for tally, share in found)


@pytest.mark.parametrize("draft_tokens", [1, 2, 3])
def test_token_by_token_a_chain_is_accepted_with_the_power_of_its_chance(draft_tokens: int) -> None:
    assert all_accepted("token", draft_tokens) == pytest.approx(ALPHA**draft_tokens, abs=1e-12)


@pytest.mark.parametrize("draft_tokens", [1, 2, 3])
def test_a_block_is_accepted_with_its_clipped_product(draft_tokens: int) -> None:
    wanted = 0.0
    for tokens in itertools.product(range(2), repeat=draft_tokens):
        weight = 1.0
        for token in tokens:
            weight = min(1.0, weight * P[token] / Q[token])
        wanted += weight * float(np.prod(Q[list(tokens)]))
    assert all_accepted("block", draft_tokens) == pytest.approx(wanted, abs=1e-12)
    if draft_tokens > 1:
        assert wanted > ALPHA**draft_tokens + 0.01


def test_a_match_is_as_likely_as_that_both_draw_the_same() -> None:
    assert all_accepted("match", 2) == pytest.approx(float(P @ Q) ** 2, abs=1e-12)


def test_a_block_needs_fewer_steps_than_token_by_token() -> None:
    steps = {
        verify: sum(share * tally.steps for tally, share in tallies(verify, 2)) for verify in VERIFY
    }
    assert steps["block"] < steps["token"] - 0.01
    assert steps["token"] < steps["match"] - 0.01


@pytest.mark.parametrize("verify", ["token", "block"])
def test_a_draft_of_the_same_law_is_always_accepted(verify: str) -> None:
    table = TableModel.random(3, 1, seed=5)
    decoder = METHOD(draft="same", draft_tokens=3, verify=verify)
    for item, _ in itertools.islice(completions(decoder, Policy(table), 4), 200):
        assert item.details["speculation"]["steps"] == 1


# -- the real model --------------------------------------------------------------------------------


def test_an_early_exit_drafts_for_its_model(default_lm: LanguageModel) -> None:
    """Matched drafts leave the text of plain sampling as it is; some of them are accepted."""
    asked = {"max_tokens": 12, "seed": 3, "temperature": 0.3}
    plain = default_lm.generate("Count from one to ten.", **asked)
    drafted = default_lm.generate(
        "Count from one to ten.",
        method=dc.draft_model(draft="exit:20", draft_tokens=3, verify="match"),
        **asked,
    )
    assert drafted.samples[0].tokens == plain.samples[0].tokens
    assert drafted.samples[0].details["speculation"]["accepted"] > 0
