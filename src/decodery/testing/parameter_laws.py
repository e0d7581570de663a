"""The laws of parameters: described, strict, and each of them does something.

What is legal and what is not is read from the fields' own ranges, so a new parameter is tested
without a word from its author.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from decodery.core import registry
from decodery.core.card import Method
from decodery.core.errors import DecoderyError, ParameterError
from decodery.core.params import describe
from decodery.testing.observe import LawBroken, fingerprint, require
from decodery.testing.toys import bound as bound_to_a_source

Values = dict[str, Any]

MOST = 8  # a whole-number parameter is tried up to here: tests stay small whatever is allowed
FEW_NUMBERS = (0.0, 0.05, 0.3, 0.5, 0.9, 1.0, 1.5, 3.0)
FEW_WHOLE = (0, 1, 2, 3, 5, MOST)


def limits(method: Method, name: str) -> dict[str, float]:
    """The bounds ("ge", "gt", "le", "lt") that a field declares."""
    found: dict[str, float] = {}
    for limit in method.params.model_fields[name].metadata:
        for bound in ("ge", "gt", "le", "lt"):
            if getattr(limit, bound, None) is not None:
                found[bound] = getattr(limit, bound)
    return found


def fixed_values(method: Method, given: Mapping[str, Any] | None = None) -> Values:
    """Values for the required parameters: as given, of the card's first example, or the first that
    fits their type."""
    examples = method.card.examples
    values = {**(examples[0] if examples else {}), **(given or {})}
    for info in describe(method.params):
        if info.required and info.name not in values:
            fitting = legal_values(method, info.name, values)
            if not fitting:
                raise LawBroken(f"{method.name}: no value is known for {info.name}; give one")
            values[info.name] = fitting[0]
    return values


def legal_values(method: Method, name: str, others: Mapping[str, Any]) -> list[Any]:
    """Small and extreme values of a parameter that the method accepts beside `others`."""
    info = method.params.model_fields[name]
    bounds = limits(method, name)
    tried = [] if info.is_required() else [info.default]
    tried += [example[name] for example in method.card.examples if name in example]
    tried += _of_type(info.annotation, bounds)
    legal: list[Any] = []
    for value in tried:
        known = any(type(value) is type(old) and value == old for old in legal)
        if not known and _fits(method, name, value, others):
            legal.append(value)
    return legal


def _fits(method: Method, name: str, value: Any, others: Mapping[str, Any]) -> bool:
    required = {
        info.name: None
        for info in describe(method.params)
        if info.required and info.name not in (name, *others)
    }
    if required:  # it cannot be built yet: ask the field alone
        return _field_takes(method, name, value)
    try:
        bound_to_a_source(method(**{**others, name: value}))
    except DecoderyError:
        return False
    return True


def _field_takes(method: Method, name: str, value: Any) -> bool:
    try:
        method(**{name: value})
    except ParameterError as error:
        return f"{name} is " not in str(error)
    return True


def _of_type(annotation: Any, bounds: Mapping[str, float]) -> list[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return [value for part in arguments for value in _of_type(part, bounds)]
    if origin is Literal:
        return list(arguments)
    if annotation is bool:
        return [False, True]
    if annotation is int:
        low, high = int(bounds.get("ge", 0)), int(min(bounds.get("le", MOST), MOST))
        return [low, high, *FEW_WHOLE]
    if annotation is float:
        ends = [float(end) for end in (bounds.get("ge"), bounds.get("le")) if end is not None]
        return [*ends, *FEW_NUMBERS]
    if annotation is type(None):
        return [None]
    if annotation is str:
        return ["a", *(method.name for method in registry.of_kind("scorer"))]
    return _of_container(origin, arguments)


def _of_container(origin: Any, arguments: tuple[Any, ...]) -> list[Any]:
    if origin is dict:
        keys, values = (_item(argument) for argument in arguments)
        return [{}, *({key: value} for key in keys[:3] for value in values)]
    if origin is not tuple:
        return []
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        items = _item(arguments[0])
        return [(), *((item,) for item in items), tuple(dict.fromkeys(items))[:3]]
    pairs = [_item(argument) for argument in arguments]
    count = max(map(len, pairs), default=0)
    return [tuple(choices[i % len(choices)] for choices in pairs) for i in range(count)]


def _item(annotation: Any) -> list[Any]:
    """Entries of a container; whole numbers are small, since most of them are token ids."""
    return [0, 1, 2] if annotation is int else _of_type(annotation, {})


# -- the laws --------------------------------------------------------------------------------------


def are_described(method: Method) -> None:
    """Every parameter has one line of help."""
    for info in describe(method.params):
        one_line = bool(info.help) and "\n" not in info.help
        require(one_line, f"{method.name}: {info.name} has no help, or more than one line of it")


def refuse_unknown_names(method: Method, fixed: Values) -> None:
    """A name that does not exist is refused, with method and name in the message."""
    _is_refused(method, {**fixed, "no_such_parameter": 1}, "no_such_parameter")


def refuse_impossible_values(method: Method, fixed: Values) -> None:
    """What lies outside a range, is no number or of another type is refused, never clamped."""
    for info in describe(method.params):
        for value in _impossible(info.type, limits(method, info.name)):
            _is_refused(method, {**fixed, info.name: value}, info.name)


def _impossible(annotation: Any, bounds: Mapping[str, float]) -> Iterator[Any]:
    parts = {annotation, *get_args(annotation)}
    whole = int in parts and float not in parts
    if parts.isdisjoint((int, float)) or get_origin(annotation) in (tuple, dict):
        yield object()
        return
    yield from () if str in parts else ("a text",)
    yield from (float("nan"), float("inf"), -float("inf"))
    if whole:
        yield from (1.5, *(() if bool in parts else (True,)))
    step = 1 if whole else 1e-6
    for bound, sign in (("ge", -1), ("le", 1)):
        if bound in bounds:
            yield (int if whole else float)(
                bounds[bound] + sign * step * max(1, abs(bounds[bound]))
            )
    for bound in ("gt", "lt"):
        if bound in bounds:
            yield (int if whole else float)(bounds[bound])


def _is_refused(method: Method, values: Values, name: str) -> None:
    try:
        method(**values)
    except ParameterError as error:
        told = method.name in str(error) and name in str(error)
        require(told, f"{method.name}: the refusal of {name} names it not: {error}")
        return
    except Exception as error:
        raise LawBroken(
            f"{method.name}: {name}={values[name]!r} raises {error!r}, not ParameterError"
        ) from error
    raise LawBroken(f"{method.name} accepts {name}={values[name]!r}")


def all_matter(
    method: Method, fixed: Values, behaviour: Callable[[Any], Any], inert: tuple[str, ...] = ()
) -> None:
    """For every parameter not declared inert, two legal values behave differently somewhere."""
    for name in method.params.model_fields:
        if name not in inert and not _matters(method, name, fixed, behaviour):
            raise LawBroken(f"{method.name} ignores its parameter {name}")


def _matters(method: Method, name: str, fixed: Values, behaviour: Callable[[Any], Any]) -> bool:
    for others in baselines(method, fixed, without=name):
        first: Any = None
        for value in legal_values(method, name, others):
            seen = fingerprint(behaviour(method(**{**others, name: value})))
            if first is None:
                first = seen
            elif seen != first:
                return True
    return False


def baselines(method: Method, fixed: Values, *, without: str = "") -> Iterator[Values]:
    """Settings to vary a parameter from: the defaults, then one or all of the others changed."""
    plain = {key: value for key, value in fixed.items() if key != without}
    yield plain
    others = [name for name in method.params.model_fields if name != without]
    for name in others:
        for value in legal_values(method, name, plain)[1:]:
            yield {**plain, name: value}
    generator = np.random.default_rng(0)
    for _ in range(8 if len(others) > 1 else 0):
        values = dict(plain)
        for name in others:
            choices = legal_values(method, name, values)
            if choices:
                values[name] = choices[generator.integers(len(choices))]
        yield values


def variants(method: Method, fixed: Values, most: int = 4) -> list[Values]:
    """A few different legal settings: the required values, then one parameter changed at a time."""
    chosen = [fixed]
    for name in method.params.model_fields:
        chosen += [
            {**fixed, name: value}
            for value in legal_values(method, name, fixed)[1:]
            if not _is_long(value)
        ]
    stride = max(1, len(chosen) // most)
    return chosen[::stride][:most]


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and value > MOST
