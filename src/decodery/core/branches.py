"""Independent draws from one prompt: the loop that plain sampling and every candidate pool share.

Branch i is sequence i: its noise does not depend on how many others there are. All branches share
the prompt's node; a branch that ends gives its cache back at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, cast

from decodery.core.decoder import Completion, Requests, Task, completion
from decodery.core.errors import BudgetExhausted
from decodery.core.requests import Emit, Grow, Open, Request
from decodery.core.stopping import FinishReason
from decodery.core.tree import Node


def branches(
    task: Task, count: int, *, emit: bool = True, log_probabilities: bool = False
) -> Generator[Requests, Any, list[Completion]]:
    """Draw `count` sequences from the policy, each keyed by its number.

    With `emit`, tokens are emitted as they are drawn. With `log_probabilities`, each completion
    carries the sum of ln p of its tokens under the source itself (nats), before any sampler.
    """
    ended: dict[int, Completion] = {}
    tips: list[Node] = []
    worth = [0.0] * count

    def end(sequence: int, reason: FinishReason) -> None:
        known = {"log_probability": worth[sequence]} if log_probabilities else {}
        ended[sequence] = completion(tips[sequence], reason, **known)

    try:
        yield from _draw(task, tips, worth, ended, end, emit, log_probabilities)
    except BudgetExhausted as spent:
        for sequence, tip in enumerate(tips):
            if sequence not in ended and not tip.is_root:
                end(sequence, cast("FinishReason", spent.reason))
    return [ended[sequence] for sequence in sorted(ended)]


def _draw(
    task: Task,
    tips: list[Node],
    worth: list[float],
    ended: dict[int, Completion],
    end: Callable[[int, FinishReason], None],
    emit: bool,
    log_probabilities: bool,
) -> Generator[Requests, Any, None]:
    root: Node = yield Open(task.policy, task.prompt)
    tips.extend([root] * len(worth))
    live = list(range(len(worth)))
    while live:
        requests: list[Request] = []
        for sequence in live:
            tip = tips[sequence]
            token = tip.draw(sequence)
            if log_probabilities:
                worth[sequence] += tip.row.log_probability(token)
            tips[sequence] = tip.child(token, sequence)
            if emit:
                requests.append(Emit((token,), sequence))
        for sequence in live:
            tip = tips[sequence]
            reason = task.stopping.reason(tip)
            if reason is not None:
                end(sequence, reason)
                tip.abandon()
        live = [sequence for sequence in live if sequence not in ended]
        if live:
            requests.append(Grow([tips[sequence] for sequence in live]))
        if requests:
            yield tuple(requests)


def branch_footprint(count: int, prompt_length: int, max_tokens: int) -> int:
    """The most tokens that `count` branches of one prompt keep alive."""
    return prompt_length + count * max_tokens
