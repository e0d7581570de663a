"""The laws of samplers: pure, honest about what they need, and never a token back from the dead.

Each law is a function of a name and a sampler that raises `LawBroken`. They are tried on walks:
random paths over vocabularies of 1 to 12 tokens, rows of every kind and dtype, whole and truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from decodery.core.errors import ParameterError, RowError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.testing.observe import LawBroken, fingerprint, require, without_global_randomness
from decodery.testing.tables import KINDS, Dtype, random_row
from decodery.testing.toys import WIDTH

STEPS = 5
_STREAM = Stream(0)
GENERIC = ("flat", "steep")  # kinds without ties: rounding decides nothing there


@dataclass(frozen=True)
class Place:
    """Where a sampler is applied: the row, its state and the context, with the row's kind."""

    row: Row
    state: State
    context: Context
    kind: str

    def __str__(self) -> str:
        return f"a {self.row.scores.dtype} row of kind {self.kind!r} of {self.row.vocab_size}"


def apply(name: str, sampler: Sampler, place: Place) -> Row:
    """What the sampler makes of the row; any exception breaks a law."""
    try:
        reshaped = sampler.apply(place.row, place.state, place.context)
    except Exception as error:
        raise LawBroken(f"{name} fails on {place}: {error!r}") from error
    require(isinstance(reshaped, Row), f"{name} returns {type(reshaped).__name__}, not Row")
    return reshaped


def advance(name: str, sampler: Sampler, place: Place, token: int) -> State:
    """The next state; the sampler sees the row only when it says that it observes rows."""
    row = place.row if sampler.observes_rows else None
    try:
        return sampler.advance(place.state, token, row, place.context)
    except Exception as error:
        raise LawBroken(f"{name} cannot advance over {place}: {error!r}") from error


def walk(
    name: str,
    sampler: Sampler,
    vocab_size: int,
    *,
    dtype: Dtype = np.float64,
    seed: int = 0,
    stream: Stream = _STREAM,
    steps: int = STEPS,
) -> Iterator[Place]:
    """Places along one random path. Rows and tokens do not depend on what the sampler answers."""
    generator = np.random.default_rng([seed, vocab_size])
    states = np.random.default_rng([seed, vocab_size, 1])  # rows are the same with or without them
    tokens = generator.integers(vocab_size, size=4).tolist()
    context = Context(
        tokens, len(tokens), frozenset({vocab_size - 1}), _hidden(sampler, states), stream
    )
    state = sampler.start(context)
    for step in range(steps):
        kind = KINDS[generator.integers(len(KINDS))]
        row = random_row(generator, vocab_size, kind, dtype)
        if step % 2:
            mask = generator.random(vocab_size) < 0.7
            mask[row.argmax()] = True
            row = row.keep(mask)
        place = Place(row, state, context, kind)
        yield place
        token = row.draw(generator.random())
        state = advance(name, sampler, place, token)
        hidden = _hidden(sampler, states)
        context = replace(context, tokens=[*context.tokens, token], hidden=hidden)


def _hidden(sampler: Sampler, generator: np.random.Generator) -> Any:
    return generator.normal(size=WIDTH) if sampler.needs_hidden else None


def refuses(sampler: Sampler, place: Place) -> bool:
    """The sampler forbids every token here, or names tokens that this vocabulary lacks.

    Any other exception is left to the law that comes across it.
    """
    try:
        sampler.apply(place.row, place.state, place.context)
    except RowError as error:
        return "no token" in str(error)
    except ParameterError:
        return True
    except Exception:
        return False
    return False


def walks(name: str, sampler: Sampler, *, stream: Stream = _STREAM) -> Iterator[Place]:
    """Places that are not refused, on paths over every size of vocabulary in both dtypes."""
    for place in all_walks(name, sampler, stream=stream):
        if not refuses(sampler, place):
            yield place


def all_walks(name: str, sampler: Sampler, *, stream: Stream = _STREAM) -> Iterator[Place]:
    """Places on paths over every size of vocabulary in both dtypes."""
    for vocab_size in (1, 2, 5, 12):
        for seed in range(2):
            for dtype in (np.float32, np.float64):
                yield from walk(name, sampler, vocab_size, dtype=dtype, seed=seed, stream=stream)


def behaviour(name: str, sampler: Sampler, *, stream: Stream = _STREAM, steps: int = 16) -> Any:
    """All that a sampler does on long walks, to compare with another."""
    return [
        "refused" if refuses(sampler, place) else apply(name, sampler, place)
        for vocab_size in (2, 5, 12)
        for seed in range(4)
        for place in walk(name, sampler, vocab_size, seed=seed, stream=stream, steps=steps)
    ]


# -- the laws --------------------------------------------------------------------------------------


def refuses_only_by_token(name: str, sampler: Sampler) -> None:
    """A row may be refused for its tokens (all forbidden here), not for their probabilities."""
    accepted = 0
    for place in all_walks(name, sampler):
        if not refuses(sampler, place):
            apply(name, sampler, place)
            accepted += 1
            continue
        level = np.where(place.row.dense_scores() > -np.inf, 0.0, -np.inf)
        fair = refuses(sampler, replace(place, row=Row.dense(level)))
        require(
            fair and not _refuses_any_single(sampler, place), f"{name} leaves no token of {place}"
        )
    require(accepted > 0, f"{name} refuses every row")


def _refuses_any_single(sampler: Sampler, place: Place) -> bool:
    """Some token is allowed here, and yet every row of one token alone is refused."""
    size = place.row.vocab_size
    if size == 1 or refuses(sampler, replace(place, row=Row.dense(np.zeros(size)))):
        return False
    alone = np.log(np.eye(size), where=np.eye(size) > 0, out=np.full((size, size), -np.inf))
    return all(refuses(sampler, replace(place, row=Row.dense(row))) for row in alone)


def is_pure(name: str, sampler: Sampler) -> None:
    """The same call gives the same row, whatever global random state says."""
    without_global_randomness(
        name, lambda: [apply(name, sampler, place) for place in walks(name, sampler)]
    )


def leaves_inputs_alone(name: str, sampler: Sampler) -> None:
    """Neither the row's arrays, nor the state, nor the context's tokens change."""
    for place in all_walks(name, sampler):
        before = fingerprint((place.row, place.state, list(place.context.tokens)))
        if refuses(sampler, place):
            continue
        advance(name, sampler, place, place.row.argmax())
        after = fingerprint((place.row, place.state, list(place.context.tokens)))
        for what, old, new in zip(("row", "state", "tokens"), before[1:], after[1:], strict=True):
            require(old == new, f"{name} changes its input {what} on {place}")


def keeps_the_dtype(name: str, sampler: Sampler) -> None:
    """float32 stays float32, float64 stays float64."""
    for place in walks(name, sampler):
        given, made = place.row.scores.dtype, apply(name, sampler, place).scores.dtype
        require(given == made, f"{name} turns {given} into {made}")


def revives_nothing(name: str, sampler: Sampler) -> None:
    """What is impossible stays impossible; ids stay ascending and of the vocabulary."""
    for place in walks(name, sampler):
        made = apply(name, sampler, place)
        require(
            made.vocab_size == place.row.vocab_size,
            f"{name} turns a vocabulary of {place.row.vocab_size} into {made.vocab_size}",
        )
        ids = made.token_ids()
        ordered = bool((np.diff(ids) > 0).all()) and ids[0] >= 0 and ids[-1] < made.vocab_size
        require(ordered, f"{name} returns ids that are not ascending in the vocabulary")
        dead = place.row.dense_scores() == -np.inf
        alive = made.dense_scores()[dead] > -np.inf
        require(not alive.any(), f"{name} gives an impossible token probability on {place}")


def keeps_its_word_on_the_argmax(name: str, sampler: Sampler) -> None:
    """With `keeps_argmax`, the most probable token stays it, of ties the lowest id."""
    if not sampler.keeps_argmax:
        return
    for place in walks(name, sampler):
        given, made = place.row.argmax(), apply(name, sampler, place).argmax()
        require(given == made, f"{name} claims keeps_argmax and moves it on {place}")


def has_states_that_never_change(name: str, sampler: Sampler) -> None:
    """Two branches advanced in turns from one state end where they end one after the other."""
    for vocab_size in (2, 5):
        places = [
            list(walk(name, sampler, vocab_size, seed=seed, dtype=np.float64)) for seed in (0, 1)
        ]
        alone = [fingerprint(_branch(name, sampler, [branch])) for branch in places]
        for branch, rows in enumerate(_branch(name, sampler, places)):
            require(
                fingerprint([rows]) == alone[branch],
                f"{name} has a mutable state: a branch depends on its sibling",
            )


def _branch(name: str, sampler: Sampler, paths: list[list[Place]]) -> list[list[Row | str]]:
    """Rows along paths that share one root state, advanced in turns."""
    root = sampler.start(paths[0][0].context)
    states: list[State] = [root] * len(paths)
    rows: list[list[Row | str]] = [[] for _ in paths]
    for step in range(len(paths[0])):
        for branch, path in enumerate(paths):
            place = replace(path[step], state=states[branch])
            seen = "refused" if refuses(sampler, place) else apply(name, sampler, place)
            rows[branch].append(seen)
            states[branch] = advance(name, sampler, place, place.row.argmax())
    return rows


@dataclass(frozen=True, eq=False)
class _Listener(Stream):
    """A stream that notes the purposes it is asked for."""

    purposes: set[str] = field(default_factory=set[str])

    def _digest(self, sequence: int, position: int, purpose: str, index: int, size: int) -> bytes:
        self.purposes.add(purpose)
        return super()._digest(sequence, position, purpose, index, size)


def declares_its_noise(name: str, sampler: Sampler) -> None:
    """Only with `needs_noise` is noise used, and never the noise of the token's draw."""
    listener = _Listener(0)
    for place in walks(name, sampler, stream=listener):
        apply(name, sampler, place)
    if not sampler.needs_noise:
        require(not listener.purposes, f"{name} uses noise and does not declare needs_noise")
    require(
        "token" not in listener.purposes,
        f"{name} uses the noise of purpose 'token', which draws the token itself",
    )


def ignores_a_shift(name: str, sampler: Sampler) -> None:
    """Scores are log-probabilities up to a constant: adding one changes no probability.

    A sampler that is meant for raw logits says so by `reads_logits`.
    """
    if sampler.reads_logits:
        return
    for seed in range(4):
        for place in walk(name, sampler, 5, seed=seed):
            if place.kind not in GENERIC or refuses(sampler, place):
                continue
            shifted = replace(place, row=place.row.with_scores(np.add(place.row.scores, 4.0)))
            _same_law(name, sampler, place, shifted, "shifting all scores by a constant")


def treats_both_kinds_of_row_alike(name: str, sampler: Sampler) -> None:
    """A whole row with impossible tokens and the row without them have one law."""
    if sampler.needs_noise:  # arrays of noise follow the entries
        return
    for seed in range(4):
        for place in walk(name, sampler, 5, seed=seed):
            if place.kind not in (*GENERIC, "zeros") or place.row.ids is not None:
                continue
            if refuses(sampler, place):
                continue
            short = place.row.keep(np.greater(place.row.scores, -np.inf))
            whole = Row(short.dense_scores(), place.row.vocab_size)
            _same_law(
                name,
                sampler,
                replace(place, row=short),
                replace(place, row=whole),
                "dropping impossible tokens",
            )


def _same_law(name: str, sampler: Sampler, one: Place, two: Place, what: str) -> None:
    first, second = apply(name, sampler, one), apply(name, sampler, two)
    gap = np.abs(first.dense_probabilities() - second.dense_probabilities()).max()
    require(float(gap) <= 1e-9, f"{name}: {what} changes the law by {gap:.1e} on {one}")


SamplerLaw = Callable[[str, Sampler], None]

SAMPLER_LAWS: tuple[SamplerLaw, ...] = (
    refuses_only_by_token,
    is_pure,
    leaves_inputs_alone,
    keeps_the_dtype,
    revives_nothing,
    keeps_its_word_on_the_argmax,
    has_states_that_never_change,
    declares_its_noise,
    ignores_a_shift,
    treats_both_kinds_of_row_alike,
)


def equals_sampler(name: str, sampler: Sampler, other: Sampler | None, claim: str) -> None:
    """A declared reduction: the same laws as `other` everywhere, or as no sampler at all."""
    for vocab_size in (1, 2, 5, 12):
        for seed in range(4):
            own = walk(name, sampler, vocab_size, seed=seed, steps=12)
            others = walk(name, other or sampler, vocab_size, seed=seed, steps=12)
            for place, twin in zip(own, others, strict=True):
                if refuses(sampler, place):
                    continue
                made = apply(name, sampler, place).dense_probabilities()
                wanted = place.row if other is None else apply(claim, other, twin)
                gap = float(np.abs(made - wanted.dense_probabilities()).max())
                require(gap <= 1e-9, f"{name}: {claim} is off by {gap:.1e} on {place}")
