"""What a chat template may use up: a budget for one render, and the size of what a step would make.

What would be far larger than what it is made of (`'a' * n`, `x.replace('a', y)`) is measured before
it is made and refused with `SecurityError`. `sandbox` puts these checks around everything that a
template does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from operator import length_hint
from types import MappingProxyType
from typing import Any

import jinja2.utils
from jinja2.exceptions import SecurityError

MAX_OUTPUT_CHARS = 16 << 20
MAX_ELEMENTS = 1 << 20  # of a list and of all lists in it
MAX_WORK = 1 << 32
MAX_NESTED = 24  # loops, macros and blocks in each other; compiling takes time for each

# What things cost, in about nanoseconds of a slow machine.
LOOP, FILTER, METHOD, MACRO = 4096, 16384, 8192, 65536
NODE, ELEMENT = 256, 2048
_CHAR, CHARS_COPIED = 32, 4  # a character that is looked at; how many are copied for one
_MAX_EMITTED = 4 * MAX_OUTPUT_CHARS  # a text passes through several macros before it is output
_MAX_BITS = 4096
_MAX_COUNT = 1000  # of decimals, columns to indent by, slices

# A field of ten million characters or more, or of a width given by an argument.
_WIDE_FORMAT = re.compile(r"%[^%a-zA-Z]*(\*|\d{8})|\{[^{}]*\d{8}")

# Filters that make a list of a text's letters or words.
_OF_LETTERS = """
groupby list map max min random reject rejectattr select selectattr sort title unique urlencode
"""
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_CONTAINERS = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))


class Budget:
    """What a render may still do."""

    def __init__(self) -> None:
        self._work = MAX_WORK
        self._chars = _MAX_EMITTED

    def spend(self, work: int) -> None:
        self._work -= work
        if self._work < 0:
            raise SecurityError("it takes too many steps")

    def emit(self, chars: int) -> None:
        self._chars -= chars
        if self._chars < 0:
            raise SecurityError(f"it makes more than {MAX_OUTPUT_CHARS} characters")


budget: ContextVar[Budget] = ContextVar("budget")


# -- sizes -----------------------------------------------------------------------------------------


def measured(value: Any) -> tuple[int, int]:
    """Characters and elements of a value as it is printed; `SecurityError` where it is too large.

    What is in a list twice counts twice: sixty lists, each of the last one twice, print for ever.
    """
    chars, elements, stack = 0, 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            chars += len(item)
            continue
        inside = _inside(item)
        if not inside:
            continue
        elements += len(inside)
        if elements > MAX_ELEMENTS:
            raise SecurityError(f"a value has more than {MAX_ELEMENTS} elements")
        stack.extend(inside)
    if chars > MAX_OUTPUT_CHARS:
        raise SecurityError(f"a value has more than {MAX_OUTPUT_CHARS} characters")
    return chars, elements


def _inside(value: Any) -> Collection[Any]:
    if isinstance(value, _CONTAINERS):
        return value
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, jinja2.utils.Namespace):
        return value._Namespace__attrs.values()  # pyright: ignore[reportAttributeAccessIssue]
    return ()


def paid(value: Any) -> Any:
    """The value, whose size is paid for: it was copied."""
    chars, elements = measured(value)
    budget.get().spend(chars // CHARS_COPIED + ELEMENT * elements)
    return value


def read(value: Any, step: int) -> None:
    """Pay for a step that looks at every character of a value."""
    chars, elements = measured(value)
    budget.get().spend(step + _CHAR * chars + ELEMENT * elements)


def _chars(values: Iterable[Any]) -> int:
    return sum(sum(measured(value)) for value in values)


def refuse_chars(count: int) -> None:
    if count > MAX_OUTPUT_CHARS:
        raise SecurityError(f"a value of {count} characters is too large")


def refuse_numbers(values: Iterable[Any], most: int = MAX_OUTPUT_CHARS) -> None:
    """Refuse numbers that a call could take as a width or a count: 'x'.ljust(10**12)."""
    for value in values:
        if isinstance(value, int) and abs(value) > most:
            raise SecurityError(f"the number {value.bit_length()} bits long is too large here")


# -- what makes more than it is made of ------------------------------------------------------------


def refuse_large(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation that would make something huge in one step."""
    if operator == "%" and isinstance(left, str):
        refuse_format(left, "%", (right,))
    if operator == "**":
        refuse_numbers((left, right), most=_MAX_COUNT)
    if operator != "*":
        return
    if isinstance(left, int) and isinstance(right, int):
        refuse_numbers((left, right), most=1 << _MAX_BITS)
        return
    for text, times in ((left, right), (right, left)):
        if isinstance(times, int):
            refuse_chars(sum(measured(text)) * abs(times))


def refuse_format(form: Any, mark: str, values: Iterable[Any]) -> None:
    if not isinstance(form, str):
        return
    if _WIDE_FORMAT.search(form):
        raise SecurityError(f"the format {form[:40]!r} is too wide")
    refuse_chars(len(form) + form.count(mark) * _chars(values))


def _refuse_joined(separator: Any, values: Any) -> None:
    refuse_chars(_chars((separator,)) * length_hint(values) + _chars((values,)))


def _refuse_replaced(text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        refuse_chars(len(text) + text.count(old) * len(new))


def _refuse_expanded(text: str, tabsize: Any = 8) -> None:
    if isinstance(tabsize, int):
        refuse_chars(len(text) + text.count("\t") * abs(tabsize))


def _refuse_split(text: str, separator: Any = None, *_: Any, **__: Any) -> None:
    pieces = text.count(separator) if separator and isinstance(separator, str) else len(text) // 2
    _refuse_elements(pieces)


def _refuse_lines(text: str, *_: Any, **__: Any) -> None:
    _refuse_elements(sum(map(text.count, _LINE_ENDS)))


def _refuse_letters(text: Any, *_: Any, **__: Any) -> None:
    """Of a text, what goes through its letters or words makes many times its size."""
    if isinstance(text, str):
        _refuse_elements(len(text))


def _refuse_elements(count: int) -> None:
    if count > MAX_ELEMENTS:
        raise SecurityError(f"a value of {count} elements is too large")


METHOD_CHECKS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        "expandtabs": _refuse_expanded,
        "join": _refuse_joined,
        "replace": _refuse_replaced,
        "rsplit": _refuse_split,
        "split": _refuse_split,
        "splitlines": _refuse_lines,
    }
)


def _refuse_indented(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    refuse_numbers((width,), most=_MAX_COUNT)
    added = len(width) if isinstance(width, str) else _MAX_COUNT
    if isinstance(text, str):
        _refuse_lines(text)
        refuse_chars(len(text) + added * (1 + text.count("\n")))


def _refuse_counts(_: Any, *args: Any, **kwargs: Any) -> None:
    refuse_numbers((*args, *kwargs.values()), most=_MAX_COUNT)


def _refuse_parts(value: Any, *args: Any, **kwargs: Any) -> None:
    _refuse_letters(value)
    _refuse_counts(value, *args, **kwargs)


def _refuse_sum(_: Any, attribute: Any = None, start: Any = 0) -> None:  # noqa: ARG001
    if not isinstance(start, (int, float)):
        raise SecurityError("sum adds numbers only")


def _refuse_filter_join(values: Any, d: Any = "", attribute: Any = None) -> None:  # noqa: ARG001
    _refuse_joined(d, values)


def _refuse_filter_replace(text: Any, old: Any, new: Any, count: Any = None) -> None:  # noqa: ARG001
    _refuse_replaced(str(text), old, new)


FILTER_CHECKS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        **dict.fromkeys(_OF_LETTERS.split(), _refuse_letters),
        "batch": _refuse_parts,
        "format": lambda form, *args, **kwargs: refuse_format(form, "%", (args, kwargs)),
        "indent": _refuse_indented,
        "join": _refuse_filter_join,
        "replace": _refuse_filter_replace,
        "round": _refuse_counts,
        "slice": _refuse_parts,
        "sum": _refuse_sum,
        "tojson": _refuse_counts,
    }
)
