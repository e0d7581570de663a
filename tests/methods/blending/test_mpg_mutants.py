"""Mutants of mpg's chunk decoders: each breaks one thing, and the exact comparison finds it.

Every outcome of the noise is counted (`mpg_noise.py`), so a mutant is found where its law differs
at all; each differs by a total variation of at least 0.005, and the honest decoder, compared in the
same way and in the same test, by less than 1e-12.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from mpg_laws import scr_law, sup_ratio
from mpg_noise import exact_law
from mpg_toys import PROMPT, blend, distance

from decodery.core import registry
from decodery.core.source import Policy
from decodery.methods.blending import drafting, mpg_chunk, mpg_scr, mpg_token
from decodery.methods.blending.drafting import Pair
from decodery.methods.blending.mpg_scr import MpgScr, Windows
from decodery.testing import enumerate_law

SCR, TOKEN = registry.get("mpg_scr"), registry.get("mpg_token")
SOURCE = blend(2, chunk=2)
LENGTH = 2
CHUNK = registry.get("mpg_chunk")(sup_ratio(SOURCE, 2, LENGTH), draft_length=2, max_tries=0)
WARMING = SCR(draft_length=2, max_tries=1)
WARM = SCR(draft_length=2, max_tries=1, warm_up=2, first_bound=1.5)


def far(decoder):
    """How far a decoder's law is from the one that it should have."""
    if isinstance(decoder, MpgScr):
        wanted = scr_law(SOURCE, LENGTH, decoder.params)
    else:
        wanted = enumerate_law(Policy(SOURCE), PROMPT, LENGTH)
    return distance(exact_law(decoder, Policy(SOURCE), LENGTH), wanted)


@cache
def honest(decoder):
    """Asked before anything is broken, and once."""
    return far(decoder)


@pytest.fixture
def broken(monkeypatch):
    """Breaks one thing, and finds that it is found."""

    def check(decoder, where, name, mutant):
        assert honest(decoder) < 1e-12
        monkeypatch.setattr(where, name, mutant)
        assert far(decoder) > 0.005

    return check


def test_accepting_everything_is_found(broken):
    broken(CHUNK, mpg_chunk, "accepts", lambda *_: True)


@pytest.mark.parametrize("decoder", [CHUNK, WARMING])
def test_noise_used_twice_is_found(broken, decoder):
    """What is drafted again is drawn with the noise that was just rejected.

    Two decoders have the honest law with it, as they should. mpg_token: whether a chunk is cut does
    not depend on the noise of what is cut off, and the first rejected token comes from a residual
    under a key of its own; so numbers that are used again are as good as new. mpg_chunk with drafts
    of one token: the same draft fails the same test again, and then one token is drawn from the
    policy, whatever the draft was.
    """
    single = registry.get("mpg_chunk")(CHUNK.bound, draft_length=1, max_tries=1)
    broken(decoder, Pair, "_number", lambda *_: 0)
    assert far(TOKEN(2)) < 1e-12
    assert far(single) < 1e-12


def test_acceptance_with_the_noise_of_the_draft_is_found(broken):
    whole = Pair.uniform
    broken(
        TOKEN(2),
        Pair,
        "uniform",
        lambda self, position, _, number: whole(self, position, "token", number),
    )


def test_a_last_resort_from_the_reference_is_found(broken):
    whole = Pair.append

    def append(self, row, purpose):
        return whole(self, self.shadow.policy_row() if purpose == "fallback" else row, purpose)

    broken(CHUNK, Pair, "append", append)


def test_no_residual_is_found(broken):
    broken(TOKEN(2), mpg_token, "_residual", lambda target, _: target)


@pytest.mark.parametrize("decoder", [CHUNK, WARMING])
def test_ratios_of_the_last_token_alone_are_found(broken, decoder):
    whole = Pair.log_ratios
    broken(
        decoder,
        Pair,
        "log_ratios",
        lambda self, draft: np.diff([0.0, *whole(self, draft)]).tolist(),
    )


class Late(Windows):
    """Bounds that do not know the ratio they are tested with."""

    def push(self, log_ratios):
        super().push(self.last) if hasattr(self, "last") else None
        self.last = log_ratios


class Unbounded(Windows):
    """No floor at one."""

    def log_bound(self, length):
        return sorted(self.seen[length])[-1]


class Mixed(Windows):
    """One window for all lengths."""

    def push(self, log_ratios):
        for value in log_ratios:
            super().push([value] * len(log_ratios))


@pytest.mark.parametrize("mutant", [Late, Unbounded, Mixed])
def test_other_windows_are_found(broken, mutant):
    broken(WARM, mpg_scr, "Windows", mutant)


class Upwards(MpgScr):
    """Tests the shortest prefix first, before the whole chunk."""

    def decode(self, task):
        bounds = Windows(self.params)

        def judge(ratios, uniform):
            bounds.push(ratios)
            for length in range(1, len(ratios) + 1):
                bound = bounds.log_bound(length)
                if drafting.accepts(uniform(length), ratios[length - 1], bound):
                    return length
            return 0

        return (yield from drafting.chunks(task, 2, 1, judge))


@pytest.mark.parametrize("decoder", [WARMING, WARM])
def test_salvaging_the_shortest_prefix_first_is_found(decoder):
    assert honest(decoder) < 1e-12
    assert far(Upwards(decoder.params)) > 0.005
