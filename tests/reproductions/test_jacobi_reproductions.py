"""The reproductions of `sjd` and `mc_sjd`: what is measured is what it says, claims follow data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from decodery.core.decoder import Completion
from decodery.methods.speculative.guesses import Repeat
from decodery.reproductions import frame, mc_sjd, sjd, sjd_measure
from decodery.reproductions.sjd_measure import GRIDS, Setting, Size, measure, single

BOTH = {"sjd": sjd, "mc_sjd": mc_sjd}
Speed = Callable[[Setting], float]


def invented(module, speed: Speed, mode: frame.Mode = "full") -> frame.Measurements:
    """Cells without noise; guesses change, and steps add one token, as the speed says."""
    cells: dict[str, dict[Setting, np.ndarray]] = {}
    for setting in module.size(mode).settings:
        text = setting.where == "text"
        values = {"tokens per step, text" if text else "tokens per step": speed(setting)}
        if not text:
            values["guesses changed"] = 1.9 / (1.0 + speed(setting)) if speed(setting) > 3 else 0.95
            values["steps of one token"] = 1.0 / speed(setting)
        for name, value in values.items():
            cells.setdefault(name, {})[setting] = np.full((4, 1), value)
    return frame.Measurements("invented", (0,), cells, {})


def as_the_papers_say(setting: Setting) -> float:
    guessed = 0.3 * (setting.guess in ("above", "lookup"))
    if setting.where == "text":
        return 1.1 + guessed + 0.1 * (setting.coupling == "mc")
    if setting.coupling == "sjd":
        return 2.0 + guessed
    gain = setting.window / 16 * setting.strength
    return 2.0 + 2.0 * gain + 2.0 * (setting.where == "flat")


def nothing_helps(setting: Setting) -> float:
    return 3.0 + 0.1 * setting.window * (setting.coupling == "sjd")


def verdicts(module, speed: Speed, mode: frame.Mode = "full") -> dict[str, str]:
    measurements = invented(module, speed, mode)
    means, resampled = frame.cell_means(measurements), frame.bootstrap(measurements, 50)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in module.REPRODUCTION.claims
        if mode in claim.modes
    }


@pytest.mark.parametrize("mode", frame.BOTH_MODES)
@pytest.mark.parametrize("name", BOTH)
def test_claims_follow_the_data(name, mode):
    good, bad = (verdicts(BOTH[name], speed, mode) for speed in (as_the_papers_say, nothing_helps))
    assert set(good.values()) == {"confirmed"}
    assert set(bad.values()) == {"not confirmed"}


@pytest.mark.parametrize("name", BOTH)
def test_it_is_found_by_name(name):
    assert frame.find(name).method == name


def test_settings_are_what_they_name():
    decoder = Setting("copied", "gs", 8, "above", 0.5).decoder()
    assert (decoder.window, decoder.coupling, decoder.strength) == (8, "gs", 0.5)
    assert decoder.guess == Repeat(GRIDS["copied"].width)
    assert str(Setting("peaked", "mc", 8)) == "peaked: mc, window 8"
    assert "guess above, strength 0.5" in str(Setting("copied", "gs", 8, "above", 0.5))


def test_a_step_of_one_token_is_one_that_accepted_nothing():
    tally = {"steps": 10, "taken": [4, 2]}
    assert single(Completion((), "eos", details={"speculation": tally})) == 0.6
    assert single(Completion((), "eos", details={"speculation": {**tally, "taken": []}})) == 1.0


def test_grids_are_measured(monkeypatch):
    """Small grids through the real thing: bounds, shapes, and one seed gives one answer."""
    small = {"peaked": sjd_measure.Grid(32, 16, 1.0), "copied": sjd_measure.Grid(32, 16, 1.0, 0.3)}
    monkeypatch.setattr(sjd_measure, "GRIDS", small)
    settings = (Setting("peaked", "mc", 4), Setting("copied", "sjd", 4, "above"))
    first, again = (measure(Size(settings, 2), 0, lambda *_: None) for _ in range(2))
    for quantity, found in first.cells.items():
        for setting, values in found.items():
            assert values.shape == (2, 1)
            np.testing.assert_array_equal(values, again.cells[quantity][setting])
    speeds = first.cells["tokens per step"]
    assert all(1.0 <= value <= 5.0 for values in speeds.values() for value in values[:, 0])
    assert set(first.facts["nats of the grids' laws"]) == {"peaked", "copied"}
