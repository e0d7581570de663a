"""DRY against its definition: all paths of up to seven tokens, 10,048 rows; loops end; variants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest
from reference_laws import softmax
from reference_rows import hold, pick

from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.runner import run_alone
from decodery.core.sampler import Context, chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.greedy import Greedy
from decodery.methods.sampling import dry
from decodery.methods.sampling.dry import HEAVIEST, METHOD, Dry, continuations
from decodery.testing import TableModel
from decodery.testing.toys import PIECES, ToySource


def copies(path: Sequence[int], breakers: Collection[int] = ()) -> dict[int, int]:
    """For every token that followed a copy of the path's end, the longest such copy.

    The copy of length L that ends before place j: path[j - L : j] equals the last L tokens, none of
    which is a breaker.
    """
    found: dict[int, int] = {}
    for place in range(1, len(path)):
        length = 0
        while (
            length < place
            and path[place - 1 - length] == path[len(path) - 1 - length]
            and path[len(path) - 1 - length] not in breakers
        ):
            length += 1
        if length and path[place] not in breakers:
            found[path[place]] = max(found.get(path[place], 0), length)
    return found


def reference(
    scores: list[float],
    path: Sequence[int],
    multiplier: float,
    base: float,
    allowed: int,
    window: int,
    ids: Collection[int],
) -> list[float]:
    path = list(path)[-window:] if window else list(path)
    lowered = list(scores)
    for token, length in copies(path, ids).items():
        if length >= allowed and token < len(scores):
            lowered[token] -= multiplier * base ** (length - allowed)
    return softmax(lowered)


def pair(kind: type[Dry] = Dry):
    def made(batch):
        values: dict[str, Any] = {
            "multiplier": pick(batch, 0.8, 0.3, 2.0),
            "base": pick(batch, 1.75, 1.0, 3.0, 1.1),
            "allowed": int(pick(batch, 1, 2, 1, 3, 1)),
            "window": int(pick(batch, 0, 0, 12, 5)),
            "ids": ((), (1,), (0, 2), ())[batch.number // 3 % 4],
        }
        if max(values["ids"], default=-1) >= batch.vocab_size:
            values["ids"] = ()
        return kind(**values), lambda scores, at: reference(scores, at.tokens, **values)

    return made


def test_the_law() -> None:
    assert hold(pair()) > 1000


@pytest.mark.parametrize("breakers", [(), (2,), (0, 1)])
def test_every_short_path(breakers: tuple[int, ...]) -> None:
    """All 3,279 paths of one to seven tokens over three."""
    for size in range(1, 8):
        for path in itertools.product(range(3), repeat=size):
            tokens, lengths = continuations(path, breakers, 1, 100)
            assert dict(zip(tokens.tolist(), lengths.tolist(), strict=True)) == copies(
                path, breakers
            ), path


def test_the_example_of_the_engine() -> None:
    """a b c c b c y a b c: c after abc (3), b after c (1), y after bc (2)."""
    path = [0, 1, 2, 2, 1, 2, 3, 0, 1, 2]
    tokens, lengths = continuations(path, (), 1, 100)
    assert (tokens.tolist(), lengths.tolist()) == ([1, 2, 3], [1, 3, 2])


def scores_after(path: Sequence[int], **values: Any) -> list[float]:
    row = Row.dense(np.zeros(6))
    return Dry(**values).apply(row, None, Context(path, 1)).scores.tolist()


def test_golden_penalties() -> None:
    path = [1, 2, 3, 4, 1, 2, 3]
    assert scores_after(path, multiplier=1.0, base=2.0, allowed=2) == [0, 0, 0, 0, -2.0, 0]
    assert scores_after(path, multiplier=1.0, base=2.0, allowed=3) == [0, 0, 0, 0, -1.0, 0]
    assert scores_after(path, multiplier=1.0, base=2.0, allowed=4) == [0] * 6
    assert scores_after(path, multiplier=1.0, base=2.0, allowed=2, window=6) == [0, 0, 0, 0, -1, 0]
    assert scores_after(path, multiplier=1.0, base=2.0, allowed=2, window=5) == [0] * 6
    assert scores_after(path, multiplier=1.0, base=2.0, allowed=2, ids=(1,)) == [
        *(0, 0, 0, 0),
        -1.0,
        0,
    ]
    assert scores_after(path, multiplier=1.0, base=2.0, allowed=2, ids=(2,)) == [0] * 6
    assert scores_after(path, multiplier=1.0, base=2.0, allowed=2, ids=(4,)) == [0] * 6


def test_limits() -> None:
    row = Row.dense(np.zeros(3))
    path = Context((0, 0, 0, 0), 1)
    assert Dry(0.0).apply(row, None, path) is row
    assert Dry(1.0, allowed=9).apply(row, None, path) is row
    assert Dry(1.0).apply(row, None, Context((0,), 1)) is row
    overlap = Dry(1.0, 3.0, 1).apply(row, None, path).scores
    assert overlap.tolist() == [-9.0, 0.0, 0.0]  # "aaa" ends one place before the end


def test_a_long_loop_stays_finite_and_short_of_time() -> None:
    """A loop of 8,000 tokens; the search stops where a longer copy weighs no more."""
    path = [0, 1] * 4000
    for dtype in (np.float32, np.float64):
        row = Row.dense(np.zeros(2, dtype))
        result = Dry(100.0).apply(row, None, Context(path, 1))
        assert result.scores.tolist() == pytest.approx([-HEAVIEST, 0.0])
    tokens, lengths = continuations(path, (), 2, 120)
    assert (tokens.tolist(), lengths.tolist()) == ([0], [120])


def test_the_cut_of_the_search_changes_no_penalty() -> None:
    for multiplier, base in ((0.8, 1.75), (100.0, 1.01), (1e-9, 3.0), (5.0, 1.0)):
        sampler = Dry(multiplier, base, 2)
        longest = sampler._longest()
        with np.errstate(over="ignore"):
            at_cut = min(HEAVIEST, multiplier * base ** (longest - 2))
        assert at_cut == (HEAVIEST if base > 1 else multiplier)


def test_greedy_leaves_a_loop_when_the_penalty_passes_the_lead() -> None:
    """Token 0 leads by 4.6 nats always. After n zeros L = n - 1, so the first other token comes at
    the first n with m b^(n - 1 - 2) > lead."""
    lead = math.log(0.99 / 0.01)
    table = TableModel(lambda _: [0.99, 0.01], 2, 0)
    policy = Policy(table, chain(Dry(0.8, 1.75, 2)))
    (item,) = run_alone(Greedy(), Task(policy, (0,), Stopping(30)))
    zeros = 1 + item.tokens.index(1)
    expected = next(n for n in range(3, 99) if 0.8 * 1.75 ** (n - 3) > lead)
    assert zeros == expected
    (looped,) = run_alone(Greedy(), Task(Policy(table), (0,), Stopping(30)))
    assert set(looped.tokens) == {0}


def test_texts_are_looked_for_in_the_tokens_of_the_source(lm: LanguageModel) -> None:
    """On a toy language, and the engines' defaults on the embedded model's tokens."""
    toy = Dry(texts=("a", "中")).bind(ToySource())
    assert isinstance(toy, Dry)
    assert toy.found == {
        index for index, piece in enumerate(PIECES) if piece in (b"ab", "中".encode())
    }
    path = Context((4, 1, 2, 4, 1, 2), 1)
    row = Row.dense(np.zeros(len(PIECES)))
    assert Dry(1.0, 2.0, 2).apply(row, None, path).scores[4] == -2.0
    assert toy.apply(row, None, path).scores[4] == 0.0
    bound = METHOD().bind(lm)
    pieces = lm.language.pieces()
    assert bound.found
    for token, piece in enumerate(pieces):
        contains = piece is not None and any(mark in piece for mark in (b"\n", b":", b'"', b"*"))
        assert (token in bound.found) == contains


def test_texts_that_no_token_contains_are_refused_unless_they_are_the_defaults() -> None:
    assert METHOD().bind(ToySource()).found == frozenset()
    with pytest.raises(ParameterError, match="'zz', which no single token of toy contains"):
        Policy(ToySource(), chain(METHOD(dry_breakers=("zz",))))
    table = TableModel.random(3)
    assert Policy(table, chain(METHOD(dry_breakers=("zz",)))).sampler.stages[0].texts == ("zz",)


def test_breakers_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(ParameterError, match="dry_breaker_ids names token 9"):
        Dry(ids=(9,)).apply(Row.dense(np.zeros(3)), None, Context((0,), 1))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dry_multiplier": -1.0}, "dry_multiplier"),
        ({"dry_base": 0.9}, "dry_base"),
        ({"dry_allowed_length": 0}, "dry_allowed_length"),
        ({"dry_window": -1}, "dry_window"),
        ({"dry_breaker_ids": (-1,)}, "dry_breaker_ids names token -1"),
        ({"dry_breaker_ids": ("a",)}, "dry_breaker_ids"),
        ({"dry_breakers": (3,)}, "dry_breakers"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        METHOD(**values)


class OneOff(Dry):
    """The exponent counts the new token too."""

    def apply(self, row, state, context):
        return Dry(self.multiplier * self.base, **self._rest()).apply(row, state, context)

    def _rest(self):
        return {name: getattr(self, name) for name in ("base", "allowed", "window", "ids")}


class OverBreakers(OneOff):
    def apply(self, row, state, context):
        rest = self._rest() | {"ids": ()}
        return Dry(self.multiplier, **rest).apply(row, state, context)


class Linear(OneOff):
    """Once more for each copy in the place of exponentially in its length."""

    def apply(self, row, state, context):
        return Dry(self.multiplier, **(self._rest() | {"base": 1.0})).apply(row, state, context)


class Longer(OneOff):
    """> allowed in the place of >=."""

    def apply(self, row, state, context):
        rest = self._rest() | {"allowed": self.allowed + 1}
        return Dry(self.multiplier * self.base, **rest).apply(row, state, context)


@pytest.mark.parametrize("wrong", [OneOff, OverBreakers, Linear, Longer])
def test_wrong_variants_are_rejected(wrong: type[Dry]) -> None:
    with pytest.raises(AssertionError):
        hold(pair(wrong))


def test_a_search_of_single_tokens_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def single(path, ends, shortest, _longest):
        return continuations(path, ends, min(shortest, 1), 1)

    monkeypatch.setattr(dry, "continuations", single)
    with pytest.raises(AssertionError):
        hold(pair())
