"""Recursive speculative decoding against a chain and an i.i.d. tree: tokens a step.

The embedded SmolLM2-135M-Instruct writes plain texts; along each, at the same places for all
shapes, its own early exit (24 of 30 layers, untrained) drafts trees. What a tree gives is not
played out but added up over all outcomes of its tests, so the only noise is of texts and drafts,
and both are shared by all shapes: differences are paired. Budgets are of drawn candidates; siblings
of the i.i.d. tree that repeat are one node, which is what the tree wastes.

Jeon et al. (2024), arXiv:2402.14160. The paper's pairs are Llama-2 and OPT with small models of
their own; temperatures 0.3 and 1 there, 0.7 and 1 here. Chains of 10 tokens and more, budgets of
10, 21 and 30 nodes, and the quality of texts, which cannot change, were left out. Nothing here is
about seconds: a draft of 24 layers saves none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction
from decodery.reproductions.rsd_figure import draw
from decodery.reproductions.rsd_measure import measure
from decodery.reproductions.rsd_settings import (
    C_6,
    C_14,
    CHAIN_3,
    CHAIN_6,
    COOL,
    HOT,
    IID_6,
    IID_14,
    NARROW_6,
    NARROW_14,
    S_6,
    S_12,
    S_14,
    Setting,
)

Pair = tuple[Setting, Setting]


def _more(means: Means, better: Setting, worse: Setting) -> Array:
    return means["tokens", better] - means["tokens", worse]


def _sharper(means: Means, better: Setting, worse: Setting) -> Array:
    """How much more the better shape gains when the laws are sharper."""
    return _more(means, better.at(COOL), worse.at(COOL)) - _more(means, better, worse)


def _gains(*pairs: Pair, heats: tuple[float, ...] = (HOT, COOL)) -> tuple[Check, ...]:
    return tuple(
        Check(
            f"{one.at(heat)} - {two.at(heat)}".replace(f", T={heat:g} -", " -"),
            partial(_more, better=one.at(heat), worse=two.at(heat)),
            above=0,
        )
        for heat in heats
        for one, two in pairs
    )


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a",
        "At fixed depth a tree without replacement beats the i.i.d. tree of the same branching.",
        "tokens a step of RSD-C 2,2,2 less those of the i.i.d. tree 2,2,2 above 0, T = 1",
        _gains((C_14, IID_14), heats=(HOT,)),
    )
    yield Claim(
        "b",
        "At fixed depth the i.i.d. tree beats the chain.",
        "i.i.d. tree 2,2,2 less chain of 3 above 0, T = 1",
        _gains((IID_14, CHAIN_3), heats=(HOT,)),
    )
    yield Claim(
        "c",
        "So at fixed depth: RSD-C and RSD-S above i.i.d. above chain.",
        "RSD-C 2,2,2 and RSD-S 4x3 (12 nodes) less i.i.d. 2,2,2 (14 nodes), and that less the chain"
        " of 3, above 0, T = 1 and 0.7",
        _gains((C_14, IID_14), (S_12, IID_14), (IID_14, CHAIN_3)),
        modes=("full",),
    )
    yield Claim(
        "d",
        "At equal nodes RSD-C is not below the i.i.d. tree.",
        "RSD-C less i.i.d. above 0 at 6 and 14 nodes, T = 1 and 0.7",
        _gains((C_6, IID_6), (C_14, IID_14)),
        modes=("full",),
    )
    yield Claim(
        "e1",
        "At equal nodes RSD-S is above the i.i.d. tree: wide beams.",
        "RSD-S 3x2 less i.i.d. 2,2 and RSD-S 7x2 less i.i.d. 2,2,2 above 0, T = 1 and 0.7",
        _gains((S_6, IID_6), (S_14, IID_14)),
        modes=("full",),
    )
    yield Claim(
        "e2",
        "At equal nodes RSD-S is above the i.i.d. tree: deep beams.",
        "RSD-S 2x3 less i.i.d. 2,2 and RSD-S 2x7 less i.i.d. 2,2,2 above 0, T = 1 and 0.7",
        _gains((NARROW_6, IID_6), (NARROW_14, IID_14)),
        modes=("full",),
    )
    yield Claim(
        "f",
        "At equal nodes both trees beat a chain.",
        "RSD-C 2,2 and RSD-S 3x2 less a chain of 6 above 0, T = 1 and 0.7",
        _gains((C_6, CHAIN_6), (S_6, CHAIN_6)),
        modes=("full",),
    )
    yield Claim(
        "g",
        "Drawing without replacement gains more where laws are sharper: i.i.d. siblings collide.",
        "(RSD-C - i.i.d.) of 2,2,2 at T = 0.7 less the same at T = 1 above 0",
        (
            Check(
                "gain at T=0.7 - gain at T=1",
                partial(_sharper, better=C_14, worse=IID_14),
                above=0,
            ),
        ),
        modes=("full",),
    )


REPRODUCTION = Reproduction(
    method="rsd",
    title="Draft trees without replacement against a chain and an i.i.d. tree",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=("tokens", "acceptance", "nodes"),
    size=(13.0, 4.8),
)
