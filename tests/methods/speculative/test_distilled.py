"""Drafts by a distilled head: its law, its shapes, what it refuses, and that texts keep their law.

Exact: whole runs on a table of four tokens with a random head, every outcome of the noise
enumerated (`every_outcome.py`), against the policy's own law to 1e-12; drafts drawn from another
law than the one they come with are off by more than 0.01 there. With rule Match the tokens are
those of plain sampling. Statistics (slow): 10,000 sequences side by side, chi-square at alpha 1e-4;
the false law above, off by 0.07 in total variation, is rejected with a power above 0.999.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from every_outcome import PROMPT, distance

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner, run_alone
from decodery.core.source import Grown, Growth, Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node, Tree
from decodery.methods.autoregressive.greedy import Greedy as GreedyDecoder
from decodery.methods.autoregressive.sample import Sample
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.distilled import (
    TRUST,
    Distilled,
    HeadProposer,
    _heads,
    head_of,
    propose,
    thought_at,
)
from decodery.methods.speculative.distilled_head import Head
from decodery.methods.speculative.drafters import Stream as TextStream
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.shapes import Beam, Branching, End, Pick, Shape
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Greedy, Match, Recursive
from decodery.methods.speculative.walks import Block, NodeWise
from decodery.models.parts import write_part
from decodery.models.table import TableModel
from decodery.testing import chi_square, enumerate_law

SIZE, END = 4, 3
ALPHA = 1e-4


def tensors(
    width: int = SIZE, size: int = SIZE, known: int = 3, near: int = 2, seed: int = 0
) -> dict[str, np.ndarray]:
    """A random head that knows the first `known` tokens and chooses among `near` of them."""
    generator = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    successors = [
        sorted(generator.choice(known, size=near, replace=False)) for _ in range(known + 1)
    ]
    return {
        "tokens": np.arange(known, dtype=np.float32),
        "successors": np.array(successors, dtype=np.float32),
        "scores": drawn(known + 1, near),
        "first": drawn(6, width),
        "first_bias": drawn(6),
        "next": drawn(6, 5),
        "next_bias": drawn(6),
        "out": drawn(5, 6),
        "project": drawn(3, 5),
        "input": drawn(known + 1, 6),
        "output": drawn(known, 3),
        "temperature": np.array([0.5], dtype=np.float32),
    }


class Drafted(TableModel):
    """A random table with a random head. The hidden state of a node is its row, and the prompt has
    one too, so that drafts begin behind the first token."""

    def __init__(self, parts: Mapping[str, np.ndarray] | None = None, seed: int = 1) -> None:
        table = TableModel.random(SIZE, 1, seed=seed)
        super().__init__(table.law, SIZE, 1, eos_ids=frozenset({END}), name="drafted")
        self.parts = tensors() if parts is None else parts
        self.read = 0

    def forward(self, growths: Sequence[Growth]) -> list[Grown]:
        return super().forward([replace(growth, hidden=True) for growth in growths])

    def part(self, name: str, file: str | None = None) -> Mapping[str, np.ndarray]:
        if name != "drafter" or file is not None:
            return super().part(name, file)
        self.read += 1
        return self.parts


SOURCE = Drafted()
HEAD = head_of(SOURCE)
POLICY = Policy(SOURCE)


def task_of(policy: Policy = POLICY, tokens: int = 6, seed: int = 0, **more: object) -> Task:
    return Task(policy, PROMPT, Stopping(tokens, policy.source.eos_ids, **more), Stream(seed))


def chain(drafter: Distilled) -> Speculation:
    return Speculation(drafter, NodeWise(Match()))


# -- the head ----------------------------------------------------------------------------------


def test_the_head_is_its_formula() -> None:
    """Written out in float64."""
    parts = {name: value.astype(np.float64) for name, value in tensors().items()}

    def state(inner: np.ndarray, word: int) -> np.ndarray:
        inner = inner + parts["input"][word]
        out = parts["out"] @ (inner / (1 + np.exp(-inner)))
        return out / np.sqrt((out**2).mean() + 1e-6)

    hidden = np.array([0.3, -2.0, 1.0, 0.5])
    start = parts["first"] @ (hidden / np.sqrt((hidden**2).mean() + 1e-6)) + parts["first_bias"]
    thought = HEAD.begin(hidden, 1)
    expected = state(start, 1)
    for token in (2, 3, 0):  # 3 is a token that the head does not know: its last word
        np.testing.assert_allclose(thought.state, expected, rtol=1e-5, atol=1e-6)
        near = parts["successors"][thought.word].astype(int)
        scores = parts["output"][near] @ parts["project"] @ expected + parts["scores"][thought.word]
        masses = np.exp(scores) / np.exp(scores).sum()
        law = HEAD.law(thought)
        np.testing.assert_allclose(law.masses, masses, rtol=1e-5)
        assert law.ids.tolist() == near.tolist()
        hot = HEAD.law(thought, temperature=1.0)  # trained at 0.5
        np.testing.assert_allclose(hot.masses, masses**0.5 / (masses**0.5).sum(), rtol=1e-5)
        best = HEAD.best(thought, 2)
        assert [token for token, _ in best] == law.top(2)
        assert [chance for _, chance in best] == pytest.approx([law[item] for item, _ in best])
        assert HEAD.best(thought, 1) == best[:1]
        expected = state(parts["next"] @ expected + parts["next_bias"], min(token, 3))
        thought = HEAD.after(thought, token)


def test_states_are_not_changed() -> None:
    hidden = np.array([0.3, -2.0, 1.0, 0.5], dtype=np.float32)
    thought = HEAD.begin(hidden, 1)
    before = thought.state.copy()
    HEAD.best(thought, 1), HEAD.law(thought), HEAD.after(thought, 2)
    assert (thought.state == before).all()
    assert hidden.tolist() == np.array([0.3, -2.0, 1.0, 0.5], dtype=np.float32).tolist()


def test_extreme_states_stay_finite() -> None:
    """A hidden state of zeros, and one whose inner layer overflows exp."""
    for hidden in (np.zeros(SIZE), np.full(SIZE, 1e18)):
        law = HEAD.law(HEAD.begin(hidden, 0))
        assert law.masses.sum() == pytest.approx(1.0)
    loud = Head.of({**tensors(), "first_bias": np.full(6, -1e4, np.float32)}, SIZE)
    assert np.isfinite(loud.begin(np.ones(SIZE), 0).state).all()


WRONG = {
    "a tensor is missing": {"out": None},
    "a tensor too many": {"more": np.ones(1)},
    "a shape": {"project": np.ones((3, 4))},
    "no rank": {"first": np.ones(6)},
    "nothing known": {"tokens": np.ones(0)},
    "tokens not whole": {"tokens": np.array([0.0, 0.5, 2.0])},
    "tokens out of the vocabulary": {"tokens": np.array([0.0, 1.0, 4.0])},
    "tokens not rising": {"tokens": np.array([0.0, 2.0, 1.0])},
    "successors negative": {"successors": np.array([[0.0, 1.0]] * 3 + [[-1.0, 1.0]])},
    "successors twice": {"successors": np.array([[0.0, 1.0]] * 3 + [[1.0, 1.0]])},
    "no temperature": {"temperature": np.zeros(1)},
}


@pytest.mark.parametrize("what", WRONG)
def test_tensors_of_no_drafter_are_refused(what: str) -> None:
    parts = {**tensors(), **WRONG[what]}
    with pytest.raises(ParameterError, match="this part is no drafter"):
        Head.of({name: value for name, value in parts.items() if value is not None}, SIZE)


def test_hidden_states_of_another_width_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"of width 4, and the source gave shape \[5\]"):
        HEAD.begin(np.ones(5), 0)


# -- what is drafted ---------------------------------------------------------------------------


def grown(tokens: tuple[int, ...]) -> tuple[Task, Node]:
    """A task, and the node of a text of which all but the last token are grown."""
    task = task_of()
    node = Tree(task.policy, task.prompt, task.stream).root
    for token in tokens:
        (answer,) = SOURCE.forward([Growth(node, node.tokens[-1:], hidden=True)])
        node.receive(Row(answer.scores, SIZE), answer.hidden)
        node = node.child(token)
    return task, node


def drafted(drafter: Distilled, tip: Node, task: Task, room: int = 9) -> Candidates:
    drafting = drafter.session(task).draft([TextStream(0, tip, room)], drafter.nodes)
    with pytest.raises(StopIteration) as end:
        next(drafting)
    (draft,) = end.value.value
    return draft


def test_a_chain_is_what_the_head_proposes() -> None:
    task, tip = grown((1, 2))
    draft = drafted(Distilled(Branching((1,) * 4, "fixed")), tip, task)
    expected = propose(HEAD, tip.parent.hidden, 2, 4)
    assert [node.token for node in draft.nodes()] == [token for token, _ in expected]
    assert draft.laws == {}
    thought = thought_at(HEAD, tip)
    for token, chance in expected:
        law = HEAD.law(thought)
        assert (token, chance) == (law.argmax(), pytest.approx(law[token]))
        thought = HEAD.after(thought, token)


def test_a_chain_ends_where_the_head_is_unsure() -> None:
    task, tip = grown((1, 2))
    whole = propose(HEAD, tip.parent.hidden, 2, 4)
    reached = np.cumprod([chance for _, chance in whole])
    for kept in range(4):
        least = float(np.sqrt(reached[kept] * (reached[kept - 1] if kept else 1.0)))
        assert propose(HEAD, tip.parent.hidden, 2, 4, least) == whole[:kept]
        draft = drafted(Distilled(Branching((1,) * 4, "fixed"), least=least), tip, task)
        assert [node.token for node in draft.nodes()] == [token for token, _ in whole[:kept]]


def test_nothing_is_drafted_without_a_hidden_state_or_room() -> None:
    drafter = Distilled()
    task, tip = grown((1, 2))
    assert drafted(drafter, tip.parent, task).nodes() == []  # grown: its row is known
    assert drafted(drafter, tip, task, room=1).nodes() == []
    assert len(drafted(drafter, tip, task, room=3).nodes()) == 2
    tip.parent.hidden = None
    assert drafted(drafter, tip, task).nodes() == []
    assert thought_at(HEAD, tip) is None


def test_drawn_candidates_come_with_the_law_they_were_drawn_from() -> None:
    task, tip = grown((1, 2))
    draft = drafted(Distilled(Branching((2, 1), "iid"), temperature=2.0), tip, task)
    assert set(draft.laws) == set(draft.children)
    thought = thought_at(HEAD, tip)
    np.testing.assert_allclose(draft.laws[tip].masses, HEAD.law(thought, 2.0).masses)
    for node in draft.children[tip]:
        law = HEAD.law(HEAD.after(thought, node.token), 2.0)
        np.testing.assert_allclose(draft.laws[node].masses, law.masses)


def test_no_more_nodes_than_the_budget() -> None:
    task, tip = grown((1, 2))
    session = Distilled(Branching((2, 2, 2), "distinct")).session(task)
    for budget in range(1, 9):
        drafting = session.draft([TextStream(0, tip, 9)], budget)
        with pytest.raises(StopIteration) as end:
            next(drafting)
        assert 1 <= len(end.value.value[0].nodes()) <= budget


def test_nothing_is_drafted_behind_an_end() -> None:
    """The head knows the end token here, and every chain stops at it."""
    parts = tensors(known=4, near=4)
    parts["scores"][:, END] += 100.0
    source = Drafted(parts)
    task = Task(Policy(source), PROMPT, Stopping(9, source.eos_ids), Stream(0))
    _, tip = grown((1, 2))
    draft = drafted(Distilled(), tip, task)
    assert [node.token for node in draft.nodes()] == [END]
    ignoring = replace(task, stopping=Stopping(9, source.eos_ids, ignore_eos=True))
    assert len(drafted(Distilled(), tip, ignoring).nodes()) == 3


def test_a_head_is_read_once_for_each_source() -> None:
    source = Drafted()
    for seed in range(3):
        run_alone(chain(Distilled()), task_of(Policy(source), seed=seed))
    assert source.read == 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"least": 1.5}, "least is 1.5"),
        ({"least": 0.5, "shape": Branching((1,), "iid")}, "needs fixed ones"),
    ],
)
def test_conflicting_parameters_are_refused(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        Distilled(**values)


def test_models_without_a_head_are_refused_before_the_first_forward() -> None:
    plain = TableModel.random(SIZE, 1, seed=1, eos_ids=frozenset({END}))
    for policy, file in ((Policy(plain), None), (POLICY, "head.safetensors")):
        with pytest.raises(ParameterError, match="nothing called drafter was trained for"):
            Runner().submit(chain(Distilled(file=file)), task_of(policy))
    assert plain.calls == 0


def test_certain_takes_the_most_probable() -> None:
    drafter = Distilled(Branching((2, 1), "iid"), temperature=2.0)
    assert drafter.certain() == Distilled(Branching((2, 1), "fixed"), temperature=2.0)
    assert (drafter.width, drafter.nodes, drafter.drawn) == (2, 4, "iid")


# -- whole runs --------------------------------------------------------------------------------

WALKS = {
    "chain": (Branching((1, 1)), NodeWise(Recursive("distinct"))),
    "branching": (Branching((2, 1)), NodeWise(Recursive("distinct"))),
    "iid": (Branching((2,), "iid"), NodeWise(Recursive("iid"))),
    "greedy": (Branching((2, 1), "greedy"), NodeWise(Greedy())),
    "block": (Branching((1, 1)), Block()),
    "fixed": (Branching((2, 1), "fixed"), NodeWise(Match())),
}


@pytest.mark.parametrize("name", WALKS)
def test_texts_have_the_law_of_the_policy(name: str) -> None:
    """Every outcome of four tokens: the first is drawn plainly, drafts begin behind it."""
    shape, walk = WALKS[name]
    assert distance(Speculation(Distilled(shape, temperature=1.0), walk), POLICY, 4) < 1e-12


def counted(decoder: Speculation, runs: int, together: int = 200) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(runs // together):
        handle = (runner := Runner()).submit(
            replace(decoder, n=together), task_of(tokens=4, seed=seed)
        )
        runner.run()
        found.update(item.tokens for item in handle.result())
    return found


@dataclass(frozen=True)
class Lying(Branching):
    """Draws from a law other than the head's, which the candidates come with."""

    def level(self, number: int, ends: list[End], most: int) -> list[list[Pick]]:
        flat = [
            End(Law(np.full(end.law.masses.size, 1 / end.law.masses.size), SIZE, end.law.ids),
                end.uniform)
            for end in ends
        ]  # fmt: skip
        return super().level(number, flat, most)


def test_a_false_draft_law_breaks_the_law_of_texts() -> None:
    decoder = Speculation(Distilled(Lying((1, 1), "iid")), NodeWise(Recursive("iid")))
    assert distance(decoder, POLICY, 3) > 0.01


@pytest.mark.slow
def test_many_sequences_have_the_law_too() -> None:
    law = enumerate_law(POLICY, PROMPT, Stopping(4, SOURCE.eos_ids))
    honest, lying = (
        chi_square(counted(Speculation(Distilled(shape), NodeWise(Recursive("iid"))), 10_000), law)
        for shape in (Branching((2, 1), "iid"), Lying((2, 1), "iid"))
    )
    assert honest.p_value >= ALPHA
    assert lying.p_value < ALPHA


@pytest.mark.parametrize(
    "shape", [Branching((1, 1, 1), "fixed"), Branching((2, 2)), Beam(2, 3), Beam(2, 3, "fixed")],
    ids=["chain", "branching", "beam", "likeliest"],
)  # fmt: skip
def test_matched_drafts_give_the_very_tokens_of_sampling(shape: Shape) -> None:
    for seed in range(10):
        task = task_of(Policy(SOURCE, dc.chain(dc.temperature(0.8))), tokens=12, seed=seed)
        (plain,) = run_alone(Sample(1), task)
        (found,) = run_alone(chain(Distilled(shape)), task)
        assert found.tokens == plain.tokens
        assert found.finish_reason == plain.finish_reason


def test_greedy_drafts_give_the_very_tokens_of_greedy_decoding() -> None:
    decoder = Speculation(Distilled(Branching((2, 1))), NodeWise(Recursive("distinct"))).certain()
    (found,) = run_alone(decoder, task_of(tokens=12))
    (plain,) = run_alone(GreedyDecoder(), task_of(tokens=12))
    assert found.tokens == plain.tokens


def test_drafts_save_forwards() -> None:
    """A head that knows the table: most of its guesses come true and forwards are saved."""
    certain = TableModel(lambda context: np.eye(SIZE)[(context[-1] + 1) % 3] + 1e-4, SIZE, 1)
    parts = tensors(known=3, near=3)
    parts["scores"] = np.array([[-9, 9, -9], [-9, -9, 9], [9, -9, -9], [0, 0, 0]], dtype=np.float32)
    source = Drafted(parts)
    source.law, source._rows = certain.law, {}
    task = Task(Policy(source), PROMPT, Stopping(30, frozenset()), Stream(0))
    (found,) = run_alone(chain(Distilled()), task)
    assert len(found.tokens) == 30
    assert source.calls <= 11  # the prompt, and 29 tokens by about four


def test_a_proposer_guesses_what_the_head_says() -> None:
    task, tip = grown((1, 2))
    watcher = HeadProposer(count=2).watcher(task)
    state = watcher.begin(TextStream(0, tip, 9))
    thought = thought_at(HEAD, tip)
    for _ in range(3):
        guesses = watcher.guesses(state)
        best = [(token, TRUST * chance) for token, chance in HEAD.best(thought, 2)]
        assert [(guess.token, guess.chance) for guess in guesses] == best
        assert len({guess.kind for guess in guesses}) == 2
        token = guesses[0].token
        state, thought = watcher.after(state, token), HEAD.after(thought, token)
    tip.parent.hidden = None
    nothing = watcher.begin(TextStream(0, tip, 9))
    assert nothing is None
    assert watcher.guesses(nothing) == ()
    assert watcher.after(nothing, 0) is None


def test_an_optional_proposer_is_silent_without_a_head() -> None:
    plain = task_of(Policy(TableModel.random(SIZE, 1, seed=1)))
    with pytest.raises(ParameterError, match="nothing called drafter was trained for"):
        HeadProposer().watcher(plain)
    watcher = HeadProposer(optional=True).watcher(plain)
    assert watcher.begin(TextStream(0, grown((1, 2))[1], 9)) is None


# -- the embedded model ------------------------------------------------------------------------


def test_a_head_of_another_model_is_refused(default_lm: LanguageModel, tmp_path: Path) -> None:
    other = replace(default_lm.identity, model="another")
    write_part(tmp_path / "drafter.safetensors", "drafter", other, tensors())
    task = Task(Policy(default_lm), PROMPT, Stopping(4), Stream(0))
    with pytest.raises(ParameterError, match="was trained for the model 'another'"):
        Runner().submit(chain(Distilled(file=str(tmp_path / "drafter.safetensors"))), task)


def test_the_embedded_model_comes_with_a_head_that_saves_forwards(
    default_lm: LanguageModel,
) -> None:
    """Token for token the greedy answers, in fewer steps. Without what it reads of the model's
    hidden states (negative control) the head's guesses come true less often."""
    questions = ("Explain how bees make honey.", "Write a Python function that adds two numbers.",
                 "Write an email to a friend about a trip to Norway.")  # fmt: skip
    taken = {"whole": 0, "deaf": 0}
    steps = {"whole": 0, "deaf": 0}
    head = head_of(default_lm)
    decoder = chain(Distilled(Branching((1, 1), "fixed"))).certain()
    for question in questions:
        prompt = default_lm.read(question).tokens
        task = Task(Policy(default_lm), prompt, Stopping(48, default_lm.eos_ids), Stream(0))
        (plain,) = run_alone(GreedyDecoder(), task)
        for name, first in (("whole", head.first), ("deaf", np.zeros_like(head.first))):
            _heads[default_lm] = {None: replace(head, first=first)}
            (found,) = run_alone(decoder, task)
            assert found.tokens == plain.tokens
            taken[name] += found.details["speculation"]["accepted"]
            steps[name] += found.details["speculation"]["steps"]
    del _heads[default_lm]
    assert steps["whole"] < 0.85 * 48 * len(questions)
    assert steps["whole"] < steps["deaf"]
    assert taken["whole"] > taken["deaf"]
