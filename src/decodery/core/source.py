"""Sources: what grows nodes and gives each its row. A model is a source; a blend is a source.

`Source` is what policies and decoders know. `Model` is what the runner calls: one batched forward
over new nodes of any number of trees. `Blend` joins sources: the runner grows one node per member
in the same forward and `combine` makes the joint row.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.sampler import Chain, Context, Sampler, chain

if TYPE_CHECKING:
    from decodery.core.tree import Node


class Source(ABC):
    """Something with a vocabulary that tells the law of the next token.

    `context_length` is the longest path in tokens, prompt included; None means unbounded.
    """

    name: str
    vocab_size: int
    eos_ids: frozenset[int] = frozenset()
    context_length: int | None = None

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

    @abstractmethod
    def forward(self, growths: Sequence[Growth]) -> Sequence[Grown]:
        """Evaluate new nodes, parents before children, in one forward."""

    def release(self, handles: Sequence[Any]) -> None:
        """Give back what dropped nodes held."""
        return


class Blend(Source):
    """A source made of sources; `members` see their own prompts and the same drawn tokens."""

    members: tuple[Source, ...]

    def prompts(self, prompt: Sequence[int]) -> Sequence[Sequence[int]]:
        """The prompt of each member; by default all see the same."""
        return [prompt] * len(self.members)

    @abstractmethod
    def combine(self, rows: Sequence[Row], context: Context) -> Row:
        """The joint row from the members' rows."""


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
