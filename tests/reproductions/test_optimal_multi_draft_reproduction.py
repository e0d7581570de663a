"""The reproduction of optimal multi-draft decoding: claims follow the data; a small real run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decodery.core.row import Row
from decodery.methods.speculative.law import Law, overlap
from decodery.reproductions import frame, optimal_multi_draft_measure
from decodery.reproductions.optimal_multi_draft import REPRODUCTION, lead
from decodery.reproductions.optimal_multi_draft_measure import laws_at, shares
from decodery.reproductions.optimal_multi_draft_settings import (
    DISTINCT,
    GREEDY,
    IID,
    K_SEQ,
    NAMES,
    RRS,
    RRS_W,
    TOP,
    WITH,
    WITHOUT,
    Pair,
    Setting,
    size,
)

# -- from rows to cells ----------------------------------------------------------------------------


def row(probabilities: list[float]) -> Row:
    return Row.of_probabilities(probabilities)


def test_laws_are_at_the_temperature() -> None:
    target, draft = laws_at((row([0.5, 0.3, 0.2]), row([0.2, 0.2, 0.6])), 0.5)
    np.testing.assert_allclose(target.masses, np.array([0.25, 0.09, 0.04]) / 0.38)
    np.testing.assert_allclose(draft.masses, np.array([0.04, 0.04, 0.36]) / 0.44)


def test_cells_have_the_known_values() -> None:
    """The table of the method: at T = 1 the laws are (.3 .4 .3) and (.6 .3 .1)."""
    todo = replace(size("quick"), temperatures=(1.0,), counts=(2, 3), prompts=("one", "two"))
    pair = (row([0.3, 0.4, 0.3]), row([0.6, 0.3, 0.1]))
    same = (pair[0], pair[0])
    seen: list[int] = []
    cells = shares([[pair, same], [pair, pair]], todo, seen.append)
    assert seen == [1, 2, 3, 4]
    wanted = {
        RRS: (0.82, 0.848),
        K_SEQ: (0.84, 0.875),
        RRS_W: (0.875, 1.0),
        GREEDY: (0.95, 1.0),
        WITH: (0.89, 0.971),
        WITHOUT: (0.992857142857, 1.0),
    }
    for name, values in wanted.items():
        for count, value in zip((2, 3), values, strict=True):
            measured = cells["acceptance"][Setting(name, 1.0, count)]
            assert measured.shape == (2, 1)
            assert measured[1, 0] == pytest.approx(value, abs=1e-9)
            if name not in (GREEDY, K_SEQ):
                assert measured[0, 0] == pytest.approx(0.5 * (1.0 + value), abs=1e-9)
    common = overlap(*map(Law.of, pair))
    assert cells["of one draft"][Setting(RRS, 1.0, 1)][1, 0] == pytest.approx(common)


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_every_claim_of_a_mode_finds_its_cells(mode: frame.Mode) -> None:
    assert set(verdicts(as_the_paper_says, mode)) == set(
        {
            "quick": ["a1", "b1", "c1", "e2", "f1"],
            "full": [claim.id for claim in REPRODUCTION.claims],
        }[mode]
    )
    assert len({str(setting) for setting in size(mode).settings}) == len(size(mode).settings)
    assert size(mode).run_prompts <= len(size(mode).prompts)


# -- claims follow the data ------------------------------------------------------------------------

Invent = Callable[[Setting], float]
STEPS = {"iid": 1.4, "distinct": 1.5, "hub": 1.55, "greedy": 1.7}


def invented(law: Invent, mode: frame.Mode, steps: dict[str, float]) -> frame.Measurements:
    """Cells without noise."""
    todo = size(mode)
    cells = {
        "acceptance": {item: np.full((4, 1), law(item)) for item in todo.settings},
        "of one draft": {Setting(RRS, t, 1): np.full((4, 1), 0.2) for t in todo.temperatures},
        "tokens per step": {pair: np.full((4, 1), steps[pair.drafter]) for pair in todo.pairs},
        "nodes per step": {pair: np.full((4, 1), 14.0) for pair in todo.pairs},
    }
    return frame.Measurements("invented", (0,), cells, {"temperature of runs": 0.6, "rows": 60})


ORDER = (RRS, K_SEQ, WITH, RRS_W, GREEDY, WITHOUT)


def as_the_paper_says(setting: Setting) -> float:
    return 0.3 + 0.05 * ORDER.index(setting.name) + 0.01 * setting.count


def the_other_way(setting: Setting) -> float:
    return 0.9 - as_the_paper_says(setting)


def verdicts(
    law: Invent, mode: frame.Mode, steps: dict[str, float] | None = None
) -> dict[str, str]:
    measured = invented(law, mode, steps or STEPS)
    means, resampled = frame.cell_means(measured), frame.bootstrap(measured, 20)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in REPRODUCTION.claims
        if mode in claim.modes
    }


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_claims_follow_the_data(mode: frame.Mode) -> None:
    assert set(verdicts(as_the_paper_says, mode).values()) == {"confirmed"}
    steps = {drafter: 3.0 - value for drafter, value in STEPS.items()}
    assert set(verdicts(the_other_way, mode, steps).values()) == {"not confirmed"}


@pytest.mark.parametrize(
    ("claim", "name", "temperature", "value"),
    [
        ("a1", K_SEQ, 0.6, 0.2),
        ("a2", K_SEQ, 1.0, 0.2),
        ("b2", WITH, 0.3, 0.2),
        ("c1", WITHOUT, 0.6, 0.3),
        ("d2", RRS_W, 1.0, 0.578),
        ("e1", GREEDY, 0.3, 0.3),
        ("e3", GREEDY, 1.0, 0.4),
    ],
)
def test_one_wrong_setting_is_enough(
    claim: str, name: str, temperature: float, value: float
) -> None:
    def law(setting: Setting) -> float:
        wrong = (setting.name, setting.temperature) == (name, temperature)
        return value if wrong else as_the_paper_says(setting)

    assert verdicts(law, "full")[claim] == "not confirmed"


def test_runs_in_the_wrong_order_are_not_confirmed() -> None:
    found = verdicts(as_the_paper_says, "full", {**STEPS, "distinct": 1.75})
    assert (found["f1"], found["f2"]) == ("confirmed", "not confirmed")
    found = verdicts(as_the_paper_says, "full", {**STEPS, "greedy": 1.3})
    assert (found["f1"], found["f2"]) == ("not confirmed", "not confirmed")


def test_a_lead_is_the_mean_over_counts() -> None:
    means = {
        ("acceptance", Setting(name, 0.6, count)): np.asarray(0.1 * count * NAMES.index(name))
        for name in NAMES
        for count in (2, 3)
    }
    assert float(lead(means, K_SEQ, RRS, 0.6)) == pytest.approx(0.25)


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    measured = invented(as_the_paper_says, mode, STEPS)
    fake = replace(REPRODUCTION, measure=lambda *_: measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("optimal_multi_draft", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


# -- the real thing --------------------------------------------------------------------------------


def test_a_small_run_on_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts: the parts of `measure` work together, and seeds fix everything."""
    todo = size("quick")
    tiny = replace(
        todo,
        prompts=todo.prompts[:2],
        counts=(2,),
        positions=2,
        stride=2,
        run_prompts=1,
        run_tokens=4,
        pairs=(IID, TOP),
    )
    monkeypatch.setattr(optimal_multi_draft_measure, "size", lambda _: tiny)
    told: list[tuple[int, int]] = []
    first, again = (
        optimal_multi_draft_measure.measure("quick", 3, lambda *pair: told.append(pair))
        for _ in range(2)
    )
    assert told[-1][0] == told[-1][1]
    assert all(0 <= done <= of for done, of in told)
    assert first.cells["acceptance"][Setting(GREEDY, 0.6, 2)].shape == (2, 1)
    assert set(first.cells["tokens per step"]) == {IID, TOP}
    for name, cells in first.cells.items():
        for setting, values in cells.items():
            np.testing.assert_array_equal(values, again.cells[name][setting])
    share = first.cells["acceptance"]
    for count in tiny.counts:
        above, below = (share[Setting(name, 0.6, count)] for name in (WITH, K_SEQ))
        assert (below <= above + 1e-9).all()


def test_pairs_have_names() -> None:
    assert str(Pair("iid", "k_seq")) == "iid drafts, rule k_seq"
    assert str(DISTINCT) == "distinct drafts, rule recursive"
    assert str(Setting(WITH, 0.6, 3)) == "bound iid T=0.6 n=3"


@pytest.mark.slow
def test_the_quick_run(tmp_path: Path) -> None:
    """The whole quick mode; what holds by a wide margin must hold."""
    result = frame.reproduce("optimal_multi_draft", "quick", out=tmp_path)
    found = {outcome.claim.id: outcome.verdict for outcome in result.outcomes}
    assert found["a1"] == found["c1"] == "confirmed"
    assert result.figure.is_file()
