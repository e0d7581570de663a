"""The frame of reproductions, on a fake one: claims, verdicts, files, errors, the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from decodery.cli.main import run_command
from decodery.core.errors import MissingPackageError, ParameterError, UnknownNameError
from decodery.reproductions import frame
from decodery.reproductions.frame import Check, Claim, Measurements, Reproduction

BETTER = Claim(
    "better",
    "The new setting is better.",
    "new - old above 0.1",
    (Check("new - old", lambda means: means["accuracy", "new"] - means["accuracy", "old"], 0.1),),
)
EQUAL = Claim(
    "equal",
    "Both are equal.",
    "within 0.05",
    (
        Check(
            "new - old",
            lambda means: means["accuracy", "new"] - means["accuracy", "old"],
            above=-0.05,
            below=0.05,
        ),
    ),
    modes=("full",),
)


def measured(new: float, old: float, seeds: int = 6) -> Measurements:
    """Twelve items with the given accuracies and some spread."""
    noise = np.random.default_rng(0).normal(0, 0.05, (12, seeds))
    return Measurements(
        model="fake",
        seeds=tuple(range(seeds)),
        cells={"accuracy": {"new": new + noise, "old": old - noise}},
    )


def fake(measure: Callable[..., Measurements]) -> Reproduction:
    def draw(figure: Any, result: frame.Result) -> None:
        axes = figure.subplots()
        axes.bar(["new", "old"], [result.table["accuracy", name].value for name in ("new", "old")])

    return Reproduction(
        method="fake",
        title="A fake",
        claims=(BETTER, EQUAL),
        measure=measure,
        draw=draw,
        columns=("accuracy",),
        size=(3.0, 2.0),
    )


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a reproduction findable under the name `fake`."""

    def put(new: float = 0.9, old: float = 0.3) -> None:
        def measure(mode: str, seed: int, progress: frame.Progress) -> Measurements:
            progress(1, 2)
            progress(2, 2)
            return replace(measured(new, old), seeds=(seed,))

        module = ModuleType("decodery.reproductions.fake")
        module.REPRODUCTION = fake(measure)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return put


def judged(claim: Claim, measurements: Measurements) -> frame.Outcome:
    return frame.judge(claim, frame.cell_means(measurements), frame.bootstrap(measurements))


# -- statistics and verdicts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "new", "old", "verdict"),
    [
        (BETTER, 0.9, 0.3, "confirmed"),
        (BETTER, 0.3, 0.9, "not confirmed"),
        (BETTER, 0.41, 0.3, "not confirmed"),  # above the bound, but its interval is not
        (EQUAL, 0.5, 0.5, "confirmed"),
        (EQUAL, 0.6, 0.5, "not confirmed"),
        (EQUAL, 0.5, 0.6, "not confirmed"),
    ],
)
def test_the_verdict_follows_the_data(claim: Claim, new: float, old: float, verdict: str) -> None:
    assert judged(claim, measured(new, old)).verdict == verdict


def test_a_claim_needs_all_its_checks() -> None:
    fails = replace(BETTER.checks[0], above=0.95)
    assert judged(BETTER, measured(0.9, 0.3)).verdict == "confirmed"
    both = replace(BETTER, checks=(*BETTER.checks, fails))
    assert judged(both, measured(0.9, 0.3)).verdict == "not confirmed"


def test_wide_spread_is_not_taken_for_equality() -> None:
    """Equality is shown by a narrow interval, not by a lack of data."""
    cells = {"new": np.array([[0.0], [1.0]]), "old": np.array([[1.0], [0.0]])}
    few = Measurements("fake", (0,), {"accuracy": cells})
    assert judged(EQUAL, few).verdict == "not confirmed"


def test_the_standard_error_is_that_of_the_mean() -> None:
    """Independent cells [items, 1]: the bootstrap equals sigma / sqrt(items), here within 5 %."""
    values = np.random.default_rng(3).normal(0, 1, (400, 1))
    measurements = Measurements("fake", (0,), {"x": {"a": values}})
    found = frame.estimate(
        frame.cell_means(measurements)["x", "a"], frame.bootstrap(measurements)["x", "a"]
    )
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std() / 20, rel=0.05)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.07)


def test_settings_are_resampled_in_pairs() -> None:
    """A constant difference has no spread, however much the items differ."""
    base = np.random.default_rng(0).normal(0, 5, (10, 3))
    measurements = Measurements("fake", (0, 1, 2), {"x": {"a": base, "b": base + 1}})
    means = frame.bootstrap(measurements)
    assert means["x", "a"].std() > 0.5
    np.testing.assert_allclose(means["x", "b"] - means["x", "a"], 1.0, rtol=1e-9)


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ParameterError, match="nothing was measured of 'x'"):
        frame.bootstrap(Measurements("fake", (0,), {"x": {"a": np.zeros((0, 3))}}))
    uneven = {"a": np.ones((2, 1)), "b": np.ones((3, 1))}
    with pytest.raises(ParameterError, match="different shapes"):
        frame.bootstrap(Measurements("fake", (0,), {"x": uneven}))


def test_a_check_needs_a_bound() -> None:
    with pytest.raises(ParameterError, match="has no bound"):
        Check("x", lambda means: means["x", "a"])


# -- finding --------------------------------------------------------------------------------------


def test_min_p_is_found() -> None:
    assert "min_p" in frame.reproducible()
    assert frame.find("min_p").method == "min_p"
    assert "frame" not in frame.reproducible()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("min_q", "there is no reproduction 'min_q'; did you mean 'min_p'"),
        ("frame", "there is no reproduction 'frame'; known: .*min_p"),
        ("../min_p", "there is no reproduction"),
        ("top_k", "the method 'top_k' ships no reproduction; those that do: .*min_p"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        frame.find(name)


# -- a whole run ----------------------------------------------------------------------------------


def test_a_run_writes_its_results_and_figure(install: Callable[..., None], tmp_path: Path) -> None:
    install()
    steps: list[tuple[int, int]] = []
    result = frame.reproduce(
        "fake",
        "full",
        seed=5,
        out=tmp_path / "deep" / "here",
        progress=lambda done, total: steps.append((done, total)),
    )
    folder = tmp_path / "deep" / "here"
    assert steps == [(1, 2), (2, 2)]
    assert result.figure == folder / "figure.png"
    assert result.figure.read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "results.json").read_text()) == result.to_dict()


def test_claims_of_the_other_mode_are_left_out(
    install: Callable[..., None], tmp_path: Path
) -> None:
    install()
    quick = frame.reproduce("fake", "quick", out=tmp_path)
    assert [outcome.claim.id for outcome in quick.outcomes] == ["better"]


def test_missing_matplotlib_is_said_before_measuring(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*arguments: Any) -> Measurements:
        raise AssertionError("measured")

    install()
    monkeypatch.setattr(sys.modules["decodery.reproductions.fake"], "REPRODUCTION", fake(never))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'decodery\[reproduce\]'"):
        frame.reproduce("fake", out=tmp_path)


def test_a_folder_that_cannot_be_written_is_said(
    install: Callable[..., None], tmp_path: Path
) -> None:
    install()
    (tmp_path / "file").write_text("")
    with pytest.raises(ParameterError, match="cannot be written"):
        frame.reproduce("fake", out=tmp_path / "file")


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("new", "verdict"), [(0.9, "confirmed"), (0.3, "not confirmed")])
def test_json_and_exit_code_whatever_the_verdict(
    install: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    new: float,
    verdict: str,
) -> None:
    install(new)
    code = run_command(["reproduce", "fake", "--json", "--out", str(tmp_path), "--seed", "9"])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    result = json.loads(printed.out)
    assert set(result) == {
        *("method", "title", "mode", "model", "seconds", "seeds"),
        *("claims", "table", "facts", "figure"),
    }
    assert (result["method"], result["mode"], result["seeds"]) == ("fake", "quick", [9])
    (claim,) = result["claims"]
    assert claim["verdict"] == verdict
    assert set(claim) == {"id", "claim", "expected", "measured", "verdict", "checks"}
    (check,) = claim["checks"]
    assert check["low"] <= check["estimate"] <= check["high"]
    assert {row["setting"] for row in result["table"]} == {"new", "old"}
    assert Path(result["figure"]).is_file()


def test_the_terminal_shows_table_and_verdicts(
    install: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install()
    assert run_command(["reproduce", "fake", "--full", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "better  confirmed  The new setting is better." in shown
    assert "equal  not confirmed  Both are equal." in shown
    assert "above -0.05 and below 0.05" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["min_p", "--quick", "--full"], "--quick and --full are both given"),
        (["min_q"], "did you mean 'min_p'"),
        (["min_p", "--seed", "-1"], "seed is -1; allowed is a whole number in 0..4294967295"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["reproduce", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
