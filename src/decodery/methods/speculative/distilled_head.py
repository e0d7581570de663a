"""The head of a distilled drafter, in numpy: what it guesses after a hidden state and some tokens.

    a = silu(first h / rms(h) + b1 + input[x1]),   later  a = silu(next s + b2 + input[x])
    s = rmsnorm(out a)
    q(y) ~ exp(output[y] . (project s) + scores[x, y]),   y among the `successors` of x

h is the model's hidden state before the last token x1, which no forward has seen yet, and x a token
that was drafted. A guess reads some 120 rows of `output` and not the whole table, so it costs a
small part of a step of the model. `decodery train drafter` makes the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from decodery.core.errors import ParameterError
from decodery.core.row import Ids
from decodery.methods.speculative.law import Law

PART = "drafter"
_SMALL = 1e-6

Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[np.floating]]


class Thought(NamedTuple):
    """What the head knows behind a token: its state, and the token's word."""

    state: Floats
    word: int


@dataclass(frozen=True, eq=False)
class Head:
    """The tensors of a drafter, checked. Words are the tokens it knows and, last, all others.

    tokens [words - 1]; word_of [vocab_size]; successors [words, k] words, ascending; scores
    [words, k]; first [inner, width], next [inner, state], out [state, inner], their biases [inner];
    project [factors, state]; input [words, inner]; output [words - 1, factors]; `temperature` is
    that of the laws that it was fitted to.
    """

    tokens: Ids
    word_of: Ids
    successors: Ids
    scores: Floats
    first: Floats
    first_bias: Floats
    next: Floats
    next_bias: Floats
    out: Floats
    project: Floats
    input: Floats
    output: Floats
    temperature: float

    @classmethod
    def of(cls, tensors: Tensors, vocab_size: int) -> Head:
        """Check the tensors of a part. Raises `ParameterError` for those of no drafter."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if shapes != _expected(tensors):
            raise ParameterError(f"this part is no {PART}: its tensors are {shapes}")
        known = len(tensors["tokens"])
        tokens = _whole(tensors["tokens"], vocab_size)
        successors = _whole(tensors["successors"], known)
        temperature = float(tensors["temperature"][0])
        rising = (np.diff(tokens) > 0).all() and (np.diff(successors, axis=1) > 0).all()
        if not rising or not 0.0 < temperature < np.inf:
            raise ParameterError(f"this part is no {PART}: its lists or its temperature are wrong")
        word_of = np.full(vocab_size, known, dtype=np.intp)
        word_of[tokens] = np.arange(known)
        floats: dict[str, Any] = {
            name: np.ascontiguousarray(tensors[name], dtype=np.float32) for name in _FLOATS
        }
        return cls(tokens, word_of, successors, temperature=temperature, **floats)

    @property
    def width(self) -> int:
        """Of the hidden states that it reads."""
        return self.first.shape[1]

    def begin(self, hidden: npt.NDArray[np.floating], token: int) -> Thought:
        """Behind the hidden state [width] of a node and the token that came after it."""
        if hidden.shape != (self.width,):
            raise ParameterError(
                f"the {PART} reads hidden states of width {self.width}, and the source gave shape"
                f" {list(hidden.shape)}"
            )
        word = int(self.word_of[token])
        inner = _times(self.first, _normed(hidden.astype(np.float32, copy=False)))
        inner += self.first_bias
        return Thought(self._state(inner, word), word)

    def after(self, thought: Thought, token: int) -> Thought:
        """One token later."""
        word = int(self.word_of[token])
        inner = _times(self.next, thought.state)
        inner += self.next_bias
        return Thought(self._state(inner, word), word)

    def law(self, thought: Thought, temperature: float | None = None) -> Law:
        """q of the next token; at a temperature, or as it was trained."""
        near = self.successors[thought.word]
        scores = self._scores(thought, near).astype(np.float64)
        if temperature is not None:
            scores *= self.temperature / temperature
        masses = np.exp(scores - scores.max())
        return Law(masses / masses.sum(), self.word_of.size, self.tokens[near])

    def best(self, thought: Thought, count: int) -> list[tuple[int, float]]:
        """The `count` most probable next tokens with their q, best first."""
        near = self.successors[thought.word]
        scores = self._scores(thought, near)
        scores -= scores.max()
        np.exp(scores, out=scores)
        total = float(scores.sum())
        found: list[tuple[int, float]] = []
        for _ in range(min(count, scores.size)):  # few: quicker than to sort all
            place = int(scores.argmax())
            found.append((int(self.tokens[near[place]]), float(scores[place]) / total))
            scores[place] = -1.0
        return found

    def _scores(self, thought: Thought, near: Ids) -> Floats:
        scores = _times(self.output.take(near, axis=0), _times(self.project, thought.state))
        scores += self.scores[thought.word]
        return scores

    def _state(self, inner: Floats, word: int) -> Floats:
        inner += self.input[word]
        return _normed(_times(self.out, _silu(inner)))


def _times(matrix: Floats, x: Floats) -> Floats:
    """matrix x, row by row in this thread: a whole product would wake threads of BLAS, which then
    stand in the way of the model's own."""
    product: Floats = np.vecdot(matrix, x)
    return product


def _silu(x: Floats) -> Floats:
    shares: Floats = np.exp(-np.maximum(x, np.float32(-80.0)))  # finite from there on
    np.add(shares, np.float32(1.0), out=shares)
    return np.divide(x, shares, out=shares)


def _normed(x: Floats) -> Floats:
    return x * np.float32(1.0 / math.sqrt(float(x @ x) / x.size + _SMALL))


_FLOATS = (
    "scores", "first", "first_bias", "next", "next_bias", "out", "project", "input", "output",
)  # fmt: skip


def _expected(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """The shapes that the tensors of a part must have, from those that size them; {} if none."""
    sizing = {"tokens": 1, "successors": 2, "first": 2, "out": 2, "output": 2}
    if any(name not in tensors or tensors[name].ndim != rank for name, rank in sizing.items()):
        return {}
    known, inner, width = len(tensors["tokens"]), *tensors["first"].shape
    state, factors = len(tensors["out"]), tensors["output"].shape[1]
    near = tensors["successors"].shape[1]
    if min(known, inner, width, state, factors, near) < 1:
        return {}
    return {
        "tokens": (known,),
        "successors": (known + 1, near),
        "scores": (known + 1, near),
        "first": (inner, width),
        "first_bias": (inner,),
        "next": (inner, state),
        "next_bias": (inner,),
        "out": (state, inner),
        "project": (factors, state),
        "input": (known + 1, inner),
        "output": (known, factors),
        "temperature": (1,),
    }


def _whole(values: npt.NDArray[np.floating], limit: int) -> Ids:
    """Numbers of things, from 0 to below `limit`."""
    found = values.astype(np.intp)
    if (found != values).any() or found.min() < 0 or found.max() >= limit:
        raise ParameterError(f"this part is no {PART} for this model: it names what is not there")
    return found
