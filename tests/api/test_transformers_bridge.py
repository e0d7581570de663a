"""Samplers in transformers' `generate`: batches, padding, draws, beams, assistants, refusals.

A small random Llama is run by both: its tokens under `generate` with our processor are those of our
own decoders, and where `generate` draws, its rows along the drawn path are our policy's rows. The
two float32 forwards differ by 1e-6; laws are held to 1e-4, which a wrong state misses by far, as
the mutants at the end of each part show. `test_transformers_processors.py` has the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from small_llama import (
    EOS,
    PROMPTS,
    STEPS,
    VOCAB,
    answers,
    generated,
    ours,
    padded,
    processor_of,
)
from transformers import LlamaForCausalLM, LogitsProcessor

import decodery as dc
from decodery.api.transformers_bridge import SamplerProcessor, as_logits_processor
from decodery.core.decoder import Decoder, Task
from decodery.core.errors import ParameterError
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import run_alone
from decodery.core.sampler import Context, Sampler
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.models.causal import CausalModel
from decodery.testing.samplers import Coin, Heat, Shy, Surprised

CLOSE = 1e-4

# -- greedy, batches, padding ----------------------------------------------------------------------

STATELESS: dict[str, Sampler] = {
    "repetition": dc.repetition_penalty(1.8),
    "presence": dc.presence_penalty(2.0),
    "frequency": dc.frequency_penalty(1.5),
    "n-gram": dc.no_repeat_ngram(2),
    "bias": dc.logit_bias({7: 4.0, 30: 2.0}),
    "length": dc.chain(dc.logit_bias({EOS: 50.0}), dc.min_tokens(6)),
    "chain": dc.chain(dc.repetition_penalty(1.3), dc.presence_penalty(1.0), dc.top_k(5)),
    "state": dc.chain(Shy(2.0), Heat(0.7)),
    "rows": dc.chain(Surprised(), Shy(1.5)),
    "dry": dc.dry(dry_multiplier=3.0),
}


@pytest.mark.parametrize("name", STATELESS)
def test_greedy_tokens_are_ours_on_a_padded_batch(
    name: str, small_peer: Any, small_model: Any
) -> None:
    sampler = STATELESS[name]
    found = answers(generated(small_peer, processor_of(sampler, small_peer)), PROMPTS)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        assert tokens == list(ours(small_model, sampler, dc.greedy(), prompt)[0].tokens)


def test_penalties_matter_in_the_test_above(small_peer: Any) -> None:
    plain = answers(generated(small_peer, processor_of(Heat(1.0), small_peer)), PROMPTS)
    for name, sampler in STATELESS.items():
        assert (
            answers(generated(small_peer, processor_of(sampler, small_peer)), PROMPTS) != plain
        ), name


def test_rows_that_ended_do_not_disturb_the_others(small_peer: Any, small_model: Any) -> None:
    """Row 1 ends at once and is filled up with padding, which the penalty must not count."""

    @dataclass(frozen=True)
    class EndsShortPrompts(Sampler):
        def apply(self, row: Row, state: Any, context: Context) -> Row:
            wanted = EOS if context.prompt_length == 2 else row.argmax()
            return row.keep(row.token_ids() == wanted)

    sampler = dc.chain(Shy(2.0), dc.presence_penalty(1.0), EndsShortPrompts())
    found = answers(generated(small_peer, processor_of(sampler, small_peer)), PROMPTS)
    assert found[1] == [EOS]
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        assert tokens == list(ours(small_model, sampler, dc.greedy(), prompt)[0].tokens)


# -- sampling --------------------------------------------------------------------------------------

DRAWN: dict[str, Sampler] = {
    "top-k": dc.chain(dc.temperature(1.5), dc.top_k(4)),
    "top-p": dc.chain(dc.temperature(1.5), dc.top_p(0.8)),
    "min-p": dc.chain(dc.temperature(1.5), dc.min_p(0.1)),
    "typical": dc.chain(dc.temperature(1.5), dc.typical(0.7)),
    "penalties": dc.chain(dc.repetition_penalty(1.5), dc.frequency_penalty(0.7)),
    "mirostat": dc.chain(dc.temperature(1.5), dc.mirostat(mirostat_tau=2.0, mirostat_eta=0.5)),
    "surprise": dc.chain(Surprised(), Shy(0.5)),
    "noise": dc.chain(dc.xtc(0.5, 0.1), Coin()),
    "adaptive": dc.adaptive_p(adaptive_target=0.4, adaptive_decay=0.7),
}


def rows_along(
    model: CausalModel, sampler: Sampler, prompt: Sequence[int], path: Sequence[int], sequence: int
) -> Iterator[np.ndarray]:
    """Our policy's laws along a path, one for each of its tokens."""

    class Follow(Decoder):
        def decode(self, task: Task) -> Any:
            tip: Node = yield Open(task.policy, task.prompt)
            tip.sequence = sequence
            for token in path:
                laws.append(tip.policy_row(sequence).dense_probabilities())
                tip = tip.child(token, sequence)
                yield Grow([tip])
            return []

    laws: list[np.ndarray] = []
    task = Task(
        Policy(model, dc.chain(sampler)), tuple(prompt), Stopping(STEPS + 1), stream=Stream(7)
    )
    run_alone(Follow(), task)
    yield from laws


def worst_gap(peer: Any, model: Any, sampler: Sampler, processor: Any, copies: int = 3) -> float:
    torch.manual_seed(1)
    output = generated(
        peer,
        processor,
        do_sample=True,
        num_return_sequences=copies,
        output_scores=True,
        return_dict_in_generate=True,
    )
    laws = torch.softmax(torch.stack(output.scores, dim=1).double(), dim=-1).numpy()
    worst = 0.0
    for index, path in enumerate(answers(output.sequences, PROMPTS, copies)):
        own = rows_along(model, sampler, PROMPTS[index // copies], path, index)
        for law, wanted in zip(laws[index], own, strict=False):
            assert (law > 0).tolist() == (wanted > 0).tolist()
            worst = max(worst, float(np.abs(law - wanted).max()))
    return worst


@pytest.mark.parametrize("name", DRAWN)
def test_rows_of_drawn_sequences_are_our_policys(
    name: str, small_peer: Any, small_model: Any
) -> None:
    sampler = DRAWN[name]
    processor = processor_of(sampler, small_peer, seed=7)
    assert worst_gap(small_peer, small_model, sampler, processor) < CLOSE


def test_one_processor_serves_one_generate_after_another(small_peer: Any, small_model: Any) -> None:
    sampler = DRAWN["surprise"]
    processor = processor_of(sampler, small_peer, seed=7)
    first = answers(generated(small_peer, processor), PROMPTS)
    assert worst_gap(small_peer, small_model, sampler, processor) < CLOSE
    assert answers(generated(small_peer, processor), PROMPTS) == first


class CountsPadding(SamplerProcessor):
    """A mutant: takes padding for text."""

    def _paddings(self, rows: Any) -> list[int]:
        return [0] * len(rows)


class SeesNoRows(SamplerProcessor):
    """A mutant: states that observe rows get the row of the first step for ever."""

    def _note(self, place: Any, row: Row) -> None:
        self.first = getattr(self, "first", row)
        place.row = self.first


class OneNoise(SamplerProcessor):
    """A mutant: all rows have the noise of row 0."""

    def _context(self, index: int, path: Any) -> Context:
        context = super()._context(index, path)
        return Context(
            context.tokens, context.prompt_length, context.eos_ids, None, context.stream, 0
        )


@pytest.mark.parametrize(
    ("mutant", "name"),
    [(CountsPadding, "penalties"), (SeesNoRows, "surprise"), (OneNoise, "noise")],
)
def test_a_wrong_processor_is_told_apart(
    mutant: Any, name: str, small_peer: Any, small_model: Any
) -> None:
    sampler = DRAWN[name]
    processor = processor_of(sampler, small_peer, seed=7)
    processor.__class__ = mutant
    try:
        gap = worst_gap(small_peer, small_model, sampler, processor)
    except AssertionError:
        return
    assert gap > 10 * CLOSE


# -- beams and assistants --------------------------------------------------------------------------

BEAMED: dict[str, Sampler] = {
    "state": dc.chain(Shy(2.0)),
    "rows": dc.chain(Surprised(), Shy(1.0)),
    "penalties": dc.chain(dc.presence_penalty(1.5), dc.no_repeat_ngram(2)),
    "mirostat": dc.mirostat(mirostat_tau=2.0, mirostat_eta=0.5),
}


def beams(peer: Any, processor: Any, prompts: Any, width: int) -> list[list[int]]:
    output = generated(
        peer,
        processor,
        prompts,
        num_beams=width,
        num_return_sequences=width,
        length_penalty=0.0,
        renormalize_logits=True,
        eos_token_id=VOCAB + 5,  # never drawn: all hypotheses are of one length
    )
    return [row[max(map(len, prompts)) :] for row in output.tolist()]


def our_beams(model: Any, sampler: Sampler, prompt: Sequence[int], width: int) -> list[list[int]]:
    task = Task(Policy(model, dc.chain(sampler)), tuple(prompt), Stopping(STEPS))
    decoder = dc.beam(beams=width, n=width, length_penalty=0.0)
    return [list(item.tokens) for item in run_alone(decoder, task)]


@pytest.mark.parametrize("name", BEAMED)
def test_beams_are_ours(name: str, small_peer: Any, small_model: Any) -> None:
    """Beams change places at nearly every step; each keeps the state of its own path."""
    sampler = BEAMED[name]
    processor = processor_of(sampler, small_peer, eos_token_id=VOCAB + 5)
    found = beams(small_peer, processor, PROMPTS, 4)
    wanted = [item for prompt in PROMPTS for item in our_beams(small_model, sampler, prompt, 4)]
    assert found == wanted


def test_a_state_for_each_row_is_told_apart_by_beams(small_peer: Any, small_model: Any) -> None:
    sampler = dc.chain(Shy(2.0))
    found = beams(small_peer, RowKeyed(sampler), PROMPTS, 4)
    assert found != [
        item for prompt in PROMPTS for item in our_beams(small_model, sampler, prompt, 4)
    ]


class RowKeyed(LogitsProcessor):
    """What a processor is that remembers by the number of the row."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.states: dict[int, Any] = {}

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # type: ignore[override]
        made = torch.empty_like(scores)
        for index, row in enumerate(input_ids.tolist()):
            here = Context(row, 0)
            if index in self.states:
                self.states[index] = self.sampler.advance(self.states[index], row[-1], None, here)
            else:
                self.states[index] = self.sampler.start(here)
            reshaped = self.sampler.apply(
                Row(scores[index].numpy(), VOCAB), self.states[index], here
            )
            made[index] = torch.from_numpy(reshaped.dense_scores().copy())
        return made


def test_candidates_of_prompt_lookup_that_are_rejected_leave_no_trace(
    small_peer: Any, small_model: Any
) -> None:
    """Greedy with and without guesses: the same tokens. Guesses come with rows of no model."""
    prompt = [[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]]
    mask = padded(prompt)["attention_mask"]
    for sampler in (STATELESS["repetition"], STATELESS["state"], STATELESS["n-gram"]):
        processor = as_logits_processor(sampler, small_peer, attention_mask=mask)
        plain = generated(small_peer, processor, prompt).tolist()
        assert (
            generated(small_peer, processor, prompt, prompt_lookup_num_tokens=3).tolist() == plain
        )
    observing = as_logits_processor(Surprised(), small_peer, attention_mask=mask)
    with pytest.raises(ParameterError, match="is given two for the same tokens"):
        generated(small_peer, observing, prompt, prompt_lookup_num_tokens=3)


def test_a_second_model_that_calls_the_processor_is_refused_where_rows_matter(
    small_peer: Any,
) -> None:
    torch.manual_seed(5)
    assistant = LlamaForCausalLM(small_peer.config).eval()
    with torch.no_grad():
        for weight, other in zip(assistant.parameters(), small_peer.parameters(), strict=True):
            weight.copy_(other + 0.05 * torch.randn_like(other))
    prompt = [[5, 6, 7, 8]]
    mask = padded(prompt)["attention_mask"]
    options = {"assistant_model": assistant, "max_new_tokens": 40}
    path_only = as_logits_processor(Shy(1.0), small_peer, attention_mask=mask)
    plain = generated(small_peer, path_only, prompt, max_new_tokens=40).tolist()
    assert generated(small_peer, path_only, prompt, **options).tolist() == plain
    observing = as_logits_processor(Surprised(), small_peer, attention_mask=mask)
    with pytest.raises(ParameterError, match="is given two for the same tokens"):
        generated(small_peer, observing, prompt, **options)


# -- what cannot be carried ------------------------------------------------------------------------


@dataclass(frozen=True)
class Peeks(Sampler):
    needs_hidden: ClassVar[bool] = True

    def apply(self, row: Row, state: Any, context: Context) -> Row:
        return row


def test_hidden_states_are_refused_when_it_is_made(small_peer: Any) -> None:
    with pytest.raises(ParameterError, match=r"Peeks\(\) reads the model's hidden states"):
        as_logits_processor(dc.chain(Heat(), Peeks()), small_peer)


def test_text_needs_a_tokenizer(small_peer: Any) -> None:
    with pytest.raises(ParameterError, match="regex needs to know the text of tokens"):
        as_logits_processor(dc.regex("a"), small_peer)
    with pytest.raises(ParameterError, match="a fast tokenizer is needed"):
        as_logits_processor(dc.regex("a"), small_peer, tokenizer=object())


def test_raw_logits_under_beam_search_are_refused(small_peer: Any) -> None:
    processor = processor_of(dc.repetition_penalty(1.3), small_peer)
    with pytest.raises(ParameterError, match="hands over log-probabilities"):
        generated(small_peer, processor, num_beams=2)


def test_padding_must_be_told_from_text(small_peer: Any) -> None:
    with pytest.raises(ParameterError, match="row 1 begins with the padding token 0"):
        generated(small_peer, as_logits_processor(Shy(), small_peer))
    with pytest.raises(ParameterError, match="pad on the left"):
        as_logits_processor(Shy(), small_peer, attention_mask=[[1, 1, 0]])
    with pytest.raises(ParameterError, match="0 and 1"):
        as_logits_processor(Shy(), small_peer, attention_mask=[[2, 1]])
    with pytest.raises(ParameterError, match="make a new processor for each batch"):
        generated(small_peer, processor_of(Shy(), small_peer), [[3, 4], [5, 6]])


def test_a_model_must_be_transformers(small_peer: Any) -> None:
    with pytest.raises(ParameterError, match="no model of transformers"):
        as_logits_processor(Shy(), object())
    processor = as_logits_processor(Shy(), small_peer)
    with pytest.raises(ParameterError, match="with 61 tokens"):
        processor(torch.tensor([[3]]), torch.zeros(1, 7))
    with pytest.raises(ParameterError, match="takes ids"):
        processor(torch.tensor([3]), torch.zeros(1, VOCAB))


def test_parameters_that_could_never_hold_are_refused_when_it_is_made(small_peer: Any) -> None:
    with pytest.raises(ParameterError, match="could never be reached"):
        as_logits_processor(dc.mirostat(mirostat_tau=50.0), small_peer)


# -- text ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Letters, digits and signs as tokens of one byte each, behind three special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    signs = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRST0123456789{}"[: VOCAB - len(special)]
    backend = Tokenizer(
        models.BPE(vocab={sign: index for index, sign in enumerate([*special, *signs])}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    backend.enable_truncation(3)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "num_return_sequences": 5},
        {"num_beams": 4, "num_return_sequences": 4},
        {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
    ],
    ids=["greedy", "drawn", "beams", "drawn beams"],
)
def test_a_grammar_holds_in_generate(
    options: dict[str, Any], small_peer: Any, tokenizer: Any
) -> None:
    """Rows end at different steps, and beams run out of texts: every whole answer is one."""
    torch.manual_seed(3)
    pattern = "(ab|cd){1,3}[0-9]"
    processor = processor_of(dc.regex(pattern), small_peer, tokenizer=tokenizer)
    output = generated(small_peer, processor, **options)
    copies = len(output) // len(PROMPTS)
    for tokens in answers(output, PROMPTS, copies):
        assert tokens[-1] == EOS
        assert re.fullmatch(pattern, tokenizer.decode(tokens, skip_special_tokens=True))


def test_the_users_tokenizer_is_left_as_it_was(small_peer: Any, tokenizer: Any) -> None:
    before = tokenizer.backend_tokenizer.to_str()
    as_logits_processor(dc.regex("a"), small_peer, tokenizer=tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before
