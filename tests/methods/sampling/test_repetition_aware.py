"""Repetition-aware sampling is the two-draw procedure: enumerated, on 10,048 rows, chi-square.

The procedure is written out here as the paper's algorithm 1: a candidate from the nucleus, its
share of the window, a second draw from the whole row. Its law is summed over both draws, without
the closed form that the sampler uses. The chi-square tests take 200,000 draws on eight tokens with
fixed seeds, alpha 1e-4 each: a law that moves 0.01 of mass between two tokens of probability 0.2
has noncentrality 200 and is found with probability above 0.9999 at 7 degrees of freedom (asserted).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from reference_laws import softmax
from reference_rows import EXACT, hold, pick
from scipy import stats

from decodery.api.language_model import LanguageModel
from decodery.api.plan import make_plan
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, chain
from decodery.core.source import Policy
from decodery.methods.sampling.min_tokens import MinTokens
from decodery.methods.sampling.repetition_aware import METHOD, RepetitionAware
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_k import TopK
from decodery.testing import LawBroken, TableModel, enumerate_law, require_law

ALPHA = 1e-4
DRAWS = 200_000
SETTINGS: list[dict[str, Any]] = [
    {},
    {"top_p": 0.0, "window": 3, "threshold": 0.4},
    {"top_p": 0.5, "window": 2, "count_self": False, "threshold": 0.4},
    {"top_p": 1.0, "window": 4, "threshold": 0.3},
    {"top_p": 0.9, "top_k": 2, "window": 5, "threshold": 0.2},
    {"top_p": 0.6, "window": 3, "threshold": 0.4, "exclude_repeated": True},
    {"top_p": 0.9, "window": 4, "threshold": 0.25, "exclude_repeated": True, "count_self": False},
    {"top_p": 0.7, "window": 3, "threshold": 0.4, "prompt": False},
]
NAMES = [", ".join(f"{key}={value}" for key, value in values.items()) for values in SETTINGS]


# -- the two-draw procedure ------------------------------------------------------------------------


def nucleus(law: Sequence[float], sampler: RepetitionAware) -> list[int]:
    kept: list[int] = []
    held = 0.0
    for v in sorted(range(len(law)), key=lambda v: (-law[v], v)):
        if kept and (held >= sampler.top_p or len(kept) == sampler.top_k):
            break
        kept.append(v)
        held += law[v]
    return kept


def is_repeated(code: int, history: Sequence[int], sampler: RepetitionAware) -> bool:
    window = list(history)[-sampler.window :]
    share = (window.count(code) + (1 if sampler.count_self else 0)) / sampler.window
    return share > sampler.threshold


def second_draw(law: Sequence[float], code: int, sampler: RepetitionAware) -> list[float]:
    """The law that replaces a repeated code."""
    if not sampler.exclude_repeated:
        return list(law)
    rest = math.fsum(p for v, p in enumerate(law) if v != code)
    if rest == 0:
        return [float(v == code) for v in range(len(law))]
    return [0.0 if v == code else p / rest for v, p in enumerate(law)]


def two_draws(
    law: Sequence[float], history: Sequence[int], sampler: RepetitionAware
) -> list[float]:
    """Summed over the candidate and, where it is repeated, over its replacement."""
    kept = nucleus(law, sampler)
    mass = math.fsum(law[v] for v in kept)
    total = [0.0] * len(law)
    for code in kept:
        chance = law[code] / mass
        if not is_repeated(code, history, sampler):
            total[code] += chance
        elif chance:
            for v, p in enumerate(second_draw(law, code, sampler)):
                total[v] += chance * p
    return total


def seen_by(sampler: RepetitionAware, at: Context) -> Sequence[int]:
    return at.tokens if sampler.prompt else at.tokens[at.prompt_length :]


# -- exact -----------------------------------------------------------------------------------------


def one_step(kind: type[RepetitionAware] = RepetitionAware, **changes: Any):
    def pair(batch):
        values: dict[str, Any] = {
            "top_p": pick(batch, 0.0, 0.3137, 0.5129, 0.8237, 0.9531),
            "top_k": int(pick(batch, 0, 0, 3, 25)),
            "window": int(pick(batch, 10, 3, 6)),
            "threshold": pick(batch, 0.1, 0.1, 0.3, -0.5, 0.5, 1.5),
            "count_self": bool(pick(batch, 1, 0)),
            "exclude_repeated": bool(pick(batch, 0, 0, 0, 1, 1)),
            "prompt": bool(pick(batch, 1, 1, 0)),
            **changes,
        }
        plain = RepetitionAware(**values)

        def law(scores: list[float], at: Context) -> list[float]:
            return two_draws(softmax(scores), seen_by(plain, at), plain)

        return kind(**values), law

    return pair


def test_one_step_on_generated_rows() -> None:
    assert hold(one_step()) > 5000


@pytest.mark.parametrize("values", SETTINGS, ids=NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_the_joint_law_of_five_tokens(values: dict[str, Any], seed: int) -> None:
    """Every path of five tokens over three, after a prompt of four, from the tree's own states."""
    sampler, prompt = RepetitionAware(**values), (0, 1, 1, 2)
    table = TableModel.random(3, order=2, seed=seed)
    law = enumerate_law(Policy(table, chain(sampler)), prompt, 5)
    for path in itertools.product(range(3), repeat=5):
        expected = 1.0
        for place, token in enumerate(path):
            at = Context([*prompt, *path[:place]], len(prompt))
            scores = table.scores(at.tokens).tolist()
            expected *= two_draws(softmax(scores), seen_by(sampler, at), sampler)[token]
        assert law.get(path, 0.0) == pytest.approx(expected, abs=EXACT), path


def test_golden_numbers() -> None:
    """p = .5 .3 .2, nucleus at 0.7 is {0, 1} with q = .625 .375."""
    row = Row.of_probabilities([0.5, 0.3, 0.2])

    def law(history: Sequence[int], **values: Any) -> list[float]:
        sampler = RepetitionAware(**{"top_p": 0.7, **values})
        made = sampler.apply(row, None, Context(history, 1))
        return made.dense_probabilities().tolist()

    assert law([2]) == pytest.approx([0.625, 0.375, 0.0])
    assert law([0]) == pytest.approx([0.625 * 0.5, 0.375 + 0.625 * 0.3, 0.625 * 0.2])
    assert law([0, 1]) == pytest.approx([0.5, 0.3, 0.2])
    without = law([0], exclude_repeated=True)
    assert without == pytest.approx([0.0, 0.375 + 0.625 * 0.6, 0.625 * 0.4])
    both = law([0, 1], exclude_repeated=True)  # 0 becomes .6 .4 of 1, 2; 1 becomes 5/7, 2/7 of 0, 2
    assert both == pytest.approx([0.375 * 5 / 7, 0.625 * 0.6, 0.625 * 0.4 + 0.375 * 2 / 7])


# -- what follows from the law ---------------------------------------------------------------------


def law_after(sampler: Sampler, row: Row, history: Sequence[int], prompt: int = 1) -> list[float]:
    at = Context(list(history), prompt)
    return sampler.apply(row, sampler.start(at), at).dense_probabilities().tolist()


ROW = Row.of_probabilities([0.4, 0.3, 0.2, 0.1])


def test_at_one_it_is_not_plain_sampling_unless_none_or_all_are_repeated() -> None:
    sampler, p = RepetitionAware(top_p=1.0), [0.4, 0.3, 0.2, 0.1]
    assert law_after(sampler, ROW, [0]) == pytest.approx(
        [0.4 * q + (0.0 if v == 0 else q) for v, q in enumerate(p)]
    )
    for history in ([9], [0, 1, 2, 3]):
        assert law_after(sampler, ROW, history) == pytest.approx(p)


def test_thresholds_beyond_reach_and_below_zero() -> None:
    """(K + 1) / K is the highest share when the code counts itself, 1 when not."""
    history = [0] * 20
    for window in (1, 4, 10):
        for count_self, highest in ((True, (window + 1) / window), (False, 1.0)):
            values = {"top_p": 0.5, "window": window, "count_self": count_self}
            never = RepetitionAware(threshold=highest, **values)
            assert law_after(never, ROW, history) == pytest.approx([4 / 7, 3 / 7, 0, 0])
            barely = RepetitionAware(threshold=np.nextafter(highest, 0.0), **values)
            assert law_after(barely, ROW, history)[3] > 0
            always = RepetitionAware(threshold=-0.01, **values)
            assert always.apply(ROW, None, Context((9,), 1)) is ROW


def test_at_zero_it_is_the_argmax_unless_that_is_repeated() -> None:
    sampler = RepetitionAware(top_p=0.0)
    assert law_after(sampler, ROW, [1, 2, 3]) == [1.0, 0.0, 0.0, 0.0]
    assert law_after(sampler, ROW, [0]) == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert law_after(sampler, Row.dense(np.zeros(4)), [3]) == [1.0, 0.0, 0.0, 0.0]  # lowest id


def test_readings_differ_where_the_code_occurred_once() -> None:
    """K = 10, t = 0.1: A (count / K) keeps it, B ((1 + count) / K) redraws; twice both redraw."""
    for count, redrawn in ((0, (False, False)), (1, (False, True)), (2, (True, True))):
        history = [9] * (10 - count) + [0] * count
        for count_self, expected in zip((False, True), redrawn, strict=True):
            sampler = RepetitionAware(top_p=0.0, count_self=count_self)
            assert (law_after(sampler, ROW, history)[0] < 1) == expected


@pytest.mark.parametrize("count_self", [False, True])
@pytest.mark.parametrize("window", [1, 3, 10])
def test_the_window_ends_exactly_k_steps_back(window: int, count_self: bool) -> None:
    threshold = 0.5 / window + (1 / window if count_self else 0.0)  # one occurrence is enough
    sampler = RepetitionAware(0.0, window=window, count_self=count_self, threshold=threshold)
    for back in range(1, 14):
        history = [9] * 20
        history[-back] = 0
        assert (law_after(sampler, ROW, history)[0] < 1) == (back <= window), back


def test_a_history_shorter_than_the_window_still_divides_by_k() -> None:
    sampler = RepetitionAware(top_p=0.0, count_self=False, threshold=0.3)
    assert law_after(sampler, ROW, [0, 0, 0])[0] == 1.0  # 3 / 10, not 3 / 3
    assert law_after(sampler, ROW, [0, 0, 0, 0])[0] < 1.0


@pytest.mark.parametrize("window", [10, 20, 30, 70, 100, 110])
def test_a_share_equal_to_the_threshold_is_not_above_it(window: int) -> None:
    """Also where threshold times window is no whole float, as 0.29 * 100."""
    for count in range(1, window):
        for extra, redrawn in ((0, False), (1, True)):
            sampler = RepetitionAware(0.0, 0, window, count / window, count_self=False)
            history = [9] * (window - count - extra) + [0] * (count + extra)
            assert (law_after(sampler, ROW, history)[0] < 1) == redrawn


def test_the_prompt_matters_for_the_first_k_tokens_only() -> None:
    generator = np.random.default_rng(3)
    window = 5
    one, other = (
        RepetitionAware(top_p=0.6, window=window, threshold=0.25, prompt=prompt)
        for prompt in (True, False)
    )
    differ = []
    for generated in range(12):
        seen = False
        for _ in range(50):
            history = generator.integers(0, 4, 6 + generated).tolist()
            laws = [law_after(sampler, ROW, history, prompt=6) for sampler in (one, other)]
            seen = seen or laws[0] != laws[1]
        differ.append(seen)
    assert differ == [True] * window + [False] * (12 - window)


@pytest.mark.parametrize("eps", [0.02, 0.1, 0.3])
@pytest.mark.parametrize(("count_self", "free"), [(True, 1), (False, 2)])
def test_a_loop_is_left_with_probability_epsilon_a_step(
    eps: float, count_self: bool, free: int
) -> None:
    """A model stuck at p(0) = 1 - eps. Greedy stays for ever. At v = 0 the chance to be in the loop
    after n tokens is (1 - eps)^(n - free), so its expected length is free + (1 - eps) / eps."""
    table = TableModel(lambda _: [1 - eps, eps], 2, 0)
    sampler = RepetitionAware(top_p=0.0, count_self=count_self)
    for length in (1, 2, 3, 8, 11):
        law = enumerate_law(Policy(table, chain(sampler)), (1,) * 10, length)
        stays = (1 - eps) ** max(0, length - free)
        assert law[(0,) * length] == pytest.approx(stays, abs=EXACT)
    greedy = enumerate_law(Policy(table, chain(Temperature(0.0))), (1,), 11)
    assert greedy == {(0,) * 11: 1.0}


def test_exclusion_keeps_a_code_that_nothing_can_replace() -> None:
    sampler = RepetitionAware(exclude_repeated=True)
    assert law_after(sampler, Row.dense([1.0, -np.inf]), [0]) == [1.0, 0.0]
    assert law_after(sampler, Row.dense([1.0]), [0]) == [1.0]
    # However improbable the other is, it is the only replacement: exp(-2000) is 0 in float64.
    assert law_after(sampler, Row.dense([0.0, -2000.0]), [0]) == [0.0, 1.0]
    float32 = Row.dense(np.array([0.0, -300.0, -301.0], np.float32))
    expected = [0.0, *softmax([0.0, -1.0])]
    assert law_after(sampler, float32, [0]) == pytest.approx(expected, abs=1e-6)


# -- in a chain ------------------------------------------------------------------------------------


def test_a_temperature_before_it_acts_on_both_draws() -> None:
    warm = Temperature(1.7).apply(ROW, None, Context((0,), 1)).probabilities().tolist()
    sampler = RepetitionAware(top_p=0.5)
    law = law_after(chain(Temperature(1.7), sampler), ROW, [0])
    assert law == pytest.approx(two_draws(warm, [0], sampler))


def test_a_truncation_before_it_narrows_the_redraw() -> None:
    """Both draws are from the row as it comes: what an earlier sampler dropped stays dropped."""
    sampler = RepetitionAware(top_p=0.0)
    law = law_after(chain(TopK(2), sampler), ROW, [0])
    assert law == pytest.approx([4 / 7, 3 / 7, 0.0, 0.0])


def test_a_masked_end_token_is_masked_in_both_draws() -> None:
    at = Context((0, 3, 3), 1, eos_ids=frozenset({3}))
    row = Row.of_probabilities([0.1, 0.1, 0.1, 0.7])
    both = chain(MinTokens(5), RepetitionAware(top_p=0.9))
    law = both.apply(row, both.start(at), at).dense_probabilities()
    assert law[3] == 0.0
    assert law.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ((RepetitionAware(), Temperature(2.0)), "after it would change it"),
        ((RepetitionAware(), TopK(3)), "after it would change it"),
        ((Temperature(0.0), RepetitionAware()), "leaves one token"),
        ((TopK(1), RepetitionAware()), "leaves one token"),
    ],
)
def test_chains_that_leave_nothing_of_it_are_refused(stages: Any, said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        chain(*stages)


def test_what_it_declares() -> None:
    assert RepetitionAware().truncates
    assert RepetitionAware(1.0, top_k=5).truncates
    assert not RepetitionAware(1.0).truncates
    assert not RepetitionAware(threshold=-1.0).truncates
    assert chain(RepetitionAware(), Temperature(1.0), TopK(0))


def test_its_place_is_after_temperature_and_truncation() -> None:
    values = {"ras_top_p": 0.3, "temperature": 0.8, "min_p": 0.1, "min_tokens": 2}
    stages = make_plan("repetition_aware", values).sampler.stages
    order = [type(stage).__name__ for stage in stages]
    assert order == ["MinTokens", "Temperature", "MinP", "RepetitionAware"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ras_top_p": 1.1}, "ras_top_p"),
        ({"ras_top_p": -0.1}, "ras_top_p"),
        ({"ras_top_k": -1}, "ras_top_k"),
        ({"ras_window": 0}, "ras_window"),
        ({"ras_threshold": 2.5}, "ras_threshold"),
        ({"ras_threshold": math.nan}, "ras_threshold"),
        ({"ras_count_self": 1}, "ras_count_self"),
        ({"ras_window": 9}, "share of at least 0.111111, so all would be redrawn"),
        ({"ras_threshold": 0.05}, "all would be redrawn; give ras_threshold 0.1 or more"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        METHOD(**values)


# -- statistics ------------------------------------------------------------------------------------

LAW = [0.28, 0.22, 0.17, 0.12, 0.09, 0.06, 0.04, 0.02]
HISTORY = [0, 3, 3, 1, 5, 0, 7]
CASES: list[dict[str, Any]] = [
    {"top_p": 0.6},
    {"top_p": 0.8, "count_self": False},
    {"top_p": 0.6, "exclude_repeated": True},
]


def drawn_twice(sampler: RepetitionAware) -> Counter[int]:
    """The two-draw procedure, run 200,000 times."""
    generator = np.random.default_rng(20240608)
    kept = nucleus(LAW, sampler)
    share = np.array([LAW[v] for v in kept])
    candidates = generator.choice(kept, size=DRAWS, p=share / share.sum())
    counts: Counter[int] = Counter()
    for code, times in Counter(candidates.tolist()).items():
        if is_repeated(code, HISTORY, sampler):
            again = second_draw(LAW, code, sampler)
            counts.update(generator.choice(len(LAW), size=times, p=again).tolist())
        else:
            counts[code] += times
    return counts


def drawn_once(sampler: RepetitionAware, draws: int = DRAWS) -> Counter[int]:
    """Single draws from the sampler's row, as a decoder makes them."""
    made = sampler.apply(Row.of_probabilities(LAW), None, Context(HISTORY, 3))
    stream = Stream(20240608)
    return Counter(made.draw(stream.uniform(0, place, "token")) for place in range(draws))


def named(law: Sequence[float]) -> dict[int, float]:
    return dict(enumerate(law))


@pytest.mark.parametrize("values", CASES, ids=str)
def test_two_draws_follow_the_sampler_and_one_draw_follows_the_procedure(
    values: dict[str, Any],
) -> None:
    sampler = RepetitionAware(**values)
    made = law_after(sampler, Row.of_probabilities(LAW), HISTORY, prompt=3)
    require_law(drawn_twice(sampler), named(made), ALPHA, "two draws")
    require_law(drawn_once(sampler), named(two_draws(LAW, HISTORY, sampler)), ALPHA, "one draw")


def test_the_stated_power() -> None:
    noncentrality = DRAWS * 2 * 0.01**2 / 0.2
    assert stats.ncx2.sf(stats.chi2.isf(ALPHA, 7), 7, noncentrality) > 0.9999


# -- negative controls -----------------------------------------------------------------------------


class OffByOne(RepetitionAware):
    """The window is one code longer."""

    def apply(self, row, state, context):
        fields = dataclasses.asdict(self)
        share = self.threshold * self.window / (self.window + 1)
        longer = RepetitionAware(**fields | {"window": self.window + 1, "threshold": share})
        return longer.apply(row, state, context)


class OtherReading(RepetitionAware):
    def apply(self, row, state, context):
        fields = dataclasses.asdict(self)
        other = RepetitionAware(**fields | {"count_self": not self.count_self})
        return other.apply(row, state, context)


class RedrawsFromTheNucleus(RepetitionAware):
    """The second draw is from q: nothing is ever left."""

    def apply(self, row, state, context):
        return self._nucleus(row)


class RedrawsUntilFresh(RepetitionAware):
    """Repeated codes are impossible in the redraw, all of them."""

    def apply(self, row, state, context):
        made = super().apply(row, state, context)
        repeated = self._repeated(made.token_ids(), context)
        return made if repeated.all() else made.keep(~repeated)


class AllOrNothing(RepetitionAware):
    """Samples from the whole row as soon as any code of the nucleus is repeated."""

    def apply(self, row, state, context):
        repeated = self._repeated(self._nucleus(row).token_ids(), context)
        return row if repeated.any() else self._nucleus(row)


class ProductOfShares(RepetitionAware):
    """Compares the count with t * K, which rounding decides at the bound."""

    def _repeated(self, tokens, context):
        seen = np.array(context.tokens[-self.window :])
        counts = np.array([int(self.count_self) + (seen == v).sum() for v in tokens])
        return counts > self.threshold * self.window


WRONG = [OffByOne, OtherReading, RedrawsFromTheNucleus, RedrawsUntilFresh, AllOrNothing]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_variants_are_rejected_exactly(wrong: type[RepetitionAware]) -> None:
    with pytest.raises(AssertionError):
        hold(one_step(wrong))


@pytest.mark.parametrize("wrong", WRONG[1:])
def test_wrong_variants_are_rejected_by_chi_square(wrong: type[RepetitionAware]) -> None:
    """A tenth of the draws is enough."""
    law = named(two_draws(LAW, HISTORY, RepetitionAware(top_p=0.6)))
    counts = drawn_once(wrong(top_p=0.6), DRAWS // 10)
    with pytest.raises(LawBroken, match="does not follow"):
        require_law(counts, law, ALPHA, "mutant")


def test_a_product_in_the_place_of_the_share_is_rejected() -> None:
    """29 of 100 is not above 0.29, and above 0.29 * 100 = 28.999999999999996."""
    history = [9] * 71 + [0] * 29
    for kind, redrawn in ((RepetitionAware, False), (ProductOfShares, True)):
        sampler = kind(0.0, window=100, threshold=0.29, count_self=False)
        assert (law_after(sampler, ROW, history)[0] < 1) == redrawn


# -- the embedded model ----------------------------------------------------------------------------


def test_out_of_reach_it_is_greedy_on_the_embedded_model(lm: LanguageModel) -> None:
    prompt, count = "The sea is", 12
    greedy = lm.generate(prompt, method="greedy", max_tokens=count)
    never = lm.generate(
        prompt,
        method="repetition_aware",
        ras_top_p=0.0,
        ras_threshold=2.0,
        seed=5,
        max_tokens=count,
    )
    assert never.tokens == greedy.tokens
