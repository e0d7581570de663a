"""The reproduction of integrative decoding: what is right, and claims that follow the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decodery.api.language_model import LanguageModel
from decodery.reproductions import frame, integrative_measure
from decodery.reproductions.integrative import REPRODUCTION, fused, slope
from decodery.reproductions.integrative_measure import (
    GREEDY,
    SAMPLE,
    Setting,
    Size,
    agreement,
    cells,
    medoid,
    size,
)
from decodery.reproductions.integrative_tasks import QUESTIONS, Question, is_right

# -- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It was written by William Shakespeare.", True),
        ("SHAKESPEARE'S play", True),
        ("Shakespearean actors", False),
        ("Christopher Marlowe", False),
        ("", False),
    ],
)
def test_what_is_right(answer: str, right: bool) -> None:
    assert is_right(QUESTIONS[0], answer) == right


def test_questions_are_told_apart_from_their_answers() -> None:
    assert len({question.text for question in QUESTIONS}) == len(QUESTIONS) == 96
    assert not any(is_right(question, question.text) for question in QUESTIONS)


def test_the_medoid_agrees_most() -> None:
    answers = ["a b c d", "a b c e", "a b c d", "x y z"]
    assert medoid(answers) == "a b c d"
    assert medoid(["only"]) == "only"
    assert agreement("a b", ["a b", "c d"]) == 0.5


def test_cells_are_what_they_say() -> None:
    todo = Size((1, 2), (Question("?", ("yes",)), Question("!", ("no",))), 5, 2)
    drawn = [
        [["yes", "maybe"], ["yes", "yes"]],
        [["yes", "no it is"], ["no", "no"]],
    ]
    texts = {
        GREEDY: [["yes", "yes"], ["yes", "yes"]],
        Setting("fused", 2): [["maybe", "yes"], ["no", "yes no"]],
    }
    found = cells(todo, texts, drawn)
    assert found["accuracy"][GREEDY].tolist() == [[1, 1], [0, 0]]
    assert found["accuracy"][Setting("fused", 2)].tolist() == [[0, 1], [1, 1]]
    assert found["accuracy"][SAMPLE].tolist() == [[0.5, 1], [0.5, 1]]
    assert found["agreement"][GREEDY].tolist() == [[0.5, 1], [0.5, 0]]
    assert found["agreement"][SAMPLE].tolist() == [[0, 1], [0, 1]]


# -- claims follow the data -----------------------------------------------------------------------


def settings(mode: frame.Mode) -> list[Setting]:
    todo = size(mode)
    return [GREEDY, SAMPLE, todo.chosen, *todo.fused]


def invented(law: Callable[[Setting], float], mode: frame.Mode) -> frame.Measurements:
    """Cells without noise; agreement follows accuracy."""
    filled = {item: np.full((5, 2), law(item)) for item in settings(mode)}
    return frame.Measurements("invented", (0, 1), {"accuracy": filled, "agreement": filled})


def as_the_paper_says(setting: Setting) -> float:
    if setting.way == "fused":
        return 0.4 + 0.05 * np.log2(setting.answers)
    return {"greedy": 0.4, "sample": 0.35, "chosen": 0.45}[setting.way]


def the_other_way(setting: Setting) -> float:
    return 0.25 - 0.05 * np.log2(setting.answers) if setting.way == "fused" else 0.6


def verdicts(law: Callable[[Setting], float], mode: frame.Mode) -> dict[str, str]:
    measured = invented(law, mode)
    means, resampled = frame.cell_means(measured), frame.bootstrap(measured, 20)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in REPRODUCTION.claims
        if mode in claim.modes
    }


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_claims_follow_the_data(mode: frame.Mode) -> None:
    ids = {"quick": "abcde", "full": "abcdef"}[mode]
    assert verdicts(as_the_paper_says, mode) == dict.fromkeys(ids, "confirmed")
    assert verdicts(the_other_way, mode) == dict.fromkeys(ids, "not confirmed")


def test_the_slope_is_least_squares() -> None:
    values = {1: 0.1, 2: 0.5, 4: 0.3, 8: 0.9, 16: 0.7}
    measured = invented(lambda item: values.get(item.answers, 0.0), "full")
    means = frame.cell_means(measured)
    wanted = np.polyfit(np.log2(list(values)), list(values.values()), 1)[0]
    assert float(slope(means)) == pytest.approx(wanted)
    assert slope(frame.bootstrap(measured, 7)).shape == (7,)
    assert [item.answers for item in fused(means)] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured = invented(as_the_paper_says, mode)
    fake = replace(REPRODUCTION, measure=lambda *_: measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("integrative", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


# -- the real thing -------------------------------------------------------------------------------


def test_a_small_run_on_the_embedded_model(
    default_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two questions, K = 1 and 3: `measure` works together, and seeds fix everything."""
    tiny = Size((1, 3), QUESTIONS[:2], 6, 2)
    monkeypatch.setattr(integrative_measure, "size", lambda _: tiny)
    monkeypatch.setattr("decodery.api.load.load", lambda: default_lm)
    steps: list[float] = []
    first, again = (
        integrative_measure.measure("quick", 3, lambda done, all: steps.append(done / all))
        for _ in range(2)
    )
    assert first.seeds == (3, 4)
    assert max(steps) == 1
    wanted = {GREEDY, SAMPLE, Setting("chosen", 3), Setting("fused", 1), Setting("fused", 3)}
    for name, found in first.cells.items():
        assert set(found) == wanted
        for setting, values in found.items():
            assert values.shape == (2, 2)
            np.testing.assert_array_equal(values, again.cells[name][setting])


@pytest.mark.slow
def test_the_quick_run(tmp_path: Path) -> None:
    """The whole quick mode; a claim with a wide margin must come out as it did."""
    result = frame.reproduce("integrative", "quick", out=tmp_path)
    found = {outcome.claim.id: outcome.verdict for outcome in result.outcomes}
    assert found.keys() == set("abcde")
    assert result.figure.is_file()
