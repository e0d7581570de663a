"""Parameters: strict, frozen, described once; flags, schemas, docs and reports follow from them.

A method's `Params` is a `Parameters` class whose fields are made by `parameter(...)`. Unknown
names, wrong types, values out of range, NaN and infinity are refused with one line that says what
is allowed. Nothing is clamped.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from decodery.core.errors import ParameterError, nearest

P = TypeVar("P", bound="Parameters")


class Parameters(BaseModel):
    """The base of every method's `Params`."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )


def parameter(
    default: Any = PydanticUndefined,
    *,
    help: str,
    unit: str | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    max_length: int | None = None,
    file: bool = False,
) -> Any:
    """A field: default (none means required), one line of help, unit, and range.

    With `file` the command line takes a text or the name of a file that holds it.
    """
    extra: dict[str, Any] = {"unit": unit} if unit else {}
    if file:
        extra["file"] = True
    return Field(
        default,
        description=help,
        ge=ge,
        gt=gt,
        le=le,
        lt=lt,
        max_length=max_length,
        json_schema_extra=extra or None,
    )


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter as flags, docs and schemas show it. `default` is None when `required`."""

    name: str
    type: Any
    default: Any
    required: bool
    help: str
    unit: str | None
    allowed: str
    file: bool = False


def describe(params: type[Parameters]) -> list[ParameterInfo]:
    """The parameters of a `Params` class in their order."""
    described: list[ParameterInfo] = []
    for name, info in params.model_fields.items():
        extra = cast("dict[str, Any]", info.json_schema_extra or {})
        required = info.is_required()
        described.append(
            ParameterInfo(
                name=name,
                type=info.annotation,
                default=None if required else info.default,
                required=required,
                help=info.description or "",
                unit=extra.get("unit"),
                allowed=_allowed(info.annotation, info.metadata),
                file=bool(extra.get("file")),
            )
        )
    return described


def make(params: type[P], values: Mapping[str, Any], owner: str) -> P:
    """`params` from values, or a `ParameterError` that names owner, name, value and range."""
    plain = {name: _plain(value) for name, value in values.items()}
    try:
        return params(**plain)
    except ValidationError as error:
        raise ParameterError(_explain(params, error.errors()[0], owner)) from None


def _plain(value: Any) -> Any:
    """numpy scalars and lists as the Python values that strict fields take."""
    if isinstance(value, np.generic):
        return cast("Any", value).item()
    if isinstance(value, list):
        return tuple(_plain(item) for item in cast("list[Any]", value))
    return value


def _explain(params: type[Parameters], detail: ErrorDetails, owner: str) -> str:
    name = str(detail["loc"][0]) if detail["loc"] else ""
    if detail["type"] == "extra_forbidden":
        return f"{owner} has no parameter {name!r}; {nearest(name, params.model_fields)}"
    if detail["type"] == "missing":
        return f"{owner} needs {name}: {params.model_fields[name].description}"
    given = detail["input"]
    if name not in params.model_fields:
        return f"{owner}: {detail['msg']}"
    info = params.model_fields[name]
    allowed = _allowed(info.annotation, info.metadata)
    place = "" if owner in (name, "run") else f"{owner}: "
    message = f"{place}{name} is {given!r}; allowed is {allowed}"
    choices = _choices(info.annotation)
    if choices and isinstance(given, str):
        close = difflib.get_close_matches(given, choices, n=1)
        message += f"; did you mean {close[0]!r}?" if close else ""
    return message


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _allowed(annotation: Any, metadata: Sequence[Any]) -> str:
    """The type and range in words, such as 'a number with 0 <= x <= 1'."""
    kind = type_name(annotation)
    low = high = ""
    for limit in metadata:
        if getattr(limit, "ge", None) is not None:
            low = f"{limit.ge:g} <= "
        if getattr(limit, "gt", None) is not None:
            low = f"{limit.gt:g} < "
        if getattr(limit, "le", None) is not None:
            high = f" <= {limit.le:g}"
        if getattr(limit, "lt", None) is not None:
            high = f" < {limit.lt:g}"
    return f"{kind} with {low}x{high}" if low or high else kind


def type_name(annotation: Any) -> str:
    """A type in words a user reads.

    >>> type_name(float), type_name(tuple[int, ...])
    ('a number', 'a list of whole numbers')
    """
    simple = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    if annotation in simple:
        return simple[annotation]
    if annotation is type(None):
        return "none"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is tuple:
        plural = {float: "numbers", int: "whole numbers", str: "texts"}
        return f"a list of {plural.get(arguments[0], 'entries')}"
    if origin is Union or type(annotation).__name__ == "UnionType":
        return " or ".join(type_name(part) for part in arguments)
    return getattr(annotation, "__name__", str(annotation))
