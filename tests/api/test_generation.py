"""Text in, text out, on the embedded model: streams, stop strings, budgets, interrupts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import decodery as dc
from decodery.api.generation import TextFeed
from decodery.api.language_model import LanguageModel
from decodery.core.errors import DecoderyError, ParameterError, PromptError
from decodery.core.stopping import Stopping

PROMPT = "Why is the sea salty?"
# Greedy float32 text of the embedded model; equal to transformers' (tests/models/test_engine.py).
GOLDEN = "The sea is salty because it contains a high concentration of salt,"


def test_golden_greedy_text(lm: LanguageModel) -> None:
    generation = lm.generate(PROMPT, method="greedy", max_tokens=13)
    assert generation.text == GOLDEN
    assert generation.finish_reason == "max_tokens"
    assert generation.report.model_calls == 13
    report = generation.report
    assert report.tokens_evaluated + report.cached_tokens == 36 + 12
    assert generation.report.tokens_emitted == 13


def test_stream_is_generate_in_pieces(lm: LanguageModel) -> None:
    options: dict[str, Any] = {"method": "min_p", "temperature": 1.3, "seed": 5, "max_tokens": 12}
    events = lm.stream(PROMPT, **options)
    pieces = [event.text for event in events]
    assert len(pieces) > 3
    assert "".join(pieces) == events.generation.text == lm.generate(PROMPT, **options).text


@pytest.mark.parametrize("stop", [" because it", "ause i", "high", "T"])
def test_stop_strings_across_token_borders(lm: LanguageModel, stop: str) -> None:
    events = lm.stream(PROMPT, method="greedy", max_tokens=13, stop=[stop, "never said"])
    shown = "".join(event.text for event in events)
    assert shown == events.generation.text == GOLDEN[: GOLDEN.index(stop)]
    assert events.generation.finish_reason == "stop_string"


def test_stop_ids_and_ignore_eos(lm: LanguageModel) -> None:
    first = lm.generate(PROMPT, method="greedy", max_tokens=3).tokens
    stopped = lm.generate(PROMPT, method="greedy", max_tokens=9, stop_ids=[first[1]])
    assert stopped.finish_reason == "stop_id"
    assert stopped.tokens == first[:2]
    # A forced end token ends the text at once, unless it is to be ignored.
    end = next(iter(lm.eos_ids))
    forced = {"allowed_tokens": (end,), "max_tokens": 4, "seed": 1}
    assert lm.generate(PROMPT, **forced).finish_reason == "eos"
    assert len(lm.generate(PROMPT, ignore_eos=True, **forced).tokens) == 4


def test_budgets_end_with_what_there_is(lm: LanguageModel) -> None:
    cut = lm.generate(PROMPT, method="greedy", max_calls=4)
    assert (cut.finish_reason, len(cut.tokens)) == ("max_calls", 4)
    assert GOLDEN.startswith(cut.text)
    timed = lm.generate(PROMPT, method="greedy", max_seconds=0.5, max_tokens=2000)
    assert timed.finish_reason == "max_seconds"
    beams = lm.generate(PROMPT, method="beam", beams=2, max_calls=3)
    assert (beams.finish_reason, len(beams.tokens)) == ("max_calls", 3)
    best = lm.generate(PROMPT, method="best_of_n", n=2, max_calls=3, seed=1)
    assert (best.finish_reason, len(best.tokens)) == ("max_calls", 3)


def test_leaving_a_stream_keeps_what_was_said(lm: LanguageModel) -> None:
    with lm.stream(PROMPT, method="greedy", max_tokens=50) as events:
        for _, _ in zip(events, range(3), strict=False):
            pass
    assert events.generation.finish_reason == "cancelled"
    assert GOLDEN.startswith(events.generation.text)
    assert events.generation.text


def test_a_batch_is_each_prompt_alone(lm: LanguageModel) -> None:
    prompts = ["Name a bird.", "Write one word.", "What is two plus two?"]
    options: dict[str, Any] = {"method": "sample", "seed": 9, "max_tokens": 6}
    together = lm.generate(prompts, **options)
    assert [item.tokens for item in together] == [
        lm.generate(prompt, **options).tokens for prompt in prompts
    ]


def test_policies_and_decoders_compose(lm: LanguageModel) -> None:
    policy = lm | dc.chain(dc.temperature(0.8), dc.min_p(0.05))
    named = lm.generate(PROMPT, temperature=0.8, min_p=0.05, seed=2, max_tokens=6)
    built = dc.generate(policy, PROMPT, decoder=dc.sample(), seed=2, max_tokens=6)
    assert built.tokens == named.tokens
    assert (
        dc.generate(policy, PROMPT, decoder="sample", seed=2, max_tokens=6).tokens == built.tokens
    )
    with pytest.raises(ParameterError, match="sampler parameters go into the policy"):
        dc.generate(policy, PROMPT, top_k=5)
    with pytest.raises(ParameterError, match="has no effect under Greedy"):
        dc.generate(policy, PROMPT, decoder="greedy")


def test_prompts_of_every_form_agree(lm: LanguageModel) -> None:
    tokens, text = lm.read(PROMPT).tokens, lm.read(PROMPT).text
    assert lm.read([{"role": "user", "content": PROMPT}]).tokens == tokens
    assert lm.read(list(tokens)).tokens == tokens
    assert "<|im_start|>user\n" + PROMPT in text
    with_system = lm.read(PROMPT, system="Be brief.").text
    assert "Be brief." in with_system
    assert lm.read(PROMPT, raw=True).text == PROMPT


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        ("", {}, PromptError),
        ("   ", {}, PromptError),
        ([], {}, PromptError),
        ([10**9], {}, PromptError),
        ([-1], {}, PromptError),
        ("x", {"raw": True, "system": "s"}, ParameterError),
        ("word " * 9000, {}, PromptError),
        ("x", {"max_tokens": 9000}, PromptError),
        ("x", {"stop": [""]}, ParameterError),
        ("x", {"stop": ["a"] * 65}, ParameterError),
        ("x", {"stop": ["a" * 1001]}, ParameterError),
        ("x", {"stop_ids": [10**6]}, ParameterError),
        ("x", {"banned_tokens": (10**6,)}, DecoderyError),
        ([{"role": "system", "content": "a"}], {"system": "b"}, ParameterError),
    ],
)
def test_bad_input_is_one_clear_line(
    lm: LanguageModel, prompt: Any, options: dict[str, Any], error: type[DecoderyError]
) -> None:
    with pytest.raises(error) as caught:
        lm.generate(prompt, **options)
    assert "\n" not in str(caught.value)


def test_everything_forbidden_names_sampler_and_step(lm: LanguageModel) -> None:
    end = next(iter(lm.eos_ids))
    with pytest.raises(DecoderyError, match="at step 0: the row allows no token"):
        lm.generate("x", allowed_tokens=(end,), min_tokens=2)


def test_trace_replays_the_run(lm: LanguageModel, tmp_path: Path) -> None:
    generation = lm.generate("Name a bird.", n=2, max_tokens=3, seed=4, trace=dc.Trace(rows=2))
    assert generation.trace is not None
    path = tmp_path / "trace.json"
    generation.trace.save(path)
    events = json.loads(path.read_text())["events"]
    nodes = {event["node"]: event for event in events if event["event"] == "node"}
    emitted: dict[int, list[int]] = {0: [], 1: []}
    for event in events:
        if event["event"] == "emit":
            emitted[event["sequence"]] += event["tokens"]
    for sequence, sample in enumerate(generation.samples):
        assert emitted[sequence] == list(sample.tokens)
    deepest = [
        node for node in nodes.values() if node["depth"] == max(n["depth"] for n in nodes.values())
    ]
    for node in deepest:
        path_tokens = []
        while node["parent"] is not None:
            path_tokens.insert(0, node["token"])
            node = nodes[node["parent"]]
        assert tuple(path_tokens) in [sample.tokens[:2] for sample in generation.samples]
        assert len(node["row"]) == 2
    assert sum(event["event"] == "call" for event in events) == generation.report.model_calls


class Letters:
    """A text stream over one-letter tokens."""

    def push(self, token: int) -> str:
        return chr(token)

    def flush(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [("abcabd", "abd", "abc"), ("aab", "ab", "a"), ("xyz", "zz", "xyz"), ("aaaa", "aab", "aaaa")],
)
def test_feed_holds_back_what_may_be_a_stop_string(text: str, stop: str, shown: str) -> None:
    stopping = Stopping(99, stop=(stop,), decode=lambda ids: "".join(map(chr, ids)))
    feed = TextFeed(Letters(), stopping)
    pieces = [feed.push([ord(letter)]) for letter in text]
    assert "".join(pieces) + feed.flush() == shown
    assert stop not in "".join(pieces)
