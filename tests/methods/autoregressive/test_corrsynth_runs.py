"""CorrSynth, whole runs: by a second implementation, then statistics, then prompts and labels.

`reference` follows the pseudo-code with plain loops, its own exponents, states and draws; the
decoder's tokens are compared with its, and wrong variants of it must be told apart. Statistics:
seeds fixed, alpha 1e-6 each, N = 1,500 pairs of streams. A law at a total variation of 0.2
(non-centrality at least 4 N 0.2^2 = 240) is rejected with power above 0.99; the contrasted law is
0.6 from the product of the streams' own laws.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from itertools import product

import numpy as np
import pytest
from corrsynth_cases import END, FLAT, Letters, laws, table, task

from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import CapacityError, ParameterError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import Context, chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.corrsynth import CorrSynth
from decodery.methods.blending.cfg import Cfg
from decodery.testing import LawBroken, MixtureBlend, edge_table, enumerate_law, require_law
from decodery.testing.samplers import Coin, Heat, Shy, Surprised

CORRSYNTH, SAMPLE = registry.get("corrsynth"), registry.get("sample")

# -- whole runs against a second implementation ----------------------------------------------------


def reference(source, prompts, groups, options, stopping, stream, sampler, wrong=None):
    """The pseudo-code: tokens and the row that each was drawn from, for every stream."""
    gamma, delta, rho = options["gamma"], options["delta"], options["rho"]
    count = len(prompts)
    written = [[] for _ in range(count)]
    used = [[] for _ in range(count)]
    states = [
        sampler.start(
            Context(prompt, len(prompt), source.eos_ids, source.scores(prompt), stream, n)
        )
        for n, prompt in enumerate(prompts)
    ]
    active = list(range(count))
    while active:
        logp = {}
        for n in range(count):
            scores = source.scores([*prompts[n], *written[n]])
            logp[n] = scores - np.log(np.exp(scores).sum())
        lc = {n: np.maximum(row, math.log(options["floor"])) for n, row in logp.items()}
        peers_of = range(count) if wrong == "the dead still speak" else active
        step = {}
        for n in active:
            sets = [
                ([j for j in peers_of if j != n and groups[j] == groups[n]], rho),
                ([j for j in peers_of if groups[j] != groups[n]], 1 - rho),
            ]
            sets = [(peers, share) for peers, share in sets if peers and share]
            s = gamma * logp[n]
            total = sum(share for _, share in sets)
            if wrong == "shares are not renormalised":
                total = 1.0
            for peers, share in sets:
                mean = sum(lc[j] for j in peers) / len(peers)
                if wrong == "a budget for each sibling":
                    mean = sum(lc[j] for j in peers)
                s = s - share / total * (gamma - delta) * mean
            if not sets:
                s = logp[n]
            elif options["alpha"]:
                s = np.where(logp[n] < logp[n].max() + math.log(options["alpha"]), -np.inf, s)
            step[n] = s
        for n, s in step.items():
            path = (*prompts[n], *written[n])
            hidden = source.scores(path)
            context = Context(path, len(prompts[n]), source.eos_ids, hidden, stream, n)
            row = Row.dense(s).keep(s > -np.inf)
            if wrong == "truncated before the contrast":
                first = sampler.apply(Row.dense(logp[n]), states[n], context)
                kept = np.isin(np.arange(len(s)), first.token_ids())
                shaped = Row.dense(np.where(kept, s, -np.inf))
            else:
                shaped = sampler.apply(row, states[n], context)
            used[n].append(shaped)
            key = 0 if wrong == "one noise for all" else n
            token = shaped.draw(stream.uniform(key, len(path), "token"))
            states[n] = sampler.advance(states[n], token, row, context)
            written[n].append(token)
        active = [
            n
            for n in active
            if written[n][-1] not in stopping.eos_ids and len(written[n]) < stopping.max_tokens
        ]
    return [tuple(tokens) for tokens in written]


RHO = {"intra": 1.0, "cross": 0.0}
SETTINGS = [
    {"labels": ("a", "b"), "repeats": 2, "delta": 0.4},
    {"labels": ("a", "b"), "repeats": 1, "delta": 0.2, "gamma": 1.4},
    {"labels": (), "repeats": 3, "delta": 0.3, "alpha": 0.05},
    {"labels": ("b", "aa", "c"), "repeats": 2, "delta": 0.3, "contrast": "cross"},
    {"labels": ("b", "aa"), "repeats": 3, "delta": 0.3, "contrast": "intra", "alpha": 0.0},
    {"labels": ("a", "b", "cc"), "repeats": 2, "delta": 0.3, "rho": 0.15, "floor": 0.05},
]
CHAINS = {
    "nothing": chain(),
    "heat": chain(Heat(0.6)),
    "top_p": chain(registry.get("top_p")(0.8)),
    "state that sees rows": chain(Shy(1.5), Surprised(), registry.get("min_p")(0.1)),
    "noise": chain(Coin()),
}


def both(setting, source, sampler, seed, wrong=None):
    decoder = CORRSYNTH(**setting)
    asked = task(source, "b{label}a" if setting["labels"] else "ba", seed, 5, sampler)
    found = [item.tokens for item in run_alone(decoder, asked)]
    prompts = [tuple(source.language.encode(f"b{label}a")) for label in setting["labels"]]
    prompts = prompts or [asked.prompt]
    repeats = setting["repeats"]
    groups = [group for group in range(len(prompts)) for _ in range(repeats)]
    options = {"gamma": 1.0, "alpha": 1e-3, "floor": 1e-8, **setting}
    options["rho"] = setting.get("rho", RHO.get(setting.get("contrast"), 0.5))
    wanted = reference(
        source,
        [prompts[group] for group in groups],
        groups,
        options,
        asked.stopping,
        Stream(seed),
        sampler,
        wrong,
    )
    return found, wanted


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_runs_equal_the_reference(setting, name):
    for seed in range(12):
        found, wanted = both(setting, table(seed, 4), CHAINS[name], seed)
        assert found == wanted
        found, wanted = both(setting, _edges(seed), CHAINS[name], seed)
        assert found == wanted


def _edges(seed):
    source = edge_table(seed, 4, eos_ids=END)
    source.language = Letters(4)
    return source


@pytest.mark.parametrize(
    "wrong",
    [
        "the dead still speak",
        "shares are not renormalised",
        "a budget for each sibling",
        "one noise for all",
        "truncated before the contrast",
    ],
)
def test_a_wrong_variant_is_told_apart(wrong):
    """Negative controls: each of them differs from the decoder within 40 runs."""
    sampler = chain(registry.get("top_p")(0.7))
    setting = {"labels": ("a", "b"), "repeats": 3, "delta": 0.3}
    differ = 0
    for seed in range(40):
        found, wanted = both(setting, table(seed, 4), sampler, seed, wrong)
        differ += found != wanted
    assert differ >= 3


def test_one_stream_and_no_contrast_are_plain_sampling():
    """Token by token; gamma is a temperature while there are siblings, here to the end."""
    for seed in range(20):
        source = table(seed, 4, eos_ids=frozenset())
        plain = run_alone(SAMPLE(n=3), task(source, seed=seed, sampler=chain(Heat(0.5))))
        free = CorrSynth(repeats=3, gamma=2.0, delta=2.0, **FLAT)
        assert [item.tokens for item in run_alone(free, task(source, seed=seed))] == [
            item.tokens for item in plain
        ]
        (alone,) = run_alone(CORRSYNTH(repeats=1, delta=0.1), task(source, seed=seed))
        assert alone.tokens == run_alone(SAMPLE(), task(source, seed=seed))[0].tokens


# -- statistics ------------------------------------------------------------------------------------


CONTRASTED = CORRSYNTH(labels=("a", "b"), repeats=1, delta=0.3)


@cache
def pairs(decoder, runs=1500, length=2):
    """Counts of the two streams' texts."""
    source, runner = table(7, eos_ids=frozenset()), Runner()
    handles = [
        runner.submit(decoder, task(source, "a{label}", seed, length)) for seed in range(runs)
    ]
    runner.run()
    return Counter(tuple(item.tokens for item in handle.result()) for handle in handles)


def exact_pairs(decoder, length=2):
    """The joint law of two streams, by walking both."""
    source = table(7, eos_ids=frozenset())
    starts = [source.language.encode(f"a{label}") for label in "ab"]
    law = {}

    def walk(texts, probability):
        if len(texts[0]) == length:
            law[texts] = probability
            return
        rows = [
            Row.dense(source.scores([*start, *text]))
            for start, text in zip(starts, texts, strict=True)
        ]
        one, other = laws(decoder.joint(rows, (0, 1)))
        for a, b in product(range(3), repeat=2):
            walk(((*texts[0], a), (*texts[1], b)), probability * one[a] * other[b])

    walk(((), ()), 1.0)
    return law


def test_the_joint_law_of_two_streams():
    law = exact_pairs(CONTRASTED)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    require_law(pairs(CONTRASTED), law, 1e-6, "corrsynth")


def test_streams_are_independent_exactly_without_contrast():
    """Oracle 1: the joint law is the product of the streams' own laws."""
    free = CORRSYNTH(labels=("a", "b"), repeats=1, gamma=1.0, delta=1.0, alpha=0.0)
    source = table(7, eos_ids=frozenset())
    one, other = (
        enumerate_law(Policy(source), source.language.encode(f"a{label}"), 2) for label in "ab"
    )
    product_law = {(a, b): one[a] * other[b] for a in one for b in other}
    found = exact_pairs(free)
    assert all(abs(found[pair] - product_law[pair]) < 1e-14 for pair in product_law)
    require_law(pairs(free), product_law, 1e-6, "two streams")
    with pytest.raises(LawBroken):
        require_law(pairs(CONTRASTED), product_law, 1e-6, "contrast")


# -- labels, prompts and refusals ------------------------------------------------------------------


def test_labels_fill_the_prompt_and_are_on_the_completions():
    source = table(3, 4, eos_ids=frozenset())
    decoder = CORRSYNTH(labels=("b", "cd"), repeats=2)
    asked = task(source, "a{label}a", max_tokens=2)
    assert decoder.prompts(asked) == [(0, 1, 0), (0, 2, 3, 0)]
    found = run_alone(decoder, asked)
    assert [item.details for item in found] == [
        {"label": label, "repeat": repeat} for label in ("b", "cd") for repeat in (0, 1)
    ]
    assert [item.sequence for item in found] == [0, 1, 2, 3]
    for item, prompt in zip(found, [(0, 1, 0)] * 2 + [(0, 2, 3, 0)] * 2, strict=True):
        worth = 0.0
        for place, token in enumerate(item.tokens):
            worth += source.scores([*prompt, *item.tokens[:place]])[token]
        assert item.log_probability == pytest.approx(worth, abs=1e-12)


def test_messages_are_filled_in_every_role():
    source = table(3, 4)
    asked = task(source, "x")
    messages = ({"role": "system", "content": "{label}"}, {"role": "user", "content": "a{label}"})
    asked = Task(asked.policy, asked.prompt, asked.stopping, messages=messages)
    assert CORRSYNTH(labels=("b", "cc")).prompts(asked) == [
        source.language.encode("b|ab"),
        source.language.encode("cc|acc"),
    ]


def test_labels_are_names_where_tokens_are_numbers():
    source = table(3, eos_ids=frozenset())
    source.language = None
    asked = Task(Policy(source), (0, 1), Stopping(2))
    found = run_alone(CORRSYNTH(labels=("x", "y"), repeats=1), asked)
    assert [item.details["label"] for item in found] == ["x", "y"]


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [("ab", (0, 1), r"the prompt has no \{label\}"), ("ab{label}", (0, 1), "not of token ids")],
)
def test_a_prompt_without_a_place_for_labels_is_refused_before_a_forward(prompt, tokens, message):
    source = table(3)
    asked = Task(Policy(source), tokens, Stopping(2), prompt_text=prompt)
    with pytest.raises(ParameterError, match=message):
        Runner().submit(CORRSYNTH(labels=("a", "b")), asked)
    assert source.calls == 0


def test_a_blend_that_reads_the_prompt_goes_without_labels():
    """It would read the prompt before the label is in it. What joins rows only goes with both."""
    source = table(3, eos_ids=frozenset())
    guided, mixed = Cfg(source, 2.0, (1,)), MixtureBlend(source, source)
    decoder = CORRSYNTH(labels=("a", "b"), repeats=1)
    with pytest.raises(ParameterError, match="makes prompts of its own"):
        Runner().submit(decoder, task(guided, "c{label}"))
    with pytest.raises(ParameterError, match="makes prompts of its own"):
        Runner().submit(decoder, task(MixtureBlend(guided, source), "c{label}"))
    assert len(run_alone(decoder, task(mixed, "c{label}"))) == 2
    assert len(run_alone(CORRSYNTH(repeats=3), task(guided, "c"))) == 3
    assert source.tokens_alive == source.reserved == 0


def test_room_is_reserved_for_the_prompts_that_are_decoded():
    """(2 + 1 * 3) + (4 + 1 * 3) tokens, where the prompt itself has another length."""
    decoder = CORRSYNTH(labels=("b", "bcb"), repeats=1)
    for capacity in (11, 12):
        source = table(3, eos_ids=frozenset(), capacity=capacity)
        asked = task(source, "a{label}", max_tokens=3)
        if capacity < 12:
            with pytest.raises(CapacityError, match="may need 12 cache slots"):
                Runner().submit(decoder, asked)
        else:
            run_alone(decoder, asked)
            assert source.peak <= 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"delta": 0.0}, "delta is 0.0"),
        ({"delta": 1.2}, "delta is 1.2; allowed is at most gamma = 1"),
        ({"labels": ("a", "a")}, "distinct"),
        ({"labels": ("a", "")}, "distinct"),
        ({"contrast": "cross"}, "needs two labels"),
        ({"contrast": "cross", "labels": ("a",)}, "needs two labels"),
        ({"contrast": "intra", "repeats": 1}, "needs repeats of 2"),
        ({"rho": 0.5}, "rho is 0.5, which has no effect"),
        ({"rho": 0.5, "labels": ("a", "b"), "repeats": 1}, "no effect"),
        ({"rho": 0.5, "labels": ("a", "b"), "contrast": "cross"}, "no effect"),
        ({"contrast": "both"}, "one of 'hybrid', 'cross', 'intra'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(values, message):
    with pytest.raises(ParameterError, match=message):
        CORRSYNTH(**values)


# -- the embedded model ----------------------------------------------------------------------------


def test_the_embedded_model_by_name(lm):
    prompt = "Write a headline about {label}."
    made = lm.generate(
        prompt, method="corrsynth", labels=["sports", "politics"], repeats=2, top_p=0.9,
        max_tokens=6, seed=5,
    )  # fmt: skip
    assert [item.details["label"] for item in made.samples] == ["sports"] * 2 + ["politics"] * 2
    assert made.report.model_calls <= 6
    assert len({item.text for item in made.samples}) == 4
    read = [lm.read(prompt.replace("{label}", label)).tokens for label in ("sports", "politics")]
    decoder, whole = CORRSYNTH(labels=("sports", "politics")), lm.read(prompt)
    asked = Task(
        Policy(lm), whole.tokens, Stopping(1), prompt_text=whole.text, messages=whole.messages
    )
    assert decoder.prompts(asked) == read
    again = lm.generate(
        prompt, method="corrsynth", labels=["sports", "politics"], repeats=2, top_p=0.9,
        max_tokens=6, seed=5,
    )  # fmt: skip
    assert [item.tokens for item in again.samples] == [item.tokens for item in made.samples]
