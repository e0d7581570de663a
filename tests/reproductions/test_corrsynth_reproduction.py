"""The CorrSynth reproduction: its draws are the product's, its measures are right, its claims
follow the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Completion, Task
from decodery.core.rng import Stream
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.corrsynth import CorrSynth
from decodery.methods.autoregressive.sample import Sample
from decodery.methods.blending.cfg import Cfg
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_p import TopP
from decodery.models.table import TableModel
from decodery.reproductions import corrsynth_measure as measuring
from decodery.reproductions import frame
from decodery.reproductions.corrsynth import REPRODUCTION, at_equal_quality
from decodery.reproductions.corrsynth_settings import (
    ALONG,
    CROSS,
    FADING,
    FEW_SHOT,
    GUIDED,
    HYBRID,
    INTRA,
    LASTING,
    PLAIN,
    WEAK,
    Setting,
    size,
)
from decodery.reproductions.corrsynth_texts import CLASSES, REQUESTS, SHOTS, TEST, prompts
from decodery.reproductions.drawing import NotedDraws

END = frozenset({3})


def table(seed: int) -> TableModel:
    return TableModel.random(4, 2, seed=seed, eos_ids=END)


def task(source: Any, seed: int) -> Task:
    return Task(Policy(source, chain(TopP(0.9))), (0, 1), Stopping(6, END), Stream(seed))


# -- what is noted changes nothing -----------------------------------------------------------------


def test_followed_streams_are_corrsynths() -> None:
    options: dict[str, Any] = {
        "labels": ("a", "b"),
        "repeats": 2,
        "contrast": "cross",
        "delta": 0.4,
    }
    for seed in range(20):
        plain = run_alone(CorrSynth(**options), task(table(seed), seed))
        noted = run_alone(measuring.Followed(**options), task(table(seed), seed))
        assert [item.tokens for item in noted] == [item.tokens for item in plain]
        assert all(len(item.details["contrast"]) == len(item.tokens) for item in noted)


def test_watched_guidance_is_guidance() -> None:
    for seed in range(20):
        source = table(seed)
        plain = run_alone(Sample(2), task(Cfg(source, 1.5, (2,)), seed))
        watched = measuring.WatchedCfg(source, 1.5, (2,))
        notes = {"worth": measuring.worth, "contrast": measuring.guidance}
        noted = run_alone(NotedDraws(2, notes), task(watched, seed))
        assert [item.tokens for item in noted] == [item.tokens for item in plain]
        for item in noted:
            paths = [(*item.tokens[:place],) for place in range(len(item.tokens))]
            worth = [
                source.scores([0, 1, *path])[token]
                for path, token in zip(paths, item.tokens, strict=True)
            ]
            assert item.details["worth"] == pytest.approx(worth, abs=1e-12)
            terms = [
                measuring.contrast_term(source.scores([0, 1, *path]), source.scores([2, *path]))
                for path in paths
            ]
            assert item.details["contrast"] == pytest.approx(terms, abs=1e-12)


# -- measures --------------------------------------------------------------------------------------


def test_the_contrast_term() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.6, 0.3])
    wanted = float((p * np.abs(np.log(p / q))).sum())
    assert measuring.contrast_term(np.log(p), np.log(q)) == pytest.approx(wanted, abs=1e-14)
    assert measuring.contrast_term(np.log(p) + 3, np.log(q) - 5) == pytest.approx(wanted, abs=1e-12)
    assert measuring.contrast_term(np.log(p), np.log(p) + 1) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Stocks fall", []),
        ("Oil from Saudi Arabia reaches Rotterdam", ["Saudi Arabia", "Rotterdam"]),
        ("Real Madrid beat O'Neill's side", ["Real Madrid", "O'Neill's"]),
        ("", []),
    ],
)
def test_names(text: str, found: list[str]) -> None:
    assert measuring.names(text) == found


def test_the_entropy_of_names() -> None:
    assert measuring.entities(["a Rome", "a Rome", "b Paris", "c Oslo"]) == pytest.approx(
        -(0.5 * np.log(0.5) + 0.5 * np.log(0.25))
    )
    assert measuring.entities(["nothing here"]) == 0.0


def test_loops_are_told_from_what_texts_share() -> None:
    loop, alike = ["go on go on go on", "then stop"], ["go on", "go on"]
    assert measuring.bigrams(loop) == pytest.approx(0.5)  # 3 kinds of 6 pairs
    assert measuring.across(loop) == 1.0
    assert measuring.repeats(loop) == pytest.approx((1 - 2 / 5) / 2)
    assert measuring.across(alike) == 0.5
    assert measuring.repeats(alike) == measuring.repeats(["word"]) == 0.0


def test_the_student_reads_and_answers() -> None:
    read = [["rain", "sun", "rain"], ["goal", "cup"], ["bank"], ["chip"]]
    assert measuring.accuracy(read, 0, ["rain", "cup"]) == 1.0
    assert measuring.accuracy(read, 1, ["goal"]) == 1.0
    assert measuring.accuracy(read, 2, ["goal"]) == 0.0


def test_cells_have_a_row_for_every_choice_of_examples_and_class() -> None:
    """Two choices, three seeds, two texts a class: pooled metrics see six texts."""
    groups = [f"{name} {place} {seed}" for name in CLASSES for place in (0, 1) for seed in range(3)]
    assert len(set(groups)) == 24
    texts = {
        PLAIN: [
            [[[f"{name} {place} {seed}", "Same old line"] for name in CLASSES] for seed in range(3)]
            for place in range(2)
        ]
    }
    cells = measuring.diversities(texts)
    assert cells["siblings"][PLAIN].shape == (8, 3)
    assert {cells[name][PLAIN].shape for name in measuring.POOLED} == {(8, 1)}
    assert (
        cells["words"][PLAIN][:, 0] == [len(name.split()) / 2 + 2.5 for name in CLASSES] * 2
    ).all()
    one = measuring.bigrams([f"{CLASSES[1]} 1 {seed}" for seed in range(3)] + ["same old line"] * 3)
    assert cells["distinct-2"][PLAIN][5, 0] == pytest.approx(one)
    assert measuring.students(texts)["accuracy"][PLAIN].shape == (48, 3)
    assert cells["repeats"][PLAIN] == pytest.approx(0.0)
    written = {
        PLAIN: [
            [[[Completion((1, 2), "eos", log_probability=-4.0 - k)] for k in range(4)]] * 3
        ] * 2
    }  # fmt: skip
    quality = measuring.qualities(written)["log-prob"][PLAIN]
    assert quality == pytest.approx(np.tile([[-2.0], [-2.5], [-3.0], [-3.5]], (2, 3)))


def test_windows_along_the_text() -> None:
    todo = replace(size("quick"), length=24)
    terms = {FADING: [[np.tile(np.arange(24.0), (4, 1))] * 2] * 3}
    cells = measuring.along(terms, todo)
    assert cells["window 0"][FADING].shape == (12, 2)
    assert (cells["window 0"][FADING] == 1.5).all()
    assert (cells["late"][FADING] == np.arange(16, 24).mean()).all()


def test_equal_quality_is_a_point_on_the_line_of_temperatures() -> None:
    values = {PLAIN: (-2.0, 0.5), FEW_SHOT[1]: (-3.0, 0.3), FEW_SHOT[2]: (-5.0, 0.2)}
    means = {
        key: np.array([value])
        for setting, pair in values.items()
        for key, value in zip([("log-prob", setting), ("self-BLEU-2", setting)], pair, strict=True)
    }
    for quality, wanted in [
        (-2.0, 0.5),
        (-2.5, 0.4),
        (-3.0, 0.3),
        (-4.0, 0.25),
        (-1.0, 0.7),
        (-7, 0.1),
    ]:
        found = at_equal_quality("self-BLEU-2", means, np.array([quality]))
        assert found == pytest.approx([wanted])
    two = {key: value for key, value in means.items() if key[1] != FEW_SHOT[1]}
    assert at_equal_quality("self-BLEU-2", two, np.array([-3.5])) == pytest.approx([0.35])


# -- texts and settings ----------------------------------------------------------------------------


def test_the_texts_are_four_classes_and_share_nothing() -> None:
    assert set(SHOTS) == set(TEST) == set(CLASSES)
    shots = [line for name in CLASSES for line in SHOTS[name]]
    tests = [line for name in CLASSES for line in TEST[name]]
    assert len({*shots, *tests}) == len(shots) + len(tests) == 4 * (8 + 12)
    asked = {prompts(place) for place in range(6)}
    assert len(asked) == 6
    for made in asked:
        for name, prompt in zip(CLASSES, made, strict=True):
            assert prompt.startswith(f"Headlines about {name}:\n")
            assert sum(line in prompt for line in SHOTS[name]) == 3
            assert not any(line in prompt for line in tests)
    assert len(REQUESTS) >= size("full").requests


def test_settings_make_their_chains() -> None:
    assert PLAIN.chain().stages == HYBRID.chain().stages == (TopP(0.9),)
    assert FEW_SHOT[2].chain().stages == (Temperature(1.4), TopP(0.9))
    assert [str(item) for item in (PLAIN, GUIDED, HYBRID)] == [
        "few-shot T=1", "cfg g=1.5", "hybrid delta=0.5",
    ]  # fmt: skip
    assert set(size("quick").settings) < set(size("full").settings) >= {CROSS, INTRA, WEAK}


# -- claims follow the data ------------------------------------------------------------------------


def invented(
    value: Callable[[str, Setting], float], mode: frame.Mode = "full"
) -> frame.Measurements:
    todo = size(mode)
    cells = {
        name: {setting: np.full((4, 2), value(name, setting)) for setting in todo.settings}
        for name in REPRODUCTION.columns
    }
    for name in ("late", *(f"window {number}" for number in range(todo.windows))):
        cells[name] = {setting: np.full((4, 2), value(name, setting)) for setting in ALONG}
    return frame.Measurements("invented", (0, 1), cells)


def as_the_paper_says(name: str, setting: Setting) -> float:
    lasting = setting == LASTING
    if name == "late":
        return 1.0 if lasting else 0.2
    if name.startswith("window"):
        return 1.0
    better = setting in (HYBRID, CROSS, INTRA)
    if name == "log-prob":
        return -3.0 if better else -3.0 - 2 * (setting.strength - 1) * (setting.name == "few-shot")
    if name.startswith("self-BLEU"):
        return 0.2 if better else 0.4
    return 2.0 if better else 1.0


def the_other_way(name: str, setting: Setting) -> float:
    if name in ("late", "log-prob"):
        return as_the_paper_says(name, setting) if name == "log-prob" else 0.6
    return -as_the_paper_says(name, setting)


def verdicts(measurements: frame.Measurements) -> dict[str, str]:
    means, resampled = frame.cell_means(measurements), frame.bootstrap(measurements, 50)
    return {claim.id: frame.judge(claim, means, resampled).verdict for claim in REPRODUCTION.claims}


def test_claims_hold_on_data_as_the_paper_says() -> None:
    found = verdicts(invented(as_the_paper_says))
    assert found == dict.fromkeys([*"abcde", "f1", "f2", *"ghi"], "confirmed")


def test_claims_fail_on_data_the_other_way() -> None:
    found = verdicts(invented(the_other_way))
    assert {found[claim] for claim in ("d", "e", "f1", "f2", "g", "h", "i")} == {"not confirmed"}
    assert {found[claim] for claim in "ac"} == {"not confirmed"}


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured = invented(as_the_paper_says, mode)
    fake = replace(REPRODUCTION, measure=lambda *_: measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("corrsynth", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


# -- the real thing --------------------------------------------------------------------------------


def test_corrsynth_is_asked_with_the_same_prompts_as_the_others(default_lm: LanguageModel) -> None:
    todo, runner = replace(size("quick"), repeats=1, tokens=1), Runner()
    (joint,) = measuring.write(runner, default_lm, HYBRID, 1, 0, todo)
    alone = measuring.write(runner, default_lm, PLAIN, 1, 0, todo)
    assert isinstance(joint.decoder, CorrSynth)
    assert joint.decoder.prompts(joint.task) == [handle.task.prompt for handle in alone]
    assert [default_lm.tokenizer.decode(handle.task.prompt) for handle in alone] == list(prompts(1))
    runner.close()


def test_a_small_run_on_the_embedded_model(
    default_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One choice of examples, short texts: all of `measure` works together, and seeds fix it."""
    tiny = replace(
        size("quick"), settings=(PLAIN, HYBRID), demonstrations=1, requests=1,
        repeats=2, tokens=3, length=20, following=1,
    )  # fmt: skip
    monkeypatch.setattr(measuring, "size", lambda _: tiny)
    monkeypatch.setattr("decodery.api.load.load", lambda: default_lm)
    first, again = (measuring.measure("quick", 3, lambda *_: None) for _ in range(2))
    assert first.seeds == (3, 4)
    assert first.cells["log-prob"][HYBRID].shape == (4, 2)
    assert set(first.cells["window 4"]) == set(ALONG)
    for name, settings in first.cells.items():
        for setting, values in settings.items():
            assert np.isfinite(values).all()
            np.testing.assert_array_equal(values, again.cells[name][setting])


@pytest.mark.slow
def test_the_quick_run(tmp_path: Path) -> None:
    """The whole quick mode; the claims with a wide margin must come out as they did."""
    result = frame.reproduce("corrsynth", "quick", out=tmp_path)
    found = {outcome.claim.id: outcome.verdict for outcome in result.outcomes}
    assert found["b"] == found["c"] == "confirmed"
    assert result.figure.is_file()
