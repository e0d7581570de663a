"""The alignment_augmented reproduction: its numbers are what they say, its claims follow them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decodery.core.decoder import Completion
from decodery.methods.autoregressive.greedy import Greedy
from decodery.methods.speculative.alignment_augmented import METHOD
from decodery.reproductions import alignment_augmented_measure, frame
from decodery.reproductions.alignment_augmented import REPRODUCTION
from decodery.reproductions.alignment_augmented_measure import QUANTITIES, Answer, Reads
from decodery.reproductions.alignment_augmented_prompts import ITEMS
from decodery.reproductions.alignment_augmented_settings import (
    ADAPTIVE,
    CONSTANT,
    EXACT,
    EXACT_ALIGNED,
    FULL,
    GREEDY,
    SMALL_ADAPTIVE,
    SMALL_FULL,
    SWEEP,
    Setting,
    Size,
    size,
)

# -- settings and items ----------------------------------------------------------------------------


def test_settings_are_the_decoders_they_name() -> None:
    made = {"next_token": "argmax"}
    assert GREEDY.decoder() == Greedy()
    assert EXACT.decoder() == METHOD(verify="exact", alignment="off", **made)
    assert FULL.decoder() == METHOD(**made)
    assert SMALL_FULL.decoder() == METHOD(tree_nodes=8, **made)
    swept = {"threshold": 0.3, "threshold_slope": 0.0, "threshold_floor": 0.0}
    assert SWEEP[2].decoder() == METHOD(**swept, **made)
    assert len({str(setting) for setting in size("full").settings}) == len(size("full").settings)
    assert str(SMALL_ADAPTIVE) == "adaptive, retrieval, 8 nodes"


def test_every_quote_is_in_its_text() -> None:
    """References are whole sentences of the prompt, or code that goes on with it."""
    assert len({item.prompt for item in ITEMS}) == len(ITEMS) == 16
    for item in ITEMS:
        if item.kind == "code":
            compile(item.prompt + item.reference, "item", "exec")
        else:
            for sentence in item.reference.removesuffix(".").split(". "):
                assert sentence in item.prompt


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_every_claim_of_a_mode_finds_its_cells(mode: frame.Mode) -> None:
    assert len(verdicts(invented(as_the_paper_says, mode), mode)) == (2 if mode == "quick" else 9)


# -- from answers to cells -------------------------------------------------------------------------


def answer(tokens: int, evaluated: int, **departure: float) -> Answer:
    details = {"speculation": {"tokens_per_step": 2.5}, "departure": departure} if departure else {}
    return Answer(Completion(tuple(range(tokens)), "eos", details=details), evaluated)


def test_cells_by_hand() -> None:
    item = replace(ITEMS[0], reference="the big cat sat down")
    todo = Size((GREEDY, FULL), (item,), tokens=8)
    answers = {
        GREEDY: [answer(4, 3)],
        FULL: [answer(5, 20, accepted=4, from_alternatives=0.25, total_variation=0.4)],
    }
    texts = {GREEDY: ["The cat sat."], FULL: ["The cat stood."]}
    chances = {(0, tuple(range(4))): -0.5, (0, tuple(range(5))): -0.75}
    cells = alignment_augmented_measure.cells(todo, answers, texts, chances)
    wanted = {
        "tokens per step": (1.0, 2.5),
        "evaluations per token": (0.75, 4.0),
        "from alternatives": (0.0, 0.2),
        "not argmax": (0.0, 0.4),
        "same text": (1.0, 0.0),
        "rouge to greedy": (1.0, 2 / 3),
        "rouge to reference": (0.75, 0.5),
        "log p": (-0.5, -0.75),
    }
    assert set(cells) == set(wanted) == set(QUANTITIES)
    for name, values in wanted.items():
        for setting, value in zip((GREEDY, FULL), values, strict=True):
            np.testing.assert_allclose(cells[name][setting], [[value]])


# -- claims follow the data ------------------------------------------------------------------------

Invent = Callable[[Setting], dict[str, float]]


def invented(numbers: Invent, mode: frame.Mode = "full") -> frame.Measurements:
    """Cells without noise."""
    cells: dict[str, dict[Setting, np.ndarray]] = {name: {} for name in QUANTITIES}
    for setting in size(mode).settings:
        values = dict.fromkeys(QUANTITIES, 0.5) | numbers(setting)
        for name in QUANTITIES:
            cells[name][setting] = np.full((3, 1), values[name])
    return frame.Measurements("invented", (0,), cells, {"items": {"answer": 3}})


def as_the_paper_says(setting: Setting) -> dict[str, float]:
    steps = {None: 1.0, "exact": 1.5, "constant": 2.0, "adaptive": 2.2}[setting.verify]
    strict = setting.verify in (None, "exact") or setting.base == 1.0
    departs = 0.0 if strict else 0.1
    if setting.base is not None:
        steps = 2.6 - setting.base
    return {
        "tokens per step": steps + 0.2 * setting.alignment,
        "same text": float(strict),
        "not argmax": departs,
        "rouge to reference": 0.5 if strict else 0.53,
    }


def the_other_way(setting: Setting) -> dict[str, float]:
    found = as_the_paper_says(setting)
    return {
        "tokens per step": 4.0 - found["tokens per step"],
        "same text": 0.9,
        "not argmax": 0.2 - found["not argmax"],
        "rouge to reference": 0.5 if found["same text"] else 0.4,
    }


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
    ("claim", "setting", "wrong"),
    [
        ("a", EXACT, {"same text": 0.99}),
        ("a", EXACT_ALIGNED, {"same text": 0.99}),
        ("b", SWEEP[-1], {"same text": 0.99}),
        ("c", EXACT, {"tokens per step": 2.1}),
        ("d", CONSTANT, {"tokens per step": 3.0}),
        ("e1", ADAPTIVE, {"tokens per step": 3.0}),
        ("e1", EXACT_ALIGNED, {"tokens per step": 1.5}),
        ("e2", SMALL_ADAPTIVE, {"tokens per step": 3.0}),
        ("f1", FULL, {"rouge to reference": 0.49}),
        ("f2", FULL, {"rouge to reference": 0.44}),
        ("g", SWEEP[0], {"tokens per step": 1.0}),
        ("g", SWEEP[0], {"not argmax": 0.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_wrong_setting_is_enough(claim: str, setting: Setting, wrong: dict[str, float]) -> None:
    def numbers(other: Setting) -> dict[str, float]:
        return as_the_paper_says(other) | (wrong if other == setting else {})

    assert verdicts(invented(numbers))[claim] == "not confirmed"


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    measured = invented(as_the_paper_says, mode)
    fake = replace(REPRODUCTION, measure=lambda *_: measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("alignment_augmented", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


# -- the real thing --------------------------------------------------------------------------------


def test_a_small_run_on_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short item, three settings: the parts of `measure` work together; seeds fix all."""
    short = replace(ITEMS[1], prompt=ITEMS[1].prompt[:200])
    tiny = Size((GREEDY, EXACT_ALIGNED, FULL), (short,), tokens=8)
    monkeypatch.setattr(alignment_augmented_measure, "size", lambda _: tiny)
    first, again = (
        alignment_augmented_measure.measure("quick", 3, lambda *_: None) for _ in range(2)
    )
    assert first.seeds == (3,)
    for name, cells in first.cells.items():
        for setting, values in cells.items():
            assert values.shape == (1, 1)
            np.testing.assert_array_equal(values, again.cells[name][setting])
    assert float(first.cells["same text"][EXACT_ALIGNED][0, 0]) == 1.0
    assert float(first.cells["tokens per step"][FULL][0, 0]) >= 1.0


def test_what_is_read_is_what_greedy_decoding_saw() -> None:
    """ln p of a text by `Reads`, against the rows of a table."""
    from decodery.core.decoder import Task
    from decodery.core.runner import run_alone
    from decodery.core.source import Policy
    from decodery.core.stopping import Stopping
    from decodery.testing import TableModel

    table = TableModel.random(4, seed=1)
    task = Task(Policy(table), (0, 1), Stopping(9))
    for text in ((2,), (3, 1, 0, 2)):
        (item,) = run_alone(Reads(text), task)
        wanted = [table.scores([0, 1, *text[:place]])[text[place]] for place in range(len(text))]
        np.testing.assert_allclose(item.details["log p"], wanted, atol=1e-12)
        assert item.tokens == text


@pytest.mark.slow
def test_the_quick_run(tmp_path: Path) -> None:
    """The whole quick mode; what holds by construction must hold."""
    result = frame.reproduce("alignment_augmented", "quick", out=tmp_path)
    assert {outcome.claim.id: outcome.verdict for outcome in result.outcomes} == {
        "a": "confirmed",
        "b": "confirmed",
    }
    assert result.figure.is_file()
