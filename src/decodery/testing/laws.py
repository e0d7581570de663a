"""The laws of decodery as checks that anyone can run on a method of their own.

    from decodery.testing import check_method
    check_method(METHOD)

A check raises `LawBroken` (an `AssertionError`) with one line that says which law is broken and
where. `check_method` looks at the card, the parameters and the parts built from a few settings;
`check_sampler`, `check_decoder`, `check_blend` and `check_scorer` look at one part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from decodery.core import registry
from decodery.core.card import GUARANTEES, Card, Method, Reduction
from decodery.core.decoder import Decoder
from decodery.core.errors import DecoderyError
from decodery.core.sampler import Sampler
from decodery.core.scorer import Scorer
from decodery.core.source import Recipe
from decodery.testing import blend_laws, decoder_laws, parameter_laws, sampler_laws, scorer_laws
from decodery.testing.observe import LawBroken, require
from decodery.testing.toys import bound

BASES: dict[str, type] = {
    "sampler": Sampler,
    "decoder": Decoder,
    "blend": Recipe,
    "scorer": Scorer,
}
LAWS: dict[str, tuple[Callable[[str, Any], None], ...]] = {
    "sampler": sampler_laws.SAMPLER_LAWS,
    "decoder": decoder_laws.DECODER_LAWS,
    "blend": blend_laws.BLEND_LAWS,
    "scorer": scorer_laws.SCORER_LAWS,
}


def check_sampler(sampler: Sampler, name: str = "") -> None:
    """Hold a sampler to every law of samplers."""
    _check_part(sampler, name, "sampler")


def check_decoder(decoder: Decoder, name: str = "", *, exact: bool = False) -> None:
    """Hold a decoder to every law of decoders; with `exact`, to the policy's own law too."""
    _check_part(decoder, name, "decoder")
    if exact:
        decoder_laws.follows_the_policy(name or type(decoder).__name__, decoder)


def check_blend(recipe: Recipe, name: str = "") -> None:
    """Hold a blend's recipe to every law of blends."""
    _check_part(recipe, name, "blend")


def check_scorer(scorer: Scorer, name: str = "") -> None:
    """Hold a scorer to every law of scorers."""
    _check_part(scorer, name, "scorer")


def _check_part(part: Any, name: str, kind: str) -> None:
    for law in LAWS[kind]:
        law(name or type(part).__name__, bound(part))


def check_method(method: Method, values: Mapping[str, Any] | None = None) -> None:
    """Hold a method to all that its card says and to the laws of its kind.

    `values` gives required parameters that cannot be guessed from their type.
    """
    check_card(method.card)
    check_parameters(method, values)
    check_reductions(method, values)
    for law in LAWS[method.card.kind]:
        check_law(method, law, values)
    check_guarantee(method, values)


def check_law(
    method: Method,
    law: Callable[[str, Any], None],
    values: Mapping[str, Any] | None = None,
) -> None:
    """Hold a method, in a few settings, to one law of its kind."""
    for name, part in settings(method, values):
        law(name, part)


def settings(method: Method, values: Mapping[str, Any] | None = None) -> list[tuple[str, Any]]:
    """The method built with a few different parameters, each with a name that shows them."""
    fixed = parameter_laws.fixed_values(method, values)
    built: list[tuple[str, Any]] = []
    for chosen in parameter_laws.variants(method, fixed):
        shown = ", ".join(f"{key}={value!r}" for key, value in chosen.items())
        built.append((f"{method.name}({shown})", bound(method(**chosen))))
    return built


def check_card(card: Card) -> None:
    """A card names its method, its promise and its source, each in one line."""
    require(card.name.isidentifier(), f"the name {card.name!r} is no Python name")
    require(card.kind in BASES, f"{card.name}: {card.kind!r} is no kind")
    require(card.guarantee in GUARANTEES, f"{card.name}: {card.guarantee!r} is no guarantee")
    for field in ("summary", "law", "title", "authors"):
        text = getattr(card, field)
        require(bool(text) and "\n" not in text, f"{card.name}: {field} is not one line of text")
    require(bool(card.arxiv or card.source), f"{card.name} names neither arXiv id nor source")


def check_parameters(method: Method, values: Mapping[str, Any] | None = None) -> None:
    """Parameters are described, strict, and each of them does something."""
    fixed = parameter_laws.fixed_values(method, values)
    part = method(**fixed)
    base = BASES[method.card.kind]
    require(
        isinstance(part, base), f"{method.name} builds {type(part).__name__}, no {base.__name__}"
    )
    parameter_laws.are_described(method)
    parameter_laws.refuse_unknown_names(method, fixed)
    parameter_laws.refuse_impossible_values(method, fixed)
    parameter_laws.all_matter(method, fixed, _behaviour(method), method.card.inert)


def _behaviour(method: Method) -> Callable[[Any], Any]:
    if method.card.kind == "sampler":
        return lambda part: sampler_laws.behaviour(method.name, bound(part))
    if method.card.kind == "decoder":
        return decoder_laws.behaviour
    if method.card.kind == "blend":
        return lambda part: blend_laws.behaviour(method.name, part)
    return lambda part: scorer_laws.behaviour(method.name, part)


def check_reductions(method: Method, values: Mapping[str, Any] | None = None) -> None:
    """Every declared limiting case holds."""
    fixed = parameter_laws.fixed_values(method, values)
    for reduction in method.card.reductions:
        _check_reduction(method, reduction, fixed)


def _check_reduction(method: Method, reduction: Reduction, fixed: dict[str, Any]) -> None:
    claim = f"the reduction {reduction.parameters} to {reduction.equals}"
    try:
        part = method(**{**fixed, **reduction.parameters})
        other = None
        if reduction.equals != "identity":
            other = registry.get(reduction.equals, method.card.kind)(**reduction.other)
    except DecoderyError as error:
        raise LawBroken(f"{method.name}: {claim} cannot be built: {error}") from error
    if method.card.kind == "sampler":
        sampler_laws.equals_sampler(method.name, bound(part), other, claim)
        return
    if method.card.kind == "blend":
        blend_laws.equals_blend(method.name, part, other, claim)
        return
    if other is None:
        raise LawBroken(f"{method.name}: a {method.card.kind} has no identity to reduce to")
    if method.card.kind == "decoder":
        decoder_laws.equals_decoder(method.name, part, other, claim)
    else:
        scorer_laws.equals_scorer(method.name, part, other, claim)


def check_guarantee(
    method: Method, values: Mapping[str, Any] | None = None, *, runs: int = 2000
) -> None:
    """An exact decoder follows the policy's law; settings beside the first get fewer runs."""
    if method.card.kind != "decoder" or method.card.guarantee != "exact":
        return
    for place, (name, part) in enumerate(settings(method, values)[:3]):
        fewer = runs if place == 0 else max(200, runs // (4 * part.sequences))
        decoder_laws.follows_the_policy(name, part, runs=fewer)
