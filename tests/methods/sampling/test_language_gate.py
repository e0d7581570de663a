"""The language gate: its rules against a transcription of the paper's steps over every case.

The truth table runs over what the gate permits (16 sets), the script being written (CJ, Latin,
another, none yet), and which families the user's set and the likely tokens hold, one within the
other (both are heads of one ranking): 8,320 cases, compared token by token. Five mutants of the
rules must fail it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner
from decodery.core.sampler import Context, Sampler, chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.sample import Sample
from decodery.methods.sampling import language_gate
from decodery.methods.sampling.language_gate import METHOD, Gate, LanguageGate, Script
from decodery.methods.sampling.min_p import MinP
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.token_families import (
    CJ,
    LATIN,
    LOW_RESOURCE,
    SYMBOLS,
)
from decodery.methods.sampling.top_k import TopK
from decodery.methods.sampling.top_p import TopP
from decodery.models.table import TableModel
from decodery.testing import LawBroken, enumerate_law, require_law
from decodery.testing.toys import PIECES, ToySource

FAMILIES = (CJ, LATIN, SYMBOLS, LOW_RESOURCE)
EACH = 2  # tokens of each family in the vocabulary of the truth table
VOCABULARY = np.repeat(np.array(FAMILIES, dtype=np.int8), EACH)


def gate_of(families: np.ndarray = VOCABULARY) -> Gate:
    """A gate whose u is +1 for the families named in a hidden state [8] and -1 for the others."""
    eye = np.eye(4, dtype=np.float32)
    return Gate(np.eye(8, dtype=np.float32), np.hstack([eye, -eye]), families)


def hidden_of(permitted: Sequence[Any] | np.ndarray) -> np.ndarray:
    given = np.array(permitted, dtype=np.float32)
    return np.concatenate([given, 1 - given])


# -- the paper's steps, as sets ------------------------------------------------------------------


def expected(
    ranking: Sequence[int],
    families: Sequence[int],
    permitted: Sequence[bool],
    last: int | None,
    user: int,
    likely: int,
) -> set[int]:
    """The tokens to sample from: `ranking` of tokens, the first `user` of them are U, the first
    `likely` are C."""
    passed = {family for family in FAMILIES if permitted[family]}
    predicted = passed | ({0} if not passed else set())  # all equal: the first is the highest
    first, confident = set(ranking[:user]), set(ranking[:likely])
    if last is None:
        return first
    allowed = predicted | {last}
    banned = {CJ, LATIN} - allowed
    if not any(families[token] in banned for token in first):
        return first
    if not any(families[token] in predicted for token in confident):
        return first
    return {token for token in first | confident if families[token] not in banned}


@dataclass(frozen=True)
class Case:
    permitted: tuple[bool, ...]
    last: int | None
    inner: frozenset[int]
    outer: frozenset[int]
    user_is_inner: bool

    def row(self) -> tuple[Row, list[int]]:
        """One token of each inner family, then one of each further outer family, then the rest."""
        ahead = [family * EACH for family in sorted(self.inner, reverse=True)]
        ahead += [family * EACH for family in sorted(self.outer - self.inner)]
        rest = [token for token in range(len(VOCABULARY)) if token not in ahead]
        ranking = ahead + rest
        scores = np.empty(len(ranking))
        scores[ranking] = -0.1 * np.arange(len(ranking))
        return Row.dense(scores), ranking

    @property
    def sizes(self) -> tuple[int, int]:
        small, large = len(self.inner), len(self.outer)
        return (small, large) if self.user_is_inner else (large, small)


def cases() -> Iterator[Case]:
    subsets = [
        frozenset(family for family in FAMILIES if bits >> family & 1) for bits in range(1, 16)
    ]
    for permitted in product((False, True), repeat=4):
        for last in (None, CJ, LATIN, LOW_RESOURCE):
            for inner, outer in product(subsets, repeat=2):
                if inner <= outer:
                    for user_is_inner in (True, False):
                        yield Case(permitted, last, inner, outer, user_is_inner)


def sampler_for(case: Case, kind: type[LanguageGate] = LanguageGate) -> LanguageGate:
    user, likely = case.sizes
    return kind(top_k=user, narrow=(1, 1.0), broad=(likely, 1.0), gate=gate_of())


def answer(case: Case, kind: type[LanguageGate] = LanguageGate) -> tuple[Row, Row, set[int]]:
    """The row, what the sampler makes of it, and the tokens that should be left."""
    row, ranking = case.row()
    sampler = sampler_for(case, kind)
    state = Script(case.last)
    made = sampler.apply(row, state, Context((0,), 1, hidden=hidden_of(case.permitted)))
    wanted = expected(ranking, VOCABULARY.tolist(), case.permitted, case.last, *case.sizes)
    return row, made, wanted


def test_the_truth_table() -> None:
    count = stepped_in = 0
    for case in cases():
        row, made, wanted = answer(case)
        assert set(made.token_ids().tolist()) == wanted, case
        assert (made.scores == row.scores[made.token_ids()]).all()
        count += 1
        stepped_in += wanted != set(case.row()[1][: case.sizes[0]])
    assert count == 16 * 4 * 65 * 2
    assert stepped_in > 300  # the table is not all no-ops


# -- negative controls ---------------------------------------------------------------------------


class Mutant(LanguageGate):
    """The rules with one of them broken; see the subclasses."""

    def apply(self, row: Row, state: Any, context: Context) -> Row:
        gate = self._bound()
        kept = TopP(self.top_p).apply(TopK(self.top_k).apply(row, None, context), None, context)
        if state.family is None:
            return kept
        permitted = gate.permitted(context.hidden, self.threshold)
        banned = self.banned(permitted, state[0])
        narrow, broad = (TopK(k).apply(row, None, context) for k, _ in (self.narrow, self.broad))
        likely = self.likely(narrow, broad)
        held = gate.families[likely.token_ids()]
        if not banned[gate.families[kept.token_ids()]].any() and self.needs_banned:
            return kept
        if not permitted[held].any() and self.needs_likely:
            return kept
        together = np.zeros(len(row), dtype=bool)
        for part in (kept, likely) if self.lets_in else (kept,):
            together[part.token_ids()] = True
        left = together & ~banned[gate.families]
        return row.keep(left) if left.any() else kept

    needs_banned = needs_likely = lets_in = True

    def banned(self, permitted: np.ndarray, last: int) -> np.ndarray:
        return language_gate.banned_families(permitted, last)

    def likely(self, narrow: Row, broad: Row) -> Row:
        return broad


class Impersistent(Mutant):
    """The script being written may be banned."""

    def banned(self, permitted: np.ndarray, last: int) -> np.ndarray:
        return np.array([True, True, False, False]) & ~permitted


class BansEverything(Mutant):
    """Other scripts are banned like CJ and Latin."""

    def banned(self, permitted: np.ndarray, last: int) -> np.ndarray:
        found = np.array([True, True, False, True]) & ~permitted
        found[last] = False
        return found


class TrustsTheGate(Mutant):
    """Steps in whether or not a permitted token is likely."""

    needs_likely = False


class LetsNothingIn(Mutant):
    """Only removes: the likely tokens do not come back."""

    lets_in = False


class TopFiveOnly(Mutant):
    """The second set is taken from the scores of the first, as in the authors' code."""

    def likely(self, narrow: Row, broad: Row) -> Row:
        return narrow


class AlwaysEnlarges(Mutant):
    """Lets the likely tokens in even where the user's set holds nothing to ban."""

    needs_banned = False


def test_the_reference_mutant_passes() -> None:
    """`Mutant` itself breaks nothing: what fails below is the broken rule alone."""
    for case in cases():
        _, made, wanted = answer(case, Mutant)
        assert set(made.token_ids().tolist()) == wanted


@pytest.mark.parametrize(
    "kind",
    [Impersistent, BansEverything, TrustsTheGate, LetsNothingIn, TopFiveOnly, AlwaysEnlarges],
)
def test_a_broken_rule_fails_the_truth_table(kind: type[LanguageGate]) -> None:
    wrong = 0
    for case in cases():
        _, made, wanted = answer(case, kind)
        wrong += set(made.token_ids().tolist()) != wanted
        if wrong > 10:
            return
    pytest.fail(f"{kind.__name__} fails in {wrong} cases only")


# -- no intervention, bit for bit ----------------------------------------------------------------


def toy(**parameters: Any) -> LanguageGate:
    return METHOD(**parameters).bind(ToySource())


def plain(sampler: LanguageGate) -> Sampler:
    return chain(TopK(sampler.top_k), TopP(sampler.top_p))


def same_row(one: Row, other: Row) -> bool:
    return one.token_ids().tolist() == other.token_ids().tolist() and bool(
        (one.scores == other.scores).all()
    )


def random_scores(seed: int, size: int) -> Row:
    return Row.dense(np.random.default_rng(seed).normal(0, 2, size).astype(np.float32))


@pytest.mark.parametrize(
    ("what", "permitted", "state"),
    [
        ("the gate permits all", (1, 1, 1, 1), Script(LOW_RESOURCE)),
        ("only symbols so far, or nothing", (0, 0, 1, 1), Script()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_changed_where(what: str, permitted: Any, state: Any) -> None:
    for seed in range(50):
        sampler = LanguageGate(top_k=5, top_p=0.9, gate=gate_of())
        row = random_scores(seed, len(VOCABULARY))
        context = Context((0,), 1, hidden=hidden_of(permitted))
        stages = plain(sampler)
        made = sampler.apply(row, state, context)
        assert same_row(made, stages.apply(row, stages.start(context), context))


def test_nothing_is_changed_where_the_row_has_nothing_to_ban() -> None:
    families = np.array([SYMBOLS, LOW_RESOURCE, LOW_RESOURCE, SYMBOLS], dtype=np.int8)
    sampler = LanguageGate(gate=gate_of(families))
    row = random_scores(0, 4)
    context = Context((0,), 1, hidden=hidden_of((0, 0, 1, 1)))
    assert sampler.apply(row, Script(LOW_RESOURCE), context) is row


def test_nothing_is_changed_where_all_is_of_the_script_being_written() -> None:
    families = np.full(5, CJ, dtype=np.int8)
    row = random_scores(1, 5)
    context = Context((0,), 1, hidden=hidden_of((0, 0, 1, 1)))
    assert LanguageGate(gate=gate_of(families)).apply(row, Script(CJ), context) is row


def test_symbols_and_other_scripts_keep_their_scores() -> None:
    """Random rows and gates: what is banned is CJ or Latin, and nothing of theirs is sampled."""
    stepped_in = 0
    for seed in range(400):
        generator = np.random.default_rng(seed)
        permitted = generator.random(4) < 0.5
        last = int(generator.choice([CJ, LATIN, LOW_RESOURCE]))
        sampler = LanguageGate(
            top_k=int(generator.integers(0, 6)), top_p=float(generator.uniform(0.3, 1)),
            narrow=(2, 0.9), broad=(5, 0.8), gate=gate_of(),
        )  # fmt: skip
        row = random_scores(seed, len(VOCABULARY))
        context = Context((0,), 1, hidden=hidden_of(permitted))
        made = sampler.apply(row, Script(last), context)
        kept = plain(sampler).apply(row, (None, None), context)
        ids = made.token_ids()
        for token, score in zip(kept.token_ids(), kept.scores, strict=True):
            if VOCABULARY[token] in (SYMBOLS, LOW_RESOURCE):
                assert score == made.scores[made.position(int(token))]
        if not same_row(made, kept):
            stepped_in += 1
            passed = permitted if permitted.any() else np.eye(4, dtype=bool)[0]
            banned = language_gate.banned_families(passed, last)
            assert not banned[VOCABULARY[ids]].any()
            assert passed[VOCABULARY[ids]].any()
    assert stepped_in > 50


# -- gate, threshold, state ----------------------------------------------------------------------


def test_the_gate_is_the_formula() -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(size=(6, 5)).astype(np.float32)
    second = generator.normal(size=(4, 6)).astype(np.float32)
    gate = Gate(first, second, VOCABULARY)
    for _ in range(200):
        hidden = generator.normal(size=5).astype(np.float32)
        u = second.astype(float) @ np.maximum(first.astype(float) @ hidden, 0)
        for threshold in (0.3, 0.5, 0.7):
            wanted = 1 / (1 + np.exp(-u)) >= threshold
            wanted[u.argmax()] = True
            assert (gate.permitted(hidden, threshold) == wanted).all()
        assert gate.permitted(hidden, 0.0).all()
        assert gate.permitted(hidden, 1.0).sum() == 1


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("lookback", [0, 1, 3])
def test_the_state_is_the_last_script_of_the_path(prompt: bool, lookback: int) -> None:
    """Against a search through the path, on random paths of the toy's tokens."""
    sampler = toy(gate_lookback=lookback, gate_prompt=prompt)
    families = sampler._bound().families
    for seed in range(40):
        tokens = np.random.default_rng(seed).integers(len(PIECES), size=12).tolist()
        context = Context(tokens[:4], 4)
        state = sampler.start(context)
        for end in range(4, len(tokens)):
            seen = tokens[:end] if prompt else tokens[4:end]
            near = seen[-lookback:] if lookback else seen
            scripts = [int(families[token]) for token in near if families[token] != SYMBOLS]
            assert sampler._language(state) == (scripts[-1] if scripts else None)
            context = replace(context, tokens=tokens[:end])
            state = sampler.advance(state, tokens[end], None, context)


RUNS = 2000
ALPHA = 1e-6


def drawn(policy: Policy) -> Counter[tuple[int, ...]]:
    runner = Runner()
    handles = [
        runner.submit(Sample(1), Task(policy, (1, 3), Stopping(2), Stream(seed)))
        for seed in range(RUNS)
    ]
    runner.run()
    return Counter(handle.result()[0].tokens for handle in handles)


def test_drawing_follows_the_gated_law() -> None:
    """Two tokens, 2,000 draws, chi-square at alpha 1e-6; the law without the gate is rejected."""
    heat = Temperature(1.3)
    source = ToySource(3)
    policy = Policy(source, chain(heat, METHOD(gate_top_k=6, gate_prompt=True)))
    law = enumerate_law(policy, (1, 3), 2)
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    counts = drawn(policy)
    require_law(counts, law, ALPHA, "the gate")
    bare = enumerate_law(Policy(source, chain(heat, TopK(6))), (1, 3), 2)
    with pytest.raises(LawBroken):
        require_law(counts, bare, ALPHA, "no gate")


# -- what is refused -----------------------------------------------------------------------------


def test_an_unbound_gate_refuses_to_work() -> None:
    sampler = LanguageGate()
    row, context = random_scores(0, 5), Context((0,), 1, hidden=np.zeros(8))
    for call in (
        lambda: sampler.apply(row, None, context),
        lambda: sampler.advance(None, 1, None, context),
        lambda: LanguageGate(prompt=True).start(context),
    ):
        with pytest.raises(ParameterError, match="not bound to a model"):
            call()


def test_a_source_without_text_or_gate_is_refused() -> None:
    table = TableModel.random(5)
    with pytest.raises(ParameterError, match="are numbers"):
        Policy(table, chain(LanguageGate()))
    table.language = ToySource().language
    with pytest.raises(ParameterError, match="nothing called language_gate was trained for"):
        Policy(table, chain(LanguageGate()))


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"A1": np.zeros((3, 5))},
        {"A1": np.zeros((3, 5)), "A2": np.zeros((4, 5))},
        {"A1": np.zeros((3, 5)), "A2": np.zeros((5, 3))},
        {"A1": np.zeros(3), "A2": np.zeros((4, 3))},
        {"A1": np.zeros((3, 5)), "A2": np.zeros((4, 3)), "A3": np.zeros(1)},
    ],
    ids=["none", "one", "misfit", "five families", "flat", "three"],
)
def test_tensors_that_are_no_gate_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(ParameterError, match=r"tensors A1 \[m, width\] and A2 \[4, m\]"):
        Gate.of(tensors, VOCABULARY)


@pytest.mark.parametrize("hidden", [None, np.zeros(7)], ids=["none", "narrow"])
def test_hidden_states_of_another_width_are_refused(hidden: Any) -> None:
    context = Context((0,), 1, hidden=hidden)
    with pytest.raises(ParameterError, match="hidden states of width 8"):
        LanguageGate(gate=gate_of()).apply(random_scores(0, 8), Script(CJ), context)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda gate: chain(TopK(5), gate), "may let back in; give gate_top_k"),
        (lambda gate: chain(gate, TopP(0.9)), "would cut what the gate let back in"),
        (lambda gate: chain(MinP(0.1), gate), "may let back in"),
        (lambda gate: chain(Temperature(0.0), gate), "use method greedy"),
        (lambda gate: chain(gate, Temperature(0.7)), "put it before the gate"),
    ],
    ids=["top-k before", "top-p after", "min-p before", "greedy temperature", "temperature after"],
)
def test_chains_that_cannot_be_honoured_are_refused(
    make: Callable[[Sampler], Any], reason: str
) -> None:
    with pytest.raises(ParameterError, match=reason):
        make(LanguageGate())


def test_min_p_after_and_temperature_before_are_honoured() -> None:
    assert len(chain(Temperature(0.7), LanguageGate(), MinP(0.1), TopK(0)).stages) == 4
