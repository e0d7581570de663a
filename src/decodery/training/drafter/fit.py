"""The head of a drafter, and its fit to the model's laws.

    a = silu(first h / rms(h) + b1 + input[x1]),   later  a = silu(next s + b2 + input[x])
    s = rmsnorm(out a)
    q(y) ~ exp(output[y] . (project s) + bias[y] + gain ln S(x, y)),   y in the shortlist of x

h is the model's hidden state before the last token x1, and x the token that was just drafted. Both
tables are linear in the model's own output embeddings, input = E embed^T and output = E factor^T:
tables learnt word by word would know by heart what they saw, and no more. The loss is the
cross-entropy of the model's law, at `text_temperature`, and q; along a text of the model, `depth`
tokens from each position. What lies outside the shortlist does not count. Against learning by
heart, the state must also tell the model's own hidden state there (`recall`, which drafting does
without), and units of the inner layer are left out by chance, keyed by seed and step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from decodery.core.errors import DecoderyError, ParameterError
from decodery.training.drafter.record import Record
from decodery.training.drafter.shortlist import Shortlists, laws, targets
from decodery.training.run import Run
from decodery.training.tools import optimizer_state, restore_optimizer

if TYPE_CHECKING:
    from decodery.training.drafter import Params

RECALL = 1.0  # weight of the model's own hidden state, which the head's state should tell
FALLING = 0.8  # a token further ahead counts so many times as much
_CLIP = 1.0
_SMALL = 1e-6
_MATRICES = (  # what weight decay is for
    "first", "next", "out", "project", "embed", "factor", "recall",
)  # fmt: skip
_OTHERS = ("first_bias", "next_bias", "bias", "gain")

Weights = Mapping[str, Tensor]
Kept = Callable[[Tensor], Tensor]  # what becomes of the inner layer


@dataclass(frozen=True)
class Lessons:
    """A record as the fit reads it: `starts` are the positions that may be drafted from."""

    hidden: Tensor  # [n, width] float16
    words: Tensor  # [n]
    slots: Tensor  # [n, TOP]
    masses: Tensor  # [n, TOP]
    left: Tensor  # [n]
    starts: Tensor

    @classmethod
    def of(cls, record: Record, lists: Shortlists, temperature: float) -> Lessons:
        words, slots, masses = targets(lists, record, laws(record, temperature))
        left = record.left()
        begins = torch.zeros(len(left), dtype=torch.bool)
        begins[(record.lengths.cumsum(0) - record.lengths)[record.lengths > 0]] = True
        return cls(record.hidden, words, slots, masses, left, (~begins).nonzero()[:, 0])


def standardised(lists: Shortlists, embedding: Tensor) -> Tensor:
    """E [words, width]: the output embeddings of words, centred and scaled; 0 for all others."""
    known = embedding[lists.tokens].float()
    known = known - known.mean(0)
    known = known / known.pow(2).mean().sqrt().clamp(min=_SMALL)
    return torch.cat([known, torch.zeros(1, known.shape[1])])


def initial(params: Params, known: Tensor) -> dict[str, Tensor]:
    """Weights to begin with; the output tables are E's main components."""
    generator = torch.Generator().manual_seed(params.seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    words, width = known.shape
    factors = min(params.factors, width)
    basis = torch.linalg.eigh(known.T @ known).eigenvectors[:, -factors:].T
    spread = (known @ basis.T).pow(2).mean().sqrt().clamp(min=_SMALL)
    return {
        "first": drawn(params.inner, width),
        "first_bias": torch.zeros(params.inner),
        "next": drawn(params.inner, params.state),
        "next_bias": torch.zeros(params.inner),
        "out": drawn(params.state, params.inner),
        "project": 0.1 * drawn(params.factors, params.state),
        "embed": drawn(params.inner, width),
        "factor": torch.cat([basis / spread, torch.zeros(params.factors - factors, width)]),
        "recall": drawn(width, params.state),
        "bias": torch.zeros(words - 1),
        "gain": torch.ones(1),
    }


def with_tables(weights: Weights, known: Tensor) -> dict[str, Tensor]:
    """The weights and the tables that they make of E."""
    return {
        **weights,
        "input": F.linear(known, weights["embed"]),
        "output": F.linear(known[:-1], weights["factor"]),
    }


# -- the head ----------------------------------------------------------------------------------


def unchanged(inner: Tensor) -> Tensor:
    """All of the inner layer."""
    return inner


def begun(weights: Weights, hidden: Tensor, words: Tensor, kept: Kept = unchanged) -> Tensor:
    """States [n, state] after hidden states [n, width] and the words [n] that came next."""
    hidden = _normed(hidden.float())
    inner = F.linear(hidden, weights["first"], weights["first_bias"])
    return _state(weights, inner, words, kept)


def continued(weights: Weights, states: Tensor, words: Tensor, kept: Kept = unchanged) -> Tensor:
    """States [n, state] one word later."""
    inner = F.linear(states, weights["next"], weights["next_bias"])
    return _state(weights, inner, words, kept)


def _state(weights: Weights, inner: Tensor, words: Tensor, kept: Kept) -> Tensor:
    inner = F.silu(inner + F.embedding(words, weights["input"]))
    return _normed(F.linear(kept(inner), weights["out"]))


def _normed(rows: Tensor) -> Tensor:
    return rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + _SMALL)


def products(weights: Weights, lists: Shortlists, states: Tensor, words: Tensor) -> Tensor:
    """What a state says of the shortlists of words [n]: output[y] . (project s), [n, k]."""
    every = F.linear(F.linear(states, weights["project"]), weights["output"])
    return every.gather(1, lists.successors[words])


# -- the fit -----------------------------------------------------------------------------------


def fit(
    params: Params, run: Run, lists: Shortlists, lessons: Lessons, embedding: Tensor
) -> dict[str, Tensor]:
    """The fitted weights, float32, by AdamW in the steps of the run."""
    count = len(lessons.starts)
    if not count:
        raise ParameterError("the model's answers are too short to learn from; give other prompts")
    per_epoch = -(-count // params.batch)
    total = params.epochs * per_epoch
    restored = run.restored("fit")
    known = standardised(lists, embedding)
    begin = initial(params, known) if restored is None else restored
    weights = {name: begin[name].clone().requires_grad_() for name in (*_MATRICES, *_OTHERS)}
    decayed = [weights[name] for name in _MATRICES]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": params.weight_decay},
            {"params": [weights[name] for name in _OTHERS]},
        ],
        lr=params.learning_rate,
        weight_decay=0.0,
        betas=(0.9, 0.98),
    )
    if restored is not None:
        restore_optimizer(optimizer, restored)

    def state() -> dict[str, Tensor]:
        values = {name: value.detach() for name, value in weights.items()}
        return {**values, **optimizer_state(optimizer)}

    epoch, order, shown = -1, np.empty(0, dtype=np.intp), 0.0
    for step in run.steps("fit", total, state):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = np.random.default_rng([params.seed, epoch]).permutation(count)
        place = step % per_epoch * params.batch
        starts = lessons.starts[torch.from_numpy(order[place : place + params.batch])]
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * _schedule(step, total, params.warmup)
        optimizer.zero_grad()
        kept = dropping(params.dropout, params.seed, step)
        loss = loss_at(with_tables(weights, known), lists, lessons, starts, params.depth, kept)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), _CLIP)
        optimizer.step()
        value = loss.item()
        if not np.isfinite(value):
            raise DecoderyError(f"the loss is {value} at step {step}; lower learning_rate")
        shown = value if shown == 0.0 else shown + 0.05 * (value - shown)
        run.note = f"loss {shown:.4f}"
    return {name: value.detach() for name, value in with_tables(weights, known).items()}


def dropping(share: float, seed: int, step: int) -> Kept:
    """Leaves out a share of all units by chance, and makes up for it."""
    generator = torch.Generator().manual_seed(seed * 2**31 + step)

    def kept(inner: Tensor) -> Tensor:
        if share == 0.0:
            return inner
        return inner * (torch.rand(inner.shape, generator=generator) >= share) / (1.0 - share)

    return kept


def loss_at(
    weights: Weights,
    lists: Shortlists,
    lessons: Lessons,
    starts: Tensor,
    depth: int,
    kept: Kept = unchanged,
) -> Tensor:
    """The mean cross-entropy of law and head, over the tokens ahead of some positions."""
    places, states = ahead(weights, lessons, starts, depth, kept)
    where, shares = torch.cat(places), []
    for level, place in enumerate(places):
        shares.append(torch.full((len(place),), FALLING**level))
    words, slots, masses = lessons.words[where], lessons.slots[where], lessons.masses[where]
    known = weights["bias"][lists.successors[words]]
    known = known + weights["gain"] * lists.others(words, slots, masses)
    guess = known + products(weights, lists, torch.cat(states), words)
    found = guess.log_softmax(-1).gather(1, slots.clamp(min=0))
    hidden = _normed(lessons.hidden[where].float())
    missed = (F.linear(torch.cat(states), weights["recall"]) - hidden).pow(2).mean(1)
    share = torch.cat(shares)
    return (share * (RECALL * missed - (masses * found).sum(1))).sum() / share.sum()


def ahead(
    weights: Weights,
    lessons: Lessons,
    starts: Tensor,
    depth: int,
    kept: Kept = unchanged,
) -> tuple[list[Tensor], list[Tensor]]:
    """By depth, the positions that are guessed at from each start, and the states there."""
    places = [starts]
    states = [begun(weights, lessons.hidden[starts - 1], lessons.words[starts], kept)]
    for _ in range(1, depth):
        goes_on = lessons.left[places[-1]] > 0
        if not bool(goes_on.any()):
            break
        places.append(places[-1][goes_on] + 1)
        states.append(continued(weights, states[-1][goes_on], lessons.words[places[-1]], kept))
    return places, states


def _schedule(step: int, total: int, warmup: int) -> float:
    """The share of the learning rate: it rises for `warmup` steps, then falls to 0 at the end."""
    rising = (step + 1) / warmup if warmup else 1.0
    return min(rising, (total - step) / max(1, total - warmup), 1.0)
