"""Alignment-augmented decoding against greedy, exact and constant verification, at small scale.

The embedded SmolLM2-135M-Instruct answers by quoting, summarises by quoting and goes on with code;
texts and files were written for this run. All settings take the most probable token behind what is
accepted. "Retrieval" has no alternatives, as the authors' earlier CASD; "aligned" has them, by the
method's defaults. A step is a forward; tokens per step is the mean over items. "Evaluations per
token" counts every token that went through the model beyond the prompt's own, so rejected
candidates and the pass over the prompt that finds alternatives are in it.

Wang et al. (2025), arXiv:2505.13204: score +3.3 points, up to 2.39 tokens per step, Llama-3 on
eight data sets. Their data sets, model size and speed-ups are not reproduced here. The bounds of
the claims were set before the run: 0.05 of ROUGE-L for (f2). The quick mode judges only the claims
that its few texts can decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from decodery.reproductions.alignment_augmented_figure import draw
from decodery.reproductions.alignment_augmented_measure import measure
from decodery.reproductions.alignment_augmented_settings import (
    ADAPTIVE,
    CONSTANT,
    EXACT,
    EXACT_ALIGNED,
    FULL,
    GREEDY,
    SMALL,
    SMALL_ADAPTIVE,
    SMALL_FULL,
    SWEEP,
    Setting,
)
from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction

NEAR = 0.05  # of ROUGE-L
ALL = 0.999  # of the texts


def difference(means: Means, quantity: str, more: Setting, less: Setting) -> Array:
    return means[quantity, more] - means[quantity, less]


def _value(means: Means, quantity: str, setting: Setting) -> Array:
    return means[quantity, setting]


def _faster(more: Setting, less: Setting) -> Check:
    statistic = partial(difference, quantity="tokens per step", more=more, less=less)
    return Check(f"tokens per step: {more} - {less}", statistic, above=0.0)


def _same(setting: Setting) -> Check:
    statistic = partial(_value, quantity="same text", setting=setting)
    return Check(f"share of texts that are greedy's: {setting}", statistic, above=ALL)


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a",
        "Exact verification is greedy decoding.",
        "every text the same as greedy's, with and without alternatives",
        (_same(EXACT), _same(EXACT_ALIGNED)),
    )
    yield Claim(
        "b",
        "So is a threshold of the maximum (slope 0, base 1).",
        "every text the same as greedy's",
        (_same(SWEEP[-1]),),
    )
    yield Claim(
        "c",
        "A threshold takes more of a draft than exact matches.",
        "tokens per step of the constant threshold 0.1 less those of exact above 0, both retrieval",
        (_faster(CONSTANT, EXACT),),
        modes=("full",),
    )
    yield Claim(
        "d",
        "The whole method takes more than the constant threshold.",
        "tokens per step of adaptive, aligned less those of constant, retrieval above 0",
        (_faster(FULL, CONSTANT),),
        modes=("full",),
    )
    yield Claim(
        "e1",
        "Alternatives make steps longer.",
        "tokens per step with less those without above 0, adaptive and exact, 64 nodes",
        (_faster(FULL, ADAPTIVE), _faster(EXACT_ALIGNED, EXACT)),
        modes=("full",),
    )
    yield Claim(
        "e2",
        "They do so where the nodes they take could have been retrieved ones.",
        f"tokens per step with less those without above 0, adaptive, {SMALL} nodes",
        (_faster(SMALL_FULL, SMALL_ADAPTIVE),),
        modes=("full",),
    )
    quality = partial(difference, quantity="rouge to reference", more=FULL, less=GREEDY)
    yield Claim(
        "f1",
        "The answers are better than greedy's.",
        "ROUGE-L to the reference of adaptive, aligned less that of greedy above 0",
        (Check("ROUGE-L, whole method - greedy", quality, above=0.0),),
        modes=("full",),
    )
    yield Claim(
        "f2",
        "They are no worse.",
        "the same above -0.05",
        (Check("ROUGE-L, whole method - greedy", quality, above=-NEAR),),
        modes=("full",),
    )
    low, high = SWEEP[0], SWEEP[-1]
    departs = partial(difference, quantity="not argmax", more=low, less=high)
    yield Claim(
        "g",
        "The threshold trades speed for faithfulness.",
        "at threshold 0.05 more tokens per step than at 1, and more tokens that are not the argmax",
        (_faster(low, high), Check("not argmax, 0.05 - 1", departs, above=0.0)),
        modes=("full",),
    )


REPRODUCTION = Reproduction(
    method="alignment_augmented",
    title="Alignment-augmented decoding on quoting and code",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=(
        "tokens per step",
        "evaluations per token",
        "from alternatives",
        "not argmax",
        "rouge to greedy",
        "rouge to reference",
        "log p",
    ),
    size=(15.0, 5.0),
)
