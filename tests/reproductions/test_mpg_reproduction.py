"""The mpg reproduction: voices are told apart, tables are laws, claims follow the data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.sample import Sample
from decodery.reproductions import frame, mpg_measure
from decodery.reproductions.mpg import REPRODUCTION
from decodery.reproductions.mpg_measure import Bench, Judge
from decodery.reproductions.mpg_settings import (
    ALONE,
    ANSWERS,
    BLENDED,
    CHUNK,
    PRODUCT_2,
    PROMPTED,
    ROUTE,
    TOKEN,
    Setting,
    Size,
    lengths,
    scr,
    settings,
)
from decodery.reproductions.mpg_tables import END, LETTERS, Counts, decode, encode, models
from decodery.reproductions.mpg_texts import (
    ATTRIBUTES,
    ITEMS,
    MARKERS,
    VOICES,
    asked,
    examples,
    learnt_items,
    scores,
    speaks,
)

# -- voices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", VOICES)
def test_every_example_speaks_in_its_voice_alone(voice):
    for example in examples(voice, 20):
        heard = {other for other in ATTRIBUTES if speaks(example.response, other)}
        assert heard == ({voice} if voice in ATTRIBUTES else set()), example.response


def test_markers_belong_to_one_voice():
    assert MARKERS["pirate"].isdisjoint(MARKERS["formal"])
    plain = " ".join(f"{question} {answer}" for question, answer in ITEMS)
    assert not any(speaks(plain, voice) for voice in ATTRIBUTES)


def test_asked_questions_are_not_learnt():
    learnt = {question for question, _ in learnt_items()}
    assert len(asked()) == 12
    assert learnt.isdisjoint(asked())
    assert len({question for question, _ in ITEMS}) == len(ITEMS) == 48
    assert {example.prompt for example in examples("pirate", 2)} == learnt


def test_scores():
    found = scores(["Arr, indeed.", "Ahoy!", "Indeed.", "Well, harry."])
    assert found == {
        "pirate": [1.0, 1.0, 0.0, 0.0],
        "formal": [1.0, 0.0, 1.0, 0.0],
        "both": [1.0, 0.0, 0.0, 0.0],
    }


# -- tables --------------------------------------------------------------------------------------


def test_rows_of_the_tables_are_laws_without_zeros():
    for model in models(2).values():
        for text in ("", "Ar", "Sure. Put th", "zzzz!!"):
            row = np.exp(model.scores([END, *encode(text)]))
            assert row.sum() == pytest.approx(1.0, abs=1e-12)
            assert row.min() > 0


def test_counting_by_hand():
    """After 'a' in 'ab', 'aa': b, a and the end once each: (1 + 3 below) / 6 at the first order."""
    even = np.full(len(LETTERS), 1.0 / len(LETTERS))
    counts = Counts(["ab", "aa"])
    a, b = encode("ab")
    seen = np.zeros(len(LETTERS))
    seen[[a, b, END]] = 3, 1, 2
    below = (seen + 3 * even) / 9
    after = np.zeros(len(LETTERS))
    after[[a, b, END]] = 1, 1, 1
    np.testing.assert_allclose(counts.law((), even), below)
    np.testing.assert_allclose(counts.law((a,), even), (after + 3 * below) / 6)


def test_the_tables_speak():
    """An answer of an attribute's table mostly has its markers; the reference's has none."""
    made = models()
    share = {}
    for voice, model in made.items():
        texts = []
        for seed in range(12):
            task = Task(Policy(model), (END,), Stopping(110, model.eos_ids), Stream(seed))
            texts.append(decode(run_alone(Sample(1), task)[0].tokens))
        share[voice] = {name: np.mean(values) for name, values in scores(texts).items()}
    assert share["pirate"]["pirate"] > 0.9 > 0.1 > share["pirate"]["formal"]
    assert share["formal"]["formal"] > 0.9 > 0.1 > share["formal"]["pirate"]
    assert max(share["neutral"].values()) < 0.1


# -- measuring -----------------------------------------------------------------------------------


def test_settings_cover_the_claims():
    for mode in frame.BOTH_MODES:
        known = settings(mode)
        assert len(set(known)) == len(known) == len({str(item) for item in known})
        assert {*ALONE, ANSWERS, BLENDED, PRODUCT_2, ROUTE, TOKEN, scr(CHUNK, 0.8)} <= set(known)
        assert {scr(length) for length in (1, 4, 8)} <= set(known)
        assert (PROMPTED in known) == (mode == "full")


def test_log_probabilities_are_those_of_the_reference():
    model = models(2)["neutral"]
    tokens = (*encode("Sure."), END)
    task = Task(Policy(model), (END,), Stopping(len(tokens)))
    found = run_alone(Judge(tokens), task)[0].log_probability
    wanted = sum(model.scores([END, *tokens[:place]])[token] for place, token in enumerate(tokens))
    assert found == pytest.approx(wanted)
    assert model.tokens_alive == 0


def test_a_small_run(monkeypatch):
    """All settings work together, seeds fix everything, and costs are as the cards say."""
    monkeypatch.setattr(mpg_measure.mpg_settings, "size", lambda _: Size(1, 2, 16))
    first, again = (mpg_measure.measure("quick", 3, lambda *_: None) for _ in range(2))
    assert first.seeds == (3, 4)
    for name, cells in first.cells.items():
        for setting, values in cells.items():
            assert values.shape == (1, 2)
            np.testing.assert_array_equal(values, again.cells[name][setting])
    assert (first.cells["calls"][BLENDED] == 3.0).all()
    assert (first.cells["calls"][ALONE[0]] == 1.0).all()
    assert (first.cells["accepted"][scr(1)] <= 1.0).all()
    assert set(first.cells["ln M"]) == {item for item in settings("quick") if item.way == "scr"}


def test_the_full_bench_asks_in_its_own_words():
    """A plain model is asked for both voices by other prompts than the adapters are."""
    made = models(2)
    bench = Bench("toy", made, [(1,), (2,)], decode, (made["pirate"], [(3,), (4,)]))
    assert bench.task(PROMPTED, 3, 0, 5).prompt == (4,)
    assert bench.task(BLENDED, 3, 0, 5).prompt == (2,)
    assert bench.source(Setting("product 2")).strength == 2.0
    assert bench.source(ANSWERS).scope == "sequence"
    assert bench.source(BLENDED).chunk == CHUNK


def test_texts_to_train_on_are_records(tmp_path):
    from decodery.reproductions.mpg_train import write_examples
    from decodery.training.adapter.texts import read_texts

    path = tmp_path / "pirate.jsonl"
    write_examples(path, "pirate", 0)
    found = read_texts([str(path)])
    assert found[: len(learnt_items())] == examples("pirate", 1)
    assert all("prompt" in json.loads(line) for line in path.read_text().splitlines())


# -- claims follow the data ----------------------------------------------------------------------

PAPER = {
    "least": 0.9,  # of a blend
    "scr": 0.88,
    "calls": {1: 3.0, 2: 2.0, 4: 1.8, 8: 2.5, 16: 3.5},
}


def invented(mode: frame.Mode, *, scr_score: float = 0.88, cheap: bool = True):
    """Cells without noise."""
    cells = {name: {} for name in (*ATTRIBUTES, "both", "log-prob", "calls")}
    drafted = {name: {} for name in ("accepted", "kept", "ln M")}
    for setting in settings(mode):
        score = {"neutral": 0.0, "answers": 0.5, "prompted": 0.3}.get(setting.source, 0.9)
        score = scr_score if setting.way == "scr" else score
        both = {"answers": 0.0, "prompted": 0.2, "product 2": 0.99}.get(setting.source, score)
        values = dict.fromkeys(ATTRIBUTES, score) | {"both": both, "log-prob": -1.0}
        if setting in ALONE:
            other = next(voice for voice in ATTRIBUTES if voice != setting.source)
            values |= {other: 0.0, "both": 0.0, setting.source: 1.0}
        values["calls"] = {"scr": PAPER["calls"][setting.length], "token": 2.4}.get(
            setting.way, 3.0 if setting == BLENDED else 1.0
        ) + (0.0 if cheap or setting.way != "scr" else 4.0)
        for name, value in values.items():
            cells[name][setting] = np.full((3, 2), value)
        if setting.way == "scr":
            more = 0.1 if setting.quantile < 1 else 0.0
            drafted["accepted"][setting] = np.full((3, 2), 0.9 / setting.length + more)
            drafted["kept"][setting] = np.full((3, 2), 1.0)
            drafted["ln M"][setting] = np.full((3, 2), 0.5 * setting.length)
    return frame.Measurements("invented", (0, 1), {**cells, **drafted})


def verdicts(measurements, mode):
    means, resampled = frame.cell_means(measurements), frame.bootstrap(measurements, 50)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in REPRODUCTION.claims
        if mode in claim.modes
    }


@pytest.mark.parametrize("mode", frame.BOTH_MODES)
def test_claims_hold_on_data_as_the_paper_says(mode):
    found = verdicts(invented(mode), mode)
    assert set(found.values()) == {"confirmed"}
    assert ("a2" in found) == (mode == "full")


def test_claims_fail_on_data_the_other_way():
    found = verdicts(invented("quick", scr_score=0.2, cheap=False), "quick")
    assert found["b"] == found["d"] == "not confirmed"
    assert found["a"] == "confirmed"


@pytest.mark.parametrize("mode", frame.BOTH_MODES)
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path):
    pytest.importorskip("matplotlib")
    fake = replace(REPRODUCTION, measure=lambda *_: invented(mode))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("mpg", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


def test_lengths_begin_at_one_token():
    assert all(lengths(mode)[0] == 1 for mode in frame.BOTH_MODES)


@pytest.mark.slow
def test_the_quick_run(tmp_path: Path):
    """The whole quick mode; claims with a wide margin come out as they did."""
    result = frame.reproduce("mpg", "quick", out=tmp_path)
    found = {outcome.claim.id: outcome.verdict for outcome in result.outcomes}
    assert found["a"] == found["f"] == "confirmed"
    assert found["b"] == found["d"] == "not confirmed"
