"""Scenes for blends: tables that remember their whole context, as numbers and as a toy language.

A recipe gets the scene's table, and further ones when it loads by name; all are watched. A scene
may be refused by a recipe that needs what it lacks (a language, a conversation); the laws ask that
some scene is accepted and that a refusal costs no forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
import numpy.typing as npt

from decodery.core.decoder import Completion, Decoder, Decoding, Task
from decodery.core.errors import DecoderyError, ParameterError
from decodery.core.handle import Budget, Handle
from decodery.core.language import Language, Message
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Policy, Recipe, Source, leaves
from decodery.core.stopping import Stopping
from decodery.testing.observe import LawBroken, require
from decodery.testing.tables import WatchedTable

LAYERS = 6
WHOLE = 1 << 20  # the order of a table that forgets nothing
PIECES = (b" the", b" cat", b"s", b".", b"\n", None)


class ToyLanguage(Language):
    """Six tokens: a function word, a content word, an ending, two signs and an end token."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Longest pieces first; a character that has none becomes a token all the same."""
        rest, tokens = text.encode(), list[int]()
        known = sorted((piece for piece in PIECES if piece), key=len, reverse=True)
        while rest:
            found = next((piece for piece in known if rest.startswith(piece)), None)
            tokens.append(PIECES.index(found) if found else rest[0] % len(known))
            rest = rest[len(found) if found else 1 :]
        return tuple(tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(PIECES[token] or b"" for token in tokens).decode()

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.encode("".join(f"{message['content']}\n" for message in messages))

    @property
    def has_chat(self) -> bool:
        return True

    def pieces(self) -> Sequence[bytes | None]:
        return PIECES

    def same_as(self, other: Language) -> bool:
        return self.pieces() == other.pieces()


class SceneTable(WatchedTable):
    """A table with layers that can be left early; every table made of it is on its `shelf`."""

    depth = LAYERS

    def __init__(self, shelf: Shelf, name: str) -> None:
        seed, size = crc32(name.encode()), shelf.scene.vocab_size
        ends = shelf.scene.eos_ids

        def law(context: tuple[int, ...]) -> npt.NDArray[np.float64]:
            generator = np.random.default_rng([seed, len(context), *context])
            drawn = generator.dirichlet(np.ones(size))
            for token in ends:
                drawn[token] += 1 / 2  # what a blend draws before it begins stays short
            return drawn / drawn.sum()

        super().__init__(law, size, WHOLE, eos_ids=shelf.scene.eos_ids, name=name)
        self.shelf = shelf
        self.language = shelf.scene.language
        shelf.tables.append(self)

    def exit(self, layer: int) -> Source:
        if not 0 < layer < LAYERS:
            raise ParameterError(f"{self.name} has layers 1 to {LAYERS - 1} to leave at")
        return SceneTable(self.shelf, f"{self.name} left at {layer}")


class Shelf:
    """The tables of one use of a scene: the model, and those that are loaded by name."""

    def __init__(self, scene: BlendScene) -> None:
        self.scene = scene
        self.tables: list[SceneTable] = []
        self.model = SceneTable(self, "model")

    def load(self, name: str) -> Source:
        return SceneTable(self, name)

    @property
    def calls(self) -> int:
        return sum(table.calls for table in self.tables)


@dataclass(frozen=True)
class BlendScene:
    """A label, what the model's tokens are, and what is asked of it."""

    label: str
    vocab_size: int
    prompt: tuple[int, ...]
    length: int
    eos_ids: frozenset[int] = frozenset()
    language: Language | None = None
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A recipe on a scene, ready to run. Its tables are its own."""

    name: str
    scene: BlendScene
    shelf: Shelf
    source: Source

    def task(self, seed: int = 0) -> Task:
        scene = self.scene
        task = Task(
            Policy(self.source),
            scene.prompt,
            Stopping(scene.length, scene.eos_ids),
            Stream(seed),
            messages=scene.messages,
        )
        if scene.language is None:
            return task
        text = scene.language.decode(scene.prompt)
        return replace(task, prompt_text=text, decode=scene.language.decode)

    def submit(
        self, runner: Runner, decoder: Decoder, seed: int = 0, budget: Budget | None = None
    ) -> Handle:
        return runner.submit(decoder, self.task(seed), budget)

    def run(self, decoder: Decoder, seed: int = 0, budget: Budget | None = None) -> Handle:
        """One request, alone on a runner, to its end."""
        runner = Runner()
        handle = self.submit(runner, decoder, seed, budget)
        runner.run()
        return handle

    def answer(self, handle: Handle) -> list[Completion]:
        """The completions; an exception breaks a law."""
        if handle.error is not None:
            where = f"{self.name} fails on {self.scene.label!r}"
            raise LawBroken(f"{where}: {handle.error!r}") from handle.error
        return handle.result()

    def prepared(self, seed: int = 0) -> Source:
        """What a task of this seed is decoded from."""
        probe = _Probe([])
        self.answer(self.run(probe, seed))
        source = probe.seen[0]
        strangers = [leaf.name for leaf in leaves(source) if leaf not in self.shelf.tables]
        require(not strangers, f"{self.name} makes a model of its own: {strangers}")
        return source


@dataclass(frozen=True)
class _Probe(Decoder):
    """Grows nothing; notes what it is given to decode from."""

    seen: list[Source]

    def decode(self, task: Task) -> Decoding:
        self.seen.append(task.policy.source)
        return []
        yield  # makes this a generator


def blend_scenes() -> list[BlendScene]:
    """All scenes."""
    toy = ToyLanguage()
    asked = "s cat"
    chat: tuple[Message, ...] = ({"role": "user", "content": asked},)
    end = frozenset({5})
    return [
        BlendScene("numbers", 3, (0, 1), 3, frozenset({2})),
        BlendScene("a conversation", 6, toy.chat(chat), 2, end, toy, chat),
        BlendScene("a plain text", 6, toy.encode(asked), 2, end, toy),
        BlendScene("other numbers", 4, (3, 0, 0), 2, frozenset({1, 3})),
    ]


def staged(name: str, recipe: Recipe, scene: BlendScene) -> Stage | None:
    """The recipe on fresh tables of a scene, or None where it refuses the scene."""
    shelf = Shelf(scene)
    stage: Stage | None = None
    try:
        source = recipe.over(shelf.model, shelf.load)
        require(isinstance(source, Source), f"{name} makes {type(source).__name__}, no source")
        stage = Stage(name, scene, shelf, source)
        stage.submit(Runner(), _Probe([]))
    except DecoderyError:
        stage = None
    except Exception as error:
        raise LawBroken(f"{name} fails on {scene.label!r}: {error!r}") from error
    require(shelf.calls == 0, f"{name} makes a forward before the request runs")
    return stage


def stages(name: str, recipe: Recipe) -> list[Stage]:
    """The recipe on every scene that it does not refuse."""
    found = [stage for scene in blend_scenes() if (stage := staged(name, recipe, scene))]
    require(bool(found), f"{name} refuses every scene")
    return found
