"""CorrSynth: several streams decoded side by side, each contrasted against the others.

A data set is wanted, and examples drawn one by one look alike. So M streams, some for each class,
are drawn in step, and each demotes what its siblings find likely at the same step:

    s_n(v) = gamma ln P_n(v) - sum_j w_nj ln P_j(v),    w_nj >= 0,    sum_j w_nj = gamma - delta

P_n is the source's law of stream n's next token after its own prompt and its own tokens; siblings
are streams of other classes (cross), of the same class (intra), or both (hybrid). Tokens less than
alpha times as probable under P_n as its best one are left out. The policy's samplers then act on
s_n as they would on the source's row. The contrast costs no forward of its own, and as siblings
write different texts it does not fade, as classifier-free guidance does.

Kowshik, Divekar, Malik: CorrSynth -- A Correlated Sampling Method for Diverse Dataset Generation
from LLMs (2024), arXiv:2411.08553.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from decodery.core.branches import branch_footprint
from decodery.core.card import Card, Method, Reduction
from decodery.core.decoder import Completion, Decoder, Decoding, Task, completion
from decodery.core.errors import BudgetExhausted, ParameterError
from decodery.core.language import Language
from decodery.core.params import Parameters, parameter
from decodery.core.requests import Emit, Grow, Open, Request
from decodery.core.row import Row
from decodery.core.source import Blend, Model, Source, total
from decodery.core.stopping import FinishReason
from decodery.core.tree import Node

PLACEHOLDER = "{label}"
RHO = 0.5

Contrast = Literal["hybrid", "cross", "intra"]
Shares = npt.NDArray[np.float64]

CARD = Card(
    name="corrsynth",
    kind="decoder",
    family="autoregressive",
    summary="Draw streams for several labels in step, each contrasted against the others.",
    guarantee="law",
    law="each token from norm(P_n^gamma / prod_j P_j^w_nj) on {v: P_n(v) >= alpha max P_n}, through"
    " the policy's samplers; w_n sums to gamma - delta over the streams still running",
    title="CorrSynth -- A Correlated Sampling Method for Diverse Dataset Generation from LLMs",
    authors="Kowshik, Divekar, Malik",
    year=2024,
    arxiv="2411.08553",
    calls_per_token="1 (all streams wide)",
    reductions=(
        Reduction({"repeats": 1}, "sample"),
        Reduction({"repeats": 3, "gamma": 1.0, "delta": 1.0, "alpha": 0.0}, "sample", {"n": 3}),
    ),
    deviations=(
        "how hybrid splits the contrast between the two kinds of siblings is not known: rho of it"
        " goes to those of the same label",
        "when a stream ends, the weights of the others are renormalised; a stream without siblings"
        " is drawn from the policy itself, with neither gamma nor the plausibility set",
        "a sibling's probability counts as at least `floor` (own addition)",
    ),
    notes="In the first step streams of one label have one law, and the contrast only flattens it:"
    " noise parts them, the contrast keeps them apart. In Python a label may be a whole prompt:"
    " prompt '{label}', labels=(first prompt, second prompt). A completion has its label in"
    " `details` and in `log_probability` what the source alone says of it.",
)


class Params(Parameters):
    labels: tuple[str, ...] = parameter(
        (), help="Classes; each takes the place of {label} in the prompt. None: one class."
    )
    repeats: int = parameter(4, ge=1, le=64, unit="streams", help="Streams for each label.")
    contrast: Contrast = parameter(
        "hybrid", help="Siblings: streams of other labels (cross), the same (intra), or both."
    )
    gamma: float = parameter(1.0, gt=0, le=10, help="Exponent of a stream's own law.")
    delta: float = parameter(
        0.9, gt=0, le=10, help="gamma less the contrast: what the exponents sum to; less is more."
    )
    rho: float | None = parameter(
        None,
        ge=0,
        le=1,
        help=f"Share of the contrast for siblings of the same label, in hybrid; default {RHO}.",
    )
    alpha: float = parameter(
        1e-3, ge=0, le=1, help="Least probability kept, relative to the stream's best token."
    )
    floor: float = parameter(
        1e-8, gt=0, lt=1, help="What a sibling's probability counts as at least."
    )


@dataclass
class Sibling:
    """A running stream; `log_probability` is that of its tokens under the source (nats)."""

    sequence: int
    group: int  # the number of its label
    tip: Node
    log_probability: float = 0.0


@dataclass(frozen=True)
class CorrSynth(Decoder):
    labels: tuple[str, ...] = ()
    repeats: int = 4
    contrast: Contrast = "hybrid"
    gamma: float = 1.0
    delta: float = 0.9
    rho: float = RHO
    alpha: float = 1e-3
    floor: float = 1e-8

    @property
    def groups(self) -> int:
        return max(1, len(self.labels))

    @property
    def sequences(self) -> int:
        return self.groups * self.repeats

    # -- the contrast ----------------------------------------------------------------------------

    def shares(self, groups: Sequence[int]) -> Shares:
        """How running streams of these groups [n] divide each one's contrast, [n, n].

        A row sums to one, or to zero where the stream has no sibling.
        """
        same = np.equal.outer(groups, groups)
        intra, cross = same & ~np.eye(len(groups), dtype=bool), ~same
        rho = {"intra": 1.0, "cross": 0.0, "hybrid": self.rho}[self.contrast]
        weights = rho * _uniform(intra) + (1 - rho) * _uniform(cross)
        return _normalised(weights)

    def joint(self, rows: Sequence[Row], groups: Sequence[int]) -> list[Row]:
        """What running streams of these groups [n] are drawn from, given the source's rows [n].

        Scores are gamma times the source's own, less the siblings' weighted log-probabilities.
        """
        shares = self.shares(groups)
        logs = np.stack([row.dense_scores() - row.log_normaliser for row in rows])
        np.maximum(logs, math.log(self.floor), out=logs)
        exponents = ((self.gamma - self.delta) * shares).astype(logs.dtype)
        against = np.einsum("nj,jv->nv", exponents, logs)  # not by BLAS: one order of sums
        return [
            self._contrasted(row, less) if share.any() else row
            for row, less, share in zip(rows, against, shares, strict=True)
        ]

    def _contrasted(self, row: Row, less: npt.NDArray[np.floating]) -> Row:
        own = row.dense_scores()
        joint = Row.dense(self.gamma * own - less)
        if self.alpha == 0:
            return joint
        return joint.keep(own >= row.maximum + math.log(self.alpha))

    # -- decoding --------------------------------------------------------------------------------

    def decode(self, task: Task) -> Decoding:
        ended: dict[int, Completion] = {}
        live: list[Sibling] = []
        try:
            roots = yield tuple(Open(task.policy, prompt) for prompt in self.prompts(task))
            live = [
                Sibling(sequence, sequence // self.repeats, roots[sequence // self.repeats])
                for sequence in range(self.sequences)
            ]
            while live:
                requests = self._draw(live)
                for sibling in live:
                    reason = task.stopping.reason(sibling.tip)
                    if reason is not None:
                        ended[sibling.sequence] = self._completion(sibling, reason)
                        sibling.tip.abandon()
                live = [sibling for sibling in live if sibling.sequence not in ended]
                if live:
                    requests.append(Grow([sibling.tip for sibling in live]))
                yield tuple(requests)
        except BudgetExhausted as spent:
            for sibling in live:
                reason = cast("FinishReason", spent.reason)
                if not sibling.tip.is_root:
                    ended[sibling.sequence] = self._completion(sibling, reason)
        return [ended[sequence] for sequence in sorted(ended)]

    def _draw(self, live: Sequence[Sibling]) -> list[Request]:
        """Put the joint rows on the tips and draw one token for each stream."""
        rows = [sibling.tip.row for sibling in live]
        joint = self.joint(rows, [sibling.group for sibling in live])
        for sibling, row in zip(live, joint, strict=True):
            sibling.tip.replace_row(row)  # streams of one label share their root, and its row
        emits: list[Request] = []
        for sibling, row in zip(live, rows, strict=True):
            token = sibling.tip.draw(sibling.sequence)
            sibling.log_probability += row.log_probability(token)
            sibling.tip = sibling.tip.child(token, sibling.sequence)
            emits.append(Emit((token,), sibling.sequence))
        return emits

    def _completion(self, sibling: Sibling, reason: FinishReason) -> Completion:
        details: dict[str, Any] = {}
        if self.labels:
            repeat = sibling.sequence % self.repeats
            details = {"label": self.labels[sibling.group], "repeat": repeat}
        known = sibling.log_probability
        return completion(sibling.tip, reason, log_probability=known, details=details)

    # -- prompts ---------------------------------------------------------------------------------

    def prompts(self, task: Task) -> list[tuple[int, ...]]:
        """The prompt of each label: the task's, with the label in its place.

        Where tokens are numbers and no more, the prompt is the same for all, and labels are names.
        """
        language = task.policy.source.language
        if not self.labels or language is None:
            return [task.prompt] * self.groups
        if not task.messages and language.encode(task.prompt_text) != task.prompt:
            raise ParameterError("labels need a prompt of text or messages, not of token ids")
        texts = [message.get("content") for message in task.messages] or [task.prompt_text]
        if not any(isinstance(text, str) and PLACEHOLDER in text for text in texts):
            raise ParameterError(f"labels are given, and the prompt has no {PLACEHOLDER} for them")
        if _reads_prompts(task.policy.source):
            raise ParameterError(
                f"{task.policy.source.name} makes prompts of its own from a prompt without its"
                " label; leave out the labels or the blend"
            )
        return [_filled_prompt(task, language, label) for label in self.labels]

    def slots(self, task: Task) -> dict[Model, int]:
        source = task.policy.source
        return total(source.slots(task, prompt, self._group) for prompt in self.prompts(task))

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return self.groups * self._group(prompt_length, max_tokens)

    def _group(self, prompt_length: int, max_tokens: int) -> int:
        return branch_footprint(self.repeats, prompt_length, max_tokens)


def _reads_prompts(source: Source) -> bool:
    """Whether a source prepares something for the one prompt of the task."""
    if isinstance(source, Blend) and any(map(_reads_prompts, source.members)):
        return True
    return type(source).prepare not in (Source.prepare, Blend.prepare)


def _filled_prompt(task: Task, language: Language, label: str) -> tuple[int, ...]:
    if not task.messages:
        return language.encode(_filled(task.prompt_text, label))
    return language.chat(
        [{name: _filled(value, label) for name, value in item.items()} for item in task.messages]
    )


def _filled(value: Any, label: str) -> Any:
    return value.replace(PLACEHOLDER, label) if isinstance(value, str) else value


def _uniform(peers: npt.NDArray[np.bool_]) -> Shares:
    """Each row's ones as equal shares of one; a row without any stays zero."""
    return _normalised(peers.astype(np.float64))


def _normalised(weights: Shares) -> Shares:
    sums = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)


def build(params: Params) -> CorrSynth:
    labels, repeats = params.labels, params.repeats
    if not all(labels) or len(set(labels)) < len(labels):
        raise ParameterError(f"corrsynth: labels is {labels!r}; allowed are distinct texts")
    if params.delta > params.gamma:
        raise ParameterError(
            f"corrsynth: delta is {params.delta:g}; allowed is at most gamma = {params.gamma:g}"
        )
    if params.contrast == "cross" and len(labels) < 2:
        raise ParameterError("corrsynth: contrast is 'cross', which needs two labels or more")
    if params.contrast == "intra" and repeats < 2:
        raise ParameterError("corrsynth: contrast is 'intra', which needs repeats of 2 or more")
    if params.rho is not None and (params.contrast != "hybrid" or len(labels) < 2 or repeats < 2):
        raise ParameterError(
            f"corrsynth: rho is {params.rho:g}, which has no effect here; it divides a hybrid"
            " contrast between two labels or more with repeats of 2 or more"
        )
    values: dict[str, Any] = dict(params)
    values["rho"] = RHO if params.rho is None else params.rho
    return CorrSynth(**values)


METHOD = Method(CARD, Params, build)
