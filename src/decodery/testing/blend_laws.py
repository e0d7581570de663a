"""The laws of blends: a law at every node, a function of the path, one call a model and step.

Each law is a function of a name and a recipe that raises `LawBroken`. The recipe is made over
tables (`testing/blend_scenes.py`) and run through the real runner; what is laid to the joint row
alone is tried on rows of every kind, whole and truncated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from decodery.core import registry
from decodery.core.decoder import Decoder, Decoding, Task
from decodery.core.errors import RowError
from decodery.core.handle import Budget
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner
from decodery.core.sampler import Context, State
from decodery.core.source import Blend, Policy, Recipe, Source
from decodery.core.tree import Node
from decodery.testing.blend_scenes import BlendScene, Stage, blend_scenes, staged, stages
from decodery.testing.enumerate import Law, enumerate_law
from decodery.testing.observe import LawBroken, fingerprint, require, without_global_randomness
from decodery.testing.statistics import require_law
from decodery.testing.tables import KINDS, random_row

SEEDS = (0, 1)
CROWD = 6
DRAWS = 400
STEPS = 5
NEAR = 1e-9
_STREAM = Stream(0)
GENERIC = ("flat", "steep")  # kinds without ties or zeros: rounding decides nothing there


def decoders() -> list[Decoder]:
    """One stream, several that share a prompt, and a search that drops nodes."""
    sample, beam = registry.get("sample"), registry.get("beam")
    return [sample(), sample(n=3), beam(beams=2)]


def law_of(source: Source, scene: BlendScene, stage: Stage) -> Law:
    """The exact law of a prepared source on its scene."""
    return enumerate_law(Policy(source), scene.prompt, stage.task().stopping)


def behaviour(name: str, recipe: Recipe) -> Any:
    """The exact law on every scene, or that it is refused there, to compare with another's."""
    return [
        "refused"
        if (stage := staged(name, recipe, scene)) is None
        else [law_of(stage.prepared(seed), scene, stage) for seed in SEEDS]
        for scene in blend_scenes()
    ]


# -- laws of the running blend ---------------------------------------------------------------------


def is_pure(name: str, recipe: Recipe) -> None:
    """The same request gives the same answer, whatever global random state says."""
    without_global_randomness(
        name,
        lambda: [
            stage.answer(stage.run(decoder, seed))
            for stage in stages(name, recipe)
            for decoder in decoders()
            for seed in SEEDS
        ],
    )


def ignores_its_neighbours(name: str, recipe: Recipe) -> None:
    """Alone, or beside others under any decoder, a request gives the same answer."""
    for stage in stages(name, recipe):
        asked = [(decoder, seed) for seed in range(CROWD) for decoder in decoders()]
        alone = [fingerprint(stage.answer(stage.run(*one))) for one in asked]
        runner = Runner()
        handles = [stage.submit(runner, *one) for one in asked]
        runner.run()
        for handle, wanted in zip(handles, alone, strict=True):
            require(
                fingerprint(stage.answer(handle)) == wanted,
                f"{name} depends on its batch mates on {stage.scene.label!r}",
            )


def follows_its_law(name: str, recipe: Recipe) -> None:
    """What `sample` draws has the law that enumeration finds: chi-square, alpha 1e-6 a scene.

    The draws are sequences of one request, so what was prepared for it is the same for all.
    """
    many = registry.get("sample")(n=DRAWS)
    for stage in stages(name, recipe):
        counts = Counter(item.tokens for item in stage.answer(stage.run(many)))
        law = law_of(stage.prepared(), stage.scene, stage)
        require_law(counts, law, 1e-6, f"{name} on {stage.scene.label!r}")


def has_its_state_on_the_node(name: str, recipe: Recipe) -> None:
    """Every path of a tree that the runner grows in step has the rows that enumeration gives it."""
    for stage in stages(name, recipe):
        alphabet = range(min(3, stage.scene.vocab_size))
        paths = list(product(alphabet, repeat=2))
        together = _rows(stage, paths)
        for path in paths:
            for place, alone in _rows(stage, [path]).items():
                gap = float(np.abs(together[place] - alone).max())
                require(
                    gap <= NEAR,
                    f"{name}: a branch depends on its siblings, by {gap:.1e} at {place}"
                    f" on {stage.scene.label!r}",
                )
        law = enumerate_law(Policy(stage.prepared()), stage.scene.prompt, 2)
        for first, second in paths:
            grown = float(together[()][first] * together[first,][second])
            gap = abs(grown - law.get((first, second), 0.0))
            require(
                gap <= NEAR,
                f"{name}: the runner and enumeration differ by {gap:.1e} at {(first, second)}"
                f" on {stage.scene.label!r}",
            )


def _rows(
    stage: Stage, paths: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], np.ndarray[Any, Any]]:
    """The joint probabilities at every node of a tree of these paths."""
    grower = _Paths(tuple(paths), {})
    stage.answer(stage.run(grower))
    return grower.seen


@dataclass(frozen=True)
class _Paths(Decoder):
    """Grows given paths side by side, a token of each at a time."""

    paths: tuple[tuple[int, ...], ...]
    seen: dict[tuple[int, ...], Any]

    def decode(self, task: Task) -> Decoding:
        root: Node = yield Open(task.policy, task.prompt)
        nodes: dict[tuple[int, ...], Node] = {(): root}
        self.seen[()] = root.row.dense_probabilities()
        for size in range(1, max(map(len, self.paths)) + 1):
            for begun in dict.fromkeys(path[:size] for path in self.paths):
                nodes[begun] = nodes[begun[:-1]].child(begun[-1])
            grown = [node for path, node in nodes.items() if len(path) == size]
            yield Grow(grown)
            for path, node in nodes.items():
                if len(path) == size:
                    self.seen[path] = node.row.dense_probabilities()
        return []

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return prompt_length + sum(map(len, self.paths))


def calls_each_model_once_a_step(name: str, recipe: Recipe) -> None:
    """Members of one model are one forward, whoever asks; after the preparation one a token."""
    sample = registry.get("sample")()
    for stage in stages(name, recipe):
        stage.prepared()
        before = stage.shelf.calls
        stage.prepared()
        preparing = stage.shelf.calls - before
        runner = Runner()
        handle = stage.submit(runner, sample)
        forwards = _step_by_step(name, runner, stage)
        tokens = len(stage.answer(handle)[0].tokens)
        for table, calls in forwards.items():
            room = tokens + preparing
            require(calls <= room, f"{name} calls {table} {calls} times for {tokens} tokens")
        runner = Runner()
        for seed in range(CROWD):
            for decoder in decoders():
                stage.submit(runner, decoder, seed)
        _step_by_step(name, runner, stage)


def _step_by_step(name: str, runner: Runner, stage: Stage) -> dict[str, int]:
    """The calls of each table in the whole run; two in one step break the law."""
    calls: Counter[str] = Counter()
    going = True
    while going:
        before = [table.calls for table in stage.shelf.tables]
        going = runner.step()
        for table, old in zip(stage.shelf.tables, before, strict=False):
            made = table.calls - old
            require(
                made <= 1,
                f"{name} calls {table.name} {made} times in one step on {stage.scene.label!r}",
            )
            calls[table.name] += made
    return calls


def stays_in_its_room(name: str, recipe: Recipe) -> None:
    """Never more tokens alive in a model than `slots` asked for, the preparation included."""
    for scene in blend_scenes():
        for decoder, seed in product(decoders(), range(CROWD)):
            stage = staged(name, recipe, scene)
            if stage is None:
                continue
            handle = stage.run(decoder, seed)
            stage.answer(handle)
            for table in stage.shelf.tables:
                room = handle.needs.get(table, 0)
                require(
                    table.peak <= room,
                    f"{name} keeps {table.peak} tokens alive in {table.name} on {scene.label!r}"
                    f" and asked for {room}",
                )


def gives_its_cache_back(name: str, recipe: Recipe) -> None:
    """Nothing stays alive or reserved, however a request ends, the preparation cut short too."""
    for stage in stages(name, recipe):
        for decoder in decoders():
            endings: dict[str, Callable[[Stage, Decoder], object]] = {
                "its end": lambda stage, decoder: stage.run(decoder),
                **{f"a budget of {calls}": _budgeted(calls) for calls in (1, 2, 4)},
                **{f"a cancel after {steps} steps": _cancelled(steps) for steps in (0, 1, 3)},
                "a closed runner": _closed,
            }
            for how, end in endings.items():
                end(stage, decoder)
                for table in stage.shelf.tables:
                    left, held = table.tokens_alive, table.reserved
                    require(left == 0, f"{name} leaves {left} tokens in the cache after {how}")
                    require(held == 0, f"{name} leaves {held} slots reserved after {how}")


def _budgeted(calls: int) -> Callable[[Stage, Decoder], object]:
    def end(stage: Stage, decoder: Decoder) -> object:
        return stage.answer(stage.run(decoder, 0, Budget(max_calls=calls)))

    return end


def _cancelled(steps: int) -> Callable[[Stage, Decoder], object]:
    def end(stage: Stage, decoder: Decoder) -> object:
        runner = Runner()
        handle = stage.submit(runner, decoder)
        for _ in range(steps):
            runner.step()
        handle.cancel()
        runner.run()
        return stage.answer(handle)

    return end


def _closed(stage: Stage, decoder: Decoder) -> object:
    runner = Runner()
    stage.submit(runner, decoder)
    runner.step()
    runner.step()
    runner.close()


# -- laws of the joint row -------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where rows are joined: a blend, its members' rows, its state and the context."""

    blend: Blend
    rows: tuple[Row, ...]
    state: State
    context: Context
    kinds: tuple[str, ...]

    def __str__(self) -> str:
        return f"rows of kinds {', '.join(self.kinds)} of {self.rows[0].vocab_size}"


def join(name: str, place: Place) -> Row | None:
    """The joint row; None where the members leave no token in common. Else an exception breaks."""
    try:
        row = place.blend.combine(place.rows, place.state, place.context)
    except RowError as error:
        bare = all(row.possible() == row.vocab_size for row in place.rows)
        if bare or "no token" not in str(error):
            raise LawBroken(f"{name} gives no law from {place}: {error}") from error
        return None
    except Exception as error:
        raise LawBroken(f"{name} fails on {place}: {error!r}") from error
    require(isinstance(row, Row), f"{name} makes {type(row).__name__}, not Row")
    return row


def places(
    name: str, recipe: Recipe, kinds: Sequence[str] = KINDS, stream: Stream = _STREAM
) -> Iterator[Place]:
    """Places along random paths, with rows of every kind in the members' place."""
    for stage in stages(name, recipe):
        source = stage.prepared()
        if isinstance(source, Blend):
            for seed in range(4):
                yield from _walk(name, source, stage.scene, seed, kinds, stream)


def _walk(
    name: str, blend: Blend, scene: BlendScene, seed: int, kinds: Sequence[str], stream: Stream
) -> Iterator[Place]:
    generator = np.random.default_rng([seed, scene.vocab_size])
    context = Context(scene.prompt, len(scene.prompt), blend.eos_ids, stream=stream)
    state = blend.start(context)
    for _ in range(STEPS):
        drawn = tuple(kinds[int(generator.integers(len(kinds)))] for _ in blend.members)
        rows = tuple(random_row(generator, scene.vocab_size, kind) for kind in drawn)
        place = Place(blend, rows, state, context, drawn)
        yield place
        row = join(name, place)
        if row is None:
            return
        token = row.draw(generator.random())
        seen = rows if blend.observes_rows else None
        state = blend.advance(state, token, seen, context)
        context = replace(context, tokens=(*context.tokens, token))


def gives_laws(name: str, recipe: Recipe) -> None:
    """The joint row is a law over the vocabulary: it sums to one, with zeros and ties about too."""
    for place in places(name, recipe):
        row = join(name, place)
        if row is None:
            continue
        size = place.rows[0].vocab_size
        require(row.vocab_size == size, f"{name} turns a vocabulary of {size} into {len(row)}")
        total = float(row.dense_probabilities().sum())
        require(abs(total - 1.0) <= NEAR, f"{name} sums to {total} on {place}")


def leaves_inputs_alone(name: str, recipe: Recipe) -> None:
    """Neither the members' rows, nor the state, nor the context's tokens change."""
    for place in places(name, recipe):
        place = replace(place, context=replace(place.context, tokens=list(place.context.tokens)))
        before = [fingerprint(item) for item in (place.rows, place.state, place.context.tokens)]
        row = join(name, place)
        if row is not None:
            seen = place.rows if place.blend.observes_rows else None
            place.blend.advance(place.state, row.argmax(), seen, place.context)
        after = [fingerprint(item) for item in (place.rows, place.state, place.context.tokens)]
        for what, old, new in zip(("rows", "state", "tokens"), before, after, strict=True):
            require(old == new, f"{name} changes its input {what} on {place}")


def is_a_function_of_the_path(name: str, recipe: Recipe) -> None:
    """No noise is used on the way: draws belong to `prepare`, to samplers and to decoders."""
    walked = [
        [join(name, place) for place in places(name, recipe, stream=Stream(seed))]
        for seed in (1, 2)
    ]
    require(
        fingerprint(walked[0]) == fingerprint(walked[1]),
        f"{name} draws noise of its own: its row is no function of the path",
    )


def ignores_a_shift(name: str, recipe: Recipe) -> None:
    """Scores are log-probabilities up to a constant of each member: none changes the law."""
    for place in places(name, recipe, GENERIC):
        moved = tuple(
            row.with_scores(np.add(row.scores, 1.0 + 2.0 * number))
            for number, row in enumerate(place.rows)
        )
        _same_law(name, place, moved, "shifting each member's scores by a constant")


def treats_both_kinds_of_row_alike(name: str, recipe: Recipe) -> None:
    """A member's whole row with impossible tokens and the row without them are one."""
    for place in places(name, recipe):
        short = tuple(row.keep(np.greater(row.scores, -np.inf)) for row in place.rows)
        _same_law(name, place, short, "dropping members' impossible tokens")


def _same_law(name: str, place: Place, rows: tuple[Row, ...], what: str) -> None:
    first, second = join(name, place), join(name, replace(place, rows=rows))
    if first is None or second is None:
        require(first is second, f"{name}: {what} decides whether {place} leave a token")
        return
    gap = float(np.abs(first.dense_probabilities() - second.dense_probabilities()).max())
    require(gap <= NEAR, f"{name}: {what} changes the law by {gap:.1e} on {place}")


BlendLaw = Callable[[str, Recipe], None]

BLEND_LAWS: tuple[BlendLaw, ...] = (
    gives_laws,
    is_pure,
    ignores_its_neighbours,
    follows_its_law,
    has_its_state_on_the_node,
    calls_each_model_once_a_step,
    stays_in_its_room,
    gives_its_cache_back,
    leaves_inputs_alone,
    is_a_function_of_the_path,
    ignores_a_shift,
    treats_both_kinds_of_row_alike,
)


def equals_blend(name: str, recipe: Recipe, other: Recipe | None, claim: str) -> None:
    """A declared reduction: the law of `other`, or of the model alone, on every scene."""
    for stage in stages(name, recipe):
        twin = None if other is None else staged(claim, other, stage.scene)
        require(other is None or twin is not None, f"{name}: {claim} is refused")
        for seed in SEEDS:
            made = law_of(stage.prepared(seed), stage.scene, stage)
            source = stage.shelf.model if twin is None else twin.prepared(seed)
            wanted = law_of(source, stage.scene, stage)
            gap = max(abs(made.get(path, 0.0) - wanted.get(path, 0.0)) for path in {*made, *wanted})
            require(gap <= NEAR, f"{name}: {claim} is off by {gap:.1e} on {stage.scene.label!r}")
