"""Oracles of the chunk loop, written apart from it: its law by recursion, its largest ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

from mpg_toys import PROMPT, Law

from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.testing import enumerate_law


@dataclass(frozen=True)
class Both:
    """Probabilities of every prefix of an answer: under the policy, and under its draft alone."""

    target: Law
    draft: Law

    def ratio(self, path, chunk) -> float:
        """Policy to draft of a chunk after a path."""
        whole = path + chunk
        above = self.target.get(whole, 0.0) / self.target[path]
        return above * self.draft[path] / self.draft[whole]

    def drafts(self, path, size: int):
        """The chunks that can be drafted after a path: of `size` tokens, or ended before."""
        return [
            whole[len(path) :]
            for whole in self.draft
            if whole[: len(path)] == path
            and len(path) < len(whole) <= len(path) + size
            and (len(whole) == len(path) + size or self._ended(whole))
        ]

    def _ended(self, path) -> bool:
        """Whether no answer goes on after this one."""
        return not any(len(other) == len(path) + 1 and other[:-1] == path for other in self.draft)


def laws(source, length: int, samplers=()) -> Both:
    ends = Stopping(length, source.eos_ids)
    policy, reference = Policy(source, chain(*samplers)), source.members[0]
    drafted = Policy(reference, chain(*samplers))
    return Both(
        _prefixes(enumerate_law(policy, PROMPT, ends)),
        _prefixes(enumerate_law(drafted, source.prompts(PROMPT)[0], ends)),
    )


def _prefixes(law: Law) -> Law:
    found: Law = {}
    for path, share in law.items():
        for end in range(len(path) + 1):
            found[path[:end]] = found.get(path[:end], 0.0) + share
    return found


def sup_ratio(source, draft_length: int, length: int, samplers=()) -> float:
    """The largest ratio of policy to draft over all drafts of an answer."""
    both = laws(source, length, samplers)
    return max(
        both.ratio(path, chunk)
        for path in both.target
        for chunk in both.drafts(path, min(draft_length, length - len(path)))
    )


def scr_law(source, length: int, params) -> Law:
    """The law of mpg_scr's answers of `length` tokens: every draft, every test, every window."""
    both, law = laws(source, length), {}
    # Before the windows are warm what is in them does not matter, only that they are not.
    cold = params.warm_up > length * (params.max_tries + 1)

    def bound(values) -> float:
        if cold or len(values) < min(params.warm_up, params.window):
            return params.first_bound
        ranked = sorted(values)
        rank = next(k for k in range(1, len(ranked) + 1) if k / len(ranked) >= params.quantile)
        return max(1.0, ranked[rank - 1])

    live = {((), ((),) * params.draft_length, 0): 1.0}  # (path, windows, failures) -> share

    def go(path, windows, failures, share) -> None:
        if len(path) == length:
            law[path] = law.get(path, 0.0) + share
        elif share > 0.0:
            state = path, () if cold else tuple(windows), failures
            live[state] = live.get(state, 0.0) + share

    while live:
        (path, windows, failures), share = live.popitem()
        size = min(params.draft_length, length - len(path))
        for chunk in product(range(source.vocab_size), repeat=size):
            worth = share * both.draft[path + chunk] / both.draft[path]
            ratios = [both.ratio(path, chunk[:end]) for end in range(1, size + 1)]
            later = list(windows or ((),) * params.draft_length)
            for place, ratio in enumerate(ratios):
                later[place] = (*later[place], ratio)[-params.window :]
            for end in range(size, 0 if params.salvage else size - 1, -1):
                passed = min(1.0, ratios[end - 1] / bound(later[end - 1]))
                go(path + chunk[:end], later, 0, worth * passed)
                worth *= 1.0 - passed
            if failures < params.max_tries:
                go(path, later, failures + 1, worth)
                continue
            for token in range(source.vocab_size):
                exact = both.target.get((*path, token), 0.0) / both.target[path]
                go((*path, token), later, 0, worth * exact)
    assert math.isclose(sum(law.values()), 1.0, abs_tol=1e-9)
    return law
