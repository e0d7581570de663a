"""What samplers for structured output share: only tokens that a grammar allows may come.

The state is a place in the grammar. At a place, a token may come when some text of the grammar
begins with the answer so far and the token's bytes; end tokens may come when the answer so far is a
text of the grammar, and only they may come after one of them. The law is that of the row, given
that such a token comes; it is decided token by token, so it is not the model's law of whole texts
given that they are in the grammar.

The grammar counts from the end of the prompt. Any way to cut a text into tokens is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from decodery.core.errors import ParameterError, RowError
from decodery.core.language import GrammarKind, Matcher
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.core.source import Source
from decodery.methods.sampling.mirostat import Mirostat

PLACE = 37  # a mask, behind other masks and before all that truncates
LAW = (
    "the row restricted to tokens after which the answer still begins a text of the grammar (end"
    " tokens: after which it is one), and renormalised"
)
NOTES = (
    "Only an answer that ends with an end token is whole: one that `max_tokens` cuts is a"
    " beginning. What is drawn is the model's law restricted step by step, which is not its law of"
    " whole texts given the grammar. Every way to cut a text into tokens is allowed; a place where"
    " one token is left costs a forward as any other. The grammar sees the bytes that tokens add; a"
    " tokenizer that drops a leading space when it decodes drops it here too."
)


@dataclass(frozen=True)
class Structured(Sampler):
    """The answer is a text of a grammar of some kind: a JSON schema, a pattern, a Lark grammar.

    `begin` is the grammar's beginning over the vocabulary of a source, which `bind` sets.
    """

    kind: ClassVar[GrammarKind]
    text: str
    begin: Matcher | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        return f"{self.kind}({shown!r})"

    def check_chain(self, before: Sequence[Sampler], after: Sequence[Sampler]) -> None:
        for stage in before:
            if isinstance(stage, Structured):
                raise ParameterError(
                    f"{stage.kind} and {self.kind} are both given, and may have no text in common;"
                    " give one grammar that says both"
                )
            if stage.truncates:
                raise ParameterError(
                    f"{stage!r} comes before {self.kind} and may drop every token that the grammar"
                    f" allows; put {self.kind} first"
                )
        for stage in after:
            if isinstance(stage, Mirostat):
                raise ParameterError(
                    f"mirostat cannot hold a mean surprise under {self.kind}: tokens that a grammar"
                    " forces have none, and its bound would grow until it cuts nothing; use min_p"
                )

    def bind(self, source: Source) -> Sampler:
        if source.language is None:
            raise ParameterError(
                f"{self.kind} needs to know the text of tokens, and {source.name} has none"
            )
        if not source.eos_ids:
            raise ParameterError(
                f"{self.kind} needs an end token to end the answer with, and {source.name} has none"
            )
        begin = source.language.matcher(self.kind, self.text)
        return self if begin is self.begin else replace(self, begin=begin)

    def start(self, context: Context) -> State:
        if self.begin is None:
            raise ParameterError(
                f"{self.kind} is not bound to a source; use it in a policy: source | {self.kind}"
            )
        return self.begin

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if state is None:
            raise RowError(f"{self.kind} allows no token: the path has left the grammar")
        ended = isinstance(state, Ended)
        mask = np.zeros(row.vocab_size, dtype=np.bool_) if ended else state.allowed
        if mask.size < row.vocab_size:
            raise RowError(
                f"{self.kind} knows {mask.size} tokens, and the row has {row.vocab_size}"
            )
        mask = mask[: row.vocab_size]
        ends = np.array(sorted(context.eos_ids), dtype=np.intp)
        mask[ends] = ended or state.complete
        kept = (mask if row.ids is None else mask[row.ids]) & (row.scores > -np.inf)
        if not kept.any():
            raise RowError(f"{self.kind}: of what may follow here, no token is possible")
        return row.keep(kept)

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> State:
        if isinstance(state, Matcher):
            if token not in context.eos_ids:
                return state.after(token)
            return Ended() if state.complete else None
        return state if token in context.eos_ids else None


@dataclass(frozen=True)
class Ended:
    """The state after an end token: the answer is a text of the grammar."""
