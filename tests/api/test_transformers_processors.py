"""Processors of transformers as samplers of our chains, and rows compared bit for bit both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from small_llama import EOS, PROMPTS, VOCAB, answers, generated, ours
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as hf

import decodery as dc
from decodery.api.transformers_bridge import as_logits_processor
from decodery.api.transformers_processors import from_logits_processor
from decodery.core.decoder import Decoder, Task
from decodery.core.errors import ParameterError, RowError
from decodery.core.row import Row
from decodery.core.runner import run_alone
from decodery.core.sampler import Context, Sampler
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.testing import TableModel, check_sampler, enumerate_law, row_bank

# -- rows bit for bit ------------------------------------------------------------------------------

PAIRS: dict[str, tuple[Sampler, Any]] = {
    "top_k": (dc.top_k(5), hf.TopKLogitsWarper(5)),
    "top_p": (dc.top_p(0.7), hf.TopPLogitsWarper(0.7)),
    "min_p": (dc.min_p(0.2), hf.MinPLogitsWarper(0.2)),
    "typical": (dc.typical(0.6), hf.TypicalLogitsWarper(0.6)),
    "temperature": (dc.temperature(0.7), hf.TemperatureLogitsWarper(0.7)),
    "repetition": (dc.repetition_penalty(1.4), hf.RepetitionPenaltyLogitsProcessor(1.4)),
    "n-gram": (dc.no_repeat_ngram(2), hf.NoRepeatNGramLogitsProcessor(2)),
    "bias": (dc.logit_bias({4: 1.5}), hf.SequenceBiasLogitsProcessor({(4,): 1.5})),
    "banned": (dc.banned_tokens((3, 9)), hf.NoBadWordsLogitsProcessor([[3], [9]])),
}


def random_rows(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCAB, (count, 9), generator=generator)
    ids[:, 5] = ids[:, 2]  # something to repeat
    return ids, 3 * torch.randn(count, VOCAB, generator=generator)


@pytest.mark.parametrize("name", PAIRS)
def test_our_sampler_as_a_processor_is_transformers_own(name: str, small_peer: Any) -> None:
    sampler, theirs = PAIRS[name]
    ids, scores = random_rows()
    kept = scores.clone()
    made = as_logits_processor(sampler, small_peer)(ids, scores)
    assert torch.equal(scores, kept)
    assert made.dtype == scores.dtype
    assert torch.equal(made, theirs(ids, scores.clone()))


@pytest.mark.parametrize("name", PAIRS)
def test_transformers_processor_as_a_sampler_is_ours(name: str) -> None:
    sampler, theirs = PAIRS[name]
    ids, scores = random_rows()
    for path, row in zip(ids.tolist(), scores.numpy(), strict=True):
        here = Context(path, 5)
        mine = sampler.apply(Row(row, VOCAB), sampler.start(here), here).dense_scores()
        made = from_logits_processor(theirs).apply(Row(row, VOCAB), None, here).dense_scores()
        assert np.array_equal(mine, made)


@pytest.mark.parametrize("name", PAIRS)
def test_there_and_back_again(name: str, small_peer: Any) -> None:
    _, theirs = PAIRS[name]
    ids, scores = random_rows(5)
    back = as_logits_processor(from_logits_processor(theirs), small_peer)
    assert torch.equal(back(ids, scores), theirs(ids, scores.clone()))
    with pytest.raises(ParameterError, match="was made of a chain; use the chain"):
        from_logits_processor(back)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_comes_back_as_it_went(dtype: Any, small_peer: Any) -> None:
    ids, scores = random_rows(3)
    made = as_logits_processor(dc.top_k(4), small_peer)(ids, scores.to(dtype))
    assert made.dtype == dtype
    assert ((made > -torch.inf).sum(dim=1) >= 4).all()


def test_generate_with_their_processors_is_our_decoding(small_peer: Any, small_model: Any) -> None:
    """The same processors in `generate` and in our chain: the same greedy tokens."""
    theirs = LogitsProcessorList(
        [hf.RepetitionPenaltyLogitsProcessor(1.5), hf.NoRepeatNGramLogitsProcessor(2)]
    )
    sampler = from_logits_processor(theirs)
    for prompt in PROMPTS:
        found = generated(small_peer, theirs, [prompt])
        assert answers(found, [prompt])[0] == list(
            ours(small_model, sampler, dc.greedy(), prompt)[0].tokens
        )


# -- processors as samplers: what they are held to -------------------------------------------------


@pytest.mark.parametrize("name", ["top_k", "min_p", "temperature", "repetition"])
def test_a_processor_keeps_the_laws_of_samplers(name: str) -> None:
    check_sampler(from_logits_processor(PAIRS[name][1]))


def test_what_was_dropped_stays_dropped() -> None:
    forced = from_logits_processor(hf.ForcedEOSTokenLogitsProcessor(3, EOS))
    row = Row.dense(np.zeros(5)).keep(np.array([True, False, True, True, False]))
    made = forced.apply(row, None, Context((3, 4), 1))
    assert made.token_ids().tolist() == [0, 2, 3]
    assert made.dense_probabilities().tolist() == [0, 0, 1, 0, 0]
    with pytest.raises(RowError, match="no token"):
        forced.apply(row.keep(np.array([True, False, True])), None, Context((3, 4), 1))


def test_rows_of_every_kind_keep_their_dtype() -> None:
    sampler = from_logits_processor(hf.TopPLogitsWarper(0.9))
    for row in row_bank():
        made = sampler.apply(row, None, Context((0, 0), 1))
        assert made.scores.dtype == row.scores.dtype
        assert made.vocab_size == row.vocab_size


def test_declarations_follow_from_known_classes() -> None:
    assert from_logits_processor(hf.TopKLogitsWarper(3)).truncates
    assert from_logits_processor([hf.TemperatureLogitsWarper(2.0)]).tempers
    unknown = from_logits_processor(lambda _ids, scores: scores)
    assert not unknown.truncates
    assert unknown.reads_logits
    assert not unknown.observes_rows
    with pytest.raises(ParameterError, match="put regex first"):
        dc.chain(from_logits_processor(hf.TopKLogitsWarper(3)), dc.regex("a"))


def test_a_seeded_watermark_is_a_function_and_taken() -> None:
    """It has a generator of its own and seeds it from the path at every call."""
    mark = hf.WatermarkLogitsProcessor(VOCAB, "cpu", bias=4.0)
    ids, scores = random_rows(4)
    sampler = from_logits_processor(mark)
    for path, row in zip(ids.tolist(), scores.numpy(), strict=True):
        made = sampler.apply(Row(row, VOCAB), None, Context(path, len(path))).dense_scores()
        wanted = mark(torch.tensor([path]), torch.from_numpy(row.copy())[None])[0].numpy()
        assert np.array_equal(made, wanted)


# -- state -----------------------------------------------------------------------------------------


class Counts(LogitsProcessor):
    """Lowers the last token by the number of calls so far."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # type: ignore[override]
        scores[:, input_ids[0, -1] % scores.shape[1]] -= self.calls
        self.calls += 1
        return scores


class Notes(LogitsProcessor):
    """Remembers in a list what it saw, and uses it much later."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # type: ignore[override]
        if input_ids.shape[1] > 3:
            self.seen.append(int(input_ids[0, -1]))
        return scores


class Tallies(LogitsProcessor):
    """Writes into a tensor of its own."""

    def __init__(self) -> None:
        self.tally = torch.zeros(3)

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # type: ignore[override]
        self.tally[0] += 1
        return scores


class Prepares(LogitsProcessor):
    """Makes a table in its first call: no state."""

    table: Any = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # type: ignore[override]
        if self.table is None:
            self.table = torch.linspace(0, 1, scores.shape[1], dtype=scores.dtype)
        return scores + self.table


def jitters(ids: Any, scores: Any) -> Any:
    return scores + torch.rand_like(scores)


def hides() -> Any:
    calls = [0]

    def processor(ids: Any, scores: Any) -> Any:
        calls[0] += 1
        return scores * calls[0]

    return processor


def run_on_a_table(sampler: Sampler, prompt: Sequence[int] = (0,)) -> Any:
    task = Task(Policy(TableModel.random(5, seed=1), dc.chain(sampler)), tuple(prompt), Stopping(6))
    return run_alone(dc.sample(n=2), task)


@pytest.mark.parametrize(
    "processor",
    [
        Counts(),
        Tallies(),
        jitters,
        hides(),
        hf.SynthIDTextWatermarkLogitsProcessor(
            ngram_len=3,
            keys=[1, 2, 3],
            sampling_table_size=64,
            sampling_table_seed=0,
            context_history_size=16,
            device="cpu",
        ),
    ],
    ids=["counts", "tallies", "jitters", "hides", "synthid"],
)
def test_a_processor_with_a_state_is_refused_before_the_first_token(processor: Any) -> None:
    sampler = from_logits_processor(processor)
    with pytest.raises(ParameterError, match="changes between calls"):
        sampler.apply(Row.dense(np.arange(5.0)), None, Context((0, 1), 2))


def test_a_state_that_shows_later_is_refused_when_it_shows() -> None:
    with pytest.raises(ParameterError, match="Notes changes between calls"):
        run_on_a_table(from_logits_processor(Notes()))


def test_what_is_prepared_in_the_first_call_is_no_state() -> None:
    assert len(run_on_a_table(from_logits_processor(Prepares()))) == 2


@pytest.mark.parametrize("decoder", [dc.sample(n=3), dc.beam(beams=3, n=3)])
def test_copies_at_every_node_are_exact_on_a_tree(decoder: Decoder) -> None:
    """A processor that counts calls, copied, is the sampler that knows the depth."""

    @dataclass(frozen=True)
    class ByDepth(Sampler):
        def apply(self, row: Row, state: Any, context: Context) -> Row:
            calls = context.position - context.prompt_length
            return row.adjusted(np.array([context.tokens[-1]]), -calls)

    table = TableModel.random(5, seed=1)
    copied = from_logits_processor(Counts(), stateful=True)
    law = enumerate_law(Policy(table, dc.chain(copied)), (0,), 4)
    wanted = enumerate_law(Policy(table, dc.chain(ByDepth())), (0,), 4)
    assert law.keys() == wanted.keys()
    assert all(law[path] == pytest.approx(wanted[path], abs=1e-12) for path in wanted)
    task = Task(Policy(table, dc.chain(copied)), (0,), Stopping(6))
    plain = Task(Policy(table, dc.chain(ByDepth())), (0,), Stopping(6))
    assert [item.tokens for item in run_alone(decoder, task)] == [
        item.tokens for item in run_alone(decoder, plain)
    ]
    check_sampler(copied)


def test_a_stateful_watermark_is_that_of_generate(small_peer: Any, small_model: Any) -> None:
    """SynthID keeps the context of each row: greedy tokens as in `generate`, through copies."""

    def mark() -> Any:
        return hf.SynthIDTextWatermarkLogitsProcessor(
            ngram_len=3,
            keys=[1, 2, 3, 5, 8],
            sampling_table_size=256,
            sampling_table_seed=0,
            context_history_size=64,
            device="cpu",
        )

    prompt = PROMPTS[0]
    found = answers(generated(small_peer, mark(), [prompt]), [prompt])[0]
    sampler = from_logits_processor(mark(), stateful=True)
    assert found == list(ours(small_model, sampler, dc.greedy(), prompt)[0].tokens)


def test_copies_share_the_models_that_processors_hold() -> None:
    @dataclass
    class Guides:
        model: Any = field(default_factory=lambda: torch.nn.Linear(5, 5))
        calls: int = 0

        def __call__(self, ids: Any, scores: Any) -> Any:
            self.calls += 1
            return scores + self.calls

    guide = Guides()
    sampler = from_logits_processor(guide, stateful=True)
    state = sampler.start(Context((0,), 1))
    assert state[0] is not guide
    assert state[0].model is guide.model


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (hf.TopKLogitsWarper, "is no logits processor"),
        (3, "is no logits processor"),
        (lambda _ids, scores, hidden: scores + hidden, "wants hidden besides ids and scores"),
    ],
)
def test_what_cannot_be_called_is_refused(processor: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        from_logits_processor(processor)


def test_a_wrong_shape_is_refused() -> None:
    sampler = from_logits_processor(lambda _ids, scores: scores[:, :2])
    with pytest.raises(RowError, match=r"returned \[1, 2\] for \[1, 5\]"):
        run_on_a_table(sampler)


def test_nan_is_refused_with_the_processors_name() -> None:
    sampler = from_logits_processor(lambda _ids, scores: scores * float("nan"))
    with pytest.raises(RowError, match=r"from_logits_processor\(<lambda>\).* NaN"):
        run_on_a_table(sampler)


def test_both_are_exported() -> None:
    assert dc.as_logits_processor is as_logits_processor
    assert dc.from_logits_processor is from_logits_processor
