"""Speculation on the embedded model: greedy text without a difference, whoever drafts.

Plain greedy decoding and every registered exact method that drafts, in its greedy form: not one
token may differ. A handful of prompts here; 1,000 prompts of 64 tokens in the slow test. With rule
Match sampled texts are those of plain sampling, token for token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import pytest

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.core import registry
from decodery.core.decoder import Completion, Decoder, Task
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.sampler import Chain, chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.speculative.consensus import Consensus
from decodery.methods.speculative.lookup import Lookup
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.shapes import Beam, Branching
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match, Recursive
from decodery.methods.speculative.walks import NodeWise

MATCH = NodeWise(Match())
FEW = (
    "Repeat word for word: the quick brown fox jumps over the lazy dog near the old river bank.",
    "Count from 1 to 20.",
    "Why is the sea salty?",
    "Write a Python function that adds two numbers.",
)
THINGS = (
    "the sea", "a candle", "the moon", "bread", "a bicycle", "rain", "a violin", "salt",
    "a lighthouse", "the wind", "an apple", "a river", "glass", "a bee", "snow", "paper",
    "a clock", "the sun", "tea", "a bridge", "iron", "a cat", "milk", "a mirror", "sand",
)  # fmt: skip
ASKED = (
    "What is {}?", "Describe {} in two sentences.", "Write a short poem about {}.",
    "Name three facts about {}.", "Why do people like {}?", "Where would you find {}?",
    "Explain {} to a child.", "Tell a story that begins with {}.", "What is {} made of?",
    "List five words that go with {}.", "Is {} useful? Answer yes or no, and say why.",
    "Write a question about {} and answer it.", "Translate into French: I see {}.",
    "Repeat ten times: {}.", "Finish the sentence: Without {}, we would",
    "What colour is {}? What else has that colour?", "Give a recipe or a plan with {}.",
    "Compare {} with a stone.", "How old is {}?", "Write a letter to {}.",
    "Who was the first to write about {}?", "Make a table of the parts of {}.",
    "Spell the words: {}.", "What sound does {} make?", "Count to twelve, then say: {}.",
    "Write code that prints: {}.", "Say it backwards: {}.", "What comes to mind first: {}?",
    "Write a title for a book about {}.", "Sing about {}.", "What would happen without {}?",
    "Draw {} with letters.", "Sell me {}.", "Is {} larger than a house?", "Rhyme with {}.",
    "Write one line about {}, then the same line again.", "When was {} discovered?",
    "Give {} a name.", "What is the opposite of {}?", "Summarise what you know about {}.",
)  # fmt: skip


@cache
def many() -> tuple[str, ...]:
    return tuple(form.format(thing) for form, thing in product(ASKED, THINGS))


DRAWN: dict[str, Decoder] = {
    "lookup": Speculation(Lookup(), MATCH),
    "chain": Speculation(Drawing(None, Branching((1,) * 4)), NodeWise(Recursive("distinct"))),
    "rsd_c": registry.get("rsd")(tree="branching"),
    "rsd_s": registry.get("rsd")(),
    "consensus": Speculation(Consensus(own=True, prompt=True, shortest=1), MATCH),
}
# Every registered method that is exact and has a greedy form.
METHODS: dict[str, Decoder] = DRAWN | {
    f"method {method.name}": decoder
    for method in registry.of_kind("decoder")
    if method.card.family == "speculative"
    and method.card.guarantee == "exact"
    and hasattr(decoder := method(), "certain")
}


def run_prompts(
    lm: LanguageModel,
    decoder: Decoder,
    prompts: Sequence[str],
    tokens: int,
    sampler: Chain | None = None,
    **stopping: Any,
) -> list[list[Completion]]:
    """The answers to all prompts, in one runner."""
    runner = Runner()
    policy = Policy(lm, sampler or chain())
    stop = Stopping(tokens, lm.eos_ids, decode=lm.tokenizer.decode, **stopping)
    handles = [
        runner.submit(
            decoder,
            Task(policy, lm.read(prompt).tokens, stop, Stream(7), decode=lm.tokenizer.decode),
        )
        for prompt in prompts
    ]
    runner.run()
    return [handle.result() for handle in handles]


def texts(answers: Sequence[Sequence[Completion]]) -> list[list[tuple[tuple[int, ...], str]]]:
    return [[(item.tokens, item.finish_reason) for item in answer] for answer in answers]


_PLAIN: dict[Any, Any] = {}


def plain(lm: LanguageModel, prompts: tuple[str, ...], tokens: int) -> Any:
    """Plain greedy decoding, each set of prompts once."""
    if (prompts, tokens) not in _PLAIN:
        _PLAIN[prompts, tokens] = texts(run_prompts(lm, dc.greedy(), prompts, tokens))
    return _PLAIN[prompts, tokens]


@pytest.mark.parametrize("name", METHODS)
def test_greedy_text_has_no_difference(lm: LanguageModel, name: str) -> None:
    found = run_prompts(lm, METHODS[name].certain(), FEW, 24)  # type: ignore[attr-defined]
    assert texts(found) == plain(lm, FEW, 24)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
@pytest.mark.parametrize("name", METHODS)
def test_greedy_text_of_a_thousand_prompts_has_no_difference(
    lm: LanguageModel, name: str, part: int
) -> None:
    prompts = many()[part::20]
    assert len(prompts) == 50
    found = run_prompts(lm, METHODS[name].certain(), prompts, 64)  # type: ignore[attr-defined]
    assert texts(found) == plain(lm, prompts, 64)


def test_drafts_are_accepted_and_no_end_is_passed(lm: LanguageModel) -> None:
    """What the tests above would not show: there were drafts, and steps of several tokens."""
    for name, decoder in DRAWN.items():
        (answer,) = run_prompts(lm, decoder.certain(), FEW[:1], 24)  # type: ignore[attr-defined]
        assert answer[0].details["speculation"]["accepted_per_step"] > 0.2, name


@pytest.mark.parametrize(
    "decoder",
    [
        Speculation(Lookup(), MATCH, 2),
        Speculation(Drawing(None, Beam(2, 3), None).certain(), MATCH, 2),
        Speculation(Consensus(shortest=1), MATCH, 2),
    ],
    ids=["lookup", "beam", "consensus"],
)
def test_matched_texts_are_those_of_plain_sampling(lm: LanguageModel, decoder: Decoder) -> None:
    sampler = chain(dc.repetition_penalty(1.1), dc.temperature(0.8), dc.top_p(0.9))
    wanted = run_prompts(lm, dc.sample(2), FEW[:2], 20, sampler)
    assert texts(run_prompts(lm, decoder, FEW[:2], 20, sampler)) == texts(wanted)


@pytest.mark.parametrize("name", DRAWN)
def test_texts_are_cut_inside_drafts(lm: LanguageModel, name: str) -> None:
    """A stop string, a stop id and a short budget that the plain text of a prompt runs into."""
    (whole,) = plain(lm, FEW, 24)[:1]
    tokens = whole[0][0]
    # Two tokens that no single one spells: the string crosses a border of tokens.
    string = lm.tokenizer.decode(tokens[8:10])[1:4]
    for tokens_left, stopping in (
        (24, {"stop": (string,)}),
        (24, {"stop_ids": frozenset({tokens[9]})}),
        (7, {}),
    ):
        wanted = run_prompts(lm, dc.greedy(), FEW[:1], tokens_left, **stopping)
        found = run_prompts(lm, DRAWN[name].certain(), FEW[:1], tokens_left, **stopping)  # type: ignore[attr-defined]
        assert texts(found) == texts(wanted)
        assert len(wanted[0][0].tokens) < 12


def test_different_drafters_and_samplers_beside_each_other(lm: LanguageModel) -> None:
    """Each request of a runner has the text that it has alone."""
    samplers = (chain(), chain(dc.temperature(0.7)), chain(dc.mirostat(3.0)), chain(dc.min_p(0.1)))
    stop = Stopping(12, lm.eos_ids)
    asked = [
        (decoder, Task(Policy(lm, sampler), lm.read(prompt).tokens, stop, Stream(place)))
        for place, (decoder, sampler, prompt) in enumerate(
            zip(DRAWN.values(), (*samplers, chain()), (*FEW, FEW[0]), strict=True)
        )
    ]
    runner = Runner()
    together = [runner.submit(decoder, item) for decoder, item in asked]
    runner.run()
    for handle, (decoder, item) in zip(together, asked, strict=True):
        alone = Runner()
        wanted = alone.submit(decoder, item)
        alone.run()
        assert texts([handle.result()]) == texts([wanted.result()])
