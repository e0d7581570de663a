"""Grammars over a vocabulary, by the engine llguidance: which tokens may come at any place.

A vocabulary is known to the engine by the bytes of its tokens, so every way to cut a text into
tokens is allowed, not the tokenizer's own alone, and what may come is a matter of bytes only. One
more token, that no model has, stands for the end of a text.

A place in a grammar is a path of tokens. The engine's parser that stands there is made by copying
the one of the place before and moving the copy on, and is a cache: a grammar keeps those of a few
hundred places and makes others again by walking their path. So trees of any width and length cost a
bounded amount of memory, and no place changes when another is made from it.
"""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from decodery.core.errors import MissingPackageError, ParameterError, RowError
from decodery.core.language import GrammarKind, Matcher

ENGINE = "llguidance"
KEPT = 256  # parsers of one grammar that stay in memory; a long one has some hundred kilobytes
MOST_CHARACTERS = 4 << 20  # of a grammar's text
MOST_SHOWN = 300  # characters of the engine's complaint
# Any cut into tokens may come: the engine would else force the tokenizer's own on a forced text.
# It stands behind a grammar, so that complaints name the lines that the user wrote.
_ANY_CUT = '\n%llguidance { "no_forcing": true }\n'
# What follows the engine's complaint: lines of the grammar, or of its own stack.
_LISTING = re.compile(r"\s*\n\s*\d+ \| .*|\s*<(non-verbose/|backtrace)>.*", re.DOTALL)
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")  # line and column
_UNSPELLABLE = "NoExtensionBias"  # the engine's error where no token is allowed
_SPECIAL = b"\xff"  # how the engine marks a token without text; the name after it is for grammars


class GrammarEngine:
    """The engine for one vocabulary: `pieces` [vocab_size] as `Language.pieces` gives them.

    `names` are what grammars may call special tokens by, in angle brackets.
    """

    def __init__(
        self, pieces: Sequence[bytes | None], names: Mapping[int, str] | None = None
    ) -> None:
        self._library = _library()
        self.vocab_size = len(pieces)
        self._tokenizer = self._library.LLTokenizer(_Vocabulary(pieces, names or {}))
        self.begin = lru_cache(maxsize=32)(self._begin)

    def _begin(self, kind: GrammarKind, text: str) -> Matcher:
        """The beginning of a grammar; the same object for the same grammar."""
        if len(text) > MOST_CHARACTERS:
            raise ParameterError(
                f"{kind} has {len(text)} characters; at most {MOST_CHARACTERS} are read"
            )
        limits = self._library.LLParserLimits(verbose_errors=False)
        parser = self._library.LLMatcher(
            self._tokenizer, self._serialised(kind, text), log_level=0, limits=limits
        )
        if parser.is_error():
            complaint = _line(parser.get_error())
            if kind != "grammar":  # the place is one in the grammar that was made of it
                complaint = _PLACE.sub("", complaint)
            raise ParameterError(f"{kind} is refused by {ENGINE}: {complaint}")
        root = _Place(_Grammar(kind, self.vocab_size), None, -1, parser)
        if not root.allowed.any() and not root.complete:
            raise ParameterError(f"{kind} has no text that this vocabulary can spell")
        return root

    def _serialised(self, kind: GrammarKind, text: str) -> str:
        if kind == "grammar":
            return text + _ANY_CUT
        if kind == "json_schema":
            return f"start: %json {_one_value(text)}{_ANY_CUT}"
        made = json.loads(self._library.LLMatcher.grammar_from_regex(text))
        for part in made["grammars"]:
            part["lark_grammar"] += _ANY_CUT
        return json.dumps(made)


class _Grammar:
    """What the places of one grammar share: the lock on its parsers, and which of them are kept."""

    def __init__(self, kind: str, vocab_size: int) -> None:
        self.kind = kind
        self.vocab_size = vocab_size
        self.lock = threading.RLock()
        self._kept: deque[_Place] = deque()

    def keep(self, place: _Place) -> None:
        self._kept.append(place)
        if len(self._kept) > KEPT:
            self._kept.popleft().forget()


class _Place(Matcher):
    """A path of tokens from the grammar's beginning. The beginning has its parser for good."""

    __slots__ = ("_bits", "_grammar", "_parent", "_parser", "_token")

    def __init__(self, grammar: _Grammar, parent: _Place | None, token: int, parser: Any) -> None:
        self._grammar = grammar
        self._parent = parent
        self._token = token
        self._parser = parser
        self._bits: bytes | None = None

    def __repr__(self) -> str:
        return f"Place({self._grammar.kind}, {self._path()})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Place)
            and other._grammar is self._grammar
            and other._path() == self._path()
        )

    def __hash__(self) -> int:
        return hash((id(self._grammar), *self._path()))

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(self._mask(), dtype=np.uint8)
        size = self._grammar.vocab_size
        return np.unpackbits(bits, count=size, bitorder="little").view(np.bool_)

    @property
    def complete(self) -> bool:
        end = self._grammar.vocab_size
        return bool(self._mask()[end >> 3] >> (end & 7) & 1)

    def after(self, token: int) -> Matcher | None:
        if not 0 <= token < self._grammar.vocab_size:
            return None
        if not self._mask()[token >> 3] >> (token & 7) & 1:
            return None
        return _Place(self._grammar, self, token, None)

    def forget(self) -> None:
        """Let go of what can be made again."""
        if self._parent is not None:
            self._parser = self._bits = None

    def _mask(self) -> bytes:
        """One bit a token, the end of the text after them."""
        with self._grammar.lock:
            if self._bits is None:
                self._bits = self._computed()
            return self._bits

    def _computed(self) -> bytes:
        parser = self._standing()
        bits: bytes = parser.compute_bitmask()
        complaint = parser.get_error()
        if not complaint:
            return bits
        if _UNSPELLABLE in complaint:  # no token spells what must come
            return bytes(len(bits))
        raise RowError(f"{self._grammar.kind}: {ENGINE} gave up: {_line(complaint)}")

    def _standing(self) -> Any:
        """The parser that stands here."""
        if self._parser is None:
            tokens: list[int] = []
            place = self
            while place._parser is None:
                tokens.append(place._token)
                assert place._parent is not None
                place = place._parent
            parser = place._parser.deep_copy()
            if not parser.consume_tokens(tokens[::-1]):
                complaint = _line(parser.get_error())
                raise RowError(f"{self._grammar.kind}: {ENGINE} gave up: {complaint}")
            self._parser = parser
            self._grammar.keep(self)
        return self._parser

    def _path(self) -> list[int]:
        tokens: list[int] = []
        place = self
        while place._parent is not None:
            tokens.append(place._token)
            place = place._parent
        return tokens[::-1]


class _Vocabulary:
    """A vocabulary as the engine reads it."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = None  # the engine then adds a token for the end, behind all others

    def __init__(self, pieces: Sequence[bytes | None], names: Mapping[int, str]) -> None:
        self.tokens = [
            piece if piece is not None else _special(names.get(index))
            for index, piece in enumerate(pieces)
        ]
        self.special_token_ids: list[int] = []  # they carry their mark already

    def __call__(self, text: str) -> list[int]:
        """How the engine would cut a text that is forced; with any cut allowed, it never asks."""
        raise AssertionError(f"{ENGINE} asked for the tokens of {text!r}")


def _one_value(text: str) -> str:
    """The schema as JSON again: it stands in a grammar, where more than one value would go on."""
    try:
        return json.dumps(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"json_schema is no JSON: {error}") from None


def _special(name: str | None) -> bytes:
    return b"" if name is None else _SPECIAL + name.encode()


def _library() -> Any:
    try:
        return importlib.import_module(ENGINE)
    except ImportError:
        raise MissingPackageError(
            f"structured output needs {ENGINE}; pip install {ENGINE}"
        ) from None


def _line(message: str) -> str:
    """The engine's complaint as one line."""
    line = " ".join(_LISTING.sub("", message).split())
    return line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 3] + "..."
