"""The training of a drafter: records of the model's own laws, shortlists by hand, a fit that finds
what is there, numpy that says what torch says, and a run that is interrupted and goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decodery.api.language_model import LanguageModel
from decodery.core.errors import DecoderyError, ModelFileError, ParameterError
from decodery.methods.speculative.distilled_head import Head
from decodery.training.drafter import (
    TRAINING,
    Params,
    distil,
    fit,
    prompts,
    record,
    self_written,
    shortlist,
)  # fmt: skip
from decodery.training.drafter.record import TOP, Record
from decodery.training.frame import train
from decodery.training.run import Run
from decodery.training.tools import hidden_states


@pytest.fixture(autouse=True)
def few_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recorded(texts: Sequence[Sequence[int]], after: Any, vocab_size: int) -> Record:
    """A record of texts in which the law after tokens `before + token` is certain: `after`."""
    tokens, hidden, top, log_chances = [], [], [], []
    for text in texts:
        for place, token in enumerate(text):
            tokens.append(token)
            hidden.append(np.eye(vocab_size)[token])
            best = after(text[max(0, place - 1)], token)
            top.append([best] + [(best + 1) % vocab_size] * (TOP - 1))
            log_chances.append([0.0] + [-60.0] * (TOP - 1))
    return Record(
        torch.tensor(tokens),
        torch.tensor(np.array(hidden)).half(),
        torch.tensor(top),
        torch.tensor(log_chances),
        torch.tensor([len(text) for text in texts]),
        record._greedy(len(texts)),
    )


# -- shortlists --------------------------------------------------------------------------------


def test_successors_are_those_that_laws_name_most_often() -> None:
    """Five tokens, of which 4 is never named and so no word; after 0 comes 1 twice and 2 once."""
    texts = [(0, 1, 0, 2, 3), (0, 1, 3, 3, 3)]
    follows = {(0, 0): 1, (0, 1): 0, (1, 0): 2, (0, 2): 3, (2, 3): 3, (1, 3): 3, (3, 3): 3}
    data = recorded(texts, lambda before, token: follows[before, token], 5)
    masses = shortlist.laws(data, 1.0)
    lists = shortlist.shortlists(data, masses, vocab_size=5, vocabulary=4, count=2)
    assert lists.tokens.tolist() == [0, 1, 2, 3]
    assert lists.word_of.tolist() == [0, 1, 2, 3, 4]
    assert lists.successors[0].tolist() == [1, 2] or lists.successors[0].tolist() == [1, 3]
    counts = dict(zip(lists.successors[0].tolist(), lists.counts[0].tolist(), strict=True))
    assert counts[1] == pytest.approx(2.0)
    assert lists.totals.tolist() == pytest.approx([3.0, 2.0, 1.0, 4.0, 0.0])
    assert float(lists.common.sum()) == pytest.approx(1.0)
    named = masses[:, 0].sum() / 10
    assert float(lists.common[3]) == pytest.approx(0.5 * float(named), abs=1e-6)


def test_a_position_does_not_count_in_its_own_feature() -> None:
    """Leaving a position out gives the feature of a record without it, but for u, which is the
    same for all."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(6, size=30).tolist() for _ in range(4)]
    data = recorded(texts, lambda before, token: (before + 2 * token) % 6, 6)
    masses = shortlist.laws(data, 0.7)
    lists = shortlist.shortlists(data, masses, 6, 6, 4)
    words, slots, inside = shortlist.targets(lists, data, masses)
    found = lists.others(words, slots, inside)
    for place in (0, 7, 63):
        word = int(words[place])
        own = torch.zeros(6).index_add_(0, data.top[place], masses[place])
        near = lists.successors[word]
        mass = (lists.counts[word] - own[near]).clamp(min=0) + shortlist.PRIOR * lists.common[near]
        total = lists.totals[word] - float(inside[place].sum()) + shortlist.PRIOR
        torch.testing.assert_close(found[place], (mass / total).clamp(min=1e-12).log())
    assert not torch.allclose(found, lists.features()[words])


def test_slots_are_where_tokens_stand() -> None:
    generator = np.random.default_rng(1)
    texts = [generator.integers(9, size=40).tolist() for _ in range(3)]
    data = recorded(texts, lambda before, token: (before + token) % 9, 9)
    lists = shortlist.shortlists(data, shortlist.laws(data, 1.0), 9, vocabulary=7, count=3)
    for token in range(9):
        word = int(lists.word_of[token])
        slots = lists.slots(torch.tensor([word]), torch.arange(9)[None])[0].tolist()
        for other, slot in enumerate(slots):
            wanted = int(lists.word_of[other])
            there = wanted < 7 and wanted in lists.successors[word].tolist()
            assert (slot >= 0) == there
            if there:
                assert int(lists.successors[word, slot]) == wanted


# -- the fit -----------------------------------------------------------------------------------

TOKENS = 12
RULE = np.random.default_rng(5).integers(TOKENS, size=(TOKENS, TOKENS))


def rule(before: int, token: int) -> int:
    return int(RULE[before, token])


def ruled(count: int, seed: int) -> Record:
    """Texts in which the law after two tokens is certain; one token in four is another one."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        text = generator.integers(TOKENS, size=2).tolist()
        while len(text) < 16:
            strays = generator.random() < 0.25
            text.append(int(generator.integers(TOKENS)) if strays else rule(text[-2], text[-1]))
        texts.append(text)
    return recorded(texts, rule, TOKENS)


SMALL_HEAD: dict[str, Any] = {
    "vocabulary": TOKENS, "shortlist": TOKENS, "state": 24, "inner": 48, "factors": 8, "depth": 3,
    "epochs": 10, "batch": 64, "learning_rate": 1e-2, "warmup": 10, "text_temperature": 1.0,
    "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    torch.set_num_threads(1)
    params = Params(**SMALL_HEAD)
    run = Run(tmp_path_factory.mktemp("fit") / "run", "drafter")
    run.begin()
    data = ruled(150, seed=0)
    lists = shortlist.shortlists(data, shortlist.laws(data, 1.0), TOKENS, TOKENS, TOKENS)
    lessons = fit.Lessons.of(data, lists, 1.0)
    embedding = torch.randn(TOKENS, TOKENS, generator=torch.Generator().manual_seed(0))
    known = fit.standardised(lists, embedding)
    begin = fit.with_tables(fit.initial(params, known), known)
    with torch.no_grad():
        before = float(fit.loss_at(begin, lists, lessons, lessons.starts, 3))
    weights = fit.fit(params, run, lists, lessons, embedding)
    with torch.no_grad():
        after = float(fit.loss_at(weights, lists, lessons, lessons.starts, 3))
    tensors = distil.exported(weights, lists, 1.0)
    return params, lists, tensors, before, after


def test_the_fit_finds_a_rule_that_no_shortlist_knows(fitted: tuple[Any, ...]) -> None:
    """A token follows from the two before it. The token before the last is in the hidden state at
    the first guess and in the head's own state later; the last token alone decides little."""
    params, lists, tensors, before, after = fitted
    assert after < 0.3 * before
    held = ruled(40, seed=1)
    weights = {name: value.float() for name, value in tensors.items()}
    hits, overlap = distil.acceptance(weights, lists, held, params, greedy=True)
    assert hits[0] > 0.8
    assert hits[2] > 0.7 * hits[0] * 0.75**2  # as the text goes on by the rule so often
    assert 0.6 < overlap <= 1.0
    deaf = {**weights, "first": 0 * weights["first"], "next": 0 * weights["next"]}
    assert distil.acceptance(deaf, lists, held, params, greedy=True)[0][0] < 0.5


def test_numpy_says_what_torch_says(fitted: tuple[Any, ...]) -> None:
    _, lists, tensors, _, _ = fitted
    weights = {name: value.float() for name, value in tensors.items()}
    head = Head.of({name: value.float().numpy() for name, value in tensors.items()}, TOKENS)
    generator = np.random.default_rng(3)
    hidden = generator.normal(size=(20, TOKENS)).astype(np.float32)
    path = generator.integers(TOKENS, size=(20, 4))
    words = torch.from_numpy(path)
    states = fit.begun(weights, torch.from_numpy(hidden), lists.word_of[words[:, 0]])
    thoughts = [head.begin(row, int(token)) for row, token in zip(hidden, path[:, 0], strict=True)]
    for level in range(4):
        word = lists.word_of[words[:, level]]
        said = fit.products(weights, lists, states, word) + weights["scores"][word]
        for row, thought in enumerate(thoughts):
            law = head.law(thought)
            expected = torch.softmax(said[row].double(), -1).numpy()
            np.testing.assert_allclose(law.masses, expected, rtol=2e-4, atol=1e-7)
            assert law.ids.tolist() == lists.tokens[lists.successors[word[row]]].tolist()
        if level < 3:
            states = fit.continued(weights, states, lists.word_of[words[:, level + 1]])
            thoughts = [
                head.after(thought, int(token))
                for thought, token in zip(thoughts, path[:, level + 1], strict=True)
            ]


def test_acceptance_is_that_of_drafts_made_one_by_one(fitted: tuple[Any, ...]) -> None:
    """What is measured in bulk is what a head's own chains give, each compared with its text."""
    params, lists, tensors, _, _ = fitted
    weights = {name: value.float() for name, value in tensors.items()}
    head = Head.of({name: value.float().numpy() for name, value in tensors.items()}, TOKENS)
    held = ruled(10, seed=2)
    hits, counts = np.zeros(3), np.zeros(3)
    for text in held.tokens.reshape(10, 16).tolist():
        for start in range(1, 16):
            thought = head.begin(np.eye(TOKENS)[text[start - 1]], text[start])
            alive = True
            for place in range(start, min(start + 3, 16)):
                ((token, _),) = head.best(thought, 1)
                hits[place - start] += alive and token == rule(text[place - 1], text[place])
                counts[place - start] += 1
                if place + 1 < 16:
                    alive = alive and token == text[place + 1]
                    thought = head.after(thought, text[place + 1])
    found, _ = distil.acceptance(weights, lists, held, params, greedy=True)
    np.testing.assert_allclose(found, hits / counts, atol=1e-9)


def test_a_fit_that_diverges_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "drafter")
    run.begin()
    params = Params(**{**SMALL_HEAD, "epochs": 1})
    data = ruled(4, seed=0)
    data.hidden[:] = torch.inf
    lists = shortlist.shortlists(data, shortlist.laws(data, 1.0), TOKENS, TOKENS, TOKENS)
    lessons = fit.Lessons.of(data, lists, 1.0)
    with pytest.raises(DecoderyError, match="the loss is nan at step 0; lower learning_rate"):
        fit.fit(params, run, lists, lessons, torch.eye(TOKENS))


def test_units_are_left_out_by_seed_and_step() -> None:
    ones = torch.ones(200, 50)
    one, same = (fit.dropping(0.2, 0, 7)(ones) for _ in range(2))
    assert (one == same).all()
    assert set(one.unique().tolist()) == {0.0, 1.25}
    assert float((one == 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert not (fit.dropping(0.2, 0, 8)(ones) == one).all()
    assert fit.dropping(0.0, 0, 7)(ones) is ones


def test_texts_are_held_out_in_pairs() -> None:
    """Of 80 texts the last two of each 40, one greedy and one drawn; of fewer, none."""
    data = recorded([(0, 1)] * 80, lambda *_: 0, 3)
    learnt, held = data.split()
    assert (len(learnt.lengths), len(held.lengths)) == (76, 4)
    assert held.greedy.tolist() == [True, False] * 2
    few = recorded([(0, 1)] * 5, lambda *_: 0, 3)
    assert few.split() == (few, few)


# -- prompts -----------------------------------------------------------------------------------


def test_templates_are_filled_and_equal_seeds_give_equal_prompts() -> None:
    first = prompts.first_round(400, 0)
    assert first == prompts.first_round(400, 0)
    assert first[:100] == prompts.first_round(100, 0)
    assert first != prompts.first_round(400, 1)
    texts = [item[0]["content"] for item in first]
    assert not any("{" in text or "}" in text for text in texts)
    assert len(set(texts)) > 350
    answers = [f"An answer with {{braces}} {number}." for number in range(399)] + ["  "]
    second = prompts.second_round(first, answers, 0)
    assert second == prompts.second_round(first, answers, 0)
    assert len(second) == 400
    assert all(item[-1]["role"] == "user" for item in second)
    assert {len(item) for item in second} == {1, 3}
    assert any("{braces}" in item[-1]["content"] for item in second)


def test_every_other_prompt_may_be_the_models_own() -> None:
    """One of each pair of places, as many even ones (greedy) as odd ones (drawn)."""
    own = ["a", None, "c", "d"]
    assert record._spread(own, 9) == ["a", None, None, None, "c", None, None, "d", None]


# -- a whole run -------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "answers": 6, "text_tokens": 7, "vocabulary": 40, "shortlist": 8, "state": 16, "inner": 16,
    "factors": 8, "depth": 3, "epochs": 3, "batch": 8, "warmup": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(default_lm: LanguageModel) -> Iterator[LanguageModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decodery.api.load.load", lambda _: default_lm)
        yield default_lm


@pytest.fixture(scope="module")
def whole(loaded: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(TRAINING, SMALL, folder)
    return folder


def test_a_run_makes_a_drafter_for_its_model(loaded: LanguageModel, whole: Path) -> None:
    head = Head.of(loaded.part("drafter", str(whole / "drafter.safetensors")), loaded.vocab_size)
    assert head.width == loaded.identity.width
    report = json.loads((whole / "report.json").read_text())
    assert report["facts"]["texts"] == 6
    assert 0 <= report["facts"]["greedy: 1 accepted"] <= 1
    law = head.law(head.begin(np.ones(head.width), 5))
    assert law.masses.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "place",
    [pytest.param("first-00000", marks=pytest.mark.slow), "fit"],
)
def test_an_interrupted_run_ends_as_if_it_was_not(
    place: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, steps = Run.kept, Run.steps

    def keeping(self: Run, name: str, make: Any) -> Any:
        made = kept(self, name, make)
        if name == place:
            signal.raise_signal(signal.SIGINT)
        return made

    def stepping(self: Run, phase: str, total: int, state: Any) -> Any:
        for step in steps(self, phase, total, state):
            if place == "fit" and step == 4:
                signal.raise_signal(signal.SIGINT)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(Run, "kept", keeping)
        patch.setattr(Run, "steps", stepping)
        with pytest.raises(KeyboardInterrupt):
            train(TRAINING, SMALL, tmp_path / "run")
    train(TRAINING, {}, tmp_path / "run", resume=True)
    for name in ("drafter.safetensors", "report.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_prompts_that_a_model_writes_begin_where_a_user_does(loaded: LanguageModel) -> None:
    before = self_written.opening(loaded)
    asked = loaded.read([{"role": "user", "content": "Name a bird."}]).tokens
    said = loaded.read("Name a bird.", raw=True).tokens
    assert asked[: len(before) + len(said)] == (*before, *said)


def test_a_template_without_a_place_for_a_user_is_refused(
    loaded: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(loaded.language), "chat_text", lambda *_: "no place")
    with pytest.raises(ParameterError, match="does not show where a user begins; give prompts"):
        self_written.opening(loaded)


def test_half_of_what_is_asked_first_is_the_models_own(
    loaded: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Asked(Exception):
        pass

    def answered(*arguments: Any) -> Any:
        asked.extend(conversation[-1]["content"] for conversation in arguments[-1])
        raise Asked

    monkeypatch.setattr(record, "self_written", lambda *_: ["own 1", "own 2"])
    monkeypatch.setattr(record, "_answered", answered)
    given: Any = [[{"role": "user", "content": f"given {number}"}] for number in range(5)]
    for params, expected in (
        (Params(), ["own 1", "given 1", "given 2", "own 2", "given 4"]),
        (Params(prompts=("file",)), [f"given {number}" for number in range(5)]),
    ):
        asked.clear()
        with pytest.raises(Asked):
            record.recorded(loaded, params, None, given)  # type: ignore[arg-type]
        assert asked == expected


def test_only_prompts_that_end_are_used(
    loaded: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws cut short: prompts that were longer are none, the others as before."""

    def written(folder: str, longest: int) -> list[str | None]:
        monkeypatch.setattr(self_written, "LONGEST", longest)
        with Run(tmp_path / folder, "drafter") as run:
            run.begin()
            return self_written.self_written(loaded, 0, run, 12)

    long, short = written("long", 24), written("short", 14)
    lengths = [0 if text is None else len(loaded.tokenizer.encode(text)) for text in long]
    assert any(13 < length <= 23 for length in lengths)
    assert any(0 < length <= 13 for length in lengths)
    assert short == [
        text if length <= 13 else None for text, length in zip(long, lengths, strict=True)
    ]


def test_what_is_recorded_is_what_the_model_says(loaded: LanguageModel) -> None:
    """Tokens, hidden states and laws of an answer, against one forward over the whole text."""
    params = Params(text_tokens=6)
    said = [[{"role": "user", "content": "Name a colour."}]] * 2
    batch = record._write(loaded, params, 0, said, 0)
    prompt = loaded.read(said[0]).tokens
    parts = batch["tokens"].split(batch["lengths"].tolist())
    row = 0
    for number, part in enumerate(parts):
        assert int(part[0]) == prompt[-1]
        states = hidden_states(loaded.transformer, [*prompt, *part[1:].tolist()])[len(prompt) - 1 :]
        chances = loaded.transformer.logits(states).log_softmax(-1)
        best = chances.topk(TOP)
        rows = slice(row, row + len(part))
        assert (batch["hidden"][rows] == states.half()).all()
        assert (batch["top"][rows, 0] == best.indices[:, 0]).all()
        torch.testing.assert_close(
            batch["log_chances"][rows].float(), best.values, atol=0.02, rtol=1e-3
        )
        if number == 0:  # greedy: the next token is the most probable one
            assert (part[1:] == best.indices[:-1, 0]).all()
        row += len(part)
    assert row == len(batch["tokens"])


def test_output_embeddings_are_those_of_the_model(loaded: LanguageModel) -> None:
    """Within what multiplying with codes rounds away: a hundredth of the logits."""
    embedding = distil.output_embedding(loaded.transformer)
    states = torch.randn(3, embedding.shape[1], generator=torch.Generator().manual_seed(0))
    expected = loaded.transformer.logits(states)
    assert float((states @ embedding.T - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b" \n\n", ParameterError, "hold no prompt; give lines of text"),
        (b"\xff\xfe\n", ModelFileError, "is not UTF-8 text"),
        (None, ModelFileError, "cannot be read: No such file"),
    ],
)
def test_files_of_prompts_that_cannot_be_used_are_refused_before_a_model_is_loaded(
    content: bytes | None, kind: type[Exception], reason: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.delattr("decodery.api.load.load")
    with pytest.raises(kind, match=reason):
        train(TRAINING, {"prompts": (str(path),)}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prompts_of_files_are_asked_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("One?\n\nTwo?\n", encoding="utf-8")
    found = record.given(Params(prompts=(str(path),)))
    assert [item[0]["content"] for item in found] == ["One?", "Two?"]
