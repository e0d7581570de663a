"""The reproduction of base-aligned collaboration: what is counted, and claims that follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.blending.baco import Baco
from decodery.metrics import frontier
from decodery.reproductions import baco_measure, frame
from decodery.reproductions.baco import REPRODUCTION
from decodery.reproductions.baco_measure import NOTES, Heated, is_valid, spread
from decodery.reproductions.baco_planes import covered, dominance, families, plane
from decodery.reproductions.baco_prompts import CREATIVE, FACTS, RANDOM, TASTE, prompts
from decodery.reproductions.baco_settings import (
    COMMON,
    DIVERSITY,
    FAMILIES,
    LEXICAL,
    SEMANTIC,
    Setting,
    size,
)
from decodery.reproductions.drawing import NotedDraws
from decodery.testing import TableModel

# -- what is counted ------------------------------------------------------------------------------


def test_diversity_of_groups() -> None:
    same = [["a red rose by the old wall", "A red rose by the old wall!"]]
    other = [["one two three four five six", "seven eight nine ten eleven twelve"]]
    found = spread({Setting("rand", 0.5): [same, other]})
    assert set(found) == set(DIVERSITY)
    cells = {name: values[Setting("rand", 0.5)][:, 0] for name, values in found.items()}
    assert cells["kinds"].tolist() == [1, 2]
    assert cells["Vendi"] == pytest.approx([1, 2])
    assert cells["distance"] == pytest.approx([0, 1])
    assert cells["1 - self-BLEU"] == pytest.approx([0, 1])
    assert cells["new sentences"] == pytest.approx([0.5, 1])
    assert cells["distinct-2"] == pytest.approx([0.5, 1])


def test_answers_without_words_count_as_no_diversity() -> None:
    found = spread({Setting("rand", 0.5): [[["...", ""]]]})
    assert found["distinct-2"][Setting("rand", 0.5)].tolist() == [[0.0]]
    assert all(np.isfinite(item).all() for value in found.values() for item in value.values())


@pytest.mark.parametrize(
    ("answer", "valid"),
    [("Blue.", True), ("", False), ("-", False), ("Blue\nQuestion: why?", False), ("Q: x", False)],
)
def test_what_is_valid(answer: str, valid: bool) -> None:
    assert is_valid(answer) == valid


def test_notes_are_the_aligned_law_and_the_writer() -> None:
    """On tables: the log-probability is the aligned model's own, whoever wrote; the router sees
    the heated law."""
    aligned, base = (TableModel.random(4, 3, seed=seed, name=f"table {seed}") for seed in (1, 2))
    pair = Baco(Heated(base, 0.5), Heated(aligned, 0.5), "p", gamma=0.7, word_boundary=False)
    task = Task(Policy(pair), (0, 1), Stopping(8), Stream(3))
    shares = set()
    for item in run_alone(NotedDraws(4, NOTES), task):
        for place, token in enumerate(item.tokens):
            before = [0, 1, *item.tokens[:place]]
            wanted = aligned.scores(before)[token]
            assert item.details["log-prob"][place] == pytest.approx(wanted)
            heated = np.exp(base.scores(before)) ** 2
            by_base = float(heated.max() / heated.sum() < 0.7)
            assert item.details["base share"][place] == by_base
            shares.add(by_base)
    assert shares == {0.0, 1.0}


# -- settings and planes --------------------------------------------------------------------------


def test_families_have_equally_many_points() -> None:
    for mode in ("quick", "full"):
        todo = size(mode)
        assert len({len(todo.settings(name)) for name in todo.families}) == 1
        assert len(set(todo.all_settings)) == len(todo.all_settings)
    assert set(size("quick").families) < set(size("full").families) == set(FAMILIES)


def test_single_models_are_the_ends_of_a_scale() -> None:
    warm, routed = Setting("base", 1.3), Setting("p_punc", 0.4)
    assert (warm.router, warm.diversity, warm.temperature) == ("p", 1.0, 1.3)
    assert Setting("aligned", 0.3).diversity == 0.0
    assert (routed.router, routed.diversity, routed.temperature) == ("p_punc", 0.4, COMMON)
    assert all(COMMON in size(mode).temperatures for mode in ("quick", "full"))
    assert (str(warm), str(routed)) == ("base T=1.3", "p_punc d=0.4")


def test_prompts_take_the_kinds_by_turns() -> None:
    assert prompts(5) == (RANDOM[0], FACTS[0], TASTE[0], CREATIVE[0], RANDOM[1])
    assert len(set(prompts(24))) == 24


def test_coverage_of_replicates_is_that_of_each() -> None:
    measured = invented(as_the_paper_says, "quick", noise=0.1)
    resampled = frame.bootstrap(measured, 7)
    found = covered(resampled, "p_punc", SEMANTIC)
    assert found.shape == (7,)
    for replicate in range(7):
        one = {key: value[replicate] for key, value in resampled.items()}
        assert float(covered(one, "p_punc", SEMANTIC)) == pytest.approx(found[replicate])
    means = frame.cell_means(measured)
    points = plane(means, "kinds", "log-prob")
    assert sum(dominance(means).values()) == pytest.approx(1)
    assert frontier.coverage(points["p_punc"]) == pytest.approx(
        float(frontier.coverage([tuple(point) for point in points["p_punc"]]))
    )
    assert [item.strength for item in families(means)["rand"]] == [0.25, 0.5, 0.75]


# -- claims follow the data -----------------------------------------------------------------------

Law = Callable[[Setting], tuple[float, float]]  # diversity and quality


def invented(law: Law, mode: frame.Mode, noise: float = 0.0) -> frame.Measurements:
    """Cells in which all metrics of diversity follow one law; noise differs between prompts."""
    todo, generator = size(mode), np.random.default_rng(0)
    wobble = noise * generator.normal(size=(6, 1))

    def filled(value: Callable[[Setting], float]) -> dict[Setting, np.ndarray]:
        return {item: np.full((6, 1), value(item)) + wobble for item in todo.all_settings}

    cells = {name: filled(lambda item: law(item)[0]) for name in DIVERSITY}
    cells |= {name: filled(lambda item: law(item)[1]) for name in ("log-prob", "valid")}
    cells["base share"] = filled(lambda item: item.diversity)
    return frame.Measurements("invented", (0,), cells)


def as_the_paper_says(setting: Setting) -> tuple[float, float]:
    """Single models at two corners; routed points between, outward by their router's worth."""
    if setting.family == "aligned":
        return 1 + setting.strength / 10, 9 - setting.strength / 10
    if setting.family == "base":
        return 8 + setting.strength / 10, 2 - setting.strength / 10
    bonus = {"rand": 0.0, "p": 0.5, "h": 0.5, "p_punc": 1.0}[setting.family]
    return 1 + 7 * setting.strength + bonus, 9 - 7 * setting.strength + bonus


def the_other_way(setting: Setting) -> tuple[float, float]:
    """Temperature alone is best; the coin is worse than the router on nothing; base is no worse."""
    if setting.family in ("aligned", "base"):
        return 9 - setting.strength, 5 + setting.strength
    return 4 - setting.strength + (setting.family == "rand"), 3.0


def verdicts(law: Law, mode: frame.Mode) -> dict[str, str]:
    measured = invented(law, mode)
    means, resampled = frame.cell_means(measured), frame.bootstrap(measured, 20)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in REPRODUCTION.claims
        if mode in claim.modes
    }


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_claims_follow_the_data(mode: frame.Mode) -> None:
    ids = {"quick": "abcde", "full": "abcdefg"}[mode]
    expected = dict.fromkeys(ids, "confirmed")
    found = verdicts(as_the_paper_says, mode)
    assert {name for name in ids if found[name] != "confirmed"} <= {"e"}
    assert found.keys() == expected.keys()
    against = verdicts(the_other_way, mode)
    assert {name for name in ids if against[name] == "confirmed"} <= {"e", "f"}


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured = invented(as_the_paper_says, mode, noise=0.1)
    fake = replace(REPRODUCTION, measure=lambda *_: measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        patch.setattr(frame, "bootstrap", partial(frame.bootstrap, replicates=50))
        result = frame.reproduce("baco", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


def test_the_planes_know_lexical_from_semantic() -> None:
    assert set(LEXICAL).isdisjoint(SEMANTIC)
    assert (*LEXICAL, *SEMANTIC) == DIVERSITY


# -- the real thing -------------------------------------------------------------------------------


def test_a_small_run_on_the_embedded_model(
    default_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts, six settings, short texts: `measure` works together, seeds fix everything."""
    tiny = replace(
        size("quick"),
        families=("aligned", "base", "p_punc"),
        temperatures=(0.5, 1.0),
        diversities=(0.2, 0.8),
        prompts=prompts(2),
        group=2,
        tokens=4,
    )
    monkeypatch.setattr(baco_measure, "size", lambda _: tiny)
    monkeypatch.setattr("decodery.api.load.load", lambda: default_lm)
    first, again = (baco_measure.measure("quick", 3, lambda *_: None) for _ in range(2))
    assert first.seeds == (3,)
    assert set(first.cells) == {*DIVERSITY, "log-prob", "valid", "base share"}
    for name, settings in first.cells.items():
        for setting, values in settings.items():
            assert values.shape == (2, 1)
            np.testing.assert_array_equal(values, again.cells[name][setting])
    shares = {str(item): values.mean() for item, values in first.cells["base share"].items()}
    assert shares["aligned T=1"] == 0
    assert shares["base T=1"] == 1
    assert 0 <= shares["p_punc d=0.2"] <= shares["p_punc d=0.8"] < 1


@pytest.mark.slow
def test_the_quick_run(tmp_path: Path) -> None:
    """The whole quick mode; the claims with a wide margin must come out as they did."""
    result = frame.reproduce("baco", "quick", out=tmp_path)
    found = {outcome.claim.id: outcome.verdict for outcome in result.outcomes}
    assert found.keys() == set("abcde")
    assert result.figure.is_file()
