"""Mirostat against top-k and top-p: the surprise of long texts, its drift, and their repetition.

The embedded SmolLM2-135M-Instruct continues encyclopaedic openings as plain text, without a chat
template, for a fixed number of tokens (end tokens count as ordinary ones). Surprise is -log2 p of
each token under the model itself, before truncation. Mirostat has the paper's eta of 1 and its
start at twice the target. A setting's texts share their noise with those of every other setting.

Repetition is the share of n-grams that have occurred earlier in the same text, averaged over n = 1
to 10. Drift is the slope of surprise over position, in bits over a hundred tokens.

Basu et al. (2020), arXiv:2007.14966. The paper's models are GPT-2 and CTRL; a second model was not
run here. Thresholds were fixed before the runs: 0.15 bit for (a) and for the overshoot of (f2),
-0.8 for the rank correlation of (e). A target of 4 bits is a claim of its own, because it may lie
above what this model has by itself. After a pilot (a) was divided by version and (f1) was added.
The quick mode judges only the claims that its few texts can decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction
from decodery.reproductions.mirostat_figure import draw
from decodery.reproductions.mirostat_measure import measure
from decodery.reproductions.mirostat_settings import (
    CONTROLLED,
    NARROW,
    OWN,
    TARGETS,
    TOP_K,
    TOP_P,
    Name,
    Setting,
    settings,
)

NEAR = 0.15  # bits
POOLED = (*TOP_K, *TOP_P, *(item for name in CONTROLLED for item in settings(name, TARGETS)))


def _mean(means: Means, setting: Setting) -> Array:
    return means["surprise", setting]


def _error(means: Means, setting: Setting) -> Array:
    return _mean(means, setting) - setting.strength


def _steadier(means: Means, setting: Setting, rival: Setting) -> Array:
    """How much less a setting drifts than a rival, in either direction."""
    return np.abs(means["drift", rival]) - np.abs(means["drift", setting])


def straightness(means: Means, family: Sequence[Setting]) -> Array:
    """R^2 of a straight line through a family's mean surprise over its strength."""
    strengths = np.array([setting.strength for setting in family])
    values = np.stack([_mean(means, setting) for setting in family], axis=-1)
    x = strengths - strengths.mean()
    y = values - values.mean(axis=-1, keepdims=True)
    return (y @ x) ** 2 / (x @ x * (y**2).sum(axis=-1))


def rank_correlation(means: Means, pooled: Sequence[Setting]) -> Array:
    """Spearman's correlation of repetition and surprise over settings."""
    ranks = [
        np.stack([means[quantity, setting] for setting in pooled]).argsort(axis=0).argsort(axis=0)
        for quantity in ("surprise", "repetition")
    ]
    x, y = (rank - (len(pooled) - 1) / 2 for rank in ranks)
    return (x * y).sum(axis=0) / (x * x).sum(axis=0)


def _straighter(means: Means) -> Array:
    return straightness(means, TOP_P) - straightness(means, TOP_K)


def _repeats_more(means: Means) -> Array:
    return means["repetition", NARROW] - means["repetition", OWN]


def _drift(means: Means, setting: Setting) -> Array:
    return means["drift", setting]


def _settled(targets: Sequence[float], names: Sequence[Name] = CONTROLLED) -> tuple[Check, ...]:
    return tuple(
        Check(f"{setting}: mean - tau", partial(_error, setting=setting), above=-NEAR, below=NEAR)
        for name in names
        for setting in settings(name, targets)
    )


def _overshoot(least: float) -> tuple[Check, ...]:
    return tuple(
        Check(f"mean - tau at tau={setting.strength:g}", partial(_error, setting=setting), least)
        for setting in settings("truncated", TARGETS)
    )


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a1",
        "Mirostat holds the mean surprise of a text at its target.",
        "mean - tau within 0.15 bit of 0, version 2, tau 2 and 3",
        _settled(TARGETS, ("v2",)),
    )
    yield Claim(
        "a2",
        "Version 1, the paper's own, does so too.",
        "mean - tau within 0.15 bit of 0, version 1, tau 2 and 3",
        _settled(TARGETS, ("v1",)),
        modes=("full",),
    )
    yield Claim(
        "a3",
        "Both do so at a low target too.",
        "mean - tau within 0.15 bit of 0, both versions, tau 1.5",
        _settled((1.5,)),
        modes=("full",),
    )
    yield Claim(
        "a4",
        "Both do so at a high target too, near what the model has by itself.",
        "mean - tau within 0.15 bit of 0, both versions, tau 4",
        _settled((4.0,)),
        modes=("full",),
    )
    yield Claim(
        "b",
        "Surprise stays flat over the text with mirostat, not with top-k 3 and top-p 1.",
        "size of the drift of either less that of mirostat 2 above 0, tau 2 and 3",
        tuple(
            Check(
                f"|{rival}| - |{setting}| [bits / 100 tokens]",
                partial(_steadier, setting=setting, rival=rival),
                above=0,
            )
            for rival in (NARROW, OWN)
            for setting in settings("v2", TARGETS)
        ),
        modes=("full",),
    )
    yield Claim(
        "c1",
        "Narrow truncation falls into repetition: surprise sinks with length.",
        "drift of top-k 3 below 0, and more repetition than the model's own text (top-p 1)",
        (
            Check("drift of top-k 3 [bits / 100 tokens]", partial(_drift, setting=NARROW), below=0),
            Check("repetition of top-k 3 - of top-p 1", _repeats_more, above=0),
        ),
        modes=("full",),
    )
    yield Claim(
        "c2",
        "No truncation falls into confusion: surprise climbs with length.",
        "drift of top-p 1 above 0",
        (Check("drift of top-p 1 [bits / 100 tokens]", partial(_drift, setting=OWN), above=0),),
    )
    yield Claim(
        "d",
        "Mean surprise is nearly linear in p of top-p and is not in k of top-k.",
        "R^2 of a line over p in 0.3, 0.6, 0.9, 1 less that over k in 3, 20, 60, 200 above 0",
        (Check("R^2 over p - R^2 over k", _straighter, above=0),),
        modes=("full",),
    )
    yield Claim(
        "e",
        "Repetition depends on surprise and hardly on the sampler: one falling curve for all.",
        "Spearman correlation of repetition and surprise over top-k, top-p and mirostat settings"
        " below -0.8",
        (Check("correlation", partial(rank_correlation, pooled=POOLED), below=-0.8),),
        modes=("full",),
    )
    yield Claim(
        "f1",
        "Surprise measured after the cut, as llama.cpp does, leaves the text above the target.",
        "mean surprise under the model - tau above 0, tau 2 and 3",
        _overshoot(0.0),
    )
    yield Claim(
        "f2",
        "It leaves the text above by more than what counts as near in (a).",
        "mean surprise under the model - tau above 0.15 bit, tau 2 and 3",
        _overshoot(NEAR),
        modes=("full",),
    )


REPRODUCTION = Reproduction(
    method="mirostat",
    title="Mirostat against top-k and top-p on long texts",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=("surprise", "drift", "repetition"),
    size=(16.0, 4.6),
)
