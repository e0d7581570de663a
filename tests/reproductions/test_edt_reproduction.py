"""The EDT reproduction: curves, lines and line model are right, claims follow the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decodery.core.decoder import Completion, Task
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.sample import Sample
from decodery.methods.sampling.edt import EDT as Sampler
from decodery.methods.sampling.temperature import Temperature
from decodery.reproductions import edt_measure, frame
from decodery.reproductions.edt import REPRODUCTION
from decodery.reproductions.edt_curves import best_distance, best_diversity, lead
from decodery.reproductions.edt_measure import line_scores
from decodery.reproductions.edt_settings import (
    EDT,
    FAINT,
    FIXED,
    MILD,
    SEQUENCE,
    Family,
    Setting,
    size,
)
from decodery.reproductions.edt_tasks import items
from decodery.reproductions.edt_template import (
    ALPHABET,
    END,
    LONGEST,
    SLOTS,
    TEMPLATES,
    WIDTH,
    WINDOW,
    CharacterModel,
    Weights,
    decode,
    encode,
    examples,
    parse,
    train,
    window,
    write_lines,
)

# -- settings --------------------------------------------------------------------------------------


def test_settings_are_the_chains_they_name() -> None:
    assert Setting("fixed", 0.7).chain().stages == (Temperature(0.7),)
    assert Setting("token", 1.5, 0.3).chain().stages == (Sampler(1.5, 0.3),)
    by_sequence = Setting("sequence", 1.5, 1.0)
    assert by_sequence.chain().stages == (Sampler(1.5, 1.0, granularity="sequence"),)
    assert str(by_sequence) == "EDT by sequence T0=1.5 theta=1"
    mixed = [Setting("token", 1.1, 0.3), Setting("fixed", 0.3), Setting("token", 0.3, 0.3)]
    assert MILD.among(mixed) == [mixed[2], mixed[0]]


def test_grids_are_equal_and_items_have_references() -> None:
    todo = size("full")
    assert {len(family.over(todo.heats)) for family in todo.families} == {len(todo.heats)}
    assert set(size("quick").families) <= set(todo.families)
    asked = items(12)
    assert len(asked) == len({item.prompt for item in asked}) == 24
    assert all(len(item.reference.split()) > 8 for item in asked)


# -- lines of the grammar --------------------------------------------------------------------------


def test_every_written_line_parses_and_fits() -> None:
    for line in write_lines(np.random.default_rng(0), 300):
        fitting = [rest for opening, rest in TEMPLATES if line.startswith(opening)]
        (rest,) = fitting
        opening = next(opening for opening, _ in TEMPLATES if line.startswith(opening))
        assert parse(rest, line[len(opening) : -1]) is not None
        assert len(line) <= LONGEST
        assert decode(encode(line)) == line
    assert all(len(set(values)) == 24 for values in SLOTS.values())


@pytest.mark.parametrize(
    "broken",
    ["anna ships to osla today.", "anna ships to oslo today", "ann ships to oslo today.", "", "\n"],
)
def test_broken_lines_do_not_parse(broken: str) -> None:
    assert parse("{name} ships to {city} today.", broken) is None


def test_line_scores_by_hand() -> None:
    """Two of three lines parse; they have two names and one city."""
    lines = ["anna ships to oslo today.", "vera ships to oslo today.", "leo ships to moon today."]
    assert line_scores("{name} ships to {city} today.", lines) == (2 / 3, 1.5 / 3)
    assert line_scores("{name} ships to {city} today.", ["x"]) == (0.0, 0.0)


def test_a_line_that_does_not_end_does_not_parse() -> None:
    tokens = encode("anna ships to oslo today.")
    endings = [Completion((*tokens, END), "eos"), Completion(tuple(tokens), "max_tokens")]
    shown = [edt_measure._line(item) for item in endings]
    assert [parse("{name} ships to {city} today.", line) is not None for line in shown] == [
        True,
        False,
    ]


# -- the character model ---------------------------------------------------------------------------


def random_weights() -> Weights:
    generator = np.random.default_rng(0)
    count = len(ALPHABET)
    shapes = [(WINDOW * count, WIDTH), (WIDTH,), (count, WIDTH), (count,)]
    return Weights(*(generator.normal(0, 0.3, shape).astype(np.float32) for shape in shapes))


def test_the_network_by_hand() -> None:
    """One window, character by character, in float64."""
    weights = random_weights()
    seen = window(encode("order for anna"))
    hidden = weights.bias.astype(np.float64)
    for place, token in enumerate(seen):
        hidden = hidden + weights.rows[place * len(ALPHABET) + token]
    expected = weights.out @ np.tanh(hidden) + weights.out_bias
    np.testing.assert_allclose(weights.scores(np.array([seen]))[0], expected, rtol=1e-4, atol=1e-4)


def test_windows_end_where_the_text_does() -> None:
    windows, following = examples(["ab\n", "1\n"])
    assert [decode(row).lstrip("\n") for row in windows] == ["", "a", "ab", "", "1"]
    assert decode(following.tolist()) == "ab\n1\n"
    assert decode(window(encode("x" * 30 + "yz"))) == "x" * (WINDOW - 2) + "yz"


def test_the_model_answers_the_engine_path_by_path() -> None:
    """Sequences drawn side by side get the rows of their own path, prompts of any length."""
    model = CharacterModel(random_weights())
    for prompt in ("\n", "\nroom 12 is the room before 13"):
        task = Task(Policy(model), tuple(encode(prompt)), Stopping(6), Stream(1))
        for sequence, item in enumerate(run_alone(Sample(5), task)):
            path = encode(prompt)
            for token in item.tokens:
                scores = model.weights.scores(np.array([window(path)]))[0].astype(np.float64)
                law = np.exp(scores - scores.max())
                noise = task.stream.uniform(sequence, len(path), "token")
                assert token == int(np.searchsorted(np.cumsum(law), noise * law.sum()))
                path.append(token)


def test_training_learns_and_repeats_itself() -> None:
    weights, loss = train(30)
    again, same = train(30)
    assert loss == same
    assert all(
        np.array_equal(getattr(weights, name), getattr(again, name))
        for name in weights.__dataclass_fields__
    )
    assert loss < 3.0 < np.log(len(ALPHABET))


# -- curves ----------------------------------------------------------------------------------------

Point = tuple[float, float]


def means_of(points: dict[Family, list[Point]]) -> dict[frame.Key, np.ndarray]:
    means: dict[frame.Key, np.ndarray] = {}
    for family, curve in points.items():
        for setting, (x, y) in zip(family.over(range(1, 9)), curve, strict=False):
            means["x", setting], means["y", setting] = np.asarray(x), np.asarray(y)
    return means


def test_the_lead_is_the_mean_gap_between_two_lines() -> None:
    """Lines 1 - x and 0.9 - x over shifted grids: 0.1 apart wherever both are."""
    own = [(x, 1 - x) for x in (0.2, 0.5, 0.8)]
    other = [(x, 0.9 - x) for x in (0.1, 0.4, 0.7)]
    means = means_of({EDT: own, FIXED: other})
    assert float(lead(means, EDT, FIXED, "y", "x")) == pytest.approx(0.1)
    assert float(lead(means, FIXED, EDT, "y", "x")) == pytest.approx(-0.1)
    pair = {key: np.stack([value, value]) for key, value in means.items()}
    assert lead(pair, EDT, FIXED, "y", "x") == pytest.approx([0.1, 0.1])
    apart = means_of({EDT: [(0.1, 1), (0.2, 1)], FIXED: [(0.3, 0), (0.4, 0)]})
    assert float(lead(apart, EDT, FIXED, "y", "x")) == 0.0


def test_best_diversity_keeps_to_the_least_quality() -> None:
    means = means_of({EDT: [(0.2, 1.0), (0.5, 0.92), (0.8, 0.4)], FIXED: [(0.9, 0.1)]})
    assert float(best_diversity(means, EDT, "y", "x", 0.9)) == 0.5
    assert float(best_diversity(means, FIXED, "y", "x", 0.9)) == 0.0


def test_best_distance_is_the_formula() -> None:
    """Aim (1, 0.8): the setting (0.9, 0.6) misses by a tenth and a quarter."""
    means = means_of({EDT: [(0.6, 0.9)], FIXED: [(0.8, 0.2), (0.1, 1.0)]})
    found = best_distance(means, EDT, (EDT, FIXED), "y", "x")
    assert float(found) == pytest.approx(100 * np.sqrt((0.1**2 + 0.25**2) / 2))


# -- claims follow the data ------------------------------------------------------------------------

Invent = Callable[[str, Setting], float]


def invented(value: Invent, mode: frame.Mode = "full") -> frame.Measurements:
    todo = size(mode)
    answers = [one for family in todo.families for one in family.over(todo.heats)]
    lines = [one for family in todo.slot_families for one in family.over(todo.slot_heats)]
    names = {"ROUGE-L": answers, "diversity": answers, "T/T0": answers}
    return frame.Measurements(
        "invented",
        (0,),
        {
            name: {one: np.full((4, 2), value(name, one)) for one in chosen}
            for name, chosen in (names | {"parse": lines, "slots": lines}).items()
        },
    )


def bonus(setting: Setting) -> float:
    return setting.theta / 10 if setting.kind == "token" else 0.0


def as_the_paper_says(name: str, setting: Setting) -> float:
    heat = setting.temperature
    return {
        "ROUGE-L": 0.5 - heat / 8 + 0.1 * bonus(setting) * (setting.theta > 0.1),
        "diversity": heat / 2,
        "T/T0": 1.0,
        "parse": 1.0 - 0.08 * heat * (1 - 8 * bonus(setting)),
        "slots": 0.1 + heat / 8,
    }[name]


def the_other_way(name: str, setting: Setting) -> float:
    heat = setting.temperature
    return {
        "ROUGE-L": 0.5 - heat / 8 - 0.5 * bonus(setting) - 0.03 * (setting.theta == 0.1),
        "diversity": heat / 2,
        "T/T0": 0.5,
        "parse": 1.0 - 0.08 * heat * (1 + 8 * bonus(setting)),
        "slots": 0.1 + heat / 8,
    }[name]


def verdicts(measurements: frame.Measurements, mode: frame.Mode = "full") -> dict[str, str]:
    means, resampled = frame.cell_means(measurements), frame.bootstrap(measurements, 20)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in REPRODUCTION.claims
        if mode in claim.modes
    }


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_claims_hold_on_data_as_the_paper_says(mode: frame.Mode) -> None:
    found = verdicts(invented(as_the_paper_says, mode), mode)
    assert len(found) == (3 if mode == "quick" else 7)
    assert set(found.values()) == {"confirmed"}


def test_claims_fail_on_data_the_other_way() -> None:
    assert set(verdicts(invented(the_other_way)).values()) == {"not confirmed"}


def test_claims_fail_where_nothing_differs() -> None:
    """All but (b), which says so."""

    def same(name: str, setting: Setting) -> float:
        return as_the_paper_says(name, replace(setting, kind="fixed", theta=0.0))

    found = verdicts(invented(same))
    assert found.pop("b") == "confirmed"
    assert set(found.values()) == {"not confirmed"}


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    measured = invented(as_the_paper_says, mode)
    fake = replace(REPRODUCTION, measure=lambda *_: measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("edt", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


# -- from texts to cells ---------------------------------------------------------------------------


def test_answer_cells_by_hand() -> None:
    spoken: dict[tuple[int, ...], str] = {
        (0,): "Light is fast.",
        (1,): "light is slow",
        (2,): "Sound",
    }
    chosen = Setting("token", 1.0, 1.0)
    asked = replace(items(1)[0], reference="Light is very fast")
    group = [Completion(tokens, "eos", details={"T/T0": [0.5, 1.0]}) for tokens in spoken]
    cells = edt_measure.answer_cells({chosen: [[group]]}, [asked], lambda ids: spoken[tuple(ids)])
    expected = np.mean([2 * 3 / 7, 2 * 2 / 7, 0.0])
    assert cells["ROUGE-L"][chosen] == pytest.approx(np.array([[expected]]))
    assert cells["T/T0"][chosen] == pytest.approx(np.array([[0.75]]))
    assert 0 < cells["diversity"][chosen][0, 0] < 1


# -- the real thing --------------------------------------------------------------------------------


def test_a_small_run_on_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of `measure` work together, seeds fix everything, and temperatures are as said."""
    tiny = replace(
        size("quick"),
        families=(FIXED, EDT, FAINT, SEQUENCE),
        heats=(0.5, 1.5),
        items=1,
        draws=2,
        tokens=5,
        slot_heats=(1.0, 2.0),
        slot_draws=3,
        training_steps=5,
    )
    monkeypatch.setattr(edt_measure, "size", lambda _: tiny)
    first, again = (edt_measure.measure("quick", 3, lambda *_: None) for _ in range(2))
    assert set(first.cells) == {"ROUGE-L", "diversity", "T/T0", "parse", "slots"}
    assert first.cells["ROUGE-L"][Setting("fixed", 0.5)].shape == (2, 1)
    assert first.cells["parse"][Setting("fixed", 1.0)].shape == (6, 1)
    used = first.cells["T/T0"]
    for setting, share in used.items():
        assert (share == 1).all() if setting.kind == "fixed" else (share < 1).all()
    assert (used[Setting("token", 0.5, 1.0)] < used[Setting("token", 0.5, 0.1)]).all()
    for name, settings in first.cells.items():
        for setting, values in settings.items():
            np.testing.assert_array_equal(values, again.cells[name][setting])


@pytest.mark.slow
def test_the_quick_run(tmp_path: Path) -> None:
    """The whole quick mode; the mechanism on the lines must show."""
    result = frame.reproduce("edt", "quick", out=tmp_path)
    found = {outcome.claim.id: outcome.verdict for outcome in result.outcomes}
    assert found["c"] == found["d1"] == "confirmed"
    assert result.figure.is_file()
