"""The language gate against wrong scripts, on the embedded SmolLM2-135M-Instruct.

The model continues beginnings of texts in nine languages whose script is neither Latin nor Chinese
or Japanese. The beginnings that made the ungated model slip, with seeds of their own, are those
that provoke; on them each gate draws with the same noise. A wrong-script token is a token of the
families CJ or Latin. A text is clean when, without a gate, all its letters are of its prompt's
script; it is unchanged when the gated run draws the same tokens. Plain prompts are in languages of
Latin, Chinese or Japanese script, and code. Where another script is meant (names, quotations,
commands in 30 texts), the places are counted at which the user's set has a Latin token and the text
goes over to Latin, and at how many of them the gate leaves one.

Sampled is as in the paper (temperature 0.7, top-p 0.8, top-k 20), and hotter (temperature 1, top-p
0.9). The script being written is looked for in the prompt too. Controls are the shipped gate with
the coordinates of the hidden state scrambled, a gate that never permits CJ or Latin, and gates of
one small training, on the same texts, that differ in their labels: as shipped, without the division
by norms, the paper's top 20 within mass 0.95, and the shipped labels of other positions.

Zhang, Huang, Yuan, Lin (2025), arXiv:2510.17555. The paper's models have 8 to 30 billion
parameters and translate; this one cannot, and continues. Thresholds were fixed before the runs: a
tenth for (a), 98 % for (b), 2 % of steps for (b3), a half for (c) and (e). What a gate learns from
was chosen on other prompts: labels from the likeliest token alone, as wider ones stopped little.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction
from decodery.reproductions.language_gate_figure import draw
from decodery.reproductions.language_gate_measure import GATE, NONE, measure
from decodery.reproductions.language_gate_settings import HOT, Name, Setting

TENTH, HALF = 0.1, 0.5


def _left(means: Means, one: Setting, other: Setting, share: float, heat: str) -> Array:
    """Wrong-script tokens of one setting less a share of another's."""
    quantity = f"wrong tokens, {heat}"
    return means[quantity, one] - share * means[quantity, other]


def _unchanged(means: Means, name: str) -> Array:
    """The share of clean texts that are unchanged; as if all were where none is clean."""
    clean = means[f"clean, {name}", GATE]
    same = means[f"clean and unchanged, {name}", GATE]
    return _ratio(same, clean)


def _switched(means: Means, name: Name) -> Array:
    setting = Setting(name, HOT)
    return _ratio(means["switches kept", setting], means["switches possible", setting])


def _ratio(part: Array, whole: Array) -> Array:
    return (part + (whole == 0)) / (whole + (whole == 0))


def _touched(means: Means) -> Array:
    return means["touched", GATE]


def _against(name: Name, share: float) -> Check:
    return Check(
        f"{name} - {share:g} none",
        partial(_left, one=Setting(name), other=NONE, share=share, heat="cool"),
        above=0,
    )


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a1",
        "Sampling as in the paper, wrong-script tokens fall by an order of magnitude.",
        "wrong tokens with the gate less a tenth of those without it, below 0",
        (
            Check(
                "gate - 0.1 none",
                partial(_left, one=GATE, other=NONE, share=TENTH, heat="cool"),
                below=0,
            ),
        ),
    )
    yield Claim(
        "a2",
        "So they do in hotter sampling (T = 1, top-p 0.9).",
        "the same below 0",
        (
            Check(
                "gate - 0.1 none",
                partial(
                    _left,
                    one=Setting("gate", HOT),
                    other=Setting("none", HOT),
                    share=TENTH,
                    heat="hot",
                ),
                below=0,
            ),
        ),
    )
    yield Claim(
        "b1",
        "On plain prompts, text without confusion is unchanged token for token.",
        "share of clean texts that are unchanged above 0.98",
        (Check("unchanged, plain", partial(_unchanged, name="plain"), above=0.98),),
    )
    yield Claim(
        "b2",
        "So it is in the languages where the model slips.",
        "share of clean texts that are unchanged above 0.98, over all beginnings",
        (Check("unchanged, openings", partial(_unchanged, name="openings"), above=0.98),),
    )
    yield Claim(
        "b3",
        "Few steps are touched, also in the languages where the model slips.",
        "share of steps at which the gate changes the set below 0.02",
        (Check("touched steps", _touched, below=0.02),),
    )
    yield Claim(
        "c1",
        "It is what the gate reads that does it: scrambled, it is no gate (negative control).",
        "wrong tokens with the scrambled gate less half of those without one, above 0",
        (_against("scrambled", HALF),),
    )
    yield Claim(
        "c2",
        "A gate taught by the labels of other positions does not do it (negative control).",
        "wrong tokens with it less half of those without one, above 0",
        (_against("shuffled", HALF),),
        modes=("full",),
    )
    yield Claim(
        "d1",
        "Labels divided by the norms of the output embeddings teach a better gate.",
        "wrong tokens, adjusted less unadjusted (one small training), below 0",
        (
            Check(
                "adjusted - unadjusted",
                partial(
                    _left,
                    one=Setting("adjusted"),
                    other=Setting("unadjusted"),
                    share=1.0,
                    heat="cool",
                ),
                below=0,
            ),
        ),
        modes=("full",),
    )
    yield Claim(
        "d2",
        "The paper's candidates, top 20 within mass 0.95, do as well on this model.",
        "wrong tokens with a gate taught by them less half of those without one, below 0",
        (
            Check(
                "paper's labels - 0.5 none",
                partial(_left, one=Setting("paper's labels"), other=NONE, share=HALF, heat="cool"),
                below=0,
            ),
        ),
        modes=("full",),
    )
    yield Claim(
        "e",
        "Where another script is meant, the gate lets it pass; a ban of all others would not.",
        "of the places that go over to Latin and where sampling could (T = 1, top-p 0.9), the gate"
        " leaves more than half possible; a gate that only knows the script being written, less",
        (
            Check("left by the gate", partial(_switched, name="gate"), above=HALF),
            Check("left by own script", partial(_switched, name="own script"), below=HALF),
        ),
    )


REPRODUCTION = Reproduction(
    method="language_gate",
    title="The language gate against wrong scripts",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=("wrong tokens, cool", "wrong texts, cool", "wrong tokens, hot", "wrong texts, hot"),
    size=(15.0, 4.6),
)
