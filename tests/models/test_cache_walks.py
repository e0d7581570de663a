"""The prefix cache on random walks: rows equal to those of a model that caches nothing.

After each step every slot is exactly one of unused, used by live nodes and cached, and references
are as many as live nodes (`PrefixCache.check`); what came from the cache is never more than was
evaluated before, and all of it where nothing was evicted. Caches with a fault must be caught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cache_walks import CacheWalk, Oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from decodery.models import causal
from decodery.models.cache_slots import SlotCache
from decodery.models.causal import CausalModel
from decodery.models.prefix_cache import Entry, PrefixCache
from decodery.models.transformer import Transformer, load_transformer

CAPACITIES = (40, 64, 100, 3000)
Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def transformer(make: Make) -> Transformer:
    return load_transformer(make("llama"), "float32", "cpu")


@pytest.fixture(scope="module")
def oracle(transformer: Transformer) -> Oracle:
    return Oracle(transformer)


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of the small models take several rounds."""
    monkeypatch.setattr(causal, "PROMPT_CHUNK", 5)


def walk(transformer: Transformer, oracle: Oracle, seed: int, steps: int = 40) -> CacheWalk:
    """A random walk; the seed also says how large the cache is and whether forwards fail."""
    capacity = CAPACITIES[seed % 4]
    made = CacheWalk(
        CausalModel(transformer, name="small", cache_tokens=capacity),
        oracle,
        seed,
        failures=0.15 * (seed % 3 == 0),
        exact=capacity == CAPACITIES[-1] and seed % 3 > 0,
    )
    for _ in range(steps):
        made.step()
    made.finish()
    return made


def walks(transformer: Transformer, oracle: Oracle, seeds: range) -> list[CacheWalk]:
    return [walk(transformer, oracle, seed) for seed in seeds]


@pytest.mark.parametrize("first", range(0, 24, 4))
def test_random_walks_equal_the_oracle(
    transformer: Transformer, oracle: Oracle, first: int
) -> None:
    found = walks(transformer, oracle, range(first, first + 4))
    assert all(item.cached > 0 for item in found)


@settings(max_examples=15, deadline=None, database=None)
@given(st.integers(24, 2**32))
def test_any_random_walk_equals_the_oracle(
    transformer: Transformer, oracle: Oracle, seed: int
) -> None:
    walk(transformer, oracle, seed, steps=20)


@pytest.mark.slow
def test_twenty_thousand_steps_equal_the_oracle(transformer: Transformer, oracle: Oracle) -> None:
    for seed in range(1000, 1500):
        walk(transformer, oracle, seed)


@pytest.mark.parametrize("name", ["mistral windowed", "gemma3", "qwen3", "gpt2", "phi3"])
def test_random_walks_of_other_models(make: Make, name: str) -> None:
    """Windows shorter than the path, norms on keys, and transformers' own forward."""
    other = load_transformer(make(name), "float32", "cpu")
    walks(other, Oracle(other), range(4))


@pytest.mark.parametrize("name", ["llama", "mistral windowed"])
def test_random_walks_without_a_compiler(
    make: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("decodery.models.compiled.can_compile", lambda _: False)
    other = load_transformer(make(name), "float32", "cpu")
    walks(other, Oracle(other), range(4))


# -- wrong caches are caught -----------------------------------------------------------------------


def _one_short(cache: PrefixCache, above: Entry, tokens: Sequence[int]) -> list[Entry]:
    return _find(cache, above, tokens)[:-1]


def _one_long(cache: PrefixCache, above: Entry, tokens: Sequence[int]) -> list[Entry]:
    found = _find(cache, above, tokens)
    tip = found[-1] if found else above
    if len(found) < len(tokens) and tip.children:
        found.append(next(iter(tip.children.values())))
    return found


def _no_salt(cache: PrefixCache, salt: str | None) -> Any:
    return _top(cache, None)


def _no_reference(cache: PrefixCache, entry: Entry) -> None:
    if entry.refs == 0:
        _hold(cache, entry)


def _lasting_reference(cache: PrefixCache, entries: Iterator[Entry], pruned: bool = False) -> None:
    _let_go(cache, (entry for entry in entries if entry.refs == 1), pruned=pruned)


def _no_refresh(cache: PrefixCache, entry: Entry) -> None:
    """A branch that is let go last stays younger than the path it hangs on."""


def _always_makes_way(cache: PrefixCache, wanted: range) -> bool:
    """A live branch goes on over what ended requests left."""
    for slot in wanted:
        if slot in cache._cached:
            cache._cut(cache._cached[slot])
    return True


def _oldest_root(cache: PrefixCache, count: int) -> None:
    """Evicts from the beginning of the oldest path."""
    for _ in range(count):
        entry = next(iter(cache._cached.values()), None)
        if entry is None:
            return
        while entry.parent is not None and entry.parent.slot in cache._cached:
            entry = entry.parent
        above = entry.parent
        assert above is not None
        del above.children[entry.token], cache._cached[entry.slot]
        cache.slots.evict(entry.slot)


def _live_too(cache: PrefixCache, entry: Entry) -> None:
    """Forgets to say that a cached entry is in use again."""
    entry.refs += 1


def _never_cut(cache: PrefixCache, entry: Entry) -> None:
    if entry.refs == 0:
        _cut(cache, entry)


def _always_free(cache: SlotCache, slot: int, area: Any) -> None:
    """Hands out cached slots as if they were unused."""
    _keep(cache, slot, area)
    cache._state[slot] = 0


_find, _top, _hold = PrefixCache._find, PrefixCache._top, PrefixCache._hold
_let_go, _cut, _keep = PrefixCache._let_go, PrefixCache._cut, SlotCache.keep

WRONG: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "the match is one token short": (PrefixCache, "_find", _one_short),
    "the match is one token long": (PrefixCache, "_find", _one_long),
    "the salt is ignored": (PrefixCache, "_top", _no_salt),
    "a reference is not counted": (PrefixCache, "_hold", _no_reference),
    "a reference is never given back": (PrefixCache, "_let_go", _lasting_reference),
    "a revived entry stays evictable": (PrefixCache, "_hold", _live_too),
    "a path is older than its branch": (PrefixCache, "_refresh", _no_refresh),
    "answers of others give way": (PrefixCache, "_make_way", _always_makes_way),
    "roots are evicted first": (PrefixCache, "_evict", _oldest_root),
    "failed forwards stay": (PrefixCache, "_cut", _never_cut),
    "cached slots are given out": (SlotCache, "keep", _always_free),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_cache_is_caught(
    name: str, transformer: Transformer, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, method, wrong = WRONG[name]
    monkeypatch.setattr(owner, method, wrong)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        walks(transformer, oracle, range(60))  # most are caught in the first four
