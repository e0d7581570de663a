"""Consensus drafts of many samples: tokens a step over the number of samples, on a real model.

The embedded SmolLM2-135M-Instruct solves word problems in steps after one example, at temperature
0.7; its answers are mostly wrong, but they are templated, and only what samples share matters. On
the same samples are replayed: the drafts of the method's defaults (a tree of 16 nodes), those of
the paper so far as they are known (one path), lookup in the prompt and the sample itself alone
(n = 1, the same trees), and a single match instead of a merged graph.

A step is one forward of the model for one sample, so tokens a step are tokens per target call and
sample. The 16 samples of a prompt are replayed in groups of n, so every n sees all of them.

Li et al. (2025), arXiv:2503.05330. The bounds 1.3 and 2 are goals that were set before. The
defaults were tuned on other draws of such prompts, the budget of the tree on a first full run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

from decodery.reproductions.frame import (
    Array,
    Check,
    Claim,
    Means,
    Measurements,
    Mode,
    Progress,
    Reproduction,
)
from decodery.reproductions.multi_sample_figure import draw
from decodery.reproductions.multi_sample_measure import (
    PAPER,
    PROBLEMS,
    TREE,
    Setting,
    Size,
    measure,
    with_budget,
)

MOST = 16
COUNTS = (2, 4, 8, MOST)
BUDGETS = (2, 4, 8, 32)
DEFAULT = {n: Setting("default", n, TREE) for n in (1, *COUNTS)}
PATHS = {n: Setting("paper", n, PAPER) for n in COUNTS}
SINGLE = Setting("one match", MOST, replace(PAPER, matches=1))
SPEED = "tokens per step"


def size(mode: Mode) -> Size:
    """What a mode measures."""
    if mode == "quick":
        settings = (*(DEFAULT[n] for n in (1, 4, MOST)), *(PATHS[n] for n in (4, MOST)))
        return Size(settings, PROBLEMS[:2], 48)
    budgets = [Setting(f"budget {count}", MOST, with_budget(count)) for count in BUDGETS]
    return Size((*DEFAULT.values(), *PATHS.values(), SINGLE, *budgets), PROBLEMS, 96)


def _measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    return measure(size(mode), seed, progress)


def _value(means: Means, setting: Setting, quantity: str = SPEED) -> Array:
    return means[quantity, setting]


def _gain(means: Means, setting: Setting, other: Setting, quantity: str = SPEED) -> Array:
    return means[quantity, setting] - means[quantity, other]


def _rising(settings: dict[int, Setting], quantity: str) -> tuple[Check, ...]:
    return tuple(
        Check(
            f"n={high} - n={low}",
            partial(_gain, setting=settings[high], other=settings[low], quantity=quantity),
            above=0.0,
        )
        for low, high in pairwise(COUNTS)
    )


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a",
        "Drafts of 16 samples save nearly a quarter of the target's calls.",
        "tokens per step above 1.3 at n = 16",
        (Check("default", partial(_value, setting=DEFAULT[MOST]), above=1.3),),
    )
    yield Claim(
        "b",
        "They save half of them.",
        "tokens per step above 2 at n = 16",
        (Check("default", partial(_value, setting=DEFAULT[MOST]), above=2.0),),
        modes=("full",),
    )
    yield Claim(
        "c",
        "The more samples, the more tokens a step.",
        "tokens per step at n - at n / 2 above 0, n = 4, 8, 16",
        _rising(DEFAULT, SPEED),
        modes=("full",),
    )
    yield Claim(
        "d",
        "Other samples help more than the prompt and the sample itself.",
        "tokens per step at n = 16 - at n = 1 (the same trees, nothing of others) above 0",
        (Check("others", partial(_gain, setting=DEFAULT[MOST], other=DEFAULT[1]), above=0.0),),
        modes=("full",),
    )
    yield Claim(
        "e",
        "The paper's drafts, a path of matches of two tokens and more, reach 1.3 too.",
        "tokens per step above 1.3 at n = 16",
        (Check("paper", partial(_value, setting=PATHS[MOST]), above=1.3),),
        modes=("full",),
    )
    yield Claim(
        "f",
        "Of drafts that are merged from all matches a larger share is accepted than of one match.",
        "acceptance of the paper's drafts - with one match only, n = 16, above 0",
        (
            Check(
                "merged - one",
                partial(_gain, setting=PATHS[MOST], other=SINGLE, quantity="acceptance"),
                above=0.0,
            ),
        ),
        modes=("full",),
    )
    yield Claim(
        "g",
        "Acceptance rises with the number of samples.",
        "acceptance of the paper's drafts at n - at n / 2 above 0, n = 4, 8, 16",
        _rising(PATHS, "acceptance"),
        modes=("full",),
    )
    yield Claim(
        "h",
        "The samples are those of plain sampling, token for token.",
        "the method run on the first prompt gives the same samples, in the replayed steps",
        (
            Check(
                "agreement",
                partial(_value, setting=DEFAULT[MOST], quantity="agreement"),
                above=0.5,
            ),
        ),
    )


REPRODUCTION = Reproduction(
    method="multi_sample",
    title="Consensus drafts of many samples",
    claims=tuple(_claims()),
    measure=_measure,
    draw=draw,
    columns=(SPEED, "nodes per step", "acceptance", "steps with a draft"),
    size=(13.0, 4.4),
)
