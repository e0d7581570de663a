"""Integrative decoding against greedy decoding, on questions of fact and the embedded model.

The paper judges truthfulness of 7B to 9B models with GPT-4 on TruthfulQA, Biographies and
LongFact. Here the embedded SmolLM2-135M-Instruct answers 96 questions of general knowledge in its
own words; an answer is right when it names what is right. Answers are drawn at temperature 0.7; the
first K of them are fused, so that all K are compared on the same answers. "chosen" is the drawn
answer that agrees most with all others: selection where integrative decoding fuses. Agreement is
the mean ROUGE-1 F with the drawn answers, the mechanism by which the method is said to work.

A model of this size knows little and follows "answer again" badly: an effect of the paper's size is
not to be expected, and the claims say only in which direction it should lie. The answer to a
question of this kind is one name; many draws agree most on what greedy decoding says, which is the
hardest rival here. Bounds were fixed before the runs: any difference counts, and 0.1 for "no gain"
in (c). Changed after a pilot run on the first 24 questions with K = 4: the template is the one that
asks the same question a second time, as in the paper's formula; a shorter one that asks for "one or
two sentences" made the model change its subject. After a full run on 48 questions, whose intervals
were too wide to tell, 48 were added; the facts in results.json give the new ones by themselves.

Cheng et al. (2024), arXiv:2410.01556.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction
from decodery.reproductions.integrative_figure import draw
from decodery.reproductions.integrative_measure import GREEDY, SAMPLE, Setting, measure


def fused(means: Means) -> list[Setting]:
    """The settings of fused answers that were measured, by the number of answers."""
    found = {item for _, item in means if isinstance(item, Setting) and item.way == "fused"}
    return sorted(found, key=lambda item: item.answers)


def _lead(means: Means, quantity: str, rival: Setting) -> Array:
    """Of the most answers fused over a rival."""
    return means[quantity, fused(means)[-1]] - means[quantity, rival]


def _over_choice(means: Means) -> Array:
    most = fused(means)[-1]
    return means["accuracy", most] - means["accuracy", Setting("chosen", most.answers)]


def slope(means: Means) -> Array:
    """Accuracy gained with every doubling of K, by least squares."""
    items = fused(means)
    x = np.log2([item.answers for item in items])
    x = x - x.mean()
    y = np.stack([means["accuracy", item] for item in items], axis=-1)
    return np.round(y @ x / (x @ x), 12)  # that a sum of equals is 0


def _one(means: Means) -> Array:
    return means["accuracy", Setting("fused", 1)] - means["accuracy", GREEDY]


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a",
        "Integrative decoding is more factual than greedy decoding.",
        "accuracy, most answers fused - greedy above 0",
        (Check("fused - greedy", partial(_lead, quantity="accuracy", rival=GREEDY), above=0),),
    )
    yield Claim(
        "b",
        "The gain grows with the logarithm of the number of answers.",
        "accuracy gained with each doubling of K above 0",
        (Check("slope over log2 K", slope, above=0),),
    )
    yield Claim(
        "c",
        "With one answer there is no gain.",
        "accuracy, one answer fused - greedy within 0.1 of 0",
        (Check("fused K=1 - greedy", _one, above=-0.1, below=0.1),),
    )
    yield Claim(
        "d",
        "It works by agreement: the fused answer is nearer to the drawn answers than they are to"
        " each other, and than the greedy answer is.",
        "agreement, most answers fused - greedy, and - a drawn one, above 0",
        (
            Check("fused - greedy", partial(_lead, quantity="agreement", rival=GREEDY), above=0),
            Check("fused - sample", partial(_lead, quantity="agreement", rival=SAMPLE), above=0),
        ),
    )
    yield Claim(
        "e",
        "Fusing answers is more factual than drawing one.",
        "accuracy, most answers fused - a drawn answer above 0",
        (Check("fused - sample", partial(_lead, quantity="accuracy", rival=SAMPLE), above=0),),
    )
    yield Claim(
        "f",
        "Fusing answers is more factual than choosing the one that agrees most with the others.",
        "accuracy, most answers fused - chosen above 0",
        (Check("fused - chosen", _over_choice, above=0),),
        modes=("full",),
    )


REPRODUCTION = Reproduction(
    method="integrative",
    title="Integrative decoding on questions of fact",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=("accuracy", "agreement"),
    size=(11.0, 4.5),
)
