"""What the tokens of a source mean: text, and which bytes each stands for.

Blends write prompts of their own through it, samplers read what a token looks like. A source
without a language, such as a table, has tokens that are numbers. A `Matcher` is a place in a
grammar over such tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from decodery.core.errors import ParameterError

Message = Mapping[str, Any]
GrammarKind = Literal["json_schema", "regex", "grammar"]


class Matcher(ABC):
    """A place in a grammar: the text so far is a beginning of one of its texts.

    Immutable: `after` gives the place behind a token and leaves this one as it was.
    """

    @property
    @abstractmethod
    def allowed(self) -> npt.NDArray[np.bool_]:
        """The tokens [vocab_size] after which the text is still a beginning; a new array."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the text so far is a whole text of the grammar."""

    @abstractmethod
    def after(self, token: int) -> Matcher | None:
        """The place behind `token`; None where no text of the grammar goes on like that."""


class Language(ABC):
    """A tokenizer with its chat template."""

    @abstractmethod
    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a plain text, as a prompt: with a begin token where the model has one."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""

    @abstractmethod
    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The tokens of a conversation, up to where the assistant begins to answer.

        Raises `ParameterError` where the model has no chat template.
        """

    @property
    @abstractmethod
    def has_chat(self) -> bool:
        """Whether there is a chat template."""

    @abstractmethod
    def pieces(self) -> Sequence[bytes | None]:
        """What each token [vocab_size] adds to a text; None for special tokens and unused ids."""

    def shown(self, token: int) -> str:
        """A token as a person sees it alone; what is no whole character in the form \\xe4\\xb8."""
        pieces = self.pieces()
        piece = pieces[token] if 0 <= token < len(pieces) else None
        return f"<{token}>" if piece is None else piece.decode("utf-8", "backslashreplace")

    @abstractmethod
    def same_as(self, other: Language) -> bool:
        """Whether every token id means the same in both."""

    def matcher(self, kind: GrammarKind, text: str) -> Matcher:
        """The beginning of a grammar: a JSON schema, a regular expression, or a Lark grammar.

        Raises `ParameterError` where it is not one, `MissingPackageError` without the engine.
        """
        raise ParameterError(f"{kind} needs a tokenizer that has a grammar engine")
