"""Noted draws are plain draws, and a note is what was asked at that node."""

from __future__ import annotations

import math

import numpy as np
import pytest

from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.sample import Sample
from decodery.methods.sampling.mirostat import Mirostat
from decodery.models.table import TableModel
from decodery.reproductions.drawing import NotedDraws, item_stream, seeds_from
from decodery.reproductions.frame import SEED_LIMIT
from decodery.reproductions.mirostat_measure import surprise

END = frozenset({5})


def test_noted_draws_equal_plain_sampling() -> None:
    table = TableModel.random(6, seed=4, eos_ids=END)
    task = Task(Policy(table, chain(Mirostat(1.5))), (0, 1), Stopping(8, END), Stream(3))
    noted = run_alone(NotedDraws(40, {"surprise": surprise}), task)
    plain = run_alone(Sample(40), task)
    assert [(item.tokens, item.finish_reason) for item in noted] == [
        (item.tokens, item.finish_reason) for item in plain
    ]
    assert {item.finish_reason for item in plain} == {"eos", "max_tokens"}
    for item in noted:
        path = [0, 1, *item.tokens]
        wanted = [
            -table.scores(path[:place])[path[place]] / math.log(2) for place in range(2, len(path))
        ]
        assert item.details["surprise"] == pytest.approx(wanted, abs=1e-12)
    assert table.tokens_alive == 0


def test_seeds_and_streams_differ() -> None:
    assert seeds_from(SEED_LIMIT - 1, 3) == (SEED_LIMIT - 1, 0, 1)
    noise = {
        item_stream(seed, item).uniform(0, 1, "token") for seed in range(9) for item in range(9)
    }
    assert len(noise) == 81
    assert np.std(list(noise)) > 0.1
