"""A blend's state on the node, what a source prepares, and what a policy binds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.language import Language
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import Sampler, chain
from decodery.core.source import Blend, Policy, leaves, same_tokens
from decodery.core.stopping import Stopping
from decodery.testing import (
    MixtureBlend,
    TableModel,
    WatchedTable,
    enumerate_law,
    require_law,
)

END = frozenset({2})
SAMPLE, BEAM = registry.get("sample")(), registry.get("beam")(beams=2)


def table(seed, **options):
    law = TableModel.random(3, seed=seed).law
    return WatchedTable(law, 3, 2, eos_ids=END, name=f"table {seed}", **options)


class Posterior(Blend):
    """A mixture of whole sequences: its weights are those of the models that wrote the path."""

    observes_rows = True

    def __init__(self, *members):
        super().__init__("posterior", members)

    def start(self, context):
        return np.full(len(self.members), 1 / len(self.members))

    def combine(self, rows, state, context):
        laws = [row.dense_probabilities() for row in rows]
        return Row.of_probabilities(sum(w * law for w, law in zip(state, laws, strict=True)))

    def advance(self, state, token, rows, context):
        found = state * [row.dense_probabilities()[token] for row in rows]
        return found / found.sum()


def sequence_mixture(members, length):
    """The mean of the members' laws of whole sequences."""
    laws = [enumerate_law(Policy(member), (0,), Stopping(length, END)) for member in members]
    paths = set().union(*laws)
    return {path: np.mean([law.get(path, 0.0) for law in laws]) for path in paths}


def test_a_state_makes_a_mixture_of_sequences():
    members = table(1), table(2), table(3)
    law = enumerate_law(Policy(Posterior(*members)), (0,), Stopping(4, END))
    wanted = sequence_mixture(members, 4)
    assert law.keys() == wanted.keys()
    assert all(abs(law[path] - wanted[path]) < 1e-12 for path in law)


def test_without_the_state_the_law_is_another():
    class Forgetful(Posterior):
        def advance(self, state, token, rows, context):
            return state

    members = table(1), table(2), table(3)
    law = enumerate_law(Policy(Forgetful(*members)), (0,), Stopping(4, END))
    wanted = sequence_mixture(members, 4)
    assert max(abs(law[path] - wanted[path]) for path in law) > 0.01


def test_the_runner_keeps_the_state_of_every_branch():
    """N = 4,000, alpha 1e-6; the law without the state is 0.03 or more away and rejected."""
    members = table(1), table(2)
    runner = Runner()
    task = Task(Policy(Posterior(*members)), (0,), Stopping(3, END))
    many = registry.get("sample")(n=20)
    handles = [runner.submit(many, replace(task, stream=Stream(seed))) for seed in range(200)]
    runner.run()
    counts = {}
    for handle in handles:
        for item in handle.result():
            counts[item.tokens] = counts.get(item.tokens, 0) + 1
    require_law(counts, sequence_mixture(members, 3), 1e-6, "posterior")
    assert all(member.tokens_alive == 0 and member.reserved == 0 for member in members)


def test_a_search_that_comes_back_finds_the_state():
    """Inner nodes grown later, with their rows kept, get the state of their own path."""
    members = table(1), table(2)
    seen = {}

    class Back(type(SAMPLE)):
        def decode(self, task):
            root = yield Open(task.policy, task.prompt)
            first = root.child(0)
            yield Grow([first], keep_rows=True)
            below = first.child(1)
            yield Grow([below], keep_rows=True)
            late = root.child(1)
            yield Grow([late], keep_rows=True)
            for node in (first, below, late):
                seen[tuple(node.generated)] = node.blend_state
            return []

    run_alone(Back(), Task(Policy(Posterior(*members)), (0,), Stopping(3, END)))
    for path, state in seen.items():
        worth = [
            np.prod([np.exp(m.scores([0, *path[:i]]))[path[i]] for i in range(len(path))])
            for m in members
        ]
        assert np.allclose(state, np.asarray(worth) / np.sum(worth))


def test_member_rows_are_let_go():
    """What a blend does not observe is let go at once; what it observes, with the joint row."""
    kept = []

    class Look(type(SAMPLE)):
        def decode(self, task):
            root = yield Open(task.policy, task.prompt)
            kept.append([member.has_row for member in root.members])
            yield Grow([root.child(0)])
            kept.append([member.has_row for member in root.members])
            return []

    for blend in (MixtureBlend(table(1), table(2)), Posterior(table(1), table(2))):
        run_alone(Look(), Task(Policy(blend), (0,), Stopping(3, END)))
    assert kept == [[False, False], [False, False], [True, True], [False, False]]


class Twice(Blend):
    """Draws a token first, and then decodes behind it."""

    def __init__(self, member):
        super().__init__("twice", [member])

    def prepare(self, task):
        root = yield Open(Policy(self.members[0]), task.prompt)
        token = root.draw(purpose="opening")
        root.drop()
        return Behind(self.members[0], token)

    def slots(self, task, prompt, footprint):
        need = len(prompt) + footprint(len(prompt) + 1, task.stopping.max_tokens)
        return {self.members[0]: need}

    def combine(self, rows, state, context):
        raise AssertionError("it decodes only when it is prepared")


class Behind(Blend):
    def __init__(self, member, token):
        super().__init__("behind", [member])
        self.token = token

    def prompts(self, prompt):
        return [(*prompt, self.token)]

    def combine(self, rows, state, context):
        return rows[0]


@pytest.mark.parametrize("decoder", [SAMPLE, BEAM], ids=["sample", "beam"])
@pytest.mark.parametrize("outer", [False, True], ids=["alone", "in a mixture"])
def test_a_source_prepares_itself_inside_the_request(decoder, outer):
    member = table(5)
    made = Twice(member)
    policy = Policy(MixtureBlend(made, made) if outer else made)
    runner = Runner()
    handles = [
        runner.submit(decoder, Task(policy, (0,), Stopping(3, END), Stream(seed)))
        for seed in range(30)
    ]
    runner.run()
    assert member.tokens_alive == member.reserved == 0
    for seed, handle in enumerate(handles):
        row = np.exp(member.scores([0]))
        opening = Row.of_probabilities(row).draw(Stream(seed).uniform(0, 1, "opening"))
        direct = Policy(Behind(member, opening))
        wanted = run_alone(decoder, Task(direct, (0,), Stopping(3, END), Stream(seed)))
        assert [item.tokens for item in handle.result()] == [item.tokens for item in wanted]


class Words(Language):
    def __init__(self, pieces):
        self.known = pieces

    def encode(self, text):
        return tuple(self.known.index(letter.encode()) for letter in text)

    def decode(self, tokens):
        return b"".join(self.known[token] for token in tokens).decode()

    def chat(self, messages):
        return self.encode(messages[-1]["content"])

    has_chat = True

    def pieces(self):
        return self.known

    def same_as(self, other):
        return self.pieces() == other.pieces()


def test_sources_of_other_tokens_do_not_blend():
    one, other, numbers = table(1), table(2), table(3)
    one.language, other.language = Words([b"a", b"b", b"c"]), Words([b"a", b"c", b"b"])
    assert same_tokens(one, numbers)
    assert not same_tokens(one, other)
    with pytest.raises(ParameterError, match="table 1 and table 2 have different tokenizers"):
        MixtureBlend(one, other)
    wide = TableModel.random(4, seed=1)
    with pytest.raises(ParameterError, match="different tokenizers"):
        MixtureBlend(table(1), wide)
    assert MixtureBlend(one, one).language is one.language


def test_a_blend_has_the_shortest_context():
    short, long = table(1), table(2)
    short.context_length, long.context_length = 5, 9
    assert MixtureBlend(long, short, table(3)).context_length == 5
    assert leaves(MixtureBlend(long, MixtureBlend(short))) == [long, short]


@dataclass(frozen=True)
class Named(Sampler):
    """Knows the name of the source it is bound to."""

    source: str = ""

    def bind(self, source):
        if source.name == "table 9":
            raise ParameterError("not for table 9")
        return replace(self, source=source.name)

    def apply(self, row, state, context):
        return row


def test_a_policy_binds_its_samplers():
    assert Policy(table(1), chain(Named())).sampler == chain(Named("table 1"))
    assert (table(1) | Named() | Named()).sampler == chain(Named("table 1"), Named("table 1"))
    with pytest.raises(ParameterError, match="not for table 9"):
        Policy(table(9), chain(Named()))
    unbound = chain(registry.get("min_p")(0.1))
    assert Policy(table(1), unbound).sampler is unbound


def test_a_source_says_that_nothing_was_trained_for_it():
    with pytest.raises(ParameterError, match="nothing called gate was trained for table 1"):
        table(1).part("gate")
