"""Stopping: end tokens, ids, budgets, and stop strings wherever tokens split them."""

from __future__ import annotations

import itertools

import pytest

from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.source import Policy
from decodery.core.stopping import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, Stopping
from decodery.core.tree import Tree
from decodery.testing import TableModel

PIECES = [b"a", b"b", b"ab", b"ba", "é".encode()[:1], "é".encode()[1:], b" ", b"aab"]


def decode(tokens):
    """A toy byte tokenizer: pieces that overlap in all ways, and a character in two halves."""
    return b"".join(PIECES[token] for token in tokens).decode(errors="replace")


def path(*tokens):
    tree = Tree(Policy(TableModel.random(len(PIECES))), (0, 6), Stream(0))
    node = tree.root
    for token in tokens:
        node = node.child(token)
    return node


def first_end(stopping, tokens):
    for count in range(1, len(tokens) + 1):
        reason = stopping.reason(path(*tokens[:count]))
        if reason is not None:
            return count, reason
    return None


def test_ends_in_order_of_precedence():
    stopping = Stopping(2, frozenset({3}), frozenset({3, 1}))
    assert first_end(stopping, [3]) == (1, "eos")
    assert first_end(stopping, [1]) == (1, "stop_id")
    assert first_end(stopping, [0, 3]) == (2, "eos")
    assert first_end(stopping, [0, 0, 0]) == (2, "max_tokens")
    assert first_end(stopping, [0]) is None


def test_ignored_end_tokens_are_ordinary():
    assert first_end(Stopping(3, frozenset({3}), ignore_eos=True), [3, 3, 3]) == (3, "max_tokens")


def test_the_prompt_does_not_count():
    assert Stopping(1, frozenset({6})).reason(path(0)) == "max_tokens"
    assert first_end(Stopping(9, stop=(" a",), decode=decode), [0, 0]) is None


@pytest.mark.parametrize("stop", ["aa", "abab", "bab", "é", "éa", "a b", "bé"])
def test_stop_strings_are_found_wherever_tokens_split_them(stop):
    """Every path of three tokens: the end is the first prefix whose whole text holds the string."""
    stopping = Stopping(9, stop=(stop,), decode=decode)
    for tokens in itertools.product(range(len(PIECES)), repeat=3):
        counts = [count for count in range(1, 4) if stop in decode(tokens[:count])]
        wanted = (counts[0], "stop_string") if counts else None
        assert first_end(stopping, tokens) == wanted, tokens


def test_a_stop_string_far_into_a_text():
    tokens = [0] * 500 + [2, 2]
    stopping = Stopping(1000, stop=("abab",), decode=decode)
    assert stopping.reason(path(*tokens[:-1])) is None
    assert stopping.reason(path(*tokens)) == "stop_string"


def test_cut_is_before_the_first_of_all_strings():
    stopping = Stopping(9, stop=("END", "###"), decode=decode)
    assert stopping.cut("one ### two END") == "one "
    assert stopping.cut("nothing here") == "nothing here"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("abc", 3), ("abcE", 3), ("abcEN", 3), ("abEE", 3), ("abEx", 4), ("", 0), ("E", 0), ("a#", 1)],
)
def test_safe_length_holds_back_what_may_become_a_stop(text, shown):
    assert Stopping(9, stop=("END", "##"), decode=decode).safe_length(text) == shown


def test_streaming_by_safe_length_never_shows_a_stop_string():
    stopping = Stopping(99, stop=("aba", "bb"), decode=decode)
    for letters in itertools.product("ab", repeat=8):
        text = "".join(letters)
        whole = stopping.cut(text)
        for end in range(len(text) + 1):
            seen = text[:end]
            if any(stop in seen for stop in stopping.stop):
                break
            assert whole.startswith(seen[: stopping.safe_length(seen)])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"max_tokens": 0}, "max_tokens 0 is below 1"),
        ({"max_tokens": 1, "stop": ("",), "decode": decode}, "empty"),
        ({"max_tokens": 1, "stop": ("a",)}, "tokenizer"),
        (
            {"max_tokens": 1, "stop": ("a",) * (MAX_STOP_STRINGS + 1), "decode": decode},
            f"at most {MAX_STOP_STRINGS}",
        ),
        (
            {"max_tokens": 1, "stop": ("a" * (MAX_STOP_CHARACTERS + 1),), "decode": decode},
            f"at most {MAX_STOP_CHARACTERS}",
        ),
    ],
    ids=["tokens", "empty", "no tokenizer", "too many", "too long"],
)
def test_impossible_stopping_is_refused(given, reason):
    with pytest.raises(ParameterError, match=reason):
        Stopping(**given)
