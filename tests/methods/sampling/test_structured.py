"""Structured output: the law by enumeration, ends, trees, refusals.

The oracle of `grammar_oracle.py` knows a grammar as a finite set of texts (or a rule in a line) and
shares nothing with the engine. Mutants of the sampler must be told apart by the same comparison.
Everything is exact. `tests/api/test_structured_model.py` has the real model.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from branching import assert_branches_are_separate
from grammar_oracle import law_of, of_texts, spelled

import decodery as dc
from decodery.core.decoder import Task
from decodery.core.errors import MissingPackageError, ParameterError, RowError
from decodery.core.row import Row
from decodery.core.runner import run_alone
from decodery.core.sampler import Context
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.sampling.json_schema import schema_text
from decodery.methods.sampling.structured import Ended, Structured
from decodery.models import grammar
from decodery.models.table import TableModel
from decodery.testing import enumerate_law
from decodery.testing.spelling import Spelling, speller

# Pieces that overlap, so that one text has several cuts; a special token; an end token.
LETTERS = (b"a", b"b", b"ab", b"c", b"ba", None, None)
JSON = (b"[", b"]", b"1", b",", b" ", b"{", b"}", b'"', b"a", b":", b'{"a"', None)
LENGTH = 5

FINITE: dict[str, tuple[Any, tuple[bytes | None, ...], set[str]]] = {
    "choices": (dc.regex("abc|ab|ba"), LETTERS, {"abc", "ab", "ba"}),
    "empty too": (dc.regex("(ab)?"), LETTERS, {"", "ab"}),
    "one text": (dc.regex("abab"), LETTERS, {"abab"}),
    "counted": (
        dc.regex("[ab]{2,3}"),
        LETTERS,
        {"".join(t) for n in (2, 3) for t in itertools.product("ab", repeat=n)},
    ),
    "rules": (
        dc.grammar('start: pair | "c"\npair: "a" pair "b" | "ab"'),
        LETTERS,
        {"c", "ab", "aabb", "aaabbb", "aaaabbbb", "aaaaabbbbb", "aaaaaabbbbbb"},
    ),
    "json": (
        dc.json_schema({"enum": [[1], [1, 1], {"a": 1}, "a"]}, json_spaces=0),
        JSON,
        {"[1]", "[1,1]", '{"a":1}', '"a"'},
    ),
    "json with spaces": (
        dc.json_schema({"type": "array", "items": {"const": 1}, "maxItems": 1}, json_spaces=1),
        JSON,
        {"[]", "[ ]", "[1]", "[ 1]", "[1 ]", "[ 1 ]"},
    ),
}


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("seed", range(3))
def test_the_law_is_the_row_restricted_and_renormalised(name: str, seed: int) -> None:
    sampler, pieces, texts = FINITE[name]
    table = speller(pieces, seed=seed)
    law = enumerate_law(Policy(table, dc.chain(sampler)), (0,), Stopping(LENGTH, table.eos_ids))
    assert_same_law(law, law_of(table, of_texts(texts), LENGTH))


def test_an_endless_grammar() -> None:
    """a*b: any number of a, then b; the oracle is a rule, not a list."""

    def says(text: bytes) -> tuple[bool, bool]:
        return re.fullmatch(b"a*b?", text) is not None, re.fullmatch(b"a*b", text) is not None

    table = speller(LETTERS, seed=4)
    law = enumerate_law(Policy(table, dc.chain(dc.regex("a*b"))), (0,), Stopping(6, table.eos_ids))
    assert_same_law(law, law_of(table, says, 6))


def test_tokens_with_the_same_bytes_are_all_allowed() -> None:
    table = speller((b"a", b"b", b"a", b"ab", b"ab", None), seed=1)
    law = enumerate_law(Policy(table, dc.chain(dc.regex("ab|b"))), (0,), Stopping(4, table.eos_ids))
    assert_same_law(law, law_of(table, of_texts({"ab", "b"}), 4))
    assert {path[0] for path in law} == {0, 1, 2, 3, 4}


def test_characters_of_several_bytes_are_spelled_byte_by_byte() -> None:
    pieces = ("я".encode(), b"\xd1", b"\x8f", "中".encode(), b"\xe4\xb8", b"\xad", None)
    table = speller(pieces, seed=2)
    law = enumerate_law(
        Policy(table, dc.chain(dc.regex("[я中]"))), (0,), Stopping(4, table.eos_ids)
    )
    assert_same_law(law, law_of(table, of_texts({"я", "中"}), 4))


def test_every_end_token_ends_the_text_and_none_is_text() -> None:
    """Three end tokens, one of them with a piece that the grammar would allow."""
    table = speller((b"a", b"b", b"a", None, None), seed=3, eos_ids={2, 3, 4})
    law = enumerate_law(Policy(table, dc.chain(dc.regex("a+b"))), (0,), Stopping(4, table.eos_ids))
    says = lambda text: (  # noqa: E731
        re.fullmatch(b"a*|a+b", text) is not None,
        re.fullmatch(b"a+b", text) is not None,
    )
    assert_same_law(law, law_of(table, says, 4))
    ends = {path[-1] for path in law if path[-1] in table.eos_ids}
    assert ends == {2, 3, 4}


def test_a_forced_text_has_probability_one() -> None:
    """Single bytes, one text: one token is left at every place, whatever the table says."""
    table = speller((b"a", b"b", b"c", None), seed=5)
    law = enumerate_law(Policy(table, dc.chain(dc.regex("abca"))), (0,), Stopping(9, table.eos_ids))
    assert law == {(0, 1, 2, 0, 3): 1.0}


def test_ended_answers_are_texts_and_only_texts_end() -> None:
    table = speller(LETTERS, seed=6)
    sampler = dc.regex("[ab]{2,4}")
    law = enumerate_law(Policy(table, dc.chain(sampler)), (0,), Stopping(4, table.eos_ids))
    for path in law:
        text = spelled(table, path)
        whole = re.fullmatch("[ab]{2,4}", text) is not None
        assert whole if path[-1] in table.eos_ids else re.fullmatch("[ab]{1,4}", text)


def test_with_end_tokens_ignored_nothing_but_end_tokens_follows() -> None:
    table = speller((b"a", b"b", None), seed=7)
    stopping = Stopping(6, table.eos_ids, ignore_eos=True)
    for path in enumerate_law(Policy(table, dc.chain(dc.regex("a|ab"))), (0,), stopping):
        assert re.fullmatch("(0|01)2+", "".join(map(str, path)))


def test_the_prompt_is_no_part_of_the_text() -> None:
    table = speller((b"a", b"b", None), seed=8)
    policy = Policy(table, dc.chain(dc.regex("ab")))
    assert set(enumerate_law(policy, (1, 1, 0, 2), Stopping(5, table.eos_ids))) == {(0, 1, 2)}


# -- trees -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 2, 256])
def test_branches_are_separate_whatever_is_kept(kept: int, monkeypatch: Any) -> None:
    """Parsers that were let go are made again: the same states and laws at every node."""
    monkeypatch.setattr(grammar, "KEPT", kept)
    table = speller((b"a", b"b", b"ab", b"(", b")", None), seed=9)
    policy = Policy(table, dc.chain(dc.grammar('start: ("a" | "b" | "(" start ")")*')))
    paths = [[3, 0, 3, 2, 4, 4, 1], [3, 0, 3, 2, 4, 1, 4], [3, 3, 3, 3, 4, 4, 4], [2] * 7]
    assert_branches_are_separate(policy, (0,), paths)


def test_a_place_is_not_changed_by_what_is_made_from_it() -> None:
    language = Spelling((b"a", b"b", None))
    begin = language.matcher("regex", "a(ab|b)")
    before = begin.allowed.copy()
    first = begin.after(0)
    assert first is not None
    for token, wanted in (
        (0, [False, True, False]),
        (1, [False, False, False]),
        (0, [False, True, False]),
    ):
        child = first.after(token)
        assert child is not None
        assert child.allowed.tolist() == wanted
        assert child.complete == (token == 1)
    assert begin.allowed.tolist() == before.tolist()
    assert begin.after(1) is None
    assert begin.after(7) is None
    assert repr(first.after(0)) == "Place(regex, [0, 0])"


def test_beams_find_the_most_probable_texts() -> None:
    """With as many beams as texts have beginnings, the hypotheses are the law's best paths."""
    sampler, pieces, texts = FINITE["counted"]
    table = speller(pieces, seed=10)
    policy = Policy(table, dc.chain(sampler))
    law = law_of(table, of_texts(texts), LENGTH)
    task = Task(policy, (0,), Stopping(LENGTH, table.eos_ids))
    found = run_alone(dc.beam(beams=64, n=8, length_penalty=0.0), task)
    best = sorted(law, key=law.__getitem__, reverse=True)[:8]
    assert [item.tokens for item in found] == best
    for item in found:
        assert item.log_probability == pytest.approx(np.log(law[item.tokens]), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_n_branches_each_follow_the_grammar_alone(seed: int) -> None:
    """Branch i of n is the answer of a run whose only sequence is i: its state is its own."""
    sampler, pieces, texts = FINITE["rules"]
    table = speller(pieces, seed=seed)
    task = Task(Policy(table, dc.chain(sampler)), (0,), Stopping(12, table.eos_ids))
    together = run_alone(dc.sample(n=40), task)
    for item in together:
        assert item.finish_reason == "eos"
        assert spelled(table, item.tokens) in texts
    assert len({item.tokens for item in together}) > 2
    assert [item.tokens for item in run_alone(dc.sample(n=3), task)] == [
        item.tokens for item in together[:3]
    ]


def test_many_threads_share_one_bound_sampler() -> None:
    table = speller(LETTERS, seed=11)
    policy = Policy(table, dc.chain(dc.regex("[ab]{2,4}")))
    stopping = Stopping(4, table.eos_ids)
    wanted = enumerate_law(policy, (0,), stopping)
    seen: list[Any] = []
    threads = [
        threading.Thread(target=lambda: seen.append(enumerate_law(policy, (0,), stopping)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [wanted] * 4


# -- negative controls -----------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class EndsAnywhere(Structured):
    """Allows end tokens at every place."""

    kind: ClassVar = "regex"

    def apply(self, row: Row, state: Any, context: Context) -> Row:
        mask = state.allowed if not isinstance(state, Ended) else np.zeros(len(row), dtype=bool)
        mask[list(context.eos_ids)] = True
        return row.keep(mask)


@dataclass(frozen=True, repr=False)
class StaysAtTheBeginning(Structured):
    """Its state does not move on."""

    kind: ClassVar = "regex"

    def advance(self, state: Any, token: int, row: Row | None, context: Context) -> Any:
        return state


@dataclass(frozen=True, repr=False)
class Flattens(Structured):
    """Allowed tokens are equally probable."""

    kind: ClassVar = "regex"

    def apply(self, row: Row, state: Any, context: Context) -> Row:
        kept = super().apply(row, state, context)
        return kept.with_scores(np.zeros(len(kept)))


@dataclass(frozen=True, repr=False)
class OneCut(Structured):
    """Allows the longest piece alone where several fit one after another."""

    kind: ClassVar = "regex"

    def apply(self, row: Row, state: Any, context: Context) -> Row:
        kept = super().apply(row, state, context)
        longest = max(len(LETTERS[token] or b"") for token in kept.token_ids().tolist())
        return kept.keep(
            np.array([len(LETTERS[t] or b"") == longest for t in kept.token_ids().tolist()])
        )


@pytest.mark.parametrize("mutant", [EndsAnywhere, StaysAtTheBeginning, Flattens, OneCut])
def test_a_wrong_sampler_is_told_apart(mutant: type[Structured]) -> None:
    table = speller(LETTERS, seed=1)
    policy = Policy(table, dc.chain(mutant("abc|ab|ba")))
    law = enumerate_law(policy, (0,), Stopping(3, table.eos_ids))
    with pytest.raises(AssertionError):
        assert_same_law(law, law_of(table, of_texts({"abc", "ab", "ba"}), 3))


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "text", "message"),
    [
        ("json_schema", "{'type': 'null'}", "is no JSON"),
        ("json_schema", "[1]", "a schema is an object"),
        ("json_schema", '{"minimum": NaN}', "NaN is no JSON number"),
        ("json_schema", "[" * 100_000, "is no JSON"),
        ("json_schema", '{"x-guidance": {"lenient": true}}', "could loosen its rules"),
        ("grammar", "start: gen\ngen[temperature=2.0]: /[a-z]+/", "temperature="),
        ("grammar", 'start: gen\ngen[stop="\\n"]: /[a-z]+/', "stop="),
    ],
)
def test_what_is_no_grammar_is_refused_when_it_is_built(
    method: str, text: str, message: str
) -> None:
    with pytest.raises(ParameterError, match=message) as refusal:
        dc.all_methods()[method](text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (dc.json_schema('{"type": "objct"}'), "refused by llguidance: Invalid type: objct$"),
        (dc.json_schema('{"not": {"type": "null"}}'), "json_schema is refused by llguidance"),
        (dc.json_schema('{"$ref": "#/nowhere"}'), "json_schema is refused by llguidance"),
        (dc.json_schema('{"type": "string", "format": "iban"}'), "json_schema is refused"),
        (
            dc.json_schema('{"type": "integer", "minimum": 3, "maximum": 2}'),
            "json_schema is refused",
        ),
        (dc.regex("(ab"), "regex is refused by llguidance"),
        (dc.regex("a(?=b)"), "regex is refused by llguidance"),
        (dc.grammar("strat: /a/"), "grammar is refused by llguidance"),
        (
            dc.grammar("\nstart: missing"),
            r'refused by llguidance: at 2\(8\): unknown name: "missing"$',
        ),
        (dc.grammar("start: <|nobody|> /a/"), "grammar is refused by llguidance: panic"),
        (dc.grammar(""), "grammar is refused by llguidance"),
        (dc.regex("z"), "no text that this vocabulary can spell"),
    ],
    ids=repr,
)
def test_a_bad_grammar_is_refused_before_the_first_forward(sampler: Any, message: str) -> None:
    table = speller(LETTERS)
    with pytest.raises(ParameterError, match=message) as refusal:
        Policy(table, dc.chain(sampler))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert table.calls == 0


def test_a_schema_cannot_go_on_after_its_end() -> None:
    """A schema stands inside a grammar of the engine; what follows it must not add rules."""
    with pytest.raises(ParameterError, match="no JSON"):
        Spelling(LETTERS).matcher("json_schema", '{"type": "null"}\nother: "a"')


def test_a_source_must_have_text_and_an_end() -> None:
    with pytest.raises(ParameterError, match="needs to know the text of tokens"):
        Policy(TableModel.random(3), dc.chain(dc.regex("a")))
    endless = TableModel.random(2)
    endless.language = Spelling((b"a", b"b"))
    with pytest.raises(ParameterError, match="needs an end token"):
        Policy(endless, dc.chain(dc.regex("a")))
    with pytest.raises(ParameterError, match="not bound to a source"):
        dc.regex("a").start(Context((0,), 1))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((dc.regex("a"), dc.json_schema("{}")), "may have no text in common"),
        ((dc.regex("a"), dc.mirostat()), "tokens that a grammar forces have none"),
        ((dc.mirostat(), dc.regex("a")), "put regex first"),
        ((dc.top_p(0.9), dc.regex("a")), "put regex first"),
        ((dc.top_k(3), dc.grammar("start: /a/")), "put grammar first"),
    ],
)
def test_conflicts_are_refused_with_the_reason(stages: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        dc.chain(*stages)


@pytest.mark.parametrize(
    "stages",
    [
        (dc.temperature(0.7), dc.regex("a"), dc.top_k(3), dc.min_p(0.1)),
        (dc.top_p(1.0), dc.regex("a"), dc.edt()),
        (dc.logit_bias({0: 1.0}), dc.repetition_penalty(1.2), dc.regex("a"), dc.xtc()),
    ],
)
def test_what_goes_together_is_taken(stages: Any) -> None:
    assert dc.chain(*stages)


def test_a_row_without_an_allowed_token_names_the_grammar_and_the_step() -> None:
    table = speller((b"a", b"b", None), seed=1)
    policy = Policy(table, dc.chain(dc.banned_tokens((1,)), dc.regex("ab")))
    with pytest.raises(RowError, match="step 1: regex: of what may follow here, no token"):
        run_alone(dc.sample(), Task(policy, (0,), Stopping(4, table.eos_ids)))


def test_a_path_that_left_the_grammar_has_no_law() -> None:
    sampler = dc.regex("ab").bind(speller((b"a", b"b", None)))
    here = Context((0,), 1, frozenset({2}))
    gone = sampler.advance(sampler.start(here), 1, None, here)
    with pytest.raises(RowError, match="no token: the path has left the grammar"):
        sampler.apply(Row.dense([0.0, 0.0, 0.0]), gone, here)


def test_without_the_engine_the_message_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingPackageError, match="pip install llguidance"):
        Spelling((b"a", None)).matcher("regex", "a")


def test_a_grammar_is_compiled_once_for_a_vocabulary() -> None:
    table = speller(LETTERS)
    first = Policy(table, dc.chain(dc.regex("ab")))
    again = Policy(table, dc.chain(dc.regex("ab")))
    longer = first | dc.temperature(0.5)
    assert first.sampler.stages[0].begin is again.sampler.stages[0].begin  # type: ignore[attr-defined]
    assert first.sampler.stages[0] is longer.sampler.stages[0]


def test_what_the_engine_is_told_of_white_space() -> None:
    assert "x-guidance" not in schema_text("{}", None)
    assert json.loads(schema_text("{}", 0)) == {"x-guidance": {"whitespace_flexible": False}}
    with pytest.raises(ParameterError, match="json_spaces is -1"):
        dc.json_schema({}, json_spaces=-1)


def assert_same_law(law: Any, wanted: Any) -> None:
    assert law.keys() == wanted.keys()
    for path, probability in wanted.items():
        assert law[path] == pytest.approx(probability, abs=1e-12)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
