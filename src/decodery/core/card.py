"""Cards: what a method is, promises and costs, as data.

Flags, the method list, the docs and the contract suite read the card, so a promise stands in one
place and is tested there. `Method` joins a card with its parameters and the function that builds
the part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, make

Guarantee = Literal["exact", "law", "lossy", "heuristic"]
Kind = Literal["sampler", "decoder", "blend", "scorer"]

GUARANTEES: dict[str, str] = {
    "exact": "the output distribution equals the policy's",
    "law": "the output distribution equals a stated target",
    "lossy": "the divergence from the policy is measured and stated",
    "heuristic": "no law is promised",
}


@dataclass(frozen=True)
class Reduction:
    """A declared limiting case: with `parameters`, the method equals `equals`.

    `equals` is "identity" for a sampler that changes nothing, or the name of another method, built
    with `other`. The contract suite checks it.
    """

    parameters: dict[str, Any]
    equals: str
    other: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Card:
    """A method's identity, promise and cost.

    `law` says in words what the guarantee is about. `needs` names what a run must provide beyond
    a model ("scorer", "draft", "hidden", "trained"). `calls_per_token` is the cost in model calls
    for each emitted token of one sequence.
    """

    name: str
    kind: Kind
    family: str
    summary: str
    guarantee: Guarantee
    law: str
    title: str
    authors: str
    year: int
    arxiv: str | None = None
    source: str | None = None  # where there is no arXiv id: venue, or the engine it comes from
    needs: tuple[str, ...] = ()
    calls_per_token: str = "1"
    place: int = 50  # a sampler's place in the default chain, lower first (docs/samplers.md)
    reductions: tuple[Reduction, ...] = ()
    decoder: str | None = None  # a blend's own decoder, for runs that name none; None is sample
    examples: tuple[dict[str, Any], ...] = ()  # to show and to try, where a value must be given
    inert: tuple[str, ...] = ()  # parameters that change the cost or the report, never the law
    deviations: tuple[str, ...] = ()
    notes: str = ""

    @property
    def paper(self) -> str:
        return f"{self.authors} ({self.year}). {self.title}."


@dataclass(frozen=True)
class Method:
    """A registered part: its card, its parameters, and what builds it.

    Calling a method builds the part: positional arguments follow the order of the parameters.
    """

    card: Card
    params: type[Parameters]
    build: Callable[[Any], Any]

    @property
    def name(self) -> str:
        return self.card.name

    def __call__(self, *positional: Any, **named: Any) -> Any:
        names = list(self.params.model_fields)
        if len(positional) > len(names):
            raise ParameterError(
                f"{self.name} takes {len(names)} parameters and was given {len(positional)}"
            )
        values = dict(zip(names, positional, strict=False))
        for name, value in named.items():
            if name in values:
                raise ParameterError(f"{self.name}: {name} is given twice")
            values[name] = value
        return self.build(make(self.params, values, self.name))
