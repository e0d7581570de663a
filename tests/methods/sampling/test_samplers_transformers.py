"""Every sampler against the processor of transformers, on 10,048 generated rows each.

Where both compute the same formula, the scores are equal bit for bit. Where a cut is decided by
float32 sums (top-p, typical) or by rounded probabilities (min-p, epsilon, eta), rows whose cut lies
within 1e-5 of a token are left out and counted. Top-h's sum of -p ln p has no digits left in
float32 where one token holds nearly all the mass: its processor is given the rows as float64.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sampling_cases import CLOSE, Batch, Law, compare_all, identical, same_head
from transformers.generation import logits_process as hf

from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler
from decodery.methods.sampling.allowed_tokens import AllowedTokens
from decodery.methods.sampling.banned_tokens import BannedTokens
from decodery.methods.sampling.epsilon import Epsilon
from decodery.methods.sampling.eta import Eta
from decodery.methods.sampling.logit_bias import LogitBias
from decodery.methods.sampling.min_p import MinP
from decodery.methods.sampling.min_tokens import MinTokens
from decodery.methods.sampling.no_repeat_ngram import NoRepeatNgram
from decodery.methods.sampling.repetition_penalty import RepetitionPenalty
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_h import TopH
from decodery.methods.sampling.top_k import TopK
from decodery.methods.sampling.top_p import TopP
from decodery.methods.sampling.typical import Typical

Marks = npt.NDArray[np.bool_]
ALLOWED_UNDECIDED = 50  # of 10,048 rows


def pick(batch: Batch, *values: float) -> float:
    return values[batch.number % len(values)]


# Where does float32 rounding decide? Each takes laws [rows, V] in float64 and marks rows [rows].


def top_p_is_close(sampler: Sampler, law: Law) -> Marks:
    assert isinstance(sampler, TopP)
    mass = np.cumsum(-np.sort(-law, axis=1), axis=1)
    return (np.abs(mass - sampler.top_p) < CLOSE).any(axis=1)


def min_p_is_close(sampler: Sampler, law: Law) -> Marks:
    assert isinstance(sampler, MinP)
    ratio = law / law.max(axis=1, keepdims=True)
    near = np.abs(ratio - sampler.min_p) < CLOSE * sampler.min_p
    return (near & (ratio < 1)).any(axis=1)  # the most probable token itself is never in doubt


def typical_is_close(sampler: Sampler, law: Law) -> Marks:
    assert isinstance(sampler, Typical)
    surprise = -np.log(np.maximum(law, 1e-300))
    deviation = np.abs(surprise - (law * surprise).sum(axis=1, keepdims=True))
    order = np.argsort(deviation, axis=1)
    mass = np.cumsum(np.take_along_axis(law, order, 1), axis=1)
    place = np.minimum((mass < sampler.mass).sum(axis=1, keepdims=True), law.shape[1] - 1)
    last = np.take_along_axis(order, place, 1)
    rival = np.abs(deviation - np.take_along_axis(deviation, last, 1)) < CLOSE
    other = np.abs(surprise - np.take_along_axis(surprise, last, 1)) > CLOSE
    return (np.abs(mass - sampler.mass) < CLOSE).any(axis=1) | (rival & other).any(axis=1)


def epsilon_is_close(sampler: Sampler, law: Law) -> Marks:
    assert isinstance(sampler, Epsilon)
    return (np.abs(law - sampler.epsilon) < CLOSE * sampler.epsilon).any(axis=1)


def eta_is_close(sampler: Sampler, law: Law) -> Marks:
    assert isinstance(sampler, Eta)
    entropy = -(law * np.log(np.maximum(law, 1e-300))).sum(axis=1, keepdims=True)
    floor = np.minimum(sampler.epsilon, np.sqrt(sampler.epsilon) * np.exp(-entropy))
    return (np.abs(law - floor) < CLOSE * floor).any(axis=1)


def top_h_is_close(sampler: Sampler, law: Law) -> Marks:
    """Only a possible token after the first can be in doubt."""
    assert isinstance(sampler, TopH)
    descending = -np.sort(-law, axis=1)
    spent = np.cumsum(-descending * np.log(np.maximum(descending, 1e-300)), axis=1)
    bound = sampler.top_h * spent[:, -1:]
    near = (np.abs(spent - bound) <= CLOSE * bound) & (descending > 0)
    return near[:, 1:].any(axis=1)


def top_p_pair(kind: type[TopP] = TopP):
    def pair(batch: Batch):
        p = pick(batch, 0.1237, 0.5129, 0.9137, 0.9531, 0.9913)
        return kind(p), hf.TopPLogitsWarper(p)

    return pair


def min_p_pair(kind: type[MinP] = MinP):
    def pair(batch: Batch):
        base = pick(batch, 0.0137, 0.0519, 0.1033, 0.7, 1.0)
        keep = int(pick(batch, 1, 1, 2, 5))
        return kind(base, keep), hf.MinPLogitsWarper(base, min_tokens_to_keep=keep)

    return pair


def typical_pair(kind: type[Typical] = Typical):
    def pair(batch: Batch):
        mass = pick(batch, 0.1237, 0.5129, 0.9137, 0.9531, 0.9913)
        return kind(mass), hf.TypicalLogitsWarper(mass)

    return pair


def top_k_pair(kind: type[TopK] = TopK):
    def pair(batch: Batch):
        k = int(pick(batch, 1, 2, 5, 50))
        return kind(k), hf.TopKLogitsWarper(k)

    return pair


def epsilon_pair(kind: type[Epsilon] = Epsilon):
    def pair(batch: Batch):
        epsilon = pick(batch, 0.000317, 0.0131, 0.0717, 0.313, 0.937)
        return kind(epsilon), hf.EpsilonLogitsWarper(epsilon)

    return pair


def eta_pair(kind: type[Eta] = Eta):
    def pair(batch: Batch):
        epsilon = pick(batch, 0.000317, 0.0131, 0.0717, 0.313, 0.937)
        return kind(epsilon), hf.EtaLogitsWarper(epsilon)

    return pair


def top_h_pair(kind: type[TopH] = TopH):
    def pair(batch: Batch):
        share = pick(batch, 0.0517, 0.2173, 0.4, 0.7319, 0.9531)
        there = hf.TopHLogitsWarper(share)

        def in_double(history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return there(history, scores.double()).float()

        return kind(share), in_double

    return pair


def repetition_pair(kind: type[RepetitionPenalty] = RepetitionPenalty):
    def pair(batch: Batch):
        r = pick(batch, 0.7, 1.1, 1.3, 5.0)
        if batch.number % 2:
            return kind(r), hf.RepetitionPenaltyLogitsProcessor(r)
        there = hf.RepetitionPenaltyLogitsProcessor(r, prompt_ignore_length=batch.prompt_length)
        return kind(r, prompt=False), there

    return pair


def ngram_pair(kind: type[NoRepeatNgram] = NoRepeatNgram):
    def pair(batch: Batch):
        n = int(pick(batch, 1, 2, 3))
        return kind(n), hf.NoRepeatNGramLogitsProcessor(n)

    return pair


def test_temperature() -> None:
    def pair(batch: Batch):
        heat = pick(batch, 0.1, 0.8, 1.0, 1.7, 30.0)
        return Temperature(heat), hf.TemperatureLogitsWarper(heat)

    assert compare_all(pair, identical) == 0


def test_top_k() -> None:
    assert compare_all(top_k_pair(), identical) == 0


def test_top_p() -> None:
    assert compare_all(top_p_pair(), same_head(top_p_is_close)) < ALLOWED_UNDECIDED


def test_min_p() -> None:
    assert compare_all(min_p_pair(), same_head(min_p_is_close)) < ALLOWED_UNDECIDED


def test_typical() -> None:
    assert compare_all(typical_pair(), same_head(typical_is_close)) < ALLOWED_UNDECIDED


def test_epsilon() -> None:
    assert compare_all(epsilon_pair(), same_head(epsilon_is_close)) < ALLOWED_UNDECIDED


def test_eta() -> None:
    assert compare_all(eta_pair(), same_head(eta_is_close)) < ALLOWED_UNDECIDED


def test_top_h() -> None:
    assert compare_all(top_h_pair(), same_head(top_h_is_close)) < ALLOWED_UNDECIDED


def test_repetition_penalty() -> None:
    assert compare_all(repetition_pair(), identical) == 0


def test_no_repeat_ngram() -> None:
    assert compare_all(ngram_pair(), identical) == 0


def test_min_tokens() -> None:
    def pair(batch: Batch):
        count = int(pick(batch, 0, 3, 8, 20))
        there = hf.MinNewTokensLengthLogitsProcessor(
            batch.prompt_length, count, list(batch.eos_ids)
        )
        return MinTokens(count), there

    assert compare_all(pair, identical) == 0


def test_banned_tokens() -> None:
    def pair(batch: Batch):
        return BannedTokens(batch.eos_ids), hf.SuppressTokensLogitsProcessor(batch.eos_ids)

    assert compare_all(pair, identical) == 0


def test_allowed_tokens() -> None:
    """As the suppression of all others. transformers' own processor for allowed tokens revives
    impossible ones, with equal scores, where nothing would be left; here that is refused.
    """

    def pair(batch: Batch):
        allowed = tuple(range(batch.number % 3, batch.vocab_size, 2)) or (0,)
        others = sorted(set(range(batch.vocab_size)) - set(allowed))
        return AllowedTokens(allowed), hf.SuppressTokensLogitsProcessor(others)

    assert compare_all(pair, identical) == 0


def test_logit_bias() -> None:
    def pair(batch: Batch):
        biases = {token: 0.37 * (token % 5) - 0.8 for token in batch.eos_ids}
        there = hf.SequenceBiasLogitsProcessor({(token,): b for token, b in biases.items()})
        return LogitBias(tuple(biases.items())), there

    assert compare_all(pair, identical) == 0


# -- negative controls: the comparison must refuse each of these -----------------------------------


class TopKWithoutTies(TopK):
    def apply(self, row: Row, state: object, context: Context) -> Row:
        return row.keep_at(np.argsort(-row.scores, kind="stable")[: self.top_k])


class TopPOneMore(TopP):
    """The token after the one that reaches p stays too."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        count = min(len(super().apply(row, state, context)) + 1, row.possible())
        return row.keep_at(np.argsort(-row.scores, kind="stable")[:count])


class TopPOneLess(TopP):
    """Only tokens up to p stay; the one that reaches it goes."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        count = max(len(super().apply(row, state, context)) - 1, 1)
        return row.keep_at(np.argsort(-row.scores, kind="stable")[:count])


class MinPStrict(MinP):
    """> in the place of >=, saved from emptiness by its most probable token."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        above = row.scores > row.maximum + math.log(self.min_p)
        above[row.scores.argmax()] = True
        return row.keep(above)


class MinPOfMass(MinP):
    """p_v >= b in the place of p_v >= b * p_max."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        above = row.probabilities() >= self.min_p
        above[row.scores.argmax()] = True
        return row.keep(above)


class TypicalByProbability(Typical):
    def apply(self, row: Row, state: object, context: Context) -> Row:
        return TopP(self.mass).apply(row, state, context)


class EpsilonOfTheTop(Epsilon):
    """Min-p: the floor relative to the most probable token."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        return MinP(self.epsilon).apply(row, state, context)


class EpsilonOneTop(Epsilon):
    """Where no token reaches the floor, the lowest id of the most probable ones stays alone."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        kept = row.probabilities() >= self.epsilon
        kept[row.scores.argmax()] = True
        return row.keep(kept)


class EtaInBits(Eta):
    """The entropy in bits in the place of nats."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        bits = row.entropy() / math.log(2)
        floor = min(self.epsilon, math.sqrt(self.epsilon) * math.exp(-bits))
        return row.keep(row.scores >= min(row.maximum, row.log_normaliser + math.log(floor)))


class EtaWithoutRoot(Eta):
    """eps * exp(-H) in the place of sqrt(eps) * exp(-H)."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        floor = self.epsilon * math.exp(-row.entropy())
        return row.keep(row.scores >= min(row.maximum, row.log_normaliser + math.log(floor)))


class TopHOneMore(TopH):
    """The token that passes the bound stays too."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        count = min(len(super().apply(row, state, context)) + 1, row.possible())
        return row.keep_at(np.argsort(-row.scores, kind="stable")[:count])


class TopHRenormalised(TopH):
    """Algorithm 1 of the paper: the entropy of the head, renormalised, is bounded."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        order = np.argsort(-row.scores, kind="stable")
        kept = 1
        while kept < row.possible():
            more = row.keep_at(order[: kept + 1])
            if more.entropy() > self.top_h * row.entropy():
                break
            kept += 1
        return row.keep_at(order[:kept])


class RepetitionTwice(RepetitionPenalty):
    def apply(self, row: Row, state: object, context: Context) -> Row:
        return super().apply(super().apply(row, state, context), state, context)


class RepetitionDividesAll(RepetitionPenalty):
    """The formula as printed in the paper, which favours seen tokens of negative score."""

    def apply(self, row: Row, state: object, context: Context) -> Row:
        tokens = context.tokens if self.prompt else context.generated
        positions, _ = row.positions(np.unique(np.array(tokens)))
        scores = row.scores.copy()
        scores[positions] /= self.penalty
        return row.with_scores(scores)


class NgramOneShort(NoRepeatNgram):
    def apply(self, row: Row, state: object, context: Context) -> Row:
        return NoRepeatNgram(self.length + 1).apply(row, state, context)


@pytest.mark.parametrize(
    ("pair", "compare"),
    [
        (top_k_pair(TopKWithoutTies), identical),
        (top_p_pair(TopPOneMore), same_head(top_p_is_close)),
        (top_p_pair(TopPOneLess), same_head(top_p_is_close)),
        (min_p_pair(MinPStrict), same_head(min_p_is_close)),
        (min_p_pair(MinPOfMass), same_head(min_p_is_close)),
        (typical_pair(TypicalByProbability), same_head(typical_is_close)),
        (epsilon_pair(EpsilonOfTheTop), same_head(epsilon_is_close)),
        (epsilon_pair(EpsilonOneTop), same_head(epsilon_is_close)),
        (eta_pair(EtaInBits), same_head(eta_is_close)),
        (eta_pair(EtaWithoutRoot), same_head(eta_is_close)),
        (top_h_pair(TopHOneMore), same_head(top_h_is_close)),
        (top_h_pair(TopHRenormalised), same_head(top_h_is_close)),
        (repetition_pair(RepetitionTwice), identical),
        (repetition_pair(RepetitionDividesAll), identical),
        (ngram_pair(NgramOneShort), identical),
    ],
    ids=[
        "top_k without ties",
        "top_p one more",
        "top_p one less",
        "min_p strict",
        "min_p of mass",
        "typical by probability",
        "epsilon of the top",
        "epsilon one top",
        "eta in bits",
        "eta without root",
        "top_h one more",
        "top_h renormalised",
        "repetition twice",
        "repetition divides all",
        "ngram one short",
    ],
)
def test_wrong_variants_are_rejected(pair, compare) -> None:
    with pytest.raises(AssertionError):
        compare_all(pair, compare)
