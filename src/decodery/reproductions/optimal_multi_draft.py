"""Optimal multi-draft decoding: how often rules accept, beside the most that any could.

The embedded SmolLM2-135M-Instruct draws texts at temperature 1 in answer to instructions. At every
few tokens the rows of the model and of its draft are kept; at each temperature both are processed,
and the acceptance of each rule is computed from the two laws (`acceptance.py`), beside the bounds
(`bound.py`): no accept flag is counted. The draft is the model itself, left after 24 of its 30
layers without any training: what is studied is acceptance, not speed. After 8 layers its overlap
with the model is 0.07 or less, too little to tell rules apart.

The paper's pairs are models of 7B and more with drafts of 68M to 1B, on Alpaca. Thresholds were
fixed before the runs: any difference counts, except in (d), where a gap of half a percent of
acceptance is asked for. Claims are about means over n = 2, 3, 4 at each temperature. Runs are at
T = 0.6 with branching (2, 2, 2) and count tokens of a step, the token behind the accepted ones
included; step by step the same number of candidates is drafted, but two equal i.i.d. candidates
are one node. The quick mode judges only the claims that its few rows can decide: (d) asks how much
and was left out of it after a first quick run.

Hu et al. (2025), arXiv:2502.18779.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from decodery.reproductions.frame import BOTH_MODES, Array, Check, Claim, Means, Reproduction
from decodery.reproductions.optimal_multi_draft_figure import draw
from decodery.reproductions.optimal_multi_draft_measure import measure
from decodery.reproductions.optimal_multi_draft_settings import (
    DISTINCT,
    GREEDY,
    IID,
    K_SEQ,
    RRS,
    RRS_W,
    TOP,
    WITH,
    WITHOUT,
    Name,
    Pair,
    Setting,
)

VISIBLE = 0.005
TEMPERATURES = (0.3, 0.6, 1.0)


def lead(means: Means, name: Name, rival: Name, temperature: float) -> Array:
    """How much more is accepted than by a rival: the mean over the numbers of candidates that were
    measured."""
    counts = sorted(
        item.count
        for quantity, item in means
        if quantity == "acceptance"
        and isinstance(item, Setting)
        and (item.name, item.temperature) == (name, temperature)
    )
    gaps = [
        means["acceptance", Setting(name, temperature, count)]
        - means["acceptance", Setting(rival, temperature, count)]
        for count in counts
    ]
    return np.mean(gaps, axis=0)


def _runs(means: Means, pair: Pair, rival: Pair) -> Array:
    return means["tokens per step", pair] - means["tokens per step", rival]


def _at(
    name: Name, rival: Name, temperatures: tuple[float, ...], above: float = 0.0
) -> tuple[Check, ...]:
    return tuple(
        Check(
            f"T={t:g}: {name} - {rival}",
            partial(lead, name=name, rival=rival, temperature=t),
            above=above,
        )
        for t in temperatures
    )


def _claims() -> Iterator[Claim]:
    everywhere, moderate = TEMPERATURES, (0.6,)
    ordered: tuple[tuple[str, str, Name, Name, float], ...] = (
        ("a", "K-SEQ accepts more i.i.d. drafts than recursive rejection.", K_SEQ, RRS, 0.0),
        ("b", "K-SEQ does not reach the bound of i.i.d. drafts.", WITH, K_SEQ, 0.0),
        ("c", "The bound is higher for drafts without replacement.", WITHOUT, WITH, 0.0),
        (
            "d",
            "Recursive rejection without replacement stays visibly below its bound.",
            WITHOUT,
            RRS_W,
            VISIBLE,
        ),
    )
    for key, words, name, rival, above in ordered:
        expected = f"{name} - {rival} above {above:g}"
        yield Claim(
            f"{key}1",
            words,
            f"{expected}, T 0.6",
            _at(name, rival, moderate, above),
            modes=BOTH_MODES if above == 0.0 else ("full",),
        )
        others = tuple(t for t in everywhere if t not in moderate)
        yield Claim(
            f"{key}2",
            f"{words} So at other temperatures.",
            f"{expected}, T 0.3 and 1",
            _at(name, rival, others, above),
            modes=("full",),
        )
    for key, t, words in (
        ("e1", 0.3, "low"),
        ("e2", 0.6, "moderate"),
        ("e3", 1.0, "high"),
    ):
        yield Claim(
            key,
            f"Greedy drafts are accepted more often than recursive rejection manages, and than any"
            f" rule could with i.i.d. drafts, at a {words} temperature.",
            f"greedy - recursive distinct, and greedy - bound iid, above 0, T {t:g}",
            (*_at(GREEDY, RRS_W, (t,)), *_at(GREEDY, WITH, (t,))),
            modes=BOTH_MODES if t == 0.6 else ("full",),
        )
    yield Claim(
        "f1",
        "In whole runs greedy drafts bring more tokens a step than i.i.d. drafts.",
        "tokens per step, greedy - iid recursive, above 0",
        (Check("greedy - iid", partial(_runs, pair=TOP, rival=IID), above=0.0),),
    )
    yield Claim(
        "f2",
        "They bring more than drafts without replacement, which bring more than i.i.d. drafts: the"
        " order of acceptance.",
        "tokens per step, greedy - distinct, and distinct - iid, above 0",
        (
            Check("greedy - distinct", partial(_runs, pair=TOP, rival=DISTINCT), above=0.0),
            Check("distinct - iid", partial(_runs, pair=DISTINCT, rival=IID), above=0.0),
        ),
        modes=("full",),
    )


REPRODUCTION = Reproduction(
    method="optimal_multi_draft",
    title="Acceptance of several drafts, and the most that is possible",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=("acceptance", "tokens per step"),
    size=(14.0, 4.4),
)
