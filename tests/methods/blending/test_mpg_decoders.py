"""The chunk decoders of mpg: laws by every outcome of their noise, by hand, and by chi-square.

Exact: on random tables every outcome of a decoder's noise is tried, with its exact probability
(`mpg_noise.py`), and the law compared at 1e-12 with enumeration (exact decoders) or with a
recursion of the tests' own (`mpg_laws.py`; spec oracles 1, 2, 3, 5 and 8). Statistics, of the real
noise: N = 300 answers, alpha 1e-6 a test; a law at a total variation of 0.25 from the wanted one is
rejected with power above 0.99, in the slow tests (N = 3,000) one of 0.1. The mutants of
`test_mpg_mutants.py` are found by the exact comparison.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from mpg_laws import laws, scr_law, sup_ratio
from mpg_noise import exact_law, outcomes
from mpg_toys import (
    PROMPT,
    blend,
    counted,
    distance,
    drawn,
    of_rows,
    same,
    table,
)

from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.blending import drafting
from decodery.methods.blending.drafting import acceptance
from decodery.methods.blending.mpg import Mpg
from decodery.methods.blending.mpg_scr import Params, Windows
from decodery.testing import MixtureBlend, enumerate_law, require_law
from decodery.testing.samplers import Heat, Shy, Surprised

END = frozenset({1})
SAMPLE = registry.get("sample")()
SCR, CHUNK = registry.get("mpg_scr"), registry.get("mpg_chunk")
TOKEN, ROUTE = registry.get("mpg_token"), registry.get("mpg_route")()
SCOPES = {"token": {"scope": "token"}, "chunk": {"chunk": 2}, "sequence": {"scope": "sequence"}}


def require_exact(decoder, source, length, samplers=()):
    """The decoder's law is the policy's, every outcome of its noise counted."""
    policy = Policy(source, chain(*samplers))
    wanted = enumerate_law(policy, PROMPT, Stopping(length, source.eos_ids))
    found = exact_law(decoder, policy, length)
    assert same(found, wanted), distance(found, wanted)


# -- exactly: all outcomes of the noise ----------------------------------------------------------


@cache
def first_drafts(bound):
    """What becomes of the first draft of two tokens: the chunk, or None, -> share."""
    found = {}
    decoder = CHUNK(bound, draft_length=2, max_tries=0)
    for item, share in outcomes(decoder, Policy(blend(2, chunk=2)), 2):
        kept = item.tokens if item.details["rounds"][0] == (2, 2) else None
        found[kept] = found.get(kept, 0.0) + share
    return found


def accepted(bound):
    """The law of the first draft where it is accepted, and how often that is."""
    found = {path: share for path, share in first_drafts(bound).items() if path is not None}
    total = sum(found.values())
    return {path: share / total for path, share in found.items()}, total


@pytest.mark.parametrize("factor", [1.0, 1.7])
def test_a_draft_is_accepted_with_probability_one_over_the_bound(factor):
    """Spec oracle 2: with M >= sup R an accepted chunk has the law pi*, one draft in M is kept."""
    source = blend(2, chunk=2)
    bound = factor * sup_ratio(source, 2, 2)
    law, often = accepted(bound)
    assert often == pytest.approx(1 / bound, abs=1e-12)
    assert same(law, enumerate_law(Policy(source), PROMPT, 2))


@pytest.mark.parametrize("bound", [1.0, 1.5, 3.0])
def test_a_bound_that_is_too_small_has_a_closed_form(bound):
    """Spec oracle 3: accepted chunks have ~ draft * min(1, R / M)."""
    both = laws(blend(2, chunk=2), 2)
    wanted = {
        path: share * min(1.0, both.ratio((), path) / bound)
        for path, share in both.draft.items()
        if len(path) == 2
    }
    law, often = accepted(bound)
    assert often == pytest.approx(sum(wanted.values()), abs=1e-12)
    assert same(law, {path: share / often for path, share in wanted.items()})


def test_the_distance_to_the_target_falls_to_zero_as_the_bound_rises():
    """Spec oracle 3: R is at most 3.80 here."""
    target = enumerate_law(Policy(blend(2, chunk=2)), PROMPT, 2)
    far = [distance(accepted(bound)[0], target) for bound in (1.0, 1.5, 3.0, 4.0)]
    assert all(one > other + 0.005 for one, other in pairwise(far))
    assert far[-1] < 1e-12


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("decoder", [ROUTE, TOKEN(1), TOKEN(2), TOKEN(3)], ids=repr)
def test_exact_decoders_have_the_policys_law(decoder, scope):
    """Spec oracle 5: route and token, of drafts as long as a chunk, shorter and longer."""
    require_exact(decoder, blend(2, **SCOPES[scope]), 3)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("draft_length", "max_tries"), [(1, 1), (2, 0)])
def test_chunks_under_the_largest_ratio_have_the_policys_law(scope, draft_length, max_tries):
    """Spec oracles 2 and 5, with redrafts and with the last resort after every rejected draft."""
    source = blend(2, **SCOPES[scope])
    bound = sup_ratio(source, draft_length, 2)
    require_exact(CHUNK(bound, draft_length=draft_length, max_tries=max_tries), source, 2)


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_longer_answers_and_more_words(scope):
    source = blend(2, **SCOPES[scope])
    require_exact(CHUNK(sup_ratio(source, 2, 3), draft_length=2, max_tries=0), source, 3)
    require_exact(CHUNK(sup_ratio(source, 2, 2), draft_length=2, max_tries=1), source, 2)
    for decoder in (ROUTE, TOKEN(2)):
        require_exact(decoder, blend(3, **SCOPES[scope]), 3)


def test_the_bound_of_the_enumeration_is_tight():
    source = blend(2, chunk=2)
    bound = sup_ratio(source, 2, 2)
    above = {
        factor: max(item.details["above"] for item, _ in
                    outcomes(CHUNK(factor * bound, draft_length=2, max_tries=0), Policy(source), 2))
        for factor in (1.0, 0.99)
    }  # fmt: skip
    assert above[1.0] == 0 < above[0.99]


@pytest.mark.parametrize("length", [2, 3])
def test_end_tokens_inside_a_chunk(length):
    source = blend(2, eos_ids=END, chunk=2)
    require_exact(TOKEN(length), source, 3)
    bound = sup_ratio(source, length, 3)
    require_exact(CHUNK(bound, draft_length=length, max_tries=0), source, 3)


@pytest.mark.parametrize("eos_ids", [frozenset(), END])
def test_samplers_act_on_the_blended_row(eos_ids):
    """Temperature and samplers with state, on the policy and on the draft: the policy's law."""
    source, samplers = blend(2, eos_ids=eos_ids, scope="sequence"), (Heat(0.6), Shy(), Surprised())
    require_exact(TOKEN(3), source, 3, samplers)
    bound = sup_ratio(source, 2, 2, samplers)
    require_exact(CHUNK(bound, draft_length=2, max_tries=0), source, 2, samplers)


def test_any_blend_is_drafted_by_its_first_member():
    """Also where its members see prompts of their own."""
    members = table(1, 2, eos_ids=END), table(2, 2, eos_ids=END)
    source = MixtureBlend(*members, openings=((1,), (1, 0)))
    require_exact(TOKEN(2), source, 3)
    bound = sup_ratio(source, 2, 2)
    require_exact(CHUNK(bound, draft_length=2, max_tries=0), source, 2)


def test_the_product_too():
    require_exact(TOKEN(3), blend(2, aggregate="product", strength=2.0), 3)


SETTINGS = {
    "warming up": {"draft_length": 2, "max_tries": 1},
    "a window of one": {"draft_length": 2, "max_tries": 1, "window": 1, "warm_up": 1},
    "the window's largest": {"draft_length": 2, "max_tries": 1, "warm_up": 2, "first_bound": 1.5},
    "its median": {"draft_length": 2, "max_tries": 2, "warm_up": 1, "quantile": 0.5},
    "nothing salvaged": {"draft_length": 2, "max_tries": 1, "salvage": False, "warm_up": 1},
    "no redraft": {"draft_length": 2, "max_tries": 0, "first_bound": 1.0},
}


def require_recursion(options, length):
    source, decoder = blend(2, chunk=2), SCR(**options)
    found = exact_law(decoder, Policy(source), length)
    assert same(found, scr_law(source, length, decoder.params))


@pytest.mark.parametrize("name", SETTINGS)
def test_scr_follows_the_recursion(name):
    """The loop with its windows, tries, salvage and last resort, against the tests' recursion."""
    require_recursion(SETTINGS[name], 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a window of one", "no redraft"])
def test_scr_follows_the_recursion_further(name):
    require_recursion(SETTINGS[name], 3)


def test_salvage_changes_the_law():
    """Spec oracle 8: how far the law is from the policy's, by the recursion; the card says it."""
    source = blend(2, chunk=2)
    target = enumerate_law(Policy(source), PROMPT, 2)
    bound = sup_ratio(source, 2, 2)

    def far(**options):
        decoder = SCR(draft_length=2, max_tries=2, **options)
        return distance(target, scr_law(source, 2, decoder.params))

    assert far(first_bound=bound, salvage=False) < 1e-12
    found = [far(), far(salvage=False), far(first_bound=bound)]
    assert found == pytest.approx([0.1008, 0.1055, 0.0048], abs=1e-4)


def test_the_mean_ratio_of_drafts_is_one():
    """Spec oracle 1 through the decoder: E[R_l] = 1 at every length, every draft counted."""
    seen = []

    class Listen(type(SAMPLE)):
        def decode(self, task):
            judge = lambda ratios, _: seen.append(ratios) or len(ratios)  # noqa: E731
            return (yield from drafting.chunks(task, 3, 0, judge))

        def footprint(self, prompt_length, max_tokens):
            return 2 * (prompt_length + max_tokens)

    shares = [share for _, share in outcomes(Listen(), Policy(blend(2, chunk=3)), 3)]
    means = np.array(shares) @ np.exp(np.array(seen))
    assert means == pytest.approx([1.0] * 3, abs=1e-12)


# -- by chi-square: the real noise ---------------------------------------------------------------


@pytest.mark.parametrize(
    "decoder", [ROUTE, TOKEN(2), CHUNK(4.0, draft_length=2, max_tries=1)], ids=repr
)
def test_real_noise_gives_the_policys_law(decoder):
    source = blend(2, chunk=2)
    wanted = enumerate_law(Policy(source), PROMPT, 2)
    require_law(counted(decoder, source, 2), wanted, 1e-6, repr(decoder))


def test_real_noise_gives_scrs_law():
    source, decoder = blend(2, chunk=2), SCR(**SETTINGS["the window's largest"])
    wanted = scr_law(source, 2, decoder.params)
    require_law(counted(decoder, source, 2), wanted, 1e-6, "mpg_scr")


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_real_noise_gives_the_policys_law_closely(scope):
    source = blend(3, **SCOPES[scope])
    wanted = enumerate_law(Policy(source), PROMPT, 3)
    bound = sup_ratio(source, 2, 3)
    for decoder in (ROUTE, CHUNK(bound, draft_length=2, max_tries=2), TOKEN(2)):
        require_law(counted(decoder, source, 3, runs=3_000), wanted, 1e-6, repr(decoder))


# -- limiting cases ------------------------------------------------------------------------------

# first_bound 1: while its window is cold, mpg_scr's bound is a guess, and 2 by default.
DECODERS = [
    SCR(first_bound=1.0),
    SCR(draft_length=3, salvage=False, first_bound=1.0),
    CHUNK(1.0),
    TOKEN(),
    TOKEN(3),
]


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_equal_models_are_plain_sampling_with_the_same_seed(decoder):
    """Spec oracle 4: R = 1, every chunk is accepted at the first try, the tokens are the same."""
    source = Mpg(table(1), [table(1), table(1)], chunk=4)
    for seed in range(10):
        task = Task(Policy(source), PROMPT, Stopping(17), Stream(seed))
        plain = replace(task, policy=Policy(table(1)))
        (found,), (wanted,) = run_alone(decoder, task), run_alone(SAMPLE, plain)
        assert found.tokens == wanted.tokens
        assert all(size == kept for size, kept in found.details["rounds"])


def test_equal_models_are_all_accepted_once_a_window_is_warm():
    """With the default first bound: half of the whole drafts fall before, none after."""
    options = {"draft_length": 2, "warm_up": 4, "salvage": False}
    source, rejected = Mpg(table(1), [table(1)], chunk=2), 0
    for seed in range(10):
        task = Task(Policy(source), PROMPT, Stopping(20), Stream(seed))
        rounds = run_alone(SCR(**options), task)[0].details["rounds"]
        rejected += sum(kept == 0 for _, kept in rounds[:3])
        assert all(kept == 2 for _, kept in rounds[3:])
    assert 0 < rejected < 30


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_a_plain_source_is_its_own_reference(decoder):
    for seed in range(5):
        task = Task(Policy(table(5), chain(Heat(0.5))), PROMPT, Stopping(9), Stream(seed))
        assert run_alone(decoder, task)[0].tokens == run_alone(SAMPLE, task)[0].tokens


def test_one_attribute_is_that_attribute():
    """Spec oracle 4: n = 1 and w = one-hot."""
    one, other, alone = (table(seed, 2) for seed in (1, 3, 2))
    wanted = enumerate_law(Policy(alone), PROMPT, 3)
    for source in (Mpg(one, [alone]), Mpg(one, [other, alone], (0, 1))):
        for decoder in (TOKEN(2), ROUTE):
            assert same(exact_law(decoder, Policy(source), 3), wanted)


def test_no_more_rounds_than_tries_without_a_token():
    """Spec oracle 7: the last resort ends every drought, also where no draft can be accepted."""
    impossible = Mpg(of_rows(lambda _: [1.0, 0.0]), [of_rows(lambda _: [0.0, 1.0])])
    for tries in (0, 1, 4):
        task = Task(Policy(impossible), PROMPT, Stopping(5), Stream(1))
        (item,) = run_alone(SCR(draft_length=2, max_tries=tries), task)
        assert item.tokens == (1,) * 5
        assert item.details["rounds"] == [(2, 0)] * (4 * (tries + 1)) + [(1, 0)] * (tries + 1)
        assert item.details["fallbacks"] == 5
    source = blend(chunk=4)
    for item in drawn(SCR(draft_length=4, max_tries=2, first_bound=8.0), Policy(source), 12, 30):
        drought = longest = 0
        for _, kept in item.details["rounds"]:
            drought = 0 if kept else drought + 1
            longest = max(longest, drought)
        assert longest <= 3 * (1 + item.details["fallbacks"])
        kept = sum(kept for _, kept in item.details["rounds"])
        assert kept + item.details["fallbacks"] == len(item.tokens) == 12


@pytest.mark.parametrize("decoder", [SCR(), CHUNK(2.0), TOKEN(), ROUTE], ids=repr)
def test_the_same_seed_gives_the_same_trace(decoder):
    """Spec oracle 9, alone and in a crowd."""
    source = blend(chunk=4)
    crowd = drawn(decoder, Policy(source), 12, 8)
    for seed, item in enumerate(crowd):
        (alone,) = run_alone(decoder, Task(Policy(source), PROMPT, Stopping(12), Stream(seed)))
        assert (alone.tokens, alone.details) == (item.tokens, item.details)
    assert len({item.tokens for item in crowd}) == 8


# -- windows -------------------------------------------------------------------------------------


def windows(**options):
    return Windows(Params(**options))


def test_a_bound_is_a_quantile_of_the_last_ratios():
    seen = windows(warm_up=1, window=4, quantile=0.5)
    for value in (5.0, 4.0, 1.0, 2.0, 3.0):  # the first one falls out
        seen.push([value])
    assert seen.log_bound(1) == 2.0  # the second of four
    assert windows(warm_up=1, quantile=1.0).params.quantile == 1.0
    seen = windows(warm_up=1, window=4)
    for value in (0.5, 0.2):
        seen.push([value, -1.0])
    assert seen.log_bound(1) == 0.5
    assert seen.log_bound(2) == 0.0  # E[R] = 1: never below 1


def test_a_bound_before_the_window_is_warm():
    seen = windows(warm_up=3, first_bound=7.0)
    for _ in range(2):
        seen.push([9.0])
    assert seen.log_bound(1) == pytest.approx(np.log(7.0))
    seen.push([-np.inf])
    assert seen.log_bound(1) == 9.0
    short = windows(warm_up=8, window=2, first_bound=7.0)  # never more than two to see
    short.push([1.0])
    short.push([2.0])
    assert short.log_bound(1) == 2.0


def test_an_impossible_prefix_is_never_accepted():
    assert not drafting.accepts(0.0, -np.inf, 0.0)
    assert drafting.accepts(np.nextafter(1.0, 0.0), 0.0, 0.0)
    assert drafting.accepts(0.0, -50.0, 50.0)


# -- calls and caches ----------------------------------------------------------------------------


def test_calls_are_counted():
    """All accepted: L forwards of the reference and one of every attribute a chunk."""

    def made():
        return Mpg(table(1), [table(1), table(1)], chunk=4)

    def calls(decoder, tokens):
        source = made()
        runner = Runner()
        handle = runner.submit(decoder, Task(Policy(source), PROMPT, Stopping(tokens), Stream(3)))
        runner.run()
        assert handle.report.model_calls == sum(member.calls for member in source.members)
        assert all(member.tokens_alive == member.reserved == 0 for member in source.members)
        return [member.calls for member in source.members]

    assert calls(SAMPLE, 8) == [8, 8, 8]
    # open; 3 drafts, look; 3 drafts, look
    assert calls(SCR(draft_length=4, first_bound=1.0), 8) == [9, 3, 3]
    assert calls(CHUNK(1.0, draft_length=4), 8) == [9, 3, 3]
    # open; 3 drafts, look, a fifth token; 2 nodes grown at once, 3 drafts, look, a tenth token
    assert calls(TOKEN(4), 10) == [10, 3, 3]
    # open both; 8 tokens less the first one of each routed model
    route = calls(ROUTE, 8)
    assert route[0] == 0
    assert sum(route) <= 2 + 7 + 1


def test_slots_are_what_both_trees_may_need():
    """The reference holds two paths, the attributes one; no table ever holds more."""
    source = blend(chunk=4)
    for decoder, wanted in ((SCR(), [26, 13, 13]), (TOKEN(), [26, 13, 13]), (ROUTE, [0, 13, 13])):
        task = Task(Policy(source), PROMPT, Stopping(12), Stream(0))
        needs = decoder.slots(task)
        assert [needs.get(member, 0) for member in source.members] == wanted
        run_alone(decoder, task)
        assert all(member.peak <= 26 for member in source.members)
    assert all(member.peak <= 13 for member in source.members[1:])


def test_acceptance_in_numbers():
    items = drawn(SCR(draft_length=4), Policy(blend(chunk=4)), 12, 20)
    found = acceptance(items)
    assert found["accepted"] + found["salvaged"] + found["rejected"] == pytest.approx(1.0)
    assert all(0.0 < found[name] < 1.0 for name in ("accepted", "salvaged", "rejected"))
    assert 1.0 < found["length"] < 4.0


# -- refusals ------------------------------------------------------------------------------------


def test_route_refuses_what_is_no_mixture():
    product = Policy(blend(aggregate="product"))
    heated = Policy(blend(chunk=2), chain(Heat(0.5)))
    for policy, words in ((product, "is a product"), (heated, "acts on the blended row")):
        with pytest.raises(ParameterError, match=words):
            Runner().submit(ROUTE, Task(policy, PROMPT, Stopping(3)))


@pytest.mark.parametrize(("method", "values", "words"), [
    (CHUNK, {}, "mpg_chunk needs bound"),
    (CHUNK, {"bound": 0.5}, "1 <= x"),
    (SCR, {"quantile": 0.0}, "0 < x <= 1"),
    (SCR, {"draft_length": 0}, "1 <= x"),
    (SCR, {"first_bound": 0.9}, "1 <= x"),
], ids=["no bound", "bound", "quantile", "length", "first bound"])  # fmt: skip
def test_impossible_values_are_refused(method, values, words):
    with pytest.raises(ParameterError, match=words):
        method(**values)
