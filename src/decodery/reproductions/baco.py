"""Base-aligned collaboration on a proxy pair: the embedded model with and without chat template.

The paper's pairs are two checkpoints, Llama-3-8B and Olmo2-7B with their aligned versions. No base
checkpoint comes with the embedded SmolLM2-135M-Instruct, so both roles are played by this model:
aligned is the model in its chat template, base the model on the request as plain text and two line
breaks. This is a proxy. It can show whether routing spans the range between two laws, not what a
real base model has to give.

A group is the answers to one prompt. Lexical diversity is distinct-2, 1 - self-BLEU and the share
of new sentences; semantic diversity is the number of kinds of answers (NoveltyBench's procedure
with its rule of shared words and ROUGE-1 in place of a trained judge), the mean distance and the
Vendi score of bags of content words: without a learned judge these are lexical stand-ins. Quality
is the log-probability of a token under the aligned model, whoever wrote it, and the share of
answers that keep their role. Every family has the same number of settings: single models are drawn
at several temperatures, routed ones at several diversities and one temperature of both models.
Coverage and dominance are those of the paper; axes go from the least to the greatest value of all
settings.

Wang et al. (2025), arXiv:2511.05650. Bounds were fixed before the runs: any difference counts, and
0.05 of the plane for "competitive" in (e). Changed after pilot
runs: the requests ask for short answers and the temperature of routed models is 0.5, because at the
paper's 1 each answer of this model was of a kind of its own, whoever wrote it. (g) and the fall of
quality in (b) were added after a first full run.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from decodery.reproductions.baco_figure import draw
from decodery.reproductions.baco_measure import measure
from decodery.reproductions.baco_planes import covered, families
from decodery.reproductions.baco_settings import (
    COMMON,
    DIVERSITY,
    LEXICAL,
    SEMANTIC,
    Family,
    Setting,
)
from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction


def _lead(
    means: Means, family: Family, rival: Family, metrics: tuple[str, ...] = DIVERSITY
) -> Array:
    return covered(means, family, metrics) - covered(means, rival, metrics)


def _between(means: Means, quantity: str, more: Family, less: Family) -> Array:
    return means[quantity, Setting(more, COMMON)] - means[quantity, Setting(less, COMMON)]


def _rise(means: Means, quantity: str, family: Family) -> Array:
    """From the lowest to the highest setting of a family."""
    items = families(means)[family]
    return means[quantity, items[-1]] - means[quantity, items[0]]


def _over_base(means: Means, quantity: str) -> Array:
    """Of the highest routed setting over the base model, all at one temperature."""
    highest = families(means)["p_punc"][-1]
    return means[quantity, highest] - means[quantity, Setting("base", COMMON)]


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a",
        "The base model is more diverse than the aligned one, and worse.",
        f"at T = {COMMON:g}: kinds of answers base - aligned above 0, log-probability aligned -"
        " base above 0",
        (
            Check(
                "kinds: base - aligned",
                partial(_between, quantity="kinds", more="base", less="aligned"),
                above=0,
            ),
            Check(
                "log-prob: aligned - base [nats]",
                partial(_between, quantity="log-prob", more="aligned", less="base"),
                above=0,
            ),
        ),
    )
    yield Claim(
        "b",
        "One threshold leads from one to the other: with it the base model's share of the tokens"
        " and the number of kinds of answers grow together, and quality falls.",
        "router p_punc, highest setting - lowest: share and kinds above 0, log-probability below 0",
        (
            *(
                Check(
                    f"{quantity}: highest - lowest",
                    partial(_rise, quantity=quantity, family="p_punc"),
                    above=0,
                )
                for quantity in ("base share", "kinds")
            ),
            Check(
                "log-prob: highest - lowest [nats]",
                partial(_rise, quantity="log-prob", family="p_punc"),
                below=0,
            ),
        ),
    )
    yield Claim(
        "c",
        "Routing covers more of the diversity-quality plane than either model at any temperature.",
        "coverage of p_punc less that of each model's temperatures above 0, all planes",
        tuple(
            Check(f"p_punc - {rival}", partial(_lead, family="p_punc", rival=rival), above=0)
            for rival in ("aligned", "base")
        ),
    )
    yield Claim(
        "d",
        "The router that looks at uncertainty and content is better than a coin on semantic"
        " diversity.",
        "coverage of p_punc - rand above 0, semantic planes",
        (
            Check(
                "p_punc - rand",
                partial(_lead, family="p_punc", rival="rand", metrics=SEMANTIC),
                above=0,
            ),
        ),
    )
    yield Claim(
        "e",
        "On lexical diversity the coin is competitive.",
        "coverage of rand - p_punc above -0.05, lexical planes",
        (
            Check(
                "rand - p_punc",
                partial(_lead, family="rand", rival="p_punc", metrics=LEXICAL),
                above=-0.05,
            ),
        ),
    )
    yield Claim(
        "f",
        "Of the routers, uncertainty and content together are best.",
        "coverage of p_punc less that of p, and of h, above 0, all planes",
        tuple(
            Check(f"p_punc - {rival}", partial(_lead, family="p_punc", rival=rival), above=0)
            for rival in ("p", "h")
        ),
        modes=("full",),
    )
    yield Claim(
        "g",
        "At one temperature a routed pair is no less diverse than the base model, and better.",
        f"highest setting of p_punc - base at T = {COMMON:g}: kinds above -0.5, log-probability and"
        " share of valid answers above 0",
        (
            Check("kinds: p_punc - base", partial(_over_base, quantity="kinds"), above=-0.5),
            Check("log-prob: p_punc - base", partial(_over_base, quantity="log-prob"), above=0),
            Check("valid: p_punc - base", partial(_over_base, quantity="valid"), above=0),
        ),
        modes=("full",),
    )


REPRODUCTION = Reproduction(
    method="baco",
    title="Base-aligned collaboration on a proxy pair",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=("base share", "log-prob", "valid", *DIVERSITY),
    size=(15.0, 4.6),
)
