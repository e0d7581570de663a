"""Speculation on the embedded model: greedy text without a difference, whoever drafts.

Plain greedy decoding and every registered exact method that drafts, in its greedy form: not one
token may differ. A handful of prompts here; in the slow tests 1,000 prompts of 64 tokens with every
kind of drafter, and 100 with every other method. With rule Match sampled texts are those of plain
sampling, token for token. The draft is an exit after 24 of 30 layers, so that some drafts are
accepted; for the 1,000 prompts it is the same model in its 4-bit codes, which is quick and mostly
right, or an exit after 3, which is mostly wrong, and the Jacobi window is three wide: a wide one
costs an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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


DRAFT = "exit:24"
CHAIN = Branching((1,) * 3)


def drawn(draft: str | LanguageModel) -> dict[str, Speculation]:
    """Drafters by name; `draft` draws for the last three."""
    rsd = registry.get("rsd")
    return {
        "lookup": Speculation(Lookup(), MATCH),
        "consensus": Speculation(Consensus(own=True, prompt=True, shortest=1), MATCH),
        "chain": Speculation(Drawing(draft, CHAIN), NodeWise(Recursive("distinct"))),
        "rsd_c": rsd(tree="branching", branching=(2, 1), draft=draft),
        "rsd_s": rsd(beams=2, levels=3, draft=draft),
    }


DRAWN = drawn(DRAFT)


def _greedy_forms() -> dict[str, Any]:
    """Every registered method that is exact and has a greedy form, for at most two sequences."""
    found: dict[str, Any] = {}
    for method in registry.of_kind("decoder"):
        if method.card.family == "speculative" and method.card.guarantee == "exact":
            decoder = method()
            if hasattr(decoder, "certain"):
                found[method.name] = replace(decoder, n=min(decoder.n, 2)).certain()
    return found


METHODS = _greedy_forms()


@dataclass(frozen=True)
class Asked:
    """A request."""

    decoder: Decoder
    prompt: str
    tokens: int
    sampler: Chain = field(default_factory=chain)
    stopping: dict[str, Any] = field(default_factory=dict)
    seed: int = 7


Text = tuple[tuple[int, ...], str]


def together(lm: LanguageModel, requests: Sequence[Asked]) -> list[list[Completion]]:
    """What requests of one runner are answered."""
    runner = Runner()
    handles = []
    for item in requests:
        stop = Stopping(item.tokens, lm.eos_ids, decode=lm.tokenizer.decode, **item.stopping)
        policy = Policy(lm, item.sampler)
        tokens = lm.read(item.prompt).tokens
        asked = Task(policy, tokens, stop, Stream(item.seed), decode=lm.tokenizer.decode)
        handles.append(runner.submit(item.decoder, asked))
    runner.run()
    return [handle.result() for handle in handles]


def texts(answers: Sequence[Sequence[Completion]]) -> list[list[Text]]:
    return [[(item.tokens, item.finish_reason) for item in answer] for answer in answers]


_PLAIN: dict[Any, list[Text]] = {}


def plain(lm: LanguageModel, prompts: tuple[str, ...], tokens: int) -> list[Text]:
    """Plain greedy decoding, each set of prompts once."""
    if (prompts, tokens) not in _PLAIN:
        answers = together(lm, [Asked(dc.greedy(), prompt, tokens) for prompt in prompts])
        _PLAIN[prompts, tokens] = [answer[0] for answer in texts(answers)]
    return _PLAIN[prompts, tokens]


def differences(
    lm: LanguageModel, decoder: Decoder, prompts: tuple[str, ...], tokens: int
) -> list[str]:
    """The prompts whose greedy text is another with a drafter."""
    found = texts(together(lm, [Asked(decoder, prompt, tokens) for prompt in prompts]))
    wanted = plain(lm, prompts, tokens)
    return [
        prompt
        for prompt, answer, text in zip(prompts, found, wanted, strict=True)
        if set(answer) != {text}
    ]


@pytest.mark.parametrize("name", ["lookup", "consensus", "chain", "rsd_s"])
def test_greedy_text_has_no_difference(lm: LanguageModel, name: str) -> None:
    assert differences(lm, DRAWN[name].certain(), FEW, 24) == []


def test_greedy_text_of_every_method_has_no_difference(lm: LanguageModel) -> None:
    """All methods in one runner."""
    assert set(METHODS) >= {"prompt_lookup", "rsd"}
    (wanted,) = plain(lm, FEW, 24)[:1]
    answers = together(lm, [Asked(decoder, FEW[0], 24) for decoder in METHODS.values()])
    wrong = [
        name for name, own in zip(METHODS, texts(answers), strict=True) if set(own) != {wanted}
    ]
    assert wrong == []


def drafters(codes: LanguageModel) -> dict[str, Any]:
    """Every kind of drafter once, in its greedy form."""
    found = drawn(codes)
    skipping = Speculation(Drawing("exit:3", Branching((1,))), NodeWise(Recursive("distinct")))
    kinds = {
        "lookup in the prompt": found["lookup"],
        "lookup in the answer": found["consensus"],
        "a chain of another model": found["chain"],
        "a tree of another model": found["rsd_s"],
        "first layers": skipping,
        "distilled head": registry.get("draft_model")(draft="distilled"),
        "adaptive": registry.get("speculate")(),
        "Jacobi window": replace(registry.get("sjd")(), window=3),
    }
    return {name: drafter.certain() for name, drafter in kinds.items()}


DRAFTERS = (
    "lookup in the prompt", "lookup in the answer", "a chain of another model",
    "a tree of another model", "first layers", "distilled head", "adaptive", "Jacobi window",
)  # fmt: skip
PARTS = 20
OTHERS = sorted(set(METHODS) - {"speculate", "draft_model", "sjd"})


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("part", range(PARTS))
def test_greedy_text_of_a_thousand_prompts_has_no_difference(
    lm: LanguageModel, default_lm: LanguageModel, name: str, part: int
) -> None:
    prompts = many()[part::PARTS]
    assert len(many()) == 1000
    assert differences(lm, drafters(default_lm)[name], prompts, 64) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("part", range(2))
def test_greedy_text_of_the_other_methods_has_no_difference(
    lm: LanguageModel, name: str, part: int
) -> None:
    """The same drafters by other names, in other trees: 100 prompts."""
    prompts = many()[part::PARTS]
    assert len(prompts) == 50
    assert differences(lm, METHODS[name], prompts, 64) == []


def test_drafts_are_accepted(lm: LanguageModel) -> None:
    """What the tests above would not show: there were drafts, and steps of several tokens."""
    answers = together(lm, [Asked(item.certain(), FEW[0], 12) for item in DRAWN.values()])
    for name, (answer,) in zip(DRAWN, answers, strict=True):
        assert answer.details["speculation"]["accepted"] > 0, name


def test_matched_texts_are_those_of_plain_sampling(lm: LanguageModel) -> None:
    """Three drafters, two sequences each."""
    sampler = chain(dc.repetition_penalty(1.1), dc.temperature(0.8), dc.top_p(0.9))
    decoders = (
        dc.sample(2),
        Speculation(Lookup(), MATCH, 2),
        Speculation(Drawing(DRAFT, Beam(2, 2)).certain(), MATCH, 2),
        Speculation(Consensus(shortest=1), MATCH, 2),
    )
    wanted, *found = texts(together(lm, [Asked(one, FEW[2], 16, sampler) for one in decoders]))
    assert found == [wanted] * 3


def test_texts_are_cut_inside_drafts(lm: LanguageModel) -> None:
    """A stop string, a stop id and a short budget that the plain text of a prompt runs into."""
    tokens = plain(lm, FEW, 24)[0][0]
    string = lm.tokenizer.decode(tokens[8:10])[1:4]  # begins and ends inside tokens
    cuts: tuple[tuple[int, dict[str, Any]], ...] = (
        (24, {"stop": (string,)}),
        (24, {"stop_ids": frozenset({tokens[7]})}),
        (6, {}),
    )
    for most, stopping in cuts:
        decoders = (dc.greedy(), *(item.certain() for item in DRAWN.values()))
        asked = [Asked(one, FEW[0], most, stopping=stopping) for one in decoders]
        wanted, *found = texts(together(lm, asked))
        assert found == [wanted] * len(DRAWN)
        assert len(wanted[0][0]) < 12


def test_different_drafters_and_samplers_beside_each_other(lm: LanguageModel) -> None:
    """Each request of a runner has the text that it has alone."""
    samplers = (chain(), chain(dc.temperature(0.7)), chain(dc.mirostat(3.0)))
    drawn = (DRAWN[name] for name in ("rsd_s", "chain", "lookup"))
    asked = [
        Asked(decoder, FEW[2], 6, sampler, seed=place)
        for place, (decoder, sampler) in enumerate(zip(drawn, samplers, strict=True))
    ]
    alone = [together(lm, [item])[0] for item in asked]
    assert texts(together(lm, asked)) == texts(alone)
