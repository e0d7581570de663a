"""Independent draws from one prompt: the loop that plain sampling and every candidate pool share.

Branch i is sequence i: its noise does not depend on how many others there are. All branches share
the prompt's node; a branch that ends gives its cache back at once.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from decodery.core.decoder import Completion, Requests, Task, completion
from decodery.core.requests import Emit, Grow, Open, Request
from decodery.core.tree import Node


def branches(
    task: Task, count: int, *, emit: bool = True, log_probabilities: bool = False
) -> Generator[Requests, Any, list[Completion]]:
    """Draw `count` sequences from the policy, each keyed by its number.

    With `emit`, tokens are emitted as they are drawn. With `log_probabilities`, each completion
    carries the sum of ln p of its tokens under the source itself (nats), before any sampler.
    """
    root: Node = yield Open(task.policy, task.prompt)
    ended: dict[int, Completion] = {}
    worth = [0.0] * count
    tips = [root] * count
    live = list(range(count))
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
                known = {"log_probability": worth[sequence]} if log_probabilities else {}
                ended[sequence] = completion(tip, reason, **known)
                tip.abandon()
        live = [sequence for sequence in live if sequence not in ended]
        if live:
            requests.append(Grow([tips[sequence] for sequence in live]))
        if requests:
            yield tuple(requests)
    return [ended[sequence] for sequence in sorted(ended)]


def branch_footprint(count: int, prompt_length: int, max_tokens: int) -> int:
    """The most tokens that `count` branches of one prompt keep alive."""
    return prompt_length + count * max_tokens
