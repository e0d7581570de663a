"""Mutants: methods that break one law each, on purpose; the law made for it must say so.

A contract that passes everything proves nothing. Each wrong part here is caught by the check named
beside it, and honest parts of the same shape pass all checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from decodery.core.branches import branches
from decodery.core.card import Card, Method, Reduction
from decodery.core.decoder import Completion, Decoder, completion
from decodery.core.errors import BudgetExhausted
from decodery.core.params import Parameters, parameter
from decodery.core.requests import Emit, Grow, Open
from decodery.core.row import Row
from decodery.core.sampler import Sampler
from decodery.core.scorer import Scorer
from decodery.core.stopping import Stopping
from decodery.testing import (
    LawBroken,
    check_card,
    check_decoder,
    check_method,
    check_parameters,
    check_reductions,
    check_sampler,
    check_scorer,
)
from decodery.testing import decoder_laws as of_decoders
from decodery.testing import sampler_laws as of_samplers
from decodery.testing import scorer_laws as of_scorers
from decodery.testing.samplers import Coin, Heat, Shy, Surprised, heated


def caught(law, part, reason):
    """The law made for this fault names it, and the check of the whole part fails too."""
    with pytest.raises(LawBroken, match=reason) as broken:
        law("mutant", part)
    assert "\n" not in str(broken.value)
    check = {Sampler: check_sampler, Decoder: check_decoder, Scorer: check_scorer}
    base = next(base for base in check if isinstance(part, base))
    with pytest.raises(LawBroken):
        check[base](part)


# -- samplers --------------------------------------------------------------------------------------


class Jitter(Sampler):
    def apply(self, row, state, context):
        return heated(row, 1 + np.random.random())


class OwnEntropy(Sampler):
    def apply(self, row, state, context):
        return heated(row, 1 + np.random.default_rng().random())


class Scribbler(Sampler):
    def apply(self, row, state, context):
        row.scores.base[0] = 0.0
        return row


class Editor(Sampler):
    def apply(self, row, state, context):
        context.tokens.append(0)
        return row


class Necromancer(Sampler):
    def apply(self, row, state, context):
        return row.with_scores(np.maximum(row.scores, row.scores.dtype.type(-50)))


class Widener(Sampler):
    def apply(self, row, state, context):
        return Row(row.dense_scores().astype(np.float64), row.vocab_size)


class Liar(Sampler):
    keeps_argmax: ClassVar[bool] = True

    def apply(self, row, state, context):
        top = np.array([row.argmax()])
        return row.adjusted(top, -1.0)


class Unstable(Sampler):
    """Keeps the top k, but of tied tokens the highest ids."""

    keeps_argmax: ClassVar[bool] = True

    def apply(self, row, state, context):
        order = np.argsort(row.scores, kind="stable")
        return row.keep_at(order[-1:])


class Diary(Sampler):
    """A list as state, appended to in place."""

    def start(self, context):
        return []

    def apply(self, row, state, context):
        return heated(row, 1 + len(state))

    def advance(self, state, token, row, context):
        state.append(token)
        return state


class SecretNoise(Sampler):
    def apply(self, row, state, context):
        return heated(row, 1 + context.uniform("secret"))


class Eavesdropper(Sampler):
    needs_noise: ClassVar[bool] = True

    def apply(self, row, state, context):
        return heated(row, 1 + context.uniform("token"))


class Absolutist(Sampler):
    """Cuts at a score, as if scores were log-probabilities that sum to one."""

    def apply(self, row, state, context):
        return row.keep(row.scores >= min(-1.0, row.maximum))


class Counter(Sampler):
    """Heats by the number of entries, impossible ones too."""

    def apply(self, row, state, context):
        return heated(row, float(len(row)))


class Divider(Sampler):
    """0 / 0 where the row is one-hot."""

    def apply(self, row, state, context):
        with np.errstate(all="ignore"):
            return heated(row, row.entropy())


class Emptier(Sampler):
    """Asks for a token below a probability that a one-hot row does not have."""

    def apply(self, row, state, context):
        return row.keep(row.probabilities() < 0.999)


class Unprepared(Sampler):
    """Reads the row in `advance` and does not say so."""

    def apply(self, row, state, context):
        return row

    def advance(self, state, token, row, context):
        return row.entropy()


SAMPLER_MUTANTS = [
    (of_samplers.is_pure, Jitter(), "global random"),
    (of_samplers.is_pure, OwnEntropy(), "not pure"),
    (of_samplers.leaves_inputs_alone, Scribbler(), "changes its input row"),
    (of_samplers.leaves_inputs_alone, Editor(), "changes its input tokens"),
    (of_samplers.leaves_inputs_alone, Diary(), "changes its input state"),
    (of_samplers.has_states_that_never_change, Diary(), "mutable state"),
    (of_samplers.revives_nothing, Necromancer(), "impossible token"),
    (of_samplers.keeps_the_dtype, Widener(), "float32 into float64"),
    (of_samplers.keeps_its_word_on_the_argmax, Liar(), "keeps_argmax"),
    (of_samplers.keeps_its_word_on_the_argmax, Unstable(), "keeps_argmax"),
    (of_samplers.declares_its_noise, SecretNoise(), "does not declare"),
    (of_samplers.declares_its_noise, Eavesdropper(), "draws the token"),
    (of_samplers.ignores_a_shift, Absolutist(), "shifting"),
    (of_samplers.treats_both_kinds_of_row_alike, Counter(), "dropping impossible"),
    (of_samplers.refuses_only_by_token, Divider(), "no token|RowError"),
    (of_samplers.refuses_only_by_token, Emptier(), "leaves no token"),
    (of_samplers.keeps_the_dtype, Unprepared(), "cannot advance"),
]


@pytest.mark.parametrize(
    ("law", "part", "reason"),
    SAMPLER_MUTANTS,
    ids=[type(part).__name__ for _, part, _ in SAMPLER_MUTANTS],
)
def test_a_wrong_sampler_is_caught(law, part, reason):
    caught(law, part, reason)


@pytest.mark.parametrize("part", [Heat(), Shy(), Surprised(), Coin()], ids=repr)
def test_an_honest_sampler_passes(part):
    check_sampler(part)


# -- decoders --------------------------------------------------------------------------------------


class Honest(Decoder):
    """Plain sampling, spelled out; the mutants change one line each."""

    def decode(self, task):
        tip = yield Open(task.policy, task.prompt)
        while True:
            token = self.choose(tip)
            tip = tip.child(token)
            reason = self.reason(task.stopping, tip)
            if reason is not None:
                yield Emit((token,))
                return [completion(tip, reason)]
            yield Emit((token,)), Grow([tip])

    def choose(self, tip):
        return tip.draw()

    def reason(self, stopping, tip):
        return stopping.reason(tip)


class GlobalDraw(Honest):
    def choose(self, tip):
        return tip.policy_row().draw(np.random.random())


class SharedCounter(Honest):
    """Its noise is the number of draws that all requests of its kind have made at this depth."""

    seen: ClassVar[dict[int, int]] = {}

    def decode(self, task):
        self.seen[id(task)] = 0
        busy = len(self.seen)
        try:
            tip = yield Open(task.policy, task.prompt)
            while True:
                token = tip.draw(len(self.seen) + busy)
                tip = tip.child(token)
                reason = task.stopping.reason(tip)
                yield Emit((token,))
                if reason is not None:
                    return [completion(tip, reason)]
                yield Grow([tip])
        finally:
            self.seen.pop(id(task), None)


class OneTooMany(Honest):
    def reason(self, stopping, tip):
        longer = Stopping(
            stopping.max_tokens + 1,
            stopping.eos_ids,
            stopping.stop_ids,
            stopping.stop,
            stopping.ignore_eos,
            stopping.decode,
        )
        return longer.reason(tip)


class DeafToEnds(Honest):
    def reason(self, stopping, tip):
        return Stopping(stopping.max_tokens).reason(tip)


class ForgetsTheLast(Decoder):
    """Emits one token fewer than it returns."""

    def decode(self, task):
        answers = yield from branches(task, 1, emit=False)
        yield Emit(answers[0].tokens[:-1])
        return answers


class Hoarder(Honest):
    """Grows a second child at each step, keeps it, and promised room for a path."""

    def decode(self, task):
        tip = yield Open(task.policy, task.prompt)
        while True:
            token = tip.draw()
            spare = tip.child(token, 1)
            tip = tip.child(token)
            yield Grow([spare])
            reason = task.stopping.reason(tip)
            if reason is not None:
                yield Emit((token,))
                return [completion(tip, reason)]
            yield Emit((token,)), Grow([tip])


class Leaker(Honest):
    """Makes the model forget which slots a node holds."""

    def decode(self, task):
        tip = yield Open(task.policy, task.prompt)
        tip.handle = None
        for member in tip.members:
            member.handle = None
        token = tip.draw()
        yield Emit((token,))
        tip = tip.child(token)
        return [completion(tip, task.stopping.reason(tip) or "max_tokens")]


class Stubborn(Honest):
    """Catches the end of its budget and goes on."""

    def decode(self, task):
        tip = yield Open(task.policy, task.prompt)
        while True:
            token = tip.draw()
            tip = tip.child(token)
            reason = task.stopping.reason(tip)
            yield Emit((token,))
            if reason is not None:
                return [completion(tip, reason)]
            try:
                yield Grow([tip])
            except BudgetExhausted:
                if not tip.grown:
                    yield Grow([tip])


class SwallowsCancel(Honest):
    """Returns an invented reason when it is cut short."""

    def decode(self, task):
        try:
            return (yield from super().decode(task))
        except BudgetExhausted:
            return [Completion((), "eos")]


class Uneven(Honest):
    """Biased: its uniform is squared, so early tokens come too often."""

    def choose(self, tip):
        uniform = tip.tree.stream.uniform(0, tip.depth, "token")
        return tip.policy_row().draw(uniform**1.2)


class SkipsSamplers(Honest):
    """Draws from the source's row and not from the policy's."""

    def choose(self, tip):
        return tip.row.draw(tip.tree.stream.uniform(0, tip.depth, "token"))


class SameNoise(Honest):
    """One number for all positions: each token alone has the right law, the sequence has not."""

    def choose(self, tip):
        return tip.policy_row().draw(tip.tree.stream.uniform(0, 0, "token"))


class OneOfTwo(Honest):
    """Says it returns two sequences."""

    @property
    def sequences(self):
        return 2


class ReadsMore(Honest):
    """Draws, and says that it reads nothing but the argmax."""

    reads_argmax_only: ClassVar[bool] = True


class Crash(Honest):
    def choose(self, tip):
        return tip.policy_row().keep(tip.policy_row().token_ids() > 0).argmax()


DECODER_MUTANTS = [
    (of_decoders.is_pure, GlobalDraw(), "global random"),
    (of_decoders.ignores_its_neighbours, SharedCounter(), "batch mates"),
    (of_decoders.ends_on_time, OneTooMany(), "ends wrongly"),
    (of_decoders.ends_on_time, DeafToEnds(), "ends wrongly"),
    (of_decoders.emits_what_it_returns, ForgetsTheLast(), "emits"),
    (of_decoders.stays_in_its_footprint, Hoarder(), "footprint"),
    (of_decoders.gives_its_cache_back, Leaker(), "in the cache"),
    (of_decoders.respects_a_budget, SwallowsCancel(), "returns|says"),
    (of_decoders.can_be_cancelled, Stubborn(), "after a cancel|after its budget"),
    (of_decoders.can_be_cancelled, SwallowsCancel(), "returns|says"),
    (of_decoders.returns_as_many_as_it_says, OneOfTwo(), "not 2"),
    (of_decoders.keeps_its_word_on_reading, ReadsMore(), "reads_argmax_only"),
    (of_decoders.is_pure, Crash(), "fails on"),
]


@pytest.mark.parametrize(
    ("law", "part", "reason"),
    DECODER_MUTANTS,
    ids=[type(part).__name__ for _, part, _ in DECODER_MUTANTS],
)
def test_a_wrong_decoder_is_caught(law, part, reason):
    caught(law, part, reason)


def test_an_honest_decoder_passes():
    check_decoder(Honest())


@pytest.mark.parametrize(
    "part", [Uneven(), SkipsSamplers(), SameNoise()], ids=lambda part: type(part).__name__
)
def test_a_biased_decoder_is_rejected_by_chi_square(part):
    with pytest.raises(LawBroken, match="does not follow its law"):
        of_decoders.follows_the_policy("mutant", part)


# -- scorers ---------------------------------------------------------------------------------------


class Relative(Scorer):
    """Subtracts the mean of the batch."""

    name = "relative"

    def score(self, candidates):
        lengths = np.array([len(item.tokens) for item in candidates], dtype=np.float64)
        return lengths - lengths.mean() if candidates else lengths


class Whole(Scorer):
    name = "whole"

    def score(self, candidates):
        return np.array([len(item.tokens) for item in candidates])


class Moody(Scorer):
    name = "moody"

    def score(self, candidates):
        return np.random.random(len(candidates))


SCORER_MUTANTS = [
    (of_scorers.ignores_batch_mates, Relative(), "beside it"),
    (of_scorers.gives_one_number_each, Whole(), "float64"),
    (of_scorers.is_pure, Moody(), "global random"),
]


@pytest.mark.parametrize(
    ("law", "part", "reason"), SCORER_MUTANTS, ids=[part.name for _, part, _ in SCORER_MUTANTS]
)
def test_a_wrong_scorer_is_caught(law, part, reason):
    caught(law, part, reason)


# -- methods: parameters, reductions, cards --------------------------------------------------------


class Params(Parameters):
    heat: float = parameter(1.0, gt=0, le=10, help="Divides the scores.")
    cut: int = parameter(0, ge=0, le=50, help="Keep so many tokens; 0 is all.")


@dataclass(frozen=True)
class Both(Sampler):
    heat: float
    cut: int

    def apply(self, row, state, context):
        row = heated(row, self.heat)
        if not self.cut:
            return row
        return row.keep_at(np.argsort(-row.scores, kind="stable")[: self.cut])


def a_method(build=None, params=Params, reductions=(), **changes):
    card = {
        "name": "mutant",
        "kind": "sampler",
        "family": "sampling",
        "summary": "One line.",
        "guarantee": "law",
        "law": "softmax of the scores",
        "title": "A title",
        "authors": "Nobody",
        "year": 2026,
        "source": "here",
        "reductions": reductions,
    } | changes
    return Method(Card(**card), params, build or (lambda params: Both(params.heat, params.cut)))


def test_an_honest_method_passes():
    check_method(a_method(reductions=(Reduction({"heat": 1.0, "cut": 0}, "identity"),)))


def test_an_ignored_parameter_is_caught():
    ignores = a_method(lambda params: Both(params.heat, 3))
    with pytest.raises(LawBroken, match="ignores its parameter cut"):
        check_parameters(ignores)


def test_a_clamped_parameter_is_caught():
    class Loose(Params):
        model_config: ClassVar = {"extra": "ignore"}

    with pytest.raises(LawBroken, match="accepts no_such_parameter"):
        check_parameters(a_method(params=Loose))


def test_a_lax_type_is_caught():
    class Lax(Params):
        model_config: ClassVar = {"strict": False}

    with pytest.raises(LawBroken, match="accepts cut=True"):
        check_parameters(a_method(params=Lax))


def test_a_build_that_crashes_is_caught():
    class Unbounded(Parameters):
        cut: int = parameter(1, ge=0, help="Keep so many tokens.")

    crash = a_method(lambda params: Both(1 / params.cut, params.cut), Unbounded)
    with pytest.raises(ZeroDivisionError):
        check_parameters(crash)


def test_a_parameter_without_help_is_caught():
    class Silent(Parameters):
        heat: float = parameter(1.0, gt=0, help="")

    with pytest.raises(LawBroken, match="no help"):
        check_parameters(a_method(lambda params: Heat(params.heat), Silent))


@pytest.mark.parametrize(
    ("reduction", "reason"),
    [
        (Reduction({"heat": 2.0}, "identity"), "off by"),
        (Reduction({"heat": 2.0}, "top_k", {"top_k": 3}), "off by|cannot be built"),
        (Reduction({"heat": 1.0}, "no_such_method"), "cannot be built"),
        (Reduction({"warmth": 1.0}, "identity"), "cannot be built"),
    ],
    ids=["not the identity", "not that method", "no method", "no parameter"],
)
def test_a_false_reduction_is_caught(reduction, reason):
    with pytest.raises(LawBroken, match=reason):
        check_reductions(a_method(reductions=(reduction,)))


def test_a_false_reduction_of_a_decoder_is_caught():
    class NoParams(Parameters):
        pass

    sampling = a_method(
        lambda _: Honest(), NoParams, (Reduction({}, "greedy"),), kind="decoder", name="mutant"
    )
    with pytest.raises(LawBroken, match="does not hold"):
        check_reductions(sampling)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "two words"},
        {"guarantee": "perfect"},
        {"law": ""},
        {"summary": "a\nb"},
        {"source": None},
    ],
    ids=str,
)
def test_an_incomplete_card_is_caught(change):
    with pytest.raises(LawBroken):
        check_card(a_method(**change).card)


def test_a_part_of_the_wrong_kind_is_caught():
    with pytest.raises(LawBroken, match="no Decoder"):
        check_parameters(a_method(kind="decoder"))
