"""Min-p against top-p at high temperature, on the embedded SmolLM2-135M-Instruct.

Two tasks stand for the paper's GSM8K and GPQA, which are too hard for this model: facts (questions
with a short answer, two examples in the prompt) and copying a sentence. An answer is right when its
first line equals the answer, ignoring case, surrounding space and a final full stop. Of the
candidates in `min_p_tasks.py`, those are used that the model answers right under greedy decoding,
measured in the same run. Coherence is the mean log-probability that the untempered model gives to
each token of a freely continued text; diversity is distinct-2, the share of distinct pairs among
the pairs of neighbouring tokens in all texts of one prompt.

A setting is a temperature, a truncation, and whether the temperature comes first (the paper's
order) or last (llama.cpp's). All settings draw with the same noise. Top-k keeps the same set and so
draws the same tokens in either order: it is run once.

Nguyen et al. (2024), arXiv:2407.01082; the fair version follows Schaeffer et al. (2025),
arXiv:2506.13681. The thresholds were fixed before the runs: factor 3 for (a); 0.05 for (b), two
standard errors of the paper's own accuracies; "far less" is less than half for (c1) and (c3); (d)
compares with the middle between the model's own text and uniform noise; any advantage counts for
(e). Changed after a pilot run: the copying task got examples, as without them the model was unsure
even at T = 0.7, and (c2) was added, which looks at the ratio of (a) where (c3) takes differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction
from decodery.reproductions.min_p_fair import fair_accuracy
from decodery.reproductions.min_p_figure import draw
from decodery.reproductions.min_p_measure import measure
from decodery.reproductions.min_p_settings import (
    CHANCE,
    HIGH,
    LOW,
    MIN_P,
    OWN,
    TOP_P,
    Name,
    Setting,
    Truncation,
)

RIVALS: tuple[Name, ...] = ("top_p", "top_k")


def _accuracy(means: Means, temperature: float, cut: Truncation, last: bool = False) -> Array:
    return means["accuracy", Setting(temperature, *cut, last)]


def _threefold(means: Means, temperature: float, last: bool) -> Array:
    """A ratio above 3 as a difference above 0, which keeps its sense where top-p is at zero."""
    min_p, top_p = (_accuracy(means, temperature, cut, last) for cut in (MIN_P, TOP_P))
    return min_p - 3 * top_p


def _low_difference(means: Means) -> Array:
    return _accuracy(means, LOW, MIN_P) - _accuracy(means, LOW, TOP_P)


def _spared_loss(means: Means, temperature: float, cut: Truncation) -> Array:
    """Half the loss with the temperature first, less the loss with it last."""
    first, last = (
        _accuracy(means, LOW, cut, order) - _accuracy(means, temperature, cut, order)
        for order in (False, True)
    )
    return first / 2 - last


def _closed_gap(means: Means, temperature: float) -> Array:
    """Half the lead of min-p with the temperature first, less its lead with it last."""
    first, last = (
        _accuracy(means, temperature, MIN_P, order) - _accuracy(means, temperature, TOP_P, order)
        for order in (False, True)
    )
    return first / 2 - last


def _above_middle(means: Means, cut: Truncation) -> Array:
    """Nats a token above the middle between the model's own text and chance."""
    own, chance = means["log-prob", OWN], means["log-prob", CHANCE]
    return means["log-prob", Setting(3.0, *cut)] - (own + chance) / 2


def _fair_lead(means: Means, rival: Name) -> Array:
    return fair_accuracy(means, "min_p") - fair_accuracy(means, rival)


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a",
        "At T >= 2 (temperature first) min-p 0.1 answers right more than three times as often as"
        " top-p 0.9.",
        "accuracy(min-p) - 3 accuracy(top-p) above 0 at T = 2 and at T = 3",
        tuple(
            Check(
                f"min-p - 3 top-p at T={heat:g}",
                partial(_threefold, temperature=heat, last=False),
                above=0,
            )
            for heat in HIGH
        ),
    )
    yield Claim(
        "b",
        "At T = 0.7 min-p 0.1 and top-p 0.9 are equal within noise.",
        "accuracy(min-p) - accuracy(top-p) within 0.05 of 0",
        (Check("min-p - top-p at T=0.7", _low_difference, above=-0.05, below=0.05),),
    )
    yield Claim(
        "c1",
        "With the temperature last, truncation at high temperature loses far less accuracy.",
        "the loss from T = 0.7 with temperature last is less than half of that with it first, for"
        " top-p 0.9 and min-p 0.1, at T = 2 and T = 3",
        tuple(
            Check(
                f"{name}: half the loss first - loss last, T={heat:g}",
                partial(_spared_loss, temperature=heat, cut=cut),
                above=0,
            )
            for name, cut in (("top-p", TOP_P), ("min-p", MIN_P))
            for heat in HIGH
        ),
    )
    yield Claim(
        "c2",
        "With the temperature last, the threefold lead of min-p is gone.",
        "accuracy(min-p) - 3 accuracy(top-p) below 0 at T = 2 and at T = 3",
        tuple(
            Check(
                f"min-p - 3 top-p at T={heat:g} last",
                partial(_threefold, temperature=heat, last=True),
                below=0,
            )
            for heat in HIGH
        ),
    )
    yield Claim(
        "c3",
        "The gap between min-p and top-p at high temperature is largely an effect of the order.",
        "the gap with temperature last is less than half of that with it first, at T = 2 and T = 3",
        tuple(
            Check(
                f"half the gap first - gap last, T={heat:g}",
                partial(_closed_gap, temperature=heat),
                above=0,
            )
            for heat in HIGH
        ),
    )
    yield Claim(
        "d",
        "At T = 3 text stays coherent with min-p 0.1 and collapses with top-p 0.9.",
        "log-probability a token under the untempered model: min-p above, top-p below the middle"
        " between the model's own text (T = 1) and uniform noise",
        (
            Check("min-p - middle [nats]", partial(_above_middle, cut=MIN_P), above=0),
            Check("top-p - middle [nats]", partial(_above_middle, cut=TOP_P), below=0),
        ),
    )
    yield Claim(
        "e",
        "Min-p is better than top-p and top-k also when each has its best setting at equal"
        " diversity and equal grids.",
        "best accuracy at a distinct-2 of at least the model's own text: min-p above top-p and"
        " top-k (30 settings each, both orders; the orders of top-k coincide)",
        tuple(
            Check(f"min-p - {rival.replace('_', '-')}", partial(_fair_lead, rival=rival), above=0)
            for rival in RIVALS
        ),
        modes=("full",),
    )


REPRODUCTION = Reproduction(
    method="min_p",
    title="Min-p at high temperature",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=("accuracy", "facts", "copy", "log-prob", "distinct-2"),
    size=(15.0, 4.6),
)
