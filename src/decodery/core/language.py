"""What the tokens of a source mean: text, and which bytes each stands for.

Blends write prompts of their own through it, samplers read what a token looks like. A source
without a language, such as a table, has tokens that are numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


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

    @abstractmethod
    def same_as(self, other: Language) -> bool:
        """Whether every token id means the same in both."""
