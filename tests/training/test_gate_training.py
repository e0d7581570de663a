"""The training of the language gate: labels by hand, hidden states of the engine, a fit that finds
what is there, a frozen model, and a whole run that is interrupted and goes on bit for bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Decoder, Task, completion
from decodery.core.errors import DecoderyError, ModelFileError, ParameterError
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.sampling.token_families import CJ, LATIN, LOW_RESOURCE, SYMBOLS, families_of
from decodery.training.frame import train
from decodery.training.language_gate import TRAINING, Params, distil
from decodery.training.language_gate.distil import Features, Norms, candidate_families
from decodery.training.language_gate.sentences import MIXED, QUESTIONS, SENTENCES
from decodery.training.run import Run
from decodery.training.tools import hidden_states, output_norms


@pytest.fixture(autouse=True)
def few_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- labels --------------------------------------------------------------------------------------


def brute_labels(logits: np.ndarray, families: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """The definition, one position and one token at a time, in float64."""
    rows = []
    for row in logits.astype(np.float64):
        mass = np.exp(row - row.max())
        mass /= mass.sum()
        found, before = set(), 0.0
        for token in np.argsort(-row, kind="stable")[:top_k]:
            if before < top_p:
                found.add(int(families[token]))
            before += mass[token]
        rows.append([family in found for family in range(4)])
    return np.array(rows)


@pytest.mark.parametrize(("top_k", "top_p"), [(20, 0.95), (5, 0.5), (1, 0.95), (60, 1.0)])
def test_labels_are_the_definition(top_k: int, top_p: float) -> None:
    generator = np.random.default_rng(0)
    families = generator.integers(4, size=50)
    logits = generator.normal(0, 3, (300, 50)).astype(np.float32)
    found = candidate_families(torch.tensor(logits), torch.tensor(families), top_k, top_p)
    assert (found.numpy() == brute_labels(logits, families, top_k, top_p)).all()


def test_the_top_token_is_always_a_candidate() -> None:
    logits = torch.tensor([[50.0, 0.0, 0.0]])
    found = candidate_families(logits, torch.tensor([CJ, LATIN, LATIN]), 20, 1e-6)
    assert found.tolist() == [[True, False, False, False]]


def test_adjusting_takes_away_what_large_norms_gave() -> None:
    """The embedding of a CJ token has double norm: it is the candidate where another direction fits
    the hidden state better, and with adjusted logits it is none."""
    directions = np.eye(6, dtype=np.float32)
    embedding = np.vstack([directions[:4], -directions[:2]])
    embedding[0] *= 2
    families = torch.tensor([CJ, LATIN, LOW_RESOURCE, LATIN, SYMBOLS, SYMBOLS])
    hidden = np.array([[6, 4, 9, 5, 0, 0]], dtype=np.float32)
    logits = torch.tensor(hidden @ embedding.T)  # CJ 12, the other script 9
    norms = torch.tensor(np.linalg.norm(embedding, axis=1))
    adjusted = Norms(norms, norms).adjust(logits, "absolute")  # 6 and 9
    plain, corrected = (
        candidate_families(item, families, 20, 0.9)[0].tolist() for item in (logits, adjusted)
    )
    assert plain == [True, False, False, False]
    assert corrected == [False, False, False, True]


def test_absolute_norms_are_a_temperature_and_relative_ones_are_not() -> None:
    """All norms times c: z~ is z times 1/c with absolute norms, and z as it was with the mean."""
    logits = torch.randn(20, 40, generator=torch.Generator().manual_seed(0)) * 5
    norms = torch.rand(40, generator=torch.Generator().manual_seed(1)) + 0.5
    for scale in (0.1, 20.0):
        scaled = Norms(norms * scale, norms * scale)
        for mode, factor in (("absolute", 1 / scale), ("mean", 1.0), ("centred", 1.0)):
            before = Norms(norms, norms).adjust(logits, mode)
            torch.testing.assert_close(scaled.adjust(logits, mode), before * factor)
    assert Norms(norms, norms).adjust(logits, "off") is logits


def test_centred_norms_do_not_depend_on_where_zero_is() -> None:
    """Adding a number to all logits of a position, which changes no probability, changes labels
    with the paper's form and not with the centred one."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 60, generator=generator) * 3
    families = torch.randint(4, (60,), generator=generator)
    norms = Norms(torch.rand(60, generator=generator) + 0.5, torch.rand(60) + 0.5)
    changed = {}
    for mode in ("mean", "absolute", "centred", "off"):
        labels = [
            candidate_families(norms.adjust(shifted, mode), families, 10, 0.9)
            for shifted in (logits, logits + 20)
        ]
        changed[mode] = int((labels[0] != labels[1]).sum())
    assert changed["centred"] == changed["off"] == 0
    assert changed["mean"] > 50
    assert changed["absolute"] > 50


# -- the frozen model ----------------------------------------------------------------------------


class Walk(Decoder):
    """Grows a given path and keeps the hidden state of every node."""

    def __init__(self, path: list[int]) -> None:
        self.path = path
        self.seen: list[np.ndarray] = []

    def decode(self, task: Task) -> Any:
        tip = yield Open(task.policy, task.prompt)
        for token in self.path:
            tip = tip.child(token)
            yield Grow([tip], hidden=True)
            self.seen.append(tip.hidden)
        return [completion(tip, "max_tokens")]


def test_hidden_states_are_the_engines(default_lm: LanguageModel) -> None:
    """Bit for bit: what the gate is trained on is what it will see."""
    tokens = default_lm.language.encode("Море солёное, because rivers")
    walk = Walk(list(tokens[1:]))
    stopping = Stopping(len(tokens))
    run_alone(walk, Task(Policy(default_lm), tokens[:1], stopping, Stream(0)))
    ours = hidden_states(default_lm.transformer, tokens).numpy()
    assert ours.shape == (len(tokens), default_lm.identity.width)
    assert (ours[1:] == np.stack(walk.seen)).all()


def test_norms_are_those_of_the_output_matrix(lm: LanguageModel, embedded_folder: Path) -> None:
    from decodery.models.weights import SafetensorsFolder

    with SafetensorsFolder(embedded_folder) as store:
        matrix = store.tensor("model.embed_tokens.weight").double()
    norms = output_norms(lm.transformer)
    torch.testing.assert_close(norms.plain.double(), matrix.norm(dim=1), rtol=1e-5, atol=0)
    centred = (matrix - matrix.mean(0)).norm(dim=1)
    torch.testing.assert_close(norms.centred.double(), centred, rtol=1e-5, atol=0)


# -- the fit -------------------------------------------------------------------------------------


def test_the_fit_finds_families_that_hidden_states_encode(tmp_path: Path) -> None:
    """Synthetic hidden states that encode labels linearly, with noise: over 99 % right on new ones,
    and at chance on labels of other positions."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, 4, generator=generator) < 0.5).float()
    code = torch.randn(4, 16, generator=generator)
    hidden = (2 * labels - 1) @ code + 0.3 * torch.randn(4000, 16, generator=generator)
    run = Run(tmp_path / "run", "language_gate")
    run.begin()
    params = Params(epochs=8, batch=64, learning_rate=5e-3, warmup=20)
    first, second = distil.fit(params, run, Features(hidden[:3000], labels[:3000]))
    held = Features(hidden[3000:], labels[3000:])
    facts = distil.agreement(first, second, held)
    agrees = [value for name, value in facts.items() if name.endswith("gate agrees")]
    assert len(agrees) == 4
    assert np.mean(agrees) > 0.99
    shuffled = Features(held.hidden, held.labels[torch.randperm(1000, generator=generator)])
    other = distil.agreement(first, second, shuffled)
    assert np.mean([other[name] for name in facts if name.endswith("gate agrees")]) < 0.7


def test_a_fit_that_diverges_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "language_gate")
    run.begin()
    hidden = torch.full((64, 8), torch.inf)
    with pytest.raises(DecoderyError, match="the loss is nan at step 0; lower learning_rate"):
        distil.fit(Params(epochs=1), run, Features(hidden, torch.zeros(64, 4)))


# -- a whole run ---------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"continuations": 1, "text_tokens": 6, "epochs": 3, "batch": 16}
LINES = [SENTENCES["Russian"][0], SENTENCES["English"][0], SENTENCES["Greek"][1], MIXED[0]]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n\n".join(LINES) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def loaded(default_lm: LanguageModel) -> Iterator[LanguageModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decodery.api.load.load", lambda _: default_lm)
        yield default_lm


def checksum(lm: LanguageModel) -> bytes:
    tokens = lm.language.encode("A checksum of the model: море.")
    return lm.transformer.logits(hidden_states(lm.transformer, tokens)).numpy().tobytes()


@pytest.fixture(scope="module")
def whole(
    loaded: LanguageModel, texts: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bool]:
    """The folder of a run that nothing disturbed, and whether the model is what it was."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    before = checksum(loaded)
    train(TRAINING, {**SMALL, "texts": (texts,)}, folder)
    return folder, checksum(loaded) == before


def test_a_run_makes_a_gate_and_leaves_the_model_alone(
    loaded: LanguageModel, whole: tuple[Path, bool]
) -> None:
    folder, untouched = whole
    assert untouched
    part = str(folder / "language_gate.safetensors")
    gate = loaded.part("language_gate", part)
    assert {name: tensor.shape for name, tensor in gate.items()} == {
        "A1": (576, 576), "A2": (4, 576),
    }  # fmt: skip
    report = json.loads((folder / "report.json").read_text())
    assert report["facts"]["texts"] == 2 * len(LINES)
    made = loaded.generate("Hi", method="language_gate", gate_file=part, max_tokens=3, seed=0)
    assert made.parameters["gate_file"]["value"] == part


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("texts-0000", marks=pytest.mark.slow),
        pytest.param("features-learnt-0000", marks=pytest.mark.slow),
        "fit",
    ],
)
def test_an_interrupted_run_ends_as_if_it_was_not(
    place: str, texts: str, whole: tuple[Path, bool], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    values = {**SMALL, "texts": (texts,)}
    kept, steps = Run.kept, Run.steps

    def keeping(self: Run, name: str, make: Any) -> Any:
        made = kept(self, name, make)
        if name == place:
            signal.raise_signal(signal.SIGINT)
        return made

    def stepping(self: Run, phase: str, total: int, state: Any) -> Any:
        for step in steps(self, phase, total, state):
            if place == "fit" and step == 4:
                signal.raise_signal(signal.SIGINT)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(Run, "kept", keeping)
        patch.setattr(Run, "steps", stepping)
        with pytest.raises(KeyboardInterrupt):
            train(TRAINING, values, tmp_path / "run")
    train(TRAINING, {}, tmp_path / "run", resume=True)
    for name in ("language_gate.safetensors", "report.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole[0] / name).read_bytes()


def test_changed_texts_are_refused(
    loaded: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = str(tmp_path / "texts.txt")
    Path(texts).write_text("\n".join(LINES), encoding="utf-8")

    def interrupted(self: Run, name: str, make: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "kept", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(TRAINING, {**SMALL, "texts": (texts,)}, tmp_path / "run")
    Path(texts).write_text("one\ntwo\n")
    with pytest.raises(ParameterError, match=r"texts is \w+ now and was"):
        train(TRAINING, {}, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"one line\n\n", ParameterError, "hold 1 texts; give two or more lines"),
        (b"\xff\xfe\n", ModelFileError, "is not UTF-8 text"),
        (None, ModelFileError, "cannot be read: No such file"),
    ],
)
def test_files_of_texts_that_cannot_be_used_are_refused_before_a_model_is_loaded(
    content: bytes | None, kind: type[Exception], reason: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.delattr("decodery.api.load.load")
    with pytest.raises(kind, match=reason):
        train(TRAINING, {"texts": (str(path),)}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- the sentences -------------------------------------------------------------------------------


def test_sentences_are_of_the_script_of_their_language() -> None:
    """Outside `MIXED`, a language's sentences hold letters of its own script only."""
    own = {"Chinese": CJ, "Japanese": CJ} | dict.fromkeys(
        ("English", "German", "French", "Spanish"), LATIN
    )
    assert set(QUESTIONS) == set(SENTENCES)
    for language, group in SENTENCES.items():
        script = own.get(language, LOW_RESOURCE)
        for text in group:
            families = families_of(tuple(character.encode() for character in text))
            assert set(families.tolist()) <= {script, SYMBOLS}, text
        assert len(set(group)) == len(group)
