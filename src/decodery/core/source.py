"""Sources: what grows nodes and gives each its row. A model is a source; a blend is a source.

`Source` is what policies and decoders know. `Model` is what the runner calls: one batched forward
over new nodes of any number of trees. `Blend` joins sources: the runner grows one node per member
in the same forward and `combine` makes the joint row; like a sampler, a blend may have a state that
lives on the node. `Recipe` makes a blend of a model that is loaded already, from parameters.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from decodery.core.costs import StepCosts
from decodery.core.errors import ParameterError, PromptError
from decodery.core.language import Language
from decodery.core.row import Row
from decodery.core.sampler import Chain, Context, Sampler, State, chain

if TYPE_CHECKING:
    from decodery.core.decoder import Requests, Task
    from decodery.core.tree import Node

Footprint = Callable[[int, int], int]  # prompt length, max tokens -> tokens alive at once


class Source(ABC):
    """Something with a vocabulary that tells the law of the next token.

    `context_length` is the longest path in tokens, prompt included; None means unbounded.
    `language` is what its tokens mean, None where they are numbers and no more. `depth` is how many
    layers it has, None where it has none; `parameters` how many trained numbers, None where that is
    not known.
    """

    name: str
    vocab_size: int
    eos_ids: frozenset[int] = frozenset()
    context_length: int | None = None
    language: Language | None = None
    depth: int | None = None
    parameters: int | None = None

    def part(self, name: str, file: str | None = None) -> Mapping[str, npt.NDArray[np.floating]]:
        """The tensors of something trained for this source: a file's, or those that come with it.

        Raises `ParameterError` where there is nothing of that name.
        """
        raise ParameterError(f"nothing called {name} was trained for {self.name}")

    def exit(self, layer: int) -> Source:
        """What the source would say after its first `layer` layers, of `depth` in all, as a source.

        Raises `ParameterError` where there is no such layer to leave it at.
        """
        raise ParameterError(f"{self.name} has no layers that could be left early")

    def prepare(self, task: Task) -> Generator[Requests, Any, Source]:
        """What has to be decoded before the task itself; returns the source the task is run with.

        Runs once, inside the request, before its decoder begins.
        """
        return self
        yield  # makes this a generator

    @abstractmethod
    def slots(self, task: Task, prompt: Sequence[int], footprint: Footprint) -> dict[Model, int]:
        """The most cache slots of each model that the task may need, with this prompt."""

    def check_prompt(self, prompt: Sequence[int], max_tokens: int) -> None:
        """Refuse a prompt that is empty, of other tokens, or too long with what is asked for."""
        if not prompt:
            raise PromptError("the prompt is empty; give at least one token")
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            raise PromptError(f"the prompt has a token outside the vocabulary of {self.vocab_size}")
        self.check_length(len(prompt), max_tokens)

    def check_length(self, prompt_length: int, max_tokens: int) -> None:
        """Refuse a prompt that leaves less room in the context than is asked for."""
        limit = self.context_length
        if limit is not None and prompt_length + max_tokens > limit:
            asked = f" and max_tokens {max_tokens}" if max_tokens else ""
            raise PromptError(
                f"the prompt of {prompt_length} tokens{asked} exceed the context of {limit} tokens"
                f" of {self.name}"
            )

    def __or__(self, sampler: Sampler) -> Policy:
        """`source | sampler` is the policy that samples from the source through the sampler."""
        return Policy(self, chain(sampler))


@dataclass(frozen=True, slots=True)
class Growth:
    """One node to be evaluated: its new tokens (the prompt for a root, else one) and its wants."""

    node: Node
    tokens: Sequence[int]
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Grown:
    """What a model says of one node: scores [vocab_size], and hidden state [width] if asked.

    `cached` of the growth's tokens were known from another request and not evaluated again.
    """

    scores: npt.NDArray[np.floating]
    hidden: npt.NDArray[np.floating] | None = None
    cached: int = 0


class Model(Source):
    """A source that evaluates nodes itself.

    `capacity` is how many tokens may live in its cache at once; None means unbounded. A model
    keeps what it needs of a node in `node.handle`. What it keeps of one request for others is for
    trees of equal `cache_salt` only.
    """

    capacity: int | None = None
    reserved: int = 0  # slots promised to live requests, of all runners together
    costs: StepCosts | None = None  # measured by runners, where there is one

    @abstractmethod
    def forward(self, growths: Sequence[Growth]) -> Sequence[Grown]:
        """Evaluate new nodes, parents before children, in one forward."""

    def slots(self, task: Task, prompt: Sequence[int], footprint: Footprint) -> dict[Model, int]:
        self.check_prompt(prompt, task.stopping.max_tokens)
        return {self: footprint(len(prompt), task.stopping.max_tokens)}

    def release(self, handles: Sequence[Any]) -> None:
        """Give back what dropped nodes held."""
        return


class Blend(Source):
    """A source made of sources; `members` see their own prompts and the same drawn tokens.

    Vocabulary, end tokens and language are the first member's; the context is the shortest.
    """

    observes_rows: ClassVar[bool] = False  # `advance` reads the members' rows

    def __init__(self, name: str, members: Sequence[Source]) -> None:
        if not members:
            raise ParameterError(f"{name} needs at least one source")
        first = members[0]
        for other in members[1:]:
            if not same_tokens(first, other):
                raise ParameterError(
                    f"{name}: {first.name} and {other.name} have different tokenizers; a blend"
                    " needs one vocabulary"
                )
        lengths = [m.context_length for m in members if m.context_length is not None]
        self.name = name
        self.members = tuple(members)
        self.vocab_size = first.vocab_size
        self.eos_ids = first.eos_ids
        self.language = first.language
        self.context_length = min(lengths, default=None)

    @property
    def parameters(self) -> int | None:  # type: ignore[override]
        """Of all models under it, each counted once."""
        known = [leaf.parameters for leaf in dict.fromkeys(leaves(self))]
        return None if None in known else sum(count for count in known if count is not None)

    def prompts(self, prompt: Sequence[int]) -> Sequence[Sequence[int]]:
        """The prompt of each member; by default all see the same."""
        return [prompt] * len(self.members)

    def start(self, context: Context) -> State:
        """The blend's state at the root; the context's tokens are the prompt."""
        return None

    @abstractmethod
    def combine(self, rows: Sequence[Row], state: State, context: Context) -> Row:
        """The joint row from the members' rows."""

    def advance(
        self, state: State, token: int, rows: Sequence[Row] | None, context: Context
    ) -> State:
        """The state of the child that `token` makes.

        `rows` is what `combine` was given, or None unless the blend `observes_rows`; `context` is
        the parent's.
        """
        return state

    def prepare(self, task: Task) -> Generator[Requests, Any, Source]:
        members: Sequence[Source] = []
        for member in self.members:
            members = [*members, (yield from member.prepare(task))]
        if all(new is old for new, old in zip(members, self.members, strict=True)):
            return self
        prepared = copy.copy(self)
        prepared.members = tuple(members)
        return prepared

    def slots(self, task: Task, prompt: Sequence[int], footprint: Footprint) -> dict[Model, int]:
        pairs = zip(self.members, self.prompts(prompt), strict=True)
        return total(member.slots(task, own, footprint) for member, own in pairs)


class Recipe(ABC):
    """A blend that has no sources yet: what a run names by a method and its parameters."""

    @abstractmethod
    def over(self, model: Source, load: Callable[[str], Source]) -> Source:
        """The blend over a loaded model; `load` gets further ones by folder, file or hub id."""


def same_tokens(one: Source, other: Source) -> bool:
    """Whether a token id means the same in both."""
    if one.vocab_size != other.vocab_size:
        return False
    if one.language is None or other.language is None:
        return True
    return one.language.same_as(other.language)


def total(needs: Iterable[Mapping[Model, int]]) -> dict[Model, int]:
    """The sum of what several need."""
    slots: dict[Model, int] = {}
    for need in needs:
        for model, count in need.items():
            slots[model] = slots.get(model, 0) + count
    return slots


@dataclass(frozen=True)
class Policy:
    """Source and sampler: the distribution a decoder samples from.

    `policy | sampler` appends to the chain.
    """

    source: Source
    sampler: Chain = Chain()

    def __post_init__(self) -> None:
        if not isinstance(self.source, Source):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ParameterError(f"a policy needs a source, not {type(self.source).__name__}")
        object.__setattr__(self, "sampler", self.sampler.bind(self.source))

    def __or__(self, sampler: Sampler) -> Policy:
        return Policy(self.source, chain(self.sampler, sampler))


_RESERVATION = threading.Lock()


def reserve(needs: Mapping[Model, int]) -> bool:
    """Promise every model's slots to one request, or none and return False."""
    with _RESERVATION:
        for model, need in needs.items():
            if model.capacity is not None and model.reserved + need > model.capacity:
                return False
        for model, need in needs.items():
            model.reserved += need
    return True


def unreserve(needs: Mapping[Model, int]) -> None:
    """Take the promise back."""
    with _RESERVATION:
        for model, need in needs.items():
            model.reserved -= need


def leaves(source: Source) -> list[Model]:
    """The models under a source, once per appearance."""
    if isinstance(source, Model):
        return [source]
    if isinstance(source, Blend):
        return [leaf for member in source.members for leaf in leaves(member)]
    raise ParameterError(f"{source.name} is neither a model nor a blend")
