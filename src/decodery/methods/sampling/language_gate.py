"""Language confusion gate: mask Chinese/Japanese or Latin tokens where the model means neither.

A multilingual model now and then draws a token of a wrong script. A gate of two layers reads the
last hidden state h and says which of four script families (`token_families.py`) may come next,

    u = A2 relu(A1 h),    P = {i : sigmoid(u_i) >= 0.5} and the i of the highest u,

having learnt from the model's own candidates (`decodery train language-gate`). It is believed only
under conservative rules. Let z be the row, U what the user's top-k and top-p leave of it, and L the
family of the last generated token that is no symbol (letters that several tokens spell count):

1. nothing is done before there is an L;
2. A = P and L is allowed: a script that is being written may go on;
3. B, what may be banned, is CJ and Latin without A: symbols and all other scripts never are;
4. C is what the model holds likely: the top 5 within mass 0.999 and the top 20 within mass 0.95;
5. unless U holds a token of B and C one of P, the law is that of U;
6. else it is that of U and C together, without the families in B, with their scores as they are.

C is let back in so that a legal token is always there. The gate therefore cuts by `gate_top_k` and
`gate_top_p` itself and stands before any min-p.

Zhang, Huang, Yuan, Lin: Language Confusion Gate: Language-Aware Decoding Through Model
Self-Distillation (2025), arXiv:2510.17555.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Mask, Row
from decodery.core.sampler import Context, Sampler, State
from decodery.core.source import Source
from decodery.methods.sampling.min_p import MinP
from decodery.methods.sampling.token_families import (
    CJ,
    LATIN,
    NAMES,
    SYMBOLS,
    Families,
    complete_characters,
    families_of,
    family_of,
)
from decodery.methods.sampling.top_k import TopK
from decodery.methods.sampling.top_p import TopP

PART = "language_gate"

CARD = Card(
    name="language_gate",
    kind="sampler",
    family="sampling",
    summary="Mask Chinese/Japanese or Latin tokens where a trained gate sees that none is meant.",
    guarantee="law",
    law="the row cut by top-k and top-p; where the gate steps in, that set and the model's likely"
    " tokens together, without the banned families, renormalised",
    title="Language Confusion Gate: Language-Aware Decoding Through Model Self-Distillation",
    authors="Zhang, Huang, Yuan, Lin",
    year=2025,
    arxiv="2510.17555",
    needs=("hidden", "trained"),
    place=55,
    reductions=(
        Reduction({"gate_threshold": 0.0}, "identity"),
        Reduction({"gate_threshold": 0.0, "gate_top_k": 3}, "top_k", {"top_k": 3}),
        Reduction({"gate_threshold": 0.0, "gate_top_p": 0.7}, "top_p", {"top_p": 0.7}),
    ),
    deviations=(
        "Top-k and top-p are parameters of the gate: it lets likely tokens back in after them, and"
        " in a chain a dropped token never comes back.",
        "The likely tokens are the union of both sets. The authors' code fills the second from the"
        " scores of the first, so only the top 5 remain, and none where the legal token is the"
        " 6th to 20th.",
        "Their top-p is taken of what the top-k left, as in a chain; the authors' code takes it of"
        " the whole row.",
        "The script being written is read from whole letters: one that is spelt by several tokens,"
        " each of which is a symbol to the families, counts when its last byte is there. A small"
        " vocabulary spells most of Hangul that way, and the gate would never start.",
        "Labels of the training divide logits, less their mean at each position, by the norms of"
        " output embeddings from their mean, relative to the mean of these: with absolute norms the"
        " division also changes the temperature, and depends on where zero is.",
        "Candidates of the labels are the likeliest token alone, in the paper the top 20 within"
        " mass 0.95; on the embedded model a gate taught by those stops next to nothing"
        " (label_top_k and label_top_p of the training).",
    ),
    notes="Hangul, Cyrillic, Arabic and all other scripts are one family that is never banned, so"
    " the gate cannot keep these apart. A training for another model is decodery train"
    " language-gate. The gate of the embedded model, which is small, also stops nearly all Latin"
    " names and quotations inside text of a third script; text in Latin script is left alone.",
)


class Params(Parameters):
    gate_threshold: float = parameter(
        0.5, ge=0.0, le=1.0, unit="probability",
        help="A family may come next from here on; 0 lets all pass, 1 only the likeliest.",
    )  # fmt: skip
    gate_top_k: int = parameter(0, ge=0, unit="tokens", help="The gate's top-k; 0 keeps all.")
    gate_top_p: float = parameter(
        1.0, gt=0.0, le=1.0, unit="probability", help="The gate's top-p; 1 keeps all."
    )
    gate_file: str | None = parameter(
        None, help="File of a gate that was trained; default: the one that comes with the model."
    )
    gate_lookback: int = parameter(
        0, ge=0, unit="tokens",
        help="How far back the script being written is looked for; 0 is all the way.",
    )  # fmt: skip
    gate_prompt: bool = parameter(
        False, help="Look for the script being written in the prompt too."
    )
    gate_choices: bool = parameter(
        False, help="Take the bare letters A to G and 'assistant' for symbols: multiple choice."
    )
    gate_narrow_k: int = parameter(
        5, ge=1, unit="tokens", help="Top-k of the narrower set of likely tokens."
    )
    gate_narrow_p: float = parameter(
        0.999, gt=0.0, le=1.0, unit="probability", help="Top-p of the narrower set."
    )
    gate_broad_k: int = parameter(
        20, ge=1, unit="tokens", help="Top-k of the broader set of likely tokens."
    )
    gate_broad_p: float = parameter(
        0.95, gt=0.0, le=1.0, unit="probability", help="Top-p of the broader set."
    )


@dataclass(frozen=True, eq=False)
class Gate:
    """A trained gate and the vocabulary it is for.

    `first` is A1 [m, width], `second` A2 [4, m], both float32; `families` [vocab_size]; `pieces`
    are the bytes of every token, or empty where letters are not joined over tokens.
    """

    first: npt.NDArray[np.float32]
    second: npt.NDArray[np.float32]
    families: Families
    pieces: tuple[bytes | None, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, npt.NDArray[np.floating]],
        families: Families,
        pieces: tuple[bytes | None, ...] = (),
    ) -> Gate:
        """A gate from its part. Raises `ParameterError` where the tensors are no gate's."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        first, second = (tensors.get(name) for name in ("A1", "A2"))
        fits = (
            first is not None
            and second is not None
            and len(tensors) == 2
            and first.ndim == 2
            and second.shape == (len(NAMES), first.shape[0])
        )
        if not fits or first is None or second is None:
            raise ParameterError(
                f"a language_gate has tensors A1 [m, width] and A2 [{len(NAMES)}, m]; this part"
                f" has {shapes}"
            )
        return cls(first.astype(np.float32), second.astype(np.float32), families, pieces)

    def permitted(self, hidden: npt.NDArray[np.floating] | None, threshold: float) -> Mask:
        """P: which families [4] may come next after a hidden state [width]."""
        if hidden is None or hidden.shape != self.first.shape[1:]:
            given = "none" if hidden is None else f"shape {list(hidden.shape)}"
            raise ParameterError(
                f"language_gate reads hidden states of width {self.first.shape[1]}, and the source"
                f" gave {given}"
            )
        scores = self.second @ np.maximum(self.first @ hidden.astype(np.float32), 0)
        passed: Mask = scores >= _logit(threshold)
        passed[scores.argmax()] = True
        return passed


class Script(NamedTuple):
    """The state: the family L, or None before there is one; how many symbols came since; and the
    bytes of a character that the path's end cuts off."""

    family: int | None = None
    symbols: int = 0
    rest: bytes = b""


@dataclass(frozen=True)
class LanguageGate(Sampler):
    """The gate and its rules, with the user's top-k and top-p (U) and the likely sets (C).

    It refuses to work before it is bound to a source, which a policy does.
    """

    needs_hidden: ClassVar[bool] = True
    threshold: float = 0.5
    top_k: int = 0
    top_p: float = 1.0
    file: str | None = None
    lookback: int = 0
    prompt: bool = False
    choices: bool = False
    narrow: tuple[int, float] = (5, 0.999)
    broad: tuple[int, float] = (20, 0.95)
    gate: Gate | None = field(default=None, repr=False, compare=False)

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return self.top_k > 0 or self.top_p < 1

    def check_chain(self, before: Sequence[Sampler], after: Sequence[Sampler]) -> None:
        own = "give gate_top_k and gate_top_p instead, or min_p after the gate"
        for stage in before:
            if stage.truncates:
                raise ParameterError(
                    f"{stage!r} before language_gate drops tokens that the gate may let back in;"
                    f" {own}"
                )
            if stage.tempers and stage.most_tokens == 1:
                raise ParameterError(
                    f"{stage!r} leaves language_gate one token; use method greedy without it"
                )
        for stage in after:
            if stage.truncates and not isinstance(stage, MinP):
                raise ParameterError(
                    f"{stage!r} after language_gate would cut what the gate let back in; {own}"
                )
            if stage.tempers:
                raise ParameterError(
                    f"{stage!r} after language_gate changes the row that its sets are taken from;"
                    " put it before the gate"
                )

    def bind(self, source: Source) -> LanguageGate:
        if source.language is None:
            raise ParameterError(
                f"language_gate reads what tokens look like, and those of {source.name} are numbers"
            )
        tensors = source.part(PART, self.file)
        pieces = tuple(source.language.pieces())
        return replace(self, gate=Gate.of(tensors, families_of(pieces, self.choices), pieces))

    def start(self, context: Context) -> State:
        state = Script()
        for token in context.tokens if self.prompt else ():
            state = self._after(state, token)
        return state

    def apply(self, row: Row, state: State, context: Context) -> Row:
        gate = self._bound()
        kept = TopP(self.top_p).apply(TopK(self.top_k).apply(row, None, context), None, context)
        language = self._language(state)
        if language is None:
            return kept
        permitted = gate.permitted(context.hidden, self.threshold)
        banned = banned_families(permitted, language)
        if not banned.any() or not _holds(kept, gate.families, banned):
            return kept
        likely = [
            TopP(p).apply(TopK(k).apply(row, None, context), None, context)
            for k, p in (self.narrow, self.broad)
        ]
        if not any(_holds(part, gate.families, permitted) for part in likely):
            return kept
        together = np.zeros(len(row), dtype=np.bool_)
        for part in (kept, *likely):
            together[row.positions(part.token_ids())[0]] = True
        return row.keep(together & ~banned[gate.families[row.token_ids()]])

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> State:
        return self._after(state, token)

    def _after(self, state: Script, token: int) -> Script:
        gate = self._bound()
        family = int(gate.families[token])
        piece = gate.pieces[token] if gate.pieces else None
        text, rest = complete_characters(state.rest + piece) if piece else ("", b"")
        if family == SYMBOLS and state.rest and piece and 0x80 <= piece[0] < 0xC0:
            family = family_of(text.encode())  # with the letter that this token goes on with
        if family != SYMBOLS:
            return Script(family, 0, rest)
        return Script(state.family, state.symbols + 1, rest)

    def _language(self, state: Script) -> int | None:
        """L, where it is near enough."""
        return None if self.lookback and state.symbols >= self.lookback else state.family

    def _bound(self) -> Gate:
        if self.gate is None:
            raise ParameterError(
                "language_gate is not bound to a model; put it into a policy, such as"
                " Policy(model, chain(gate))"
            )
        return self.gate


def banned_families(permitted: Mask, language: int) -> Mask:
    """B: of CJ and Latin, which [4] neither the gate permits nor the text is being written in."""
    banned = np.zeros(len(NAMES), dtype=np.bool_)
    banned[[CJ, LATIN]] = True
    banned &= ~permitted
    banned[language] = False
    return banned


def _holds(row: Row, families: Families, wanted: Mask) -> bool:
    """Whether a token of the wanted families [4] is possible in the row."""
    possible = np.greater(row.scores, -np.inf)
    return bool((wanted[families[row.token_ids()]] & possible).any())


def _logit(probability: float) -> float:
    """The score whose sigmoid is `probability`; infinite at 0 and 1."""
    if probability in (0.0, 1.0):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


def build(params: Params) -> LanguageGate:
    return LanguageGate(
        threshold=params.gate_threshold,
        top_k=params.gate_top_k,
        top_p=params.gate_top_p,
        file=params.gate_file,
        lookback=params.gate_lookback,
        prompt=params.gate_prompt,
        choices=params.gate_choices,
        narrow=(params.gate_narrow_k, params.gate_narrow_p),
        broad=(params.gate_broad_k, params.gate_broad_p),
    )


METHOD = Method(CARD, Params, build)
