"""A tokenizer and its chat template as the language of a source."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from decodery.core.errors import ParameterError
from decodery.core.language import GrammarKind, Language, Matcher, Message
from decodery.models.chat import render
from decodery.models.grammar import GrammarEngine
from decodery.models.tokenizer import Tokenizer


class TokenizerLanguage(Language):
    """What the ids of a model mean; `vocab_size` counts its rows, which may be padded."""

    def __init__(self, tokenizer: Tokenizer, name: str, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.vocab_size = vocab_size

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text))

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(self.chat_text(messages), add_special=False))

    def chat_text(self, messages: Sequence[Message]) -> str:
        """The conversation as the model reads it, before it is made tokens."""
        template = self.tokenizer.chat_template
        if template is None:
            raise ParameterError(f"{self.name} has no chat template; give the prompt as text")
        return render(
            template,
            messages,
            bos_token=self.tokenizer.bos_token,
            eos_token=self.tokenizer.eos_token,
        )

    @property
    def has_chat(self) -> bool:
        return self.tokenizer.chat_template is not None

    def pieces(self) -> Sequence[bytes | None]:
        return self._pieces

    def shown(self, token: int) -> str:
        special = token in self.tokenizer.special_ids
        return self.tokenizer.token(token) if special else super().shown(token)

    def same_as(self, other: Language) -> bool:
        return self is other or self.pieces() == other.pieces()

    def matcher(self, kind: GrammarKind, text: str) -> Matcher:
        return self._engine.begin(kind, text)

    @cached_property
    def _engine(self) -> GrammarEngine:
        names = {index: self.tokenizer.token(index) for index in self.tokenizer.special_ids}
        return GrammarEngine(self.pieces(), names)

    @cached_property
    def _pieces(self) -> tuple[bytes | None, ...]:
        known = self.tokenizer.pieces()[: self.vocab_size]
        return (*known, *[None] * (self.vocab_size - len(known)))
