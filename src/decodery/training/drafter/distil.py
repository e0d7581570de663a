"""The whole training of a drafter, in phases that a resumed run finds again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decodery.training.drafter.fit import Lessons, Weights, ahead, fit, products
from decodery.training.drafter.record import Record, digest, given, recorded
from decodery.training.drafter.shortlist import Shortlists, laws, shortlists
from decodery.training.frame import Trained
from decodery.training.run import Run

if TYPE_CHECKING:
    from decodery.models.transformer import Transformer
    from decodery.training.drafter import Params

_UNITS = 64
_STARTS = 1024  # positions that are measured at once


def distil(params: Params, run: Run) -> Trained:
    """The whole training."""
    first = given(params)
    from decodery.api.load import load

    lm = load(params.model)
    run.begin(model=lm.name, vocabulary=lm.identity.vocabulary, prompts=digest(first))
    record = recorded(lm, params, run, first)
    learnt, held = record.split()
    lists = shortlists(
        learnt,
        laws(learnt, params.text_temperature),
        lm.vocab_size,
        params.vocabulary,
        params.shortlist,
    )
    lessons = Lessons.of(learnt, lists, params.text_temperature)
    embedding = output_embedding(lm.transformer)
    tensors = exported(fit(params, run, lists, lessons, embedding), lists, params.text_temperature)
    facts = {
        "texts": len(record.lengths),
        "positions": len(record.tokens),
        "held-out positions": len(held.tokens),
        **measured(tensors, lists, held, params),
    }
    return Trained({name: tensor.numpy() for name, tensor in tensors.items()}, lm.identity, facts)


def output_embedding(transformer: Transformer) -> Tensor:
    """The matrix [vocab_size, width] that hidden states are multiplied with to get logits.

    It is measured on the multiplication itself, so it may be tied, quantised or foreign; a bias
    does not count.
    """
    with torch.no_grad():
        eye = torch.eye(transformer.width, device=transformer.device) / _UNITS
        eye = eye.to(transformer.dtype)
        bias = transformer.logits(torch.zeros_like(eye[:1])).float()
        parts = [transformer.logits(units).float() - bias for units in eye.split(_UNITS)]
        return (torch.cat(parts).T * _UNITS).cpu()


def exported(weights: Weights, lists: Shortlists, temperature: float) -> dict[str, Tensor]:
    """The tensors of the part. What does not depend on a state is added up beforehand."""
    known = weights["bias"][lists.successors] + weights["gain"] * lists.features()
    halves = {
        name: weights[name]
        for name in (
            "first",
            "first_bias",
            "next",
            "next_bias",
            "out",
            "project",
            "input",
            "output",
        )
    }
    return {
        **{name: value.half() for name, value in {**halves, "scores": known}.items()},
        "tokens": lists.tokens.float(),
        "successors": lists.successors.float(),
        "temperature": torch.tensor([temperature]),
    }


# -- what was measured -------------------------------------------------------------------------


def measured(
    tensors: Mapping[str, Tensor], lists: Shortlists, held: Record, params: Params
) -> dict[str, float]:
    """How far drafts would have been accepted on texts that were not learnt from.

    Of greedy texts, the share of drafts of which at least so many tokens are the model's most
    probable ones. Of drawn texts, the chance that at least so many of the most probable tokens are
    drawn; and sum min(p, q) of the first, which is how often a drawn one is accepted.
    """
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    facts: dict[str, float] = {}
    for name, greedy in (("greedy", True), ("drawn", False)):
        chosen = held.greedy == greedy
        if not bool(chosen[held.lengths > 1].any()):
            continue
        part = held.texts(chosen.tolist())
        hits, overlap = acceptance(weights, lists, part, params, greedy=greedy)
        for level, share in enumerate(hits, 1):
            facts[f"{name}: {level} accepted"] = share
        if not greedy:
            facts["drawn: overlap"] = overlap
    return facts


def acceptance(
    weights: Weights, lists: Shortlists, record: Record, params: Params, *, greedy: bool
) -> tuple[list[float], float]:
    """The share of drafts accepted up to each depth, and sum min(p, q) of first tokens."""
    lessons = Lessons.of(record, lists, params.text_temperature)
    masses = lessons.masses
    if greedy:
        masses = torch.zeros_like(masses)
        masses[:, 0] = (lessons.slots[:, 0] >= 0).float()
    hits = torch.zeros(params.depth, dtype=torch.float64)
    counts = torch.zeros(params.depth, dtype=torch.float64)
    overlap = 0.0
    for starts in lessons.starts.split(_STARTS):
        places, states = ahead(weights, lessons, starts, params.depth)
        alive = torch.ones(len(starts))
        for level, (place, state) in enumerate(zip(places, states, strict=True)):
            words = lessons.words[place]
            table = weights["scores"][words]
            guess = (products(weights, lists, state, words) + table).softmax(-1)
            best = guess.argmax(-1)
            mass = (masses[place] * (lessons.slots[place] == best[:, None])).sum(-1)
            hits[level] += float((alive * mass).sum())
            counts[level] += len(place)
            if level == 0:
                slots = lessons.slots[place]
                own = torch.where(slots >= 0, guess.gather(1, slots.clamp(min=0)), 0.0)
                overlap += float(torch.minimum(own, masses[place]).sum())
            goes_on = lessons.left[place] > 0
            after = lessons.words[place[goes_on] + 1]
            said = lists.successors[words[goes_on]].gather(1, best[goes_on, None])[:, 0]
            alive = alive[goes_on] * (after == said)
    return (hits / counts.clamp(min=1.0)).tolist(), overlap / max(1.0, float(counts[0]))
