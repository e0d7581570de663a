"""The min-p reproduction: its draws are the product's draws, its counting and selection are right,
its claims follow the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decodery.core.decoder import Completion, Task
from decodery.core.errors import CapacityError, ParameterError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import run_alone
from decodery.core.sampler import Context, chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.sample import Sample
from decodery.methods.sampling.min_p import MinP
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_p import TopP
from decodery.models.table import TableModel
from decodery.reproductions import frame, min_p_measure
from decodery.reproductions.graded import GradedDraws
from decodery.reproductions.min_p import REPRODUCTION
from decodery.reproductions.min_p_fair import best_settings, fair_accuracy
from decodery.reproductions.min_p_settings import (
    CHANCE,
    MIN_P,
    OWN,
    STRENGTHS,
    TOP_P,
    Setting,
    family,
    grid,
    size,
)
from decodery.reproductions.min_p_tasks import candidates, grade

LETTERS = "abcdef"
EOS = 5
CHAINS = (
    chain(Temperature(2.0), MinP(0.1)),
    chain(TopP(0.9), Temperature(1.5)),
    chain(),
)


def letters(tokens: Sequence[int]) -> str:
    return "".join(LETTERS[token] for token in tokens)


def table() -> TableModel:
    return TableModel.random(6, 2, seed=4, eos_ids=frozenset({EOS}))


def task(source: TableModel, sampler: Any, seed: int = 0, max_tokens: int = 5) -> Task:
    stopping = Stopping(max_tokens, eos_ids=source.eos_ids)
    return Task(Policy(source, sampler), (0, 1), stopping, Stream(seed), decode=letters)


def starts_with_b(text: str, ended: bool) -> bool | None:
    """Undecided as long as the text is b's only, right at an end after at least one."""
    if ended:
        return bool(text) and set(text) == {"b"}
    return None if set(text) <= {"b"} else False


def never_decided(_text: str, _ended: bool) -> bool | None:
    return None


# -- graded draws are plain draws -----------------------------------------------------------------


def test_graded_draws_equal_plain_sampling() -> None:
    """Draw i of a chain and a seed is sequence i of a `sample` run, cut where it was decided."""
    source, seeds, draws = table(), (3, 8), 60
    decoder = GradedDraws(CHAINS, tuple(map(Stream, seeds)), draws, starts_with_b)
    graded = run_alone(decoder, task(source, chain()))
    place = 0
    for sampler in CHAINS:
        for seed in seeds:
            for plain in run_alone(Sample(draws), task(source, sampler, seed)):
                answer = graded[place]
                text = letters([token for token in plain.tokens if token != EOS])
                assert answer.tokens == plain.tokens[: len(answer.tokens)]
                assert answer.score == float(starts_with_b(text, True))
                assert answer.sequence == place
                place += 1
    assert place == len(graded)
    assert 0 < sum(answer.score or 0 for answer in graded) < len(graded)


def test_each_prefix_is_grown_once() -> None:
    """Only b-prefixes are undecided: the prompt and at most one node a length, for 360 draws."""
    source = table()
    decoder = GradedDraws(CHAINS, (Stream(0), Stream(1)), 60, starts_with_b)
    run_alone(decoder, task(source, chain()))
    assert source.calls <= 5
    assert source.tokens_alive == 0


def test_graded_draws_refuse_what_they_cannot_honour() -> None:
    decoder = GradedDraws(CHAINS, (Stream(0),), 2, starts_with_b)
    with pytest.raises(ParameterError, match="bare source"):
        run_alone(decoder, task(table(), chain(MinP(0.1))))
    crowded = GradedDraws((chain(),), (Stream(0),), 200, never_decided, most_nodes=1)
    with pytest.raises(CapacityError, match="most_nodes 1 "):
        run_alone(crowded, task(table(), chain()))


# -- counting and selection -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ended", "right"),
    [
        (" William Shakespeare\n", False, True),
        (" william shakespeare.\n\nQ", False, True),
        (" William", False, None),
        (" William Shakespeare", False, None),
        (" William Shakespeare", True, True),
        (" William Shakespeares", False, False),
        (" William", True, False),
        ("\nWilliam Shakespeare\n", False, False),
        (" The", False, False),
        ("", False, None),
        ("", True, False),
        (" \ufffd", False, False),
    ],
)
def test_grading(text: str, ended: bool, right: bool | None) -> None:
    assert grade("William Shakespeare", text, ended) is right


def test_every_answer_grades_right_and_stays_open_on_the_way() -> None:
    for item in candidates():
        for end in range(len(item.answer)):
            assert grade(item.answer, " " + item.answer[:end], False) is None
        assert grade(item.answer, f" {item.answer}\n", False) is True


def test_items_are_selected_by_greedy_answers_alone() -> None:
    """[items, greedy + settings, seeds]: the second item is left out though sampling gets it."""
    settings = (Setting(1.0), Setting(2.0))
    graded = np.array(
        [
            [[1.0, 1.0], [0.5, 0.7], [0.1, 0.3]],
            [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]],
            [[1.0, 1.0], [0.2, 0.4], [0.0, 0.0]],
        ]
    )
    assert min_p_measure.selected(graded).tolist() == [True, False, True]
    todo = replace(size("quick"), graded=settings, seeds=2)
    cells = min_p_measure.accuracies(["facts", "facts", "copy"], graded, todo)
    np.testing.assert_allclose(cells["accuracy"][settings[0]], [[0.5, 0.7], [0.2, 0.4]])
    np.testing.assert_allclose(cells["facts"][settings[1]], [[0.1, 0.3]])
    np.testing.assert_allclose(cells["copy"][settings[0]], [[0.2, 0.4]])
    np.testing.assert_allclose(cells["accuracy to choose"][settings[0]], [[0.5], [0.2]])
    np.testing.assert_allclose(cells["accuracy to judge"][settings[0]], [[0.7], [0.4]])


def test_text_statistics() -> None:
    texts = [
        Completion((1, 2, 1, 2), "max_tokens", log_probability=-6.0),
        Completion((2, 1), "eos", log_probability=-3.0),
    ]
    assert min_p_measure.distinct_2(texts) == pytest.approx(2 / 4)
    assert min_p_measure.distinct_2([Completion((1,), "eos")]) == 0.0
    assert min_p_measure.mean_log_probability(texts) == pytest.approx(-9 / 6)


# -- settings -------------------------------------------------------------------------------------


def test_the_order_is_in_the_chain() -> None:
    assert Setting(2.0, *MIN_P).chain().stages == (Temperature(2.0), MinP(0.1))
    assert Setting(2.0, *MIN_P, last=True).chain().stages == (MinP(0.1), Temperature(2.0))
    assert str(Setting(2.0, *MIN_P, last=True)) == "min_p 0.1 T=2 last"
    assert Setting(3.0).chain().stages == (Temperature(3.0),)


def test_top_k_keeps_the_same_set_in_both_orders() -> None:
    """Why it is run in one order only."""
    scores = np.random.default_rng(0).normal(0, 3, 200)
    context, rows = Context((0,), 1), []
    for last in (False, True):
        sampler = Setting(2.0, "top_k", 40, last).chain()
        rows.append(sampler.apply(Row.dense(scores), sampler.start(context), context))
    assert rows[0].token_ids().tolist() == rows[1].token_ids().tolist()
    np.testing.assert_allclose(rows[0].probabilities(), rows[1].probabilities(), atol=1e-12)


def test_grids_are_equal_and_cover_the_claims() -> None:
    assert len(family("min_p")) == len(family("top_p")) == 2 * len(family("top_k")) == 30
    assert set(grid([TOP_P, MIN_P])) <= set(size("quick").graded) < set(size("full").graded)
    assert {setting for name in STRENGTHS for setting in family(name)} <= set(size("full").written)


# -- claims follow the data -----------------------------------------------------------------------


def invented(accuracy: Any, mode: frame.Mode = "full") -> frame.Measurements:
    """Noise-free cells: `accuracy(setting)`, distinct-2 growing with T, and invented coherence."""
    todo = size(mode)
    coherence = {
        OWN: -3.0,
        CHANCE: -15.0,
        Setting(3.0, *MIN_P): -5.0,
        Setting(3.0, *TOP_P): -12.0,
    }

    def cells(settings: Sequence[Setting], value: Any) -> dict[Setting, Any]:
        return {setting: np.full((3, 2), value(setting)) for setting in settings}

    graded = cells(todo.graded, accuracy)
    return frame.Measurements(
        model="invented",
        seeds=(0, 1),
        cells={
            **dict.fromkeys(("accuracy", "accuracy to choose", "accuracy to judge"), graded),
            "log-prob": cells(todo.written, lambda setting: coherence.get(setting, -4.0)),
            "distinct-2": cells(
                todo.written, lambda setting: min(1.0, 0.5 + setting.temperature / 4)
            ),
        },
    )


def as_the_paper_says(setting: Setting) -> float:
    if setting.temperature < 2:
        return 0.9
    if setting.last:
        return 0.8
    return 0.5 if setting.sampler == "min_p" else 0.0


def the_other_way(setting: Setting) -> float:
    return {"min_p": 0.1, "top_p": 0.5}.get(setting.sampler, 0.3)


def verdicts(measurements: frame.Measurements) -> dict[str, str]:
    means, resampled = frame.cell_means(measurements), frame.bootstrap(measurements, 50)
    return {claim.id: frame.judge(claim, means, resampled).verdict for claim in REPRODUCTION.claims}


def test_claims_hold_on_data_as_the_paper_says() -> None:
    found = verdicts(invented(as_the_paper_says))
    assert found == {
        **dict.fromkeys(("a", "b", "c1", "c2", "c3", "d"), "confirmed"),
        "e": "not confirmed",  # all families reach 0.9 at T = 1: no lead when each is at its best
    }


def test_claims_fail_on_data_the_other_way() -> None:
    found = verdicts(invented(the_other_way))
    assert found["a"] == found["b"] == found["c1"] == found["e"] == "not confirmed"


def test_the_fair_choice_respects_diversity() -> None:
    """T = 0.7 is the most accurate and not diverse enough; the best of the others is chosen."""

    def accuracy(setting: Setting) -> float:
        bonus = 0.05 if setting.sampler == "min_p" and setting.last else 0.0
        return 1.0 - setting.temperature / 4 + bonus

    means = frame.cell_means(invented(accuracy))
    assert float(fair_accuracy(means, "top_p")) == pytest.approx(0.75)
    assert float(fair_accuracy(means, "min_p")) == pytest.approx(0.80)
    chosen = best_settings(means)
    assert {setting.temperature for setting in chosen.values()} == {1.0}
    assert chosen["min_p"].last
    raised = {**means, ("distinct-2", OWN): np.asarray(1.1)}  # out of reach: the most diverse
    assert best_settings(raised)["top_p"].temperature >= 2


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured = invented(as_the_paper_says, mode)
    fake = replace(REPRODUCTION, measure=lambda *_: measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("min_p", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


# -- the real thing -------------------------------------------------------------------------------


def test_a_small_run_on_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two items, one opening: every part of `measure` works together, and seeds fix everything."""
    hot = Setting(2.0, *MIN_P)
    tiny = replace(
        size("quick"), graded=(OWN, hot), written=(OWN,), draws=2, seeds=2, text_tokens=3
    )
    monkeypatch.setattr(min_p_measure, "size", lambda _: tiny)
    monkeypatch.setattr(min_p_measure, "candidates", lambda: [candidates()[0], candidates()[-1]])
    monkeypatch.setattr(min_p_measure, "OPENINGS", ("Once upon a time",))
    first, again = (min_p_measure.measure("quick", 3, lambda *_: None) for _ in range(2))
    assert first.seeds == (3, 4)
    assert set(first.cells) >= {"accuracy", "facts", "copy", "log-prob", "distinct-2"}
    assert first.cells["log-prob"][OWN].shape == (1, 2)
    for name, settings in first.cells.items():
        for setting, values in settings.items():
            np.testing.assert_array_equal(values, again.cells[name][setting])


@pytest.mark.slow
def test_the_quick_run(tmp_path: Path) -> None:
    """The whole quick mode; the two claims with a wide margin must come out as they did."""
    result = frame.reproduce("min_p", "quick", out=tmp_path)
    found = {outcome.claim.id: outcome.verdict for outcome in result.outcomes}
    assert found["a"] == found["d"] == "confirmed"
    assert result.figure.is_file()
