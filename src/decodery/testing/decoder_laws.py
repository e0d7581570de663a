"""The laws of decoders: alone or in a crowd the same, in time, within bounds, nothing left behind.

Each law is a function of a name and a decoder that raises `LawBroken`. They are tried on scenes
(`testing/scenes.py`) through the real runner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from decodery.core.decoder import Completion, Decoder
from decodery.core.errors import RowError
from decodery.core.handle import Budget, Handle
from decodery.core.row import Row
from decodery.core.runner import Runner
from decodery.core.sampler import Context, Sampler, State, chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.models.table import TableModel
from decodery.testing.enumerate import enumerate_law
from decodery.testing.observe import LawBroken, fingerprint, require, without_global_randomness
from decodery.testing.samplers import Coin, CoinLaw, Heat, Shy, Surprised
from decodery.testing.scenes import Scene, expected_end, ready, run, scenes, submit
from decodery.testing.statistics import require_law
from decodery.testing.tables import MixtureBlend, WatchedTable

SEEDS = (0, 1, 2)
CROWDS = (2, 8, 64)
PLENTY = 1  # the scene where every sequence of four tokens is possible
CUT_SHORT = ("max_calls", "max_seconds", "cancelled")


def outcome(name: str, scene: Scene, handle: Handle) -> list[Completion]:
    """The completions; an exception breaks a law."""
    if handle.error is not None:
        raise LawBroken(f"{name} fails on {scene.label!r}: {handle.error!r}") from handle.error
    answer = handle.completions
    good = isinstance(answer, list) and all(isinstance(item, Completion) for item in answer)
    require(good, f"{name} returns no list of completions on {scene.label!r}")
    return handle.result()


def behaviour(decoder: Decoder) -> Any:
    """All that a decoder does on the scenes, costs included, to compare with another."""
    return [
        (handle.result(), handle.report.model_calls, handle.report.tokens_evaluated)
        for scene in scenes()
        for handle in (run(decoder, scene, seed) for seed in SEEDS)
    ]


def tokens_of(name: str, decoder: Decoder, scene: Scene, seed: int) -> list[tuple[int, ...]]:
    return [item.tokens for item in outcome(name, scene, run(decoder, scene, seed))]


# -- the laws --------------------------------------------------------------------------------------


def is_pure(name: str, decoder: Decoder) -> None:
    """The same request gives the same answer, whatever global random state says."""
    without_global_randomness(
        name,
        lambda: [
            outcome(name, scene, run(decoder, scene, seed)) for scene in scenes() for seed in SEEDS
        ],
    )


def ignores_its_neighbours(name: str, decoder: Decoder) -> None:
    """Alone, or beside 1 to 63 others in any order, a request gives the same answer."""
    places = scenes()
    alone: dict[int, Any] = {}
    for size in CROWDS:
        for order in (range(size), reversed(range(size))):
            runner = Runner()
            handles: dict[int, Handle] = {}
            for seed in order:
                scene = places[seed % len(places)].seeded(seed)
                handles[seed] = submit(runner, decoder, scene.task)
            runner.run()
            for seed, handle in handles.items():
                scene = places[seed % len(places)]
                if seed not in alone:
                    alone[seed] = fingerprint(outcome(name, scene, run(decoder, scene, seed)))
                require(
                    fingerprint(outcome(name, scene, handle)) == alone[seed],
                    f"{name} depends on its batch mates: {size} at once on {scene.label!r}",
                )


def ends_on_time(name: str, decoder: Decoder) -> None:
    """A completion ends at its first end token, stop or budget, and says why."""
    for scene in scenes():
        stopping = scene.task.stopping
        for seed in SEEDS:
            for item in outcome(name, scene, run(decoder, scene, seed)):
                wanted = expected_end(item.tokens, stopping)
                got = (len(item.tokens), item.finish_reason)
                require(
                    got == wanted,
                    f"{name} ends wrongly on {scene.label!r}: {got}, expected {wanted}",
                )


def emits_what_it_returns(name: str, decoder: Decoder) -> None:
    """What was streamed is what is returned, sequence by sequence."""
    for scene in scenes():
        for seed in SEEDS:
            handle = run(decoder, scene, seed)
            _same_tokens(name, scene, outcome(name, scene, handle), handle)


def _same_tokens(name: str, scene: Scene, items: Sequence[Completion], handle: Handle) -> None:
    returned = {item.sequence: item.tokens for item in items if item.tokens}
    require(
        len({item.sequence for item in items}) == len(items), f"{name} repeats a sequence number"
    )
    emitted = {key: tuple(tokens) for key, tokens in handle.emitted.items()}
    require(
        emitted == returned,
        f"{name} emits {emitted} and returns {returned} on {scene.label!r}",
    )


def returns_as_many_as_it_says(name: str, decoder: Decoder) -> None:
    """At most `sequences` completions, and just so many where there are enough to find."""
    for place, scene in enumerate(scenes()):
        for seed in SEEDS:
            found = len(outcome(name, scene, run(decoder, scene, seed)))
            said = decoder.sequences
            fits = found == said if place == PLENTY else 1 <= found <= said
            require(fits, f"{name} returns {found} completions on {scene.label!r}, not {said}")


def gives_its_cache_back(name: str, decoder: Decoder) -> None:
    """Nothing stays alive or reserved, however a request ends."""
    for scene in scenes():
        endings: dict[str, Callable[[Scene], object]] = {
            "its end": lambda scene: run(decoder, scene),
            "a spent budget": lambda scene: run(decoder, scene, budget=Budget(max_calls=2)),
            "a cancel": lambda scene: _cancelled(decoder, scene, 2),
            "a closed runner": lambda scene: _closed(decoder, scene),
        }
        for how, end in endings.items():
            end(scene)
            _nothing_left(name, scene, how)


def _cancelled(decoder: Decoder, scene: Scene, steps: int) -> tuple[Handle, int]:
    """A request that is cancelled after so many steps, and the calls it had made by then."""
    runner = Runner()
    handle = submit(runner, decoder, scene.task)
    for _ in range(steps):
        runner.step()
    handle.cancel()
    calls = handle.report.model_calls
    runner.run()
    return handle, calls


def _closed(decoder: Decoder, scene: Scene) -> None:
    runner = Runner()
    submit(runner, decoder, scene.task)
    runner.step()
    runner.step()
    runner.close()


def _nothing_left(name: str, scene: Scene, how: str) -> None:
    for model in scene.models:
        assert isinstance(model, TableModel)
        left = model.tokens_alive
        require(left == 0, f"{name} leaves {left} tokens in the cache after {how}")
        require(model.reserved == 0, f"{name} leaves {model.reserved} slots reserved after {how}")


def stays_in_its_footprint(name: str, decoder: Decoder) -> None:
    """Never more tokens alive than it asked room for."""
    for scene in scenes():
        for seed in SEEDS:
            run(decoder, scene, seed)
        promised = ready(decoder, scene.task).slots(scene.task)
        for model in scene.models:
            assert isinstance(model, WatchedTable)
            require(
                model.peak <= promised[model],
                f"{name} keeps {model.peak} tokens alive on {scene.label!r},"
                f" its footprint is {promised[model]}",
            )


def respects_a_budget(name: str, decoder: Decoder) -> None:
    """With max_calls it ends in time, without an error, and says why each sequence ended."""
    for scene in scenes():
        if len(scene.models) > 1:  # a step is a call for each model
            continue
        for calls in (1, 2, 3):
            handle = run(decoder, scene, budget=Budget(max_calls=calls))
            items = outcome(name, scene, handle)
            used = handle.report.model_calls
            require(used <= calls, f"{name} makes {used} calls with max_calls {calls}")
            _cut_short(name, scene, items, handle)


def can_be_cancelled(name: str, decoder: Decoder) -> None:
    """A cancel at any step ends it, without an error; what was emitted is kept."""
    for scene in scenes():
        for steps in (0, 1, 2, 3):
            handle, calls = _cancelled(decoder, scene, steps)
            more = handle.report.model_calls - calls
            require(more == 0, f"{name} makes {more} more calls after a cancel")
            _cut_short(name, scene, outcome(name, scene, handle), handle)


def _cut_short(name: str, scene: Scene, items: Sequence[Completion], handle: Handle) -> None:
    stopping = scene.task.stopping
    _same_tokens(name, scene, items, handle)
    for item in items:
        wanted = expected_end(item.tokens, stopping)
        if wanted is None:
            fits = item.finish_reason in CUT_SHORT
        else:
            fits = wanted == (len(item.tokens), item.finish_reason)
        require(
            fits,
            f"{name}, cut short on {scene.label!r}, says {item.finish_reason!r} of {item.tokens}",
        )


def refuses_nan(name: str, decoder: Decoder) -> None:
    """A row with NaN ends the request with a `RowError`, and nobody else's."""
    scene = scenes()[0]
    broken = WatchedTable(lambda _: [np.nan, 0.5, 0.5], 3, 1, name="broken table")
    bad = replace(scene, task=replace(scene.task, policy=Policy(broken)))
    alone = fingerprint(outcome(name, scene, run(decoder, scene)))
    runner = Runner()
    sick, well = submit(runner, decoder, bad.task), submit(runner, decoder, scene.task)
    runner.run()
    require(isinstance(sick.error, RowError), f"{name} lets a row with NaN pass")
    require(fingerprint(outcome(name, scene, well)) == alone, f"{name} suffers from another's NaN")
    _nothing_left(name, bad, "a NaN")


class _OnlyArgmax(Sampler):
    """Leaves of a row its most probable token."""

    keeps_argmax: ClassVar[bool] = True

    def apply(self, row: Row, state: State, context: Context) -> Row:
        return row.keep(row.token_ids() == row.argmax())


def keeps_its_word_on_reading(name: str, decoder: Decoder) -> None:
    """With `reads_argmax_only`, a row of nothing but its argmax gives the same tokens."""
    if not decoder.reads_argmax_only:
        return
    for scene in scenes():
        short = replace(scene, task=replace(scene.task, policy=scene.task.policy | _OnlyArgmax()))
        for seed in SEEDS:
            require(
                tokens_of(name, decoder, scene, seed) == tokens_of(name, decoder, short, seed),
                f"{name} claims reads_argmax_only and reads more on {scene.label!r}",
            )


DecoderLaw = Callable[[str, Decoder], None]

DECODER_LAWS: tuple[DecoderLaw, ...] = (
    is_pure,
    ignores_its_neighbours,
    ends_on_time,
    emits_what_it_returns,
    returns_as_many_as_it_says,
    gives_its_cache_back,
    stays_in_its_footprint,
    respects_a_budget,
    can_be_cancelled,
    refuses_nan,
    keeps_its_word_on_reading,
)


def equals_decoder(name: str, decoder: Decoder, other: Decoder, claim: str) -> None:
    """A declared reduction: the same tokens as `other` at the same seed."""
    for scene in scenes():
        for seed in range(8):
            same = tokens_of(name, decoder, scene, seed) == tokens_of(claim, other, scene, seed)
            require(same, f"{name}: {claim} does not hold on {scene.label!r} at seed {seed}")


# -- exactness -------------------------------------------------------------------------------------


def exact_cases() -> dict[str, tuple[Policy, Policy]]:
    """Policies to decode from, and what has their law on average over samplers' own noise."""
    table, other = (TableModel.random(3, seed=seed, eos_ids=frozenset({2})) for seed in (11, 12))
    plain, heated = Policy(table), Policy(table, chain(Heat(0.6)))
    stateful = Policy(table, chain(Shy(1.5), Surprised()))
    mixed = Policy(MixtureBlend(table, other))
    return {
        "the plain table": (plain, plain),
        "a temperature": (heated, heated),
        "samplers with state": (stateful, stateful),
        "a sampler with noise": (Policy(table, chain(Coin())), Policy(table, chain(CoinLaw()))),
        "a blend": (mixed, mixed),
    }


def follows_the_policy(
    name: str, decoder: Decoder, *, runs: int = 2000, alpha: float = 1e-6
) -> None:
    """Its first and its last sequence have the policy's law: chi-square over up to three tokens.

    Each of the five cases rejects a correct decoder with chance `alpha`. With 2,000 runs a law at
    a total variation of 0.12 from the policy's is rejected with chance above 0.99.
    """
    stopping = Stopping(3, frozenset({2}))
    for label, (policy, average) in exact_cases().items():
        scene = replace(scenes()[0], label=label)
        task = replace(scene.task, policy=policy, stopping=stopping)
        runner = Runner()
        handles = [
            submit(runner, decoder, replace(scene, task=task).seeded(seed).task)
            for seed in range(runs)
        ]
        runner.run()
        answers = [outcome(name, scene, handle) for handle in handles]
        law = enumerate_law(average, task.prompt, stopping)
        for place in dict.fromkeys((0, len(answers[0]) - 1)):
            counts = Counter(items[place].tokens for items in answers)
            require_law(counts, law, alpha, f"{name} on {label}")
