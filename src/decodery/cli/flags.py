"""Flags that follow from the registry: one for each parameter of each sampler and decoder.

A parameter that several methods have (`n`) is one flag; the chosen method says which of them is
meant. Values are left as the terminal gave them where a type has no flag of its own; the strict
checks of `Params` come after.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin

import typer

from decodery.api.plan import RunParams
from decodery.core import registry
from decodery.core.errors import ParameterError
from decodery.core.params import ParameterInfo, Parameters, describe

_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", list[str]: "LIST"}


@dataclass
class Flag:
    """One flag: its parameter, and which methods have it."""

    info: ParameterInfo
    panel: str
    owners: list[str] = field(default_factory=list[str])
    helps: list[str] = field(default_factory=list[str])
    types: list[Any] = field(default_factory=list[Any])

    @property
    def name(self) -> str:
        return self.info.name

    def help(self) -> str:
        if not self.owners:
            return self.info.help
        if len(self.owners) == 1:
            return self.helps[0]
        return " ".join(
            f"{text} \\[{owner}]" for owner, text in zip(self.owners, self.helps, strict=True)
        )


def generated_flags() -> dict[str, Flag]:
    """All flags by parameter name: run parameters, then samplers, decoders and blends."""
    flags = {info.name: Flag(info, "Run") for info in describe(RunParams)}
    for kind, panel in (("sampler", "Samplers"), ("decoder", "Decoders"), ("blend", "Blends")):
        for method in registry.of_kind(kind):  # type: ignore[arg-type]
            for info in describe(method.params):
                flag = flags.setdefault(info.name, Flag(info, panel))
                flag.owners.append(method.name)
                flag.helps.append(_with_default(info))
                flag.types.append(info.type)
    return flags


def flags_of(params: type[Parameters], panel: str) -> dict[str, Flag]:
    """The flags of one `Params` class."""
    return {
        info.name: Flag(info, panel, ["it"], [_with_default(info)]) for info in describe(params)
    }


def _with_default(info: ParameterInfo) -> str:
    notes = [info.unit] if info.unit else []
    if info.default not in (None, (), {}) and not isinstance(info.default, bool):
        notes.append(f"default {info.default}")
    help = f"Turn off: {info.help}" if info.default is True else info.help
    return f"{help} ({'; '.join(notes)})" if notes else help


def with_flags(function: Callable[..., Any], flags: dict[str, Flag]) -> Callable[..., Any]:
    """`function(..., values)` as a typer command whose signature has the flags; those that were
    given arrive in `values`, a dict."""
    own = [
        parameter
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
        if name != "values"
    ]
    made = [_parameter(flag) for flag in flags.values()]

    def command(**given: Any) -> Any:
        values = {
            name: _value(flags[name].info, given.pop(name))
            for name in list(given)
            if name in flags and given[name] is not None and given[name] != []
        }
        for name in flags:
            given.pop(name, None)
        return function(**given, values=values)

    command.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in [*own, *made]}
    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    return command


def _parameter(flag: Flag) -> inspect.Parameter:
    kind = _common_type([_flag_type(item) for item in (flag.info.type, *flag.types)])
    return inspect.Parameter(
        flag.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=typer.Option(
            None,
            declaration(flag.info),
            help=flag.help(),
            rich_help_panel=flag.panel,
            show_default=False,
            metavar="FILE_OR_TEXT" if flag.info.file else _METAVARS.get(kind),
        ),
        annotation=Optional[kind],  # noqa: UP045  (typer reads the old spelling everywhere)
    )


def declaration(info: ParameterInfo) -> str:
    """How a flag is written. What is on by default has only the flag that turns it off."""
    dashed = info.name.replace("_", "-")
    return f"--no-{dashed}" if info.default is True else f"--{dashed}"


def _common_type(kinds: Sequence[Any]) -> Any:
    """The type of a flag that several methods have: each one's choices, where they have choices."""
    if not all(get_origin(kind) is Literal for kind in kinds):
        return kinds[0]
    return Literal[tuple(dict.fromkeys(choice for kind in kinds for choice in get_args(kind)))]


def _flag_type(annotation: Any) -> Any:
    """The type a terminal value is read as."""
    origin = get_origin(annotation)
    if annotation in (int, float, str, bool) or origin is Literal:
        return annotation
    if origin in (Union, types.UnionType):
        inner = [_flag_type(part) for part in get_args(annotation) if part is not type(None)]
        return inner[0] if len(inner) == 1 else str
    if origin in (tuple, list, dict):
        return list[str]
    return str


def _value(info: ParameterInfo, given: Any) -> Any:
    """A list flag may be repeated, and holds commas where its entries are numbers or names."""
    if info.default is True and isinstance(given, bool):
        return not given  # the flag is --no-..., and giving it turns the parameter off
    if info.file:
        return _text_or_file(info.name, given)
    if not isinstance(given, list):
        return given
    entry = _entry_type(info.type)
    if entry is str and info.name == "stop":
        return tuple(given)  # a stop string may hold commas
    parts = [part.strip() for item in given for part in item.split(",")]
    return tuple(_number(info.name, part, entry) for part in parts)


def _text_or_file(name: str, given: str) -> str:
    """The content of the file that `given` names, or `given` itself where there is no such file."""
    try:
        named = Path(given).is_file()
    except OSError:  # too long for a name
        named = False
    if not named:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ParameterError(f"{name}: the file {given} cannot be read: {error}") from None


def _entry_type(annotation: Any) -> Any:
    if get_origin(annotation) in (tuple, list):
        return get_args(annotation)[0]
    inner: Sequence[Any] = [part for part in get_args(annotation) if part is not type(None)]
    found = [_entry_type(part) for part in inner if get_origin(part) in (tuple, list)]
    return found[0] if found else str


def _number(name: str, text: str, kind: Any) -> Any:
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ParameterError(f"{name} has {text!r}, which is not {what}") from None
