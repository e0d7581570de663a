"""The repetition-aware reproduction: what a loop is, its settings, its claims follow the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decodery.core.decoder import Completion
from decodery.methods.sampling.repetition_aware import RepetitionAware
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_p import TopP
from decodery.reproductions import frame, repetition_aware_measure
from decodery.reproductions.repetition_aware import REPRODUCTION
from decodery.reproductions.repetition_aware_measure import (
    EXCLUDE,
    GREEDY,
    OPENINGS,
    PLAIN,
    WIDE,
    A,
    B,
    Setting,
    cells,
    loops,
    size,
    variety,
)

# -- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1, 2, 7, 12, 20])
def test_a_loop_has_three_rounds_and_repeats_24_tokens(period: int) -> None:
    phrase = list(range(100, 100 + period))
    beginning = [1, 2, 3, 4, 5]
    needed = max(3 * period, 24 + period)
    endless = beginning + phrase * 60
    assert loops(endless[: 5 + needed])
    assert not loops(endless[: 5 + needed - 1])


def test_what_is_no_loop() -> None:
    generator = np.random.default_rng(0)
    assert not loops([])
    assert not loops(generator.integers(0, 1000, 400).tolist())
    left = [*[1, 2, 3] * 30, 4]  # it was left
    assert not loops(left)
    changing = [token for i in range(30) for token in (1, 2, i)]
    assert not loops(changing)
    assert loops([1, 2, 3] * 30)


def test_variety() -> None:
    assert variety([1, 2, 3, 4]) == 1.0
    assert variety([1, 1, 1, 1, 1]) == pytest.approx(1 / 3)
    assert variety([1, 2]) == 1.0


def test_one_text_stands_for_all_seeds_where_nothing_is_drawn() -> None:
    def text(*tokens: int) -> Completion:
        notes = [-0.5, *[-1.0] * (len(tokens) - 2), -1.5]
        return Completion(tokens, "max_tokens", details={"log-prob": notes})

    looping = text(*[1, 2] * 20)
    measured = cells(
        {GREEDY: [[looping], [text(1, 2)]], PLAIN: [[text(1, 2, 3), looping], [looping, looping]]},
        seeds=2,
    )
    assert measured["loops"][GREEDY].tolist() == [[1, 1], [0, 0]]
    assert measured["loops"][PLAIN].tolist() == [[0, 1], [1, 1]]
    assert measured["tokens"][PLAIN].tolist() == [[3, 40], [40, 40]]
    assert measured["log-prob"][GREEDY].tolist() == [[-1, -1], [-1, -1]]


# -- settings -------------------------------------------------------------------------------------


def test_settings_are_the_products_samplers() -> None:
    assert GREEDY.chain().stages == (Temperature(0.0),)
    assert not GREEDY.draws
    assert Setting(0.4).chain().stages == (TopP(0.4),)
    assert Setting(0.4, B).chain().stages == (RepetitionAware(top_p=0.4),)
    assert Setting(0.0, A).chain().stages == (RepetitionAware(top_p=0.0, count_self=False),)
    wide = RepetitionAware(top_p=0.0, window=50, threshold=0.02)
    assert Setting(0.0, WIDE).chain().stages == (wide,)
    excluding = RepetitionAware(top_p=0.0, exclude_repeated=True)
    assert Setting(0.0, EXCLUDE).chain().stages == (excluding,)
    assert str(Setting(0.4, WIDE)) == "v=0.4 RAS B, K=50"
    assert str(GREEDY) == "v=0 no RAS"


def test_quick_is_part_of_full() -> None:
    assert set(size("quick").settings) < set(size("full").settings)
    assert len(set(OPENINGS)) == len(OPENINGS) == len(size("full").openings)


# -- claims follow the data -----------------------------------------------------------------------


def invented(loop_share: Callable[[Setting], float], mode: frame.Mode) -> frame.Measurements:
    """Noise-free cells; variety falls and sureness rises with the share of loops."""
    todo = size(mode)

    def filled(value: Callable[[Setting], float]) -> dict[Setting, np.ndarray]:
        return {setting: np.full((3, 2), value(setting)) for setting in todo.settings}

    return frame.Measurements(
        model="invented",
        seeds=(0, 1),
        cells={
            "loops": filled(loop_share),
            "distinct-3": filled(lambda setting: 1.0 - 0.8 * loop_share(setting)),
            "log-prob": filled(lambda setting: -1.0 - 2.0 * setting.top_p),
            "tokens": filled(lambda _: 100.0),
        },
    )


def as_the_paper_says(setting: Setting) -> float:
    if setting.rule is None:
        return 1.0 - setting.top_p
    return 0.1 if setting.rule == WIDE else 0.2


def without_effect(setting: Setting) -> float:
    return 1.0 - setting.top_p


QUICK = ("c", "d", "f2")
FULL = ("a1", "a2", "b", "e", "f1", *QUICK)


def verdicts(loop_share: Callable[[Setting], float], mode: frame.Mode) -> dict[str, str]:
    measured = invented(loop_share, mode)
    means, resampled = frame.cell_means(measured), frame.bootstrap(measured, 50)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in REPRODUCTION.claims
        if mode in claim.modes
    }


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_claims_follow_the_data(mode: frame.Mode) -> None:
    ids = {"quick": QUICK, "full": FULL}[mode]
    assert verdicts(as_the_paper_says, mode) == dict.fromkeys(ids, "confirmed")
    found = verdicts(without_effect, mode)
    assert {name for name in ids if found[name] == "confirmed"} <= {"d", "e"}


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured = invented(as_the_paper_says, mode)
    fake = replace(REPRODUCTION, measure=lambda *_: measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("repetition_aware", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


# -- the real thing -------------------------------------------------------------------------------


def test_a_small_run_on_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two openings, three settings, short texts: `measure` works together, seeds fix everything."""
    tiny = replace(
        size("quick"),
        settings=(GREEDY, Setting(0.0, B), PLAIN),
        openings=OPENINGS[:2],
        seeds=2,
        tokens=6,
    )
    monkeypatch.setattr(repetition_aware_measure, "size", lambda _: tiny)
    first, again = (repetition_aware_measure.measure("quick", 3, lambda *_: None) for _ in range(2))
    assert first.seeds == (3, 4)
    assert set(first.cells) == {"loops", "distinct-3", "log-prob", "tokens"}
    for name, settings in first.cells.items():
        for setting, values in settings.items():
            assert values.shape == (2, 2)
            np.testing.assert_array_equal(values, again.cells[name][setting])


@pytest.mark.slow
def test_the_quick_run(tmp_path: Path) -> None:
    """The whole quick mode; the claims with a wide margin must come out as they did."""
    result = frame.reproduce("repetition_aware", "quick", out=tmp_path)
    found = {outcome.claim.id: outcome.verdict for outcome in result.outcomes}
    assert found == dict.fromkeys(QUICK, "confirmed")
    assert result.figure.is_file()
