"""Alignment-augmented decoding as a whole: exact limits, thresholds, noise, cost, refusals.

Exactness with `verify=exact` is shown token by token against plain decoding, by the exact law of
all outcomes of its noise, and by chi-square: each test rejects a correct decoder with chance 1e-6
and a law at a total variation of 0.25 (500 runs), in the slow ones of 0.1 (3,000 runs of three
tokens), with power above 0.99. The enumeration must reject the lossy walks and two wrong ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from alignment_cases import (
    LOOPING,
    METHOD,
    REPEATING,
    completed,
    prompts,
    quarters,
    reported,
    task_of,
    threshold,
)

import decodery as dc
from decodery.core import registry
from decodery.core.errors import ParameterError
from decodery.core.runner import Runner
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.speculative.alignment_augmented import AlignmentAugmented
from decodery.methods.speculative.alignment_drafter import Retrieval, RetrievalSession
from decodery.methods.speculative.alignment_pool import CHUNK, Alignment
from decodery.methods.speculative.walks import Conditional, NodeWise
from decodery.testing import TableModel, decoder_law, enumerate_law
from decodery.testing.samplers import Coin, Heat, Shy, Surprised
from decodery.testing.statistics import require_law
from decodery.testing.tables import MixtureBlend, edge_table

GREEDY, SAMPLE = registry.get("greedy")(), registry.get("sample")()
END = frozenset({2})

POLICIES = {
    "a table": Policy(TableModel.random(4, seed=21)),
    "a table that ends": Policy(TableModel.random(4, seed=22, eos_ids=END)),
    "zeros and ties": Policy(edge_table(5, 4)),
    "samplers with state": Policy(TableModel.random(4, seed=23), chain(Shy(1.5), Surprised())),
    "a temperature": Policy(TableModel.random(4, seed=24), chain(Heat(0.6))),
    "noise": Policy(TableModel.random(4, seed=25), chain(Coin())),
    "a blend": Policy(
        MixtureBlend(
            TableModel.random(4, seed=26), TableModel.random(4, seed=27), openings=((), (3,))
        )
    ),
}
SETTINGS = {
    "defaults": {},
    "no alignment": {"alignment": "off"},
    "everything is an alternative": {"misaligned": 1.0, "alternatives": 4},
    "short matches": {"match_shortest": 1, "tree_depth": 3, "tree_nodes": 5},
}


def tokens(decoder, policy, prompt, length=10, seed=0, **stopping):
    return [item.tokens for item in completed(decoder, policy, prompt, length, seed, **stopping)]


# -- exact limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS)
def test_exact_is_plain_decoding_token_by_token(policy, values) -> None:
    argmax = METHOD(verify="exact", next_token="argmax", **values)
    draw = METHOD(verify="exact", next_token="draw", n=2, **values)
    two = registry.get("sample")(n=2)
    for seed, prompt in enumerate(prompts()):
        assert tokens(argmax, policy, prompt) == tokens(GREEDY, policy, prompt)
        assert tokens(draw, policy, prompt, seed=seed) == tokens(two, policy, prompt, seed=seed)


@pytest.mark.parametrize("name", ["a table", "a table that ends", "samplers with state", "a blend"])
@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS)
def test_a_threshold_of_the_maximum_is_greedy(name, values) -> None:
    """With no slope and base 1, tau is max p; the argmax is unique on these tables. So it is with
    base 0.5: no other token can have half of the probability."""
    half = METHOD(threshold=0.5, threshold_slope=0.0, next_token="argmax", **values)
    decoder = METHOD(threshold=1.0, threshold_slope=0.0, next_token="argmax", **values)
    accepted = 0
    for prompt in prompts(12):
        policy = POLICIES[name]
        (item,) = completed(decoder, policy, prompt, 10)
        assert [item.tokens] == tokens(GREEDY, policy, prompt) == tokens(half, policy, prompt)
        assert item.details["departure"]["total_variation"] == 0.0
        accepted += item.details["departure"]["accepted"]
    assert accepted > 0


def without_threshold(policy, prompt, length=8, depth=5):
    decoder = METHOD(
        threshold=0.0, threshold_slope=0.0, threshold_floor=0.0, alignment="off", tree_depth=depth
    )
    return completed(decoder, policy, prompt, length)[0]


def test_without_threshold_a_path_of_the_context_is_copied() -> None:
    """2 0 1 is at the start of the text: what comes after it is copied to the full depth."""
    table = TableModel.random(4, seed=3)
    assert without_threshold(Policy(table), REPEATING, depth=5).tokens[:5] == (3, 0, 1, 1, 0)
    long = without_threshold(Policy(table), REPEATING, length=20, depth=16)
    assert long.tokens[:8] == REPEATING[3:]  # no more than there is
    assert long.details["speculation"]["offered"][0] > 0


@pytest.mark.parametrize("prompt", [(0,), (0, 1), (0, 1, 2, 3)])
def test_without_a_match_a_step_is_a_plain_one(prompt) -> None:
    table = TableModel.random(9, seed=1)
    items, report = reported(
        METHOD(match_shortest=5, match_longest=5), task_of(Policy(table), prompt)
    )
    assert items[0].tokens == tokens(GREEDY, Policy(table), prompt, 8)[0]
    assert items[0].details["speculation"]["tokens_per_step"] == 1.0
    assert report.model_calls == 8 + (0 if len(prompt) < 2 else 1 + (len(prompt) > 2))


def test_a_context_of_nothing_is_plain_decoding() -> None:
    policy = POLICIES["a table"]
    for values in ({"skip_first": 11}, {"skip_last": 99}, {"skip_first": 6, "skip_last": 6}):
        items, report = reported(METHOD(**values), task_of(policy))
        assert items[0].tokens == tokens(GREEDY, policy, REPEATING, 8)[0]
        assert report.model_calls == 8


def test_with_every_alternative_a_match_never_fails() -> None:
    """On a table of order 2 a match of two tokens has the row of its place, so with all tokens as
    alternatives the argmax is a candidate, and every step with candidates accepts one at least."""
    for seed, prompt in enumerate(prompts(12)):
        policy = Policy(TableModel.random(4, seed=seed))
        decoder = METHOD(verify="exact", misaligned=1.0, alternatives=4, next_token="argmax")
        (item,) = completed(decoder, policy, prompt, 12)
        tally = item.details["speculation"]
        assert tally["offered"]
        assert tally["taken"][0] == tally["offered"][0]


# -- the law with exact verification ---------------------------------------------------------------


def off_by(decoder, seed):
    """The largest difference of the decoder's law from the policy's over texts of three tokens."""
    policy = quarters(seed)
    law = decoder_law(decoder, policy, LOOPING, 3, grid=4)
    own = enumerate_law(policy, LOOPING, 3)
    return max(abs(law.get(text, 0.0) - own.get(text, 0.0)) for text in {*law, *own})


@pytest.mark.parametrize("seed", range(4))
def test_the_law_of_exact_by_enumeration(seed) -> None:
    values = {"misaligned": 0.9, "alternatives": 2, "match_shortest": 1}
    decoder = METHOD(verify="exact", next_token="draw", alignment="top", **values)
    assert off_by(decoder, seed) < 1e-12


LAWS = {
    "the plain table": Policy(TableModel.random(3, seed=11, eos_ids=END)),
    "a temperature": Policy(TableModel.random(3, seed=12), chain(Heat(0.6))),
    "samplers with state": Policy(TableModel.random(3, seed=13), chain(Shy(1.5), Surprised())),
    "a blend": Policy(MixtureBlend(TableModel.random(3, seed=14), TableModel.random(3, seed=15))),
}


def follows(policy, runs):
    decoder = METHOD(verify="exact", next_token="draw", misaligned=0.9)
    runner = Runner()
    handles = [runner.submit(decoder, task_of(policy, LOOPING, 3, seed)) for seed in range(runs)]
    runner.run()
    counts = Counter(handle.result()[0].tokens for handle in handles)
    law = enumerate_law(policy, LOOPING, Stopping(3, policy.source.eos_ids))
    require_law(counts, law, 1e-6, "alignment_augmented")


def test_exact_follows_the_policy() -> None:
    follows(LAWS["samplers with state"], 500)


@pytest.mark.slow
@pytest.mark.parametrize("policy", LAWS.values(), ids=LAWS)
def test_exact_follows_the_policy_at_length(policy) -> None:
    follows(policy, 3000)


class AcceptAll(NodeWise):
    """Follows the first candidates whatever their chance."""

    def _judge(self, draft, place, node, tokens):
        verdict = super()._judge(draft, place, node, tokens)
        return replace(verdict, token=tokens[0], number=0) if tokens else verdict


class TopOnly(NodeWise):
    """Takes the most probable token where it is a candidate, else draws."""

    def _judge(self, draft, place, node, tokens):
        verdict = super()._judge(draft, place, node, tokens)
        top = node.policy_row(place.sequence).argmax()
        return replace(verdict, token=top, number=tokens.index(top)) if top in tokens else verdict


@pytest.mark.parametrize("wrong", ["adaptive", "constant", AcceptAll, TopOnly])
def test_lossy_and_wrong_walks_have_other_laws(wrong) -> None:
    values = {"next_token": "draw", "alignment": "top", "misaligned": 0.9, "match_shortest": 1}
    if isinstance(wrong, str):
        decoder = METHOD(verify=wrong, threshold=0.2, **values)
    else:
        decoder = METHOD(verify="exact", **values)
        decoder = replace(decoder, walk=wrong(decoder.walk.rule))
    assert off_by(decoder, 0) > 0.01


# -- the threshold -------------------------------------------------------------------------------


@pytest.mark.parametrize("next_token", ["argmax", "draw"])
def test_every_accepted_token_is_above_the_threshold(monkeypatch, next_token) -> None:
    checked = 0
    proper = Conditional.path

    def path(self, draft, place):
        nonlocal checked
        nodes = proper(self, draft, place)
        for node in nodes:
            if node.grown:
                law = node.parent.policy_row(place.sequence).dense_probabilities()
                assert law[node.token] >= threshold(law, self.slope, self.base, self.floor) - 1e-12
                assert node in set(draft.nodes())
                checked += 1
        return nodes

    monkeypatch.setattr(Conditional, "path", path)
    for seed, prompt in enumerate(prompts(12)):
        completed(
            METHOD(next_token=next_token), Policy(TableModel.random(4, seed=seed)), prompt, 12
        )
    assert checked > 30


# -- noise, sequences, cost ------------------------------------------------------------------------


def test_the_seed_decides_everything() -> None:
    policy = POLICIES["a table"]
    decoder = METHOD(next_token="draw", misaligned=0.9, alternatives=1, n=3)
    runs = [completed(decoder, policy, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_sequence_does_not_depend_on_how_many_there_are() -> None:
    policy = POLICIES["a table"]
    for seed in range(10):
        three = completed(METHOD(next_token="draw", n=3), policy, seed=seed)
        assert completed(METHOD(next_token="draw"), policy, seed=seed) == three[:1]


def test_alternatives_are_drawn_from_noise_of_their_own() -> None:
    """The draws change what is accepted, and never what an exact walk emits."""
    policy = POLICIES["a table"]
    exact = METHOD(verify="exact", next_token="argmax", misaligned=1.0, alternatives=1)
    found = [completed(exact, policy, seed=seed)[0] for seed in range(30)]
    assert len({item.tokens for item in found}) == 1
    assert len({item.details["speculation"]["accepted"] for item in found}) > 1


@pytest.mark.parametrize("alignment", ["sample", "top", "off"])
def test_the_pass_costs_the_prompt_once_more_where_nothing_is_kept(alignment) -> None:
    prompt = tuple(np.arange(2 * CHUNK + 5) % 4)
    policy = Policy(TableModel.random(4, seed=5))
    decoder = METHOD(alignment=alignment, verify="exact", tree_nodes=1)
    items, report = reported(decoder, task_of(policy, prompt, 1))
    passed = 0 if alignment == "off" else len(prompt) - 1
    assert report.tokens_evaluated == len(prompt) + passed
    assert report.model_calls == 1 + (4 if passed else 0)
    assert len(items[0].tokens) == 1


def test_the_drafter_opens_itself_in_any_speculation() -> None:
    from decodery.methods.speculative.speculation import Speculation

    policy = POLICIES["a table"]
    bare = Speculation(Retrieval(alignment=Alignment(0.9)), Conditional(), greedy=True)
    own = METHOD(misaligned=0.9, next_token="argmax")
    for seed, prompt in enumerate(prompts()):
        assert tokens(bare, policy, prompt, seed=seed) == tokens(own, policy, prompt, seed=seed)


def test_of_many_matches_the_last_ones_count() -> None:
    """0 1 comes before 2 twice and before 3 once, at last."""
    from decodery.methods.speculative.speculation import Speculation

    policy = Policy(TableModel(lambda _: [0.25] * 4, 4, 0))
    prompt = (0, 1, 2, 0, 1, 2, 0, 1, 3, 1, 0, 1)
    for most, wanted in ((1, 3), (5000, 2)):
        drafter = Retrieval(alignment=None, matches=most, longest=2, nodes=1)
        decoder = Speculation(drafter, Conditional(0.0, 0.0, 0.0), greedy=True)
        assert tokens(decoder, policy, prompt, 4)[0][0] == wanted


def test_room_is_asked_for_a_prompt_that_only_the_pass_sees() -> None:
    """A blend whose first model has a shorter prompt: the pass needs the whole one."""

    class Short(MixtureBlend):
        def prompts(self, prompt):
            return [prompt[-1:], prompt]

    first, second = TableModel.random(4, seed=1), TableModel.random(4, seed=2)
    task = task_of(Policy(Short(first, second)), tuple(np.arange(500) % 4), 4)
    assert METHOD().slots(task)[first] == 500
    assert METHOD(alignment="off").slots(task)[first] == 1 + 4 + 64
    assert METHOD().slots(task)[second] == 500 + 4 + 64


# -- which token comes behind ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "argmax"),
    [
        (dc.chain(), True),
        (dc.chain(dc.temperature(0.7)), False),
        (dc.chain(dc.temperature(1.0)), False),
        (dc.chain(dc.top_p(0.9)), False),
        (dc.chain(dc.repetition_penalty(1.3)), True),
        (dc.chain(dc.repetition_penalty(1.3), dc.min_p(0.1)), False),
    ],
    ids=["none", "temperature", "temperature 1", "top-p", "penalty", "penalty and min-p"],
)
def test_auto_is_the_argmax_unless_a_sampler_would_be_idle(sampler, argmax) -> None:
    policy = Policy(TableModel.random(6, seed=8, concentration=3.0), sampler)
    auto = METHOD(alignment="off")
    named = METHOD(alignment="off", next_token="argmax" if argmax else "draw")
    auto, named = (
        [tokens(decoder, policy, REPEATING, 12, seed) for seed in range(12)]
        for decoder in (auto, named)
    )
    assert auto == named
    assert (len({str(one) for one in auto}) == 1) == argmax


def test_its_greedy_form() -> None:
    policy = Policy(TableModel.random(4, seed=8), dc.chain(dc.temperature(0.5)))
    for seed in range(5):
        certain = METHOD(next_token="draw").certain()
        assert isinstance(certain, AlignmentAugmented)
        assert tokens(certain, policy, REPEATING, seed=seed) == tokens(
            METHOD(next_token="argmax"), policy, REPEATING, seed=seed
        )


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"verify": "exact", "threshold": 0.2}, "threshold"),
        ({"verify": "exact", "threshold_floor": 0.2}, "threshold_floor"),
        ({"verify": "constant", "threshold_slope": 0.2}, "threshold_slope"),
        ({"verify": "constant", "threshold_floor": 0.0}, "threshold_floor"),
        ({"alignment": "off", "misaligned": 0.3}, "misaligned"),
        ({"alignment": "off", "alternatives": 1}, "alternatives"),
        ({"alignment": "off", "retrieved_share": 0.5}, "retrieved_share"),
        ({"match_shortest": 5, "match_longest": 4}, "match_shortest"),
        ({"next_token": "argmax", "n": 2}, "n is 2"),
        ({"threshold": 1.5}, "threshold"),
        ({"alternatives": 0}, "alternatives"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_would_have_no_effect_is_refused(values, named) -> None:
    with pytest.raises(ParameterError, match=named):
        METHOD(**values)


def test_a_temperature_under_an_exact_argmax_is_refused() -> None:
    from decodery.api.plan import make_plan

    values = {"verify": "exact", "next_token": "argmax", "temperature": 0.5}
    with pytest.raises(ParameterError, match="no effect"):
        make_plan("alignment_augmented", values)
    for other in ({"verify": "adaptive"}, {"next_token": "draw"}, {"next_token": "auto"}):
        make_plan("alignment_augmented", {**values, **other})


# -- the embedded model ----------------------------------------------------------------------------

TEXT = (
    "Old notes on a bridge. The bridge of Aran has seven arches and was built by two sisters. The"
    " bridge of Aran has seven arches and a toll house at its northern end. Copy the first sentence"
    " about the bridge."
)


def test_exact_on_the_embedded_model_is_greedy(default_lm) -> None:
    plain = default_lm.generate(TEXT, method="greedy", max_tokens=40)
    found = default_lm.generate(TEXT, method="alignment_augmented", verify="exact", max_tokens=40)
    assert found.tokens == plain.tokens
    assert found.report.model_calls < plain.report.model_calls


def test_the_prompt_is_read_once_where_prefixes_are_kept(default_lm) -> None:
    """The pass evaluates all of it but the last token, and the prompt's root that one alone."""
    salted = {"method": "alignment_augmented", "max_tokens": 1, "cache_salt": "once"}
    found = default_lm.generate(TEXT, **salted)
    length = len(default_lm.read(TEXT).tokens)
    drafted = found.samples[0].details["speculation"]["nodes"]
    assert found.report.tokens_evaluated == length + drafted
    assert found.report.cached_tokens == length - 1


def test_alternatives_on_the_embedded_model_are_from_its_rows(default_lm) -> None:
    """A few places of the prompt against separate forwards of its prefixes."""
    prompt = default_lm.read(TEXT).tokens
    task = task_of(Policy(default_lm), prompt, 1)
    decoder = METHOD(alignment="top", misaligned=0.5)
    session = RetrievalSession(decoder.drafter, task)

    class Opens(type(decoder)):
        def decode(self, task):
            yield from session.open()
            return []

    reported(Opens(decoder.drafter, decoder.walk), task)
    for place in (5, 20, len(prompt) - 2):
        beam = registry.get("greedy")()
        (item,) = completed(beam, Policy(default_lm), prompt[: place + 1], 1)
        own = prompt[place + 1]
        if place in session.aligned and item.tokens[0] != own:
            assert session.aligned[place][0].token == item.tokens[0]
        if place not in session.aligned:
            assert item.tokens[0] == own
