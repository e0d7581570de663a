"""The language gate's reproduction: its numbers are what they say, and claims follow the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Completion
from decodery.core.errors import DecoderyError
from decodery.core.row import Row
from decodery.core.sampler import Context
from decodery.methods.sampling.language_gate import Gate, LanguageGate, Script
from decodery.methods.sampling.token_families import (
    CJ,
    LATIN,
    LOW_RESOURCE,
    NAMES,
    SYMBOLS,
    families_of,
)
from decodery.reproductions import frame, language_gate_gates, language_gate_measure
from decodery.reproductions.language_gate import REPRODUCTION
from decodery.reproductions.language_gate_measure import (
    GATE,
    NONE,
    is_clean,
    kept,
    provoking,
    strangers,
    switches,
    wrong,
)
from decodery.reproductions.language_gate_prompts import MIXED, OPENINGS, PLAIN
from decodery.reproductions.language_gate_settings import COOL, HOT, Name, Setting, size
from decodery.training.language_gate.sentences import MIXED as TAUGHT_MIXED
from decodery.training.language_gate.sentences import QUESTIONS, SENTENCES
from decodery.training.tools import hidden_states

# A vocabulary: two Latin tokens, Cyrillic, Chinese, a full stop, and Hangul in two halves.
PIECES = (b"ab", b" c", "да".encode(), "中".encode(), b".", "밤".encode()[:2], "밤".encode()[2:])
FAMILIES = families_of(PIECES)


def text(*tokens: int) -> Completion:
    return Completion(tokens, "max_tokens")


# -- prompts and settings --------------------------------------------------------------------------


def families_in(line: str) -> set[int]:
    return set(families_of(tuple(letter.encode() for letter in line)).tolist())


def test_prompts_are_of_their_scripts() -> None:
    for language, group in OPENINGS.items():
        assert len(set(group)) == len(group) >= 10, language
        assert all(families_in(line) <= {LOW_RESOURCE, SYMBOLS} for line in group), language
    for language, group in PLAIN.items():
        home = CJ if language in ("Chinese", "Japanese") else LATIN
        assert all(families_in(line) <= {home, SYMBOLS} for line in group), language
    assert all({LATIN, LOW_RESOURCE} <= families_in(line) for line in MIXED)


def test_no_prompt_is_trained_on() -> None:
    """No prompt is, or begins, a text of the training, and none of these begins a prompt."""
    taught = {line for group in (*SENTENCES.values(), *QUESTIONS.values()) for line in group}
    taught |= set(TAUGHT_MIXED)
    asked = {line for group in (*OPENINGS.values(), *PLAIN.values()) for line in group}
    for line in asked | set(MIXED):
        assert not any(one.startswith(line) or line.startswith(one) for one in taught), line


def test_without_a_gate_the_chain_is_plain() -> None:
    from decodery.methods.sampling.temperature import Temperature
    from decodery.methods.sampling.top_k import TopK
    from decodery.methods.sampling.top_p import TopP

    assert NONE.chain(None).stages == (Temperature(0.7), TopK(20), TopP(0.8))
    hot = Setting("gate", HOT).chain("file").stages
    assert hot[0] == Temperature(1.0)
    assert hot[1] == LanguageGate(top_p=0.9, prompt=True, file="file")


# -- from texts to cells ---------------------------------------------------------------------------


def test_strangers_are_latin_and_cj_tokens() -> None:
    assert FAMILIES.tolist() == [LATIN, LATIN, LOW_RESOURCE, CJ, SYMBOLS, SYMBOLS, SYMBOLS]
    assert strangers(text(0, 2, 3, 4, 5, 6), FAMILIES) == 2


def test_clean_texts_have_letters_of_one_script() -> None:
    for tokens, home, wanted in [
        ((2, 4, 2), LOW_RESOURCE, True),
        ((2, 4, 0), LOW_RESOURCE, False),
        ((2, 5, 6), LOW_RESOURCE, True),
        ((0, 5, 6), LATIN, False),  # a letter that two symbols spell
        ((0, 5), LATIN, True),  # half of it
        ((3, 4), CJ, True),
        ((3, 1), CJ, False),
        ((4,), CJ, True),
    ]:
        assert is_clean(text(*tokens), home, PIECES) == wanted, (tokens, home)


def test_cells_by_hand() -> None:
    rows = [[text(2, 2), text(2, 0)], [text(4, 2), text(3, 2)]]
    gated = [[text(2, 2), text(2, 2)], [text(2, 4), text(3, 2)]]
    cells = wrong({NONE: rows, GATE: gated}, FAMILIES)
    np.testing.assert_allclose(cells["wrong tokens, cool"][NONE], [[0, 0.5], [0, 0.5]])
    np.testing.assert_allclose(cells["wrong texts, cool"][GATE], [[0, 0], [0, 1]])
    assert list(wrong({Setting("gate", HOT): gated}, FAMILIES)) == [
        "wrong tokens, hot", "wrong texts, hot",
    ]  # fmt: skip
    found = kept({NONE: rows, GATE: gated}, [LOW_RESOURCE] * 2, PIECES, "x")
    np.testing.assert_allclose(found["clean, x"][GATE], [[1, 0], [1, 0]])
    np.testing.assert_allclose(found["clean and unchanged, x"][GATE], [[1, 0], [0, 0]])


def test_prompts_that_slipped_are_chosen() -> None:
    assert provoking([0, 2, 0, 1, 1, 0, 3, 1]) == [1, 3, 4, 6, 7]
    assert provoking([0, 0, 0, 1, 0, 0]) == [0, 1, 2, 3]  # the fewest there may be


@pytest.mark.parametrize(("permits", "wanted"), [(True, (1, 1)), (False, (1, 0))])
def test_switches_are_counted_where_latin_can_be_drawn(
    permits: bool, wanted: tuple[int, int]
) -> None:
    """да ab да c: Latin is likely before ab, and out of the user's set before c."""
    latin = 1.0 if permits else -1.0
    first = np.ones((1, 1), dtype=np.float32)
    second = np.array([[-1], [latin], [1], [1]], dtype=np.float32)
    gate = LanguageGate(gate=Gate(first, second, FAMILIES), top_p=0.9, prompt=True)
    likely = np.array([4, 0, 4, 0, 0, 0, 0], dtype=np.float32)
    certain = np.array([0, 0, 50, 0, 0, 0, 0], dtype=np.float32)
    scores = np.stack([likely, likely, certain, likely])
    hidden = np.ones((4, 1), dtype=np.float32)
    found = switches(gate, Setting("gate", HOT), (2, 0, 2, 1), scores, hidden, FAMILIES)
    assert found == wanted


# -- the gates that it is compared with ------------------------------------------------------------


def test_own_script_permits_symbols_and_other_scripts_only() -> None:
    gate = Gate.of(language_gate_gates.own_script(5), FAMILIES)
    for seed in range(50):
        hidden = np.random.default_rng(seed).normal(size=5).astype(np.float32)
        assert gate.permitted(hidden, 0.5).tolist() == [False, False, True, True]


def test_scrambling_keeps_all_but_the_places() -> None:
    shape = (6, 6)
    first = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    gate = {"A1": first, "A2": np.ones((len(NAMES), 6), dtype=np.float32)}
    other = language_gate_gates.scrambled(gate)
    assert (np.sort(other["A1"], axis=1) == np.sort(first, axis=1)).all()
    assert (other["A1"] != first).any()
    assert (other["A2"] == gate["A2"]).all()


# -- claims follow the data ------------------------------------------------------------------------

Numbers = dict[str, float]
CELLS = ("clean, plain", "clean and unchanged, plain", "clean, openings",
         "clean and unchanged, openings", "touched")  # fmt: skip
GOOD: Numbers = {
    "none": 0.2, "gate": 0.01, "scrambled": 0.19, "shuffled": 0.2, "adjusted": 0.02,
    "unadjusted": 0.05, "paper's labels": 0.06, "none hot": 0.4, "gate hot": 0.02,
    "own script hot": 0.0, "clean, plain": 0.9, "clean and unchanged, plain": 0.9,
    "clean, openings": 0.8, "clean and unchanged, openings": 0.795, "touched": 0.004,
    "left by gate": 1.8, "left by own script": 0.0,
}  # fmt: skip
BAD: Numbers = GOOD | {
    "gate": 0.05, "gate hot": 0.1, "scrambled": 0.05, "shuffled": 0.05, "unadjusted": 0.01,
    "paper's labels": 0.2, "clean and unchanged, plain": 0.8, "touched": 0.05,
    "clean and unchanged, openings": 0.7, "left by gate": 0.3,
}  # fmt: skip


def invented(numbers: Numbers, mode: frame.Mode = "full") -> frame.Measurements:
    """Cells without noise."""
    todo = size(mode)

    def cell(value: float) -> np.ndarray:
        return np.full((3, 2), value)

    cells: dict[str, dict[Setting, np.ndarray]] = {
        name: {GATE: cell(numbers[name])} for name in CELLS
    }
    for quantity in ("wrong tokens", "wrong texts"):
        cells[f"{quantity}, cool"] = {Setting(name): cell(numbers[name]) for name in todo.cool}
        cells[f"{quantity}, hot"] = {
            Setting(name, HOT): cell(numbers[f"{name} hot"]) for name in todo.hot
        }
    others: tuple[Name, ...] = ("gate", "own script")
    cells["switches possible"] = {Setting(name, HOT): cell(2.0) for name in others}
    cells["switches kept"] = {
        Setting(name, HOT): cell(numbers[f"left by {name}"]) for name in others
    }
    return frame.Measurements("invented", (0, 1), cells, {"prompts that provoke": ["a"]})


def verdicts(measurements: frame.Measurements, mode: frame.Mode = "full") -> dict[str, str]:
    means, resampled = frame.cell_means(measurements), frame.bootstrap(measurements, 50)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in REPRODUCTION.claims
        if mode in claim.modes
    }


@pytest.mark.parametrize(("mode", "count"), [("quick", 7), ("full", 10)])
def test_claims_hold_on_data_as_the_paper_says(mode: frame.Mode, count: int) -> None:
    found = verdicts(invented(GOOD, mode), mode)
    assert len(found) == count
    assert set(found.values()) == {"confirmed"}


def test_claims_fail_on_data_the_other_way() -> None:
    assert set(verdicts(invented(BAD)).values()) == {"not confirmed"}


@pytest.mark.parametrize(
    ("claim", "changed"),
    [
        ("a1", "gate"),
        ("a2", "gate hot"),
        ("b1", "clean and unchanged, plain"),
        ("b2", "clean and unchanged, openings"),
        ("b3", "touched"),
        ("c1", "scrambled"),
        ("c2", "shuffled"),
        ("d1", "unadjusted"),
        ("d2", "paper's labels"),
        ("e", "left by gate"),
    ],
)
def test_each_claim_fails_by_its_own_number(claim: str, changed: str) -> None:
    found = verdicts(invented(GOOD | {changed: BAD[changed]}))
    assert [name for name, verdict in found.items() if verdict == "not confirmed"] == [claim]


def test_nothing_clean_is_nothing_changed() -> None:
    numbers = GOOD | {"clean, plain": 0.0, "clean and unchanged, plain": 0.0}
    assert verdicts(invented(numbers))["b1"] == "confirmed"


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    fake = replace(REPRODUCTION, measure=lambda *_: invented(GOOD, mode))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("language_gate", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


# -- the real thing --------------------------------------------------------------------------------


@pytest.fixture
def loaded(default_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    monkeypatch.setattr("decodery.api.load.load", lambda *_, **__: default_lm)
    return default_lm


def test_a_small_run_on_the_embedded_model(
    loaded: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few prompts, short texts: the parts of `measure` work together, and seeds fix everything."""
    tiny = replace(size("quick"), choosing=1, seeds=2, hot_seeds=1, clean_seeds=1, tokens=4)
    few = {name: group[:1] for name, group in list(OPENINGS.items())[:4]}
    monkeypatch.setattr(language_gate_measure, "size", lambda _: tiny)
    monkeypatch.setattr(language_gate_measure, "OPENINGS", few)
    monkeypatch.setattr(language_gate_measure, "PLAIN", {"English": PLAIN["English"][:2]})
    monkeypatch.setattr(language_gate_measure, "MIXED", MIXED[:2])
    first, again = (language_gate_measure.measure("quick", 3, lambda *_: None) for _ in range(2))
    assert first.cells["wrong tokens, cool"][GATE].shape == (4, 2)
    assert first.cells["clean, plain"][GATE].shape == (2, 1)
    assert first.cells["switches possible"][Setting("gate", HOT)].shape == (2, 1)
    for quantity, settings in first.cells.items():
        for setting, values in settings.items():
            assert (values == again.cells[quantity][setting]).all()
    assert set(verdicts(first, "quick").values()) <= {"confirmed", "not confirmed"}


def test_the_small_training_tells_its_labels_apart(
    loaded: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From one beginning and on the same texts, four kinds of labels make four gates."""
    monkeypatch.setattr(language_gate_gates, "CONTINUATIONS", 0)
    monkeypatch.setattr(
        "decodery.training.language_gate.distil.given",
        lambda _: ([SENTENCES["Russian"][0], SENTENCES["English"][0], TAUGHT_MIXED[0]], []),
    )
    names: set[Name] = {"adjusted", "unadjusted", "paper's labels", "shuffled"}
    files = language_gate_gates.gate_files(loaded, names, tmp_path)
    gates = {name: loaded.part("language_gate", files[name]) for name in names}
    assert len({gate["A1"].tobytes() for gate in gates.values()}) == 4


def test_the_gate_comes_with_the_model(default_lm: LanguageModel) -> None:
    """The shipped file fits the embedded model and knows Latin text from other text, none of which
    it was trained on."""
    sampler = LanguageGate(prompt=True).bind(default_lm)
    gate = sampler._bound()
    assert gate.first.shape == (576, 576)
    tokens = default_lm.language.encode("Море солёное")
    state: Any = sampler.start(Context(tokens, len(tokens)))
    assert isinstance(state, Script)
    assert state.family == LOW_RESOURCE
    share: dict[str, float] = {}
    for name, lines in (("English", PLAIN["English"]), ("Russian", OPENINGS["Russian"])):
        passed = [
            gate.permitted(row, 0.5)[LATIN]
            for line in lines
            for row in hidden_states(
                default_lm.transformer, default_lm.language.encode(line)
            ).numpy()[1:]
        ]
        share[name] = float(np.mean(passed))
    assert share["English"] > 0.9
    assert share["Russian"] < 0.2
    with pytest.raises(DecoderyError, match="does not exist"):
        LanguageGate(file="none.safetensors").bind(default_lm)


def test_touched_is_told_from_the_sets() -> None:
    """The note compares what is drawn from with the user's set at the paper's sampling."""

    class Node:
        def __init__(self, row: Any, policy: Any) -> None:
            self.row, self._policy = row, policy

        def policy_row(self) -> Any:
            return self._policy

    row = Row.dense(np.array([3.0, 1.0, 0.0, 2.0], dtype=np.float32))
    plain = row.keep(np.array([1, 0, 0, 1], dtype=np.bool_))
    note: Any = language_gate_measure.touched
    assert COOL.top_p == 0.8
    chosen = np.exp(row.scores / 0.7) / np.exp(row.scores / 0.7).sum()
    assert chosen[0] < 0.8 < chosen[0] + chosen[3]
    assert note(Node(row, plain), 0) == 0
    assert note(Node(row, row), 0) == 1
