"""The mirostat reproduction: its numbers are what they say, and its claims follow the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from decodery.core.decoder import Completion
from decodery.methods.sampling.mirostat import Mirostat
from decodery.methods.sampling.top_k import TopK
from decodery.methods.sampling.top_p import TopP
from decodery.reproductions import frame, mirostat_measure
from decodery.reproductions.mirostat import REPRODUCTION, rank_correlation, straightness
from decodery.reproductions.mirostat_settings import (
    NARROW,
    OWN,
    PROMPTS,
    TOP_K,
    TOP_P,
    Setting,
    settings,
    size,
)

# -- settings --------------------------------------------------------------------------------------


def test_settings_are_the_chains_they_name() -> None:
    assert Setting("top_k", 20).chain().stages == (TopK(20),)
    assert Setting("top_p", 0.6).chain().stages == (TopP(0.6),)
    assert Setting("v1", 2.0).chain().stages == (Mirostat(2.0, version=1),)
    assert Setting("truncated", 3.0).chain().stages == (Mirostat(3.0, surprise="truncated"),)
    assert str(Setting("v2", 3.0)) == "mirostat 2 tau=3"


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_every_claim_of_a_mode_finds_its_cells(mode: frame.Mode) -> None:
    assert len(verdicts(invented(as_the_paper_says, mode), mode)) == (3 if mode == "quick" else 11)
    todo = size(mode)
    assert todo.tokens % todo.window == 0
    assert len(set(PROMPTS)) == len(PROMPTS) == 20


# -- from texts to cells ---------------------------------------------------------------------------


def text(tokens: list[int], bits: list[float]) -> Completion:
    return Completion(tuple(tokens), "max_tokens", details={"surprise": bits})


def test_cells_of_two_texts_by_hand() -> None:
    todo = replace(size("quick"), tokens=4, window=2)
    rows = [[text([1, 2, 1, 2], [4.0, 2.0, 1.0, 1.0])], [text([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0])]]
    cells = mirostat_measure.cells({NARROW: rows}, todo)
    np.testing.assert_allclose(cells["surprise"][NARROW], [[2.0], [2.5]])
    np.testing.assert_allclose(cells["drift"][NARROW], [[-100.0], [100.0]])
    np.testing.assert_allclose(cells["window 0"][NARROW], [[3.0], [1.5]])
    np.testing.assert_allclose(cells["window 1"][NARROW], [[1.0], [3.5]])
    np.testing.assert_allclose(cells["repetition 1"][NARROW], [[0.5], [0.0]])
    np.testing.assert_allclose(cells["repetition 2"][NARROW], [[1 / 3], [0.0]])


def test_slopes_are_least_squares() -> None:
    values = np.random.default_rng(0).normal(0, 1, (3, 2, 40))
    for place in np.ndindex(3, 2):
        wanted = np.polyfit(np.arange(40), values[place], 1)[0]
        assert mirostat_measure.slopes(values)[place] == pytest.approx(wanted)


def test_statistics_are_by_their_definitions() -> None:
    """R^2 and Spearman, alone and for several replicates at once."""
    generator = np.random.default_rng(1)
    pooled = (*TOP_K, *TOP_P)
    means: dict[frame.Key, frame.Array] = {
        (quantity, setting): generator.normal(0, 1, 6)
        for quantity in ("surprise", "repetition")
        for setting in pooled
    }
    for place in range(6):
        at: dict[frame.Key, frame.Array] = {
            key: np.asarray(value[place]) for key, value in means.items()
        }
        x = [float(at["surprise", setting]) for setting in pooled]
        y = [float(at["repetition", setting]) for setting in pooled]
        spearman = np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]
        assert rank_correlation(means, pooled)[place] == pytest.approx(spearman)
        assert float(rank_correlation(at, pooled)) == pytest.approx(spearman)
        line = np.corrcoef([setting.strength for setting in TOP_K], x[:4])[0, 1]
        assert straightness(means, TOP_K)[place] == pytest.approx(line**2)


# -- claims follow the data ------------------------------------------------------------------------

Invent = Callable[[Setting], tuple[float, float, float]]  # surprise, drift, repetition


def invented(numbers: Invent, mode: frame.Mode = "full") -> frame.Measurements:
    """Cells without noise."""
    todo = size(mode)
    count = todo.tokens // todo.window
    cells: dict[str, dict[Setting, np.ndarray]] = {}
    for setting in todo.settings:
        values = numbers(setting)
        named = dict(zip(("surprise", "drift", "repetition"), values, strict=True))
        named |= {f"window {place}": values[0] + values[1] * place for place in range(count)}
        for name, value in named.items():
            cells.setdefault(name, {})[setting] = np.full((3, 2), value)
    facts = {"tokens of a text": todo.tokens, "tokens of a window": todo.window}
    return frame.Measurements("invented", (0, 1), cells, facts)


def as_the_paper_says(setting: Setting) -> tuple[float, float, float]:
    surprise = {
        "top_k": 1.0 + np.log(setting.strength) / 3,
        "top_p": 0.4 + 3.1 * setting.strength,
        "v1": setting.strength + 0.02,
        "v2": setting.strength - 0.01,
        "truncated": setting.strength + 0.5,
    }[setting.name]
    drift = {NARROW: -0.3, OWN: 0.2}.get(setting, 0.01)
    return surprise, drift, float(np.exp(-surprise))


def the_other_way(setting: Setting) -> tuple[float, float, float]:
    surprise = {
        "top_k": 1.0 + setting.strength / 100,
        "top_p": 3.0 + setting.strength**9,
        "v1": setting.strength + 0.3,
        "v2": setting.strength + 0.3,
        "truncated": setting.strength,
    }[setting.name]
    return surprise, {NARROW: 0.02, OWN: -0.02}.get(setting, 0.3), surprise / 10


def verdicts(measurements: frame.Measurements, mode: frame.Mode = "full") -> dict[str, str]:
    means, resampled = frame.cell_means(measurements), frame.bootstrap(measurements, 50)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in REPRODUCTION.claims
        if mode in claim.modes
    }


def test_claims_hold_on_data_as_the_paper_says() -> None:
    assert set(verdicts(invented(as_the_paper_says)).values()) == {"confirmed"}


def test_claims_fail_on_data_the_other_way() -> None:
    assert set(verdicts(invented(the_other_way)).values()) == {"not confirmed"}


@pytest.mark.parametrize(
    ("claim", "wrong"),
    [
        ("a1", {Setting("v2", 3.0): (2.8, 0.0, 0.06)}),
        ("a2", {Setting("v1", 3.0): (2.8, 0.0, 0.06)}),
        ("a3", {Setting("v1", 1.5): (1.7, 0.0, 0.12)}),
        ("a4", {Setting("v2", 4.0): (3.7, 0.0, 0.02)}),
        ("b", {Setting("v2", 2.0): (2.0, 0.25, 0.1)}),
        ("c1", {NARROW: (1.4, 0.3, 0.3)}),
        ("c2", {OWN: (3.5, -0.2, 0.03)}),
        ("f1", {Setting("truncated", 3.0): (2.9, 0.0, 0.1)}),
        ("f2", {Setting("truncated", 2.0): (2.1, 0.0, 0.1)}),
    ],
)
def test_one_wrong_setting_is_enough(
    claim: str, wrong: dict[Setting, tuple[float, float, float]]
) -> None:
    found = verdicts(invented(lambda setting: wrong.get(setting) or as_the_paper_says(setting)))
    assert found[claim] == "not confirmed"


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    measured = invented(as_the_paper_says, mode)
    fake = replace(REPRODUCTION, measure=lambda *_: measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("mirostat", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


# -- the real thing --------------------------------------------------------------------------------


def test_a_small_run_on_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts, two settings: the parts of `measure` work together, and seeds fix everything."""
    chosen = (OWN, *settings("v2", (2.0,)))
    tiny = replace(
        size("quick"), settings=chosen, prompts=PROMPTS[:2], seeds=2, tokens=12, window=6
    )
    monkeypatch.setattr(mirostat_measure, "size", lambda _: tiny)
    first, again = (mirostat_measure.measure("quick", 3, lambda *_: None) for _ in range(2))
    assert first.seeds == (3, 4)
    assert set(first.cells) >= {"surprise", "drift", "repetition", "window 1", "repetition 10"}
    assert first.cells["surprise"][OWN].shape == (2, 2)
    for name, cells in first.cells.items():
        for setting, values in cells.items():
            np.testing.assert_array_equal(values, again.cells[name][setting])


@pytest.mark.slow
def test_the_quick_run(tmp_path: Path) -> None:
    """The whole quick mode; what holds by construction, or by a wide margin, must hold."""
    result = frame.reproduce("mirostat", "quick", out=tmp_path)
    found = {outcome.claim.id: outcome.verdict for outcome in result.outcomes}
    assert found["a1"] == found["c2"] == found["f1"] == "confirmed"
    assert result.figure.is_file()
