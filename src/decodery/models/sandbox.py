"""Where a chat template runs: Jinja's immutable sandbox, with a bound on all that a template does.

A template is a program out of a file. Jinja's sandbox keeps it from Python's internals; it does not
keep it from running for ever, nor from making something huge in one step. Here a render has a
budget: every turn of a loop, call, filter, test and output pays for itself and for the size of what
it handles, printed in full; and what would be far larger than what it is made of (`'a' * n`,
`x.replace('a', y)`) is measured before it is made. So a render ends within seconds, whatever the
template.

Left out of Jinja: `lipsum`, the filters for HTML pages (slow on long texts), and the methods of
Python's own types that are not in `_METHODS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from decodery.models.template_bounds import (
    CHARS_COPIED,
    ELEMENT,
    FILTER,
    FILTER_CHECKS,
    LOOP,
    MACRO,
    MAX_NESTED,
    METHOD,
    METHOD_CHECKS,
    NODE,
    budget,
    measured,
    paid,
    read,
    refuse_chars,
    refuse_format,
    refuse_large,
    refuse_numbers,
)

_MAX_DATE_CHARS = 1000

_OF_TEXTS = """
capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha
isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join
ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit
rstrip split splitlines startswith strip swapcase title upper zfill
"""
_METHODS: Mapping[type, frozenset[str]] = MappingProxyType(
    {
        str: frozenset(_OF_TEXTS.split()),
        dict: frozenset({"copy", "get", "items", "keys", "values"}),
        list: frozenset({"copy", "count", "index"}),
        tuple: frozenset({"count", "index"}),
        int: frozenset({"bit_length", "is_integer"}),
        float: frozenset({"is_integer"}),
    }
)
# Those that look at no more than the ends of what they are given.
_QUICK_FILTERS = frozenset({"abs", "attr", "count", "d", "default", "first", "last", "length"})
_WITHOUT_FILTERS = frozenset({"pprint", "striptags", "urlize", "wordcount", "wordwrap", "xmlattr"})
# Tests that read all of what they are given, and not only its kind.
_OF_CONTENT = """
!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper
"""
# What Jinja adds to every call in a loop or a block.
_JINJAS_OWN = frozenset({"_loop_vars", "_block_vars"})
# -- the environment -------------------------------------------------------------------------------


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's environment for templates that nobody has read, with a budget."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        refuse_large(operator, left, right)
        return paid(super().call_binop(context, operator, left, right))

    def call(*args: Any, **kwargs: Any) -> Any:
        # The signature leaves every keyword to the template, as Jinja's own does.
        function, given = args[2], args[3:]
        named = {name: value for name, value in kwargs.items() if name not in _JINJAS_OWN}
        refuse_numbers((*given, *named.values()))
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            read((owner, given, named), METHOD)
            check = METHOD_CHECKS.get(function.__name__)
            if check is not None:
                check(owner, *given, **named)
        else:
            budget.get().spend(METHOD if isinstance(owner, tuple(_METHODS)) else MACRO)
            paid((given, named))
        return paid(ImmutableSandboxedEnvironment.call(*args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form = value.__self__

        @wraps(wrapped)
        def formatted(*args: Any, **kwargs: Any) -> str:
            refuse_format(form, "{", (args, kwargs))
            return wrapped(*args, **kwargs)

        return formatted

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return super().is_safe_attribute(obj, attr, value)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Joins what a macro or a block has output."""
        made = list(parts)
        refuse_chars(sum(map(len, made)))
        return paid("".join(made))

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        return _Checks().visit(super()._parse(source, name, filename))


class _Checks(NodeTransformer):
    """Puts a check around what the sandbox does not intercept."""

    def __init__(self) -> None:
        self._depth = 0

    def visit(self, node: jinja2.nodes.Node, *args: Any, **kwargs: Any) -> Any:
        made = super().visit(node, *args, **kwargs)
        inside = made.iter_child_nodes()
        made.cost = NODE + sum(getattr(child, "cost", NODE) for child in inside)
        return made

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.For:
        self._visit_body(node)
        node.iter = _filtered(node.iter, "counted!")
        if node.test is not None:
            node.test = _filtered(node.test, "charged!", node.test.cost)  # pyright: ignore[reportAttributeAccessIssue]
        return node

    def _visit_body(self, node: Any) -> Any:
        if self._depth == MAX_NESTED:
            raise SecurityError(f"it nests more than {MAX_NESTED} loops, macros and blocks")
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1
        _charge_body(node)
        return node

    visit_Macro = visit_CallBlock = visit_Block = _visit_body

    def visit_Output(self, node: jinja2.nodes.Output) -> jinja2.nodes.Output:
        self.generic_visit(node)
        node.nodes = [_unless_constant(part, "emitted!") for part in node.nodes]
        return node

    def visit_Compare(self, node: jinja2.nodes.Compare) -> jinja2.nodes.Compare:
        self.generic_visit(node)
        sides = (node.expr, *(operand.expr for operand in node.ops))
        searches = any(operand.op in ("in", "notin") for operand in node.ops)
        if not searches and any(map(_is_constant, sides)):
            return node  # no more is looked at than the constant has
        node.expr = _unless_constant(node.expr, "compared!")
        for operand in node.ops:
            operand.expr = _unless_constant(operand.expr, "compared!")
        return node

    def _visit_made(self, node: Any) -> Any:
        """What makes a new value."""
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _unless_constant(node, "paid!")

    visit_Concat = visit_List = visit_Dict = visit_Tuple = _visit_made

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "paid!") if isinstance(node.arg, jinja2.nodes.Slice) else node


def _charge_body(node: Any) -> None:
    """Each time the body of a loop, macro or block runs, what it is made of is paid for."""
    cost = sum(child.cost for child in node.body)
    empty = jinja2.nodes.Const("", lineno=node.lineno)
    empty.environment = node.environment
    charge = jinja2.nodes.ExprStmt(_filtered(empty, "charged!", cost), lineno=node.lineno)
    charge.environment = node.environment
    node.body.insert(0, charge)


def _is_constant(node: jinja2.nodes.Node) -> bool:
    """Literals and text, which are as small as the template."""
    return isinstance(node, jinja2.nodes.Literal) and not list(node.iter_child_nodes())


def _unless_constant(node: jinja2.nodes.Expr, name: str) -> jinja2.nodes.Expr:
    return node if _is_constant(node) else _filtered(node, name)


def _filtered(node: jinja2.nodes.Node, name: str, *values: int) -> jinja2.nodes.Filter:
    args = [jinja2.nodes.Const(value, lineno=node.lineno) for value in values]
    made = jinja2.nodes.Filter(node, name, args, [], None, None, lineno=node.lineno)
    for part in (made, *args):
        part.environment = node.environment
    return made


# Under names that no template can write; passing the context keeps Jinja from evaluating them while
# it compiles.


@jinja2.pass_context
def _paid_filter(_context: Context, value: Any) -> Any:
    return paid(value)


@jinja2.pass_context
def _compared(_context: Context, value: Any) -> Any:
    read(value, NODE)
    return value


@jinja2.pass_context
def _charged(_context: Context, value: Any, cost: int) -> Any:
    budget.get().spend(cost)
    return value


@jinja2.pass_context
def _emitted(_context: Context, value: Any) -> Any:
    chars, elements = measured(value)
    budget.get().spend(NODE + chars // CHARS_COPIED + ELEMENT * elements)
    budget.get().emit(chars + elements)
    return value


@jinja2.pass_context
def _counted(_context: Context, values: Iterable[Any]) -> Iterator[Any]:
    spend = budget.get().spend
    for value in values:
        spend(LOOP)
        yield value


_CHECKS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "paid!": _paid_filter,
        "compared!": _compared,
        "charged!": _charged,
        "emitted!": _emitted,
        "counted!": _counted,
    }
)


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with the same checks as a call."""
    leading = 1 if jinja2.utils._PassArg.from_obj(function) else 0
    check = FILTER_CHECKS.get(name)

    @wraps(function)  # also copies Jinja's marks on what it wants passed
    def limited(*args: Any, **kwargs: Any) -> Any:
        if name in _QUICK_FILTERS:
            budget.get().spend(FILTER)
            return function(*args, **kwargs)
        given = args[leading:]
        read((given, kwargs), FILTER)
        refuse_numbers((*given[1:], *kwargs.values()))
        if check is not None:
            check(*given, **kwargs)
        made = function(*args, **kwargs)
        # At once, or filters of filters of filters would run only when the last is read.
        return iter(paid(list(made))) if isinstance(made, Iterator) else paid(made)

    return limited


def _limited_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def limited(*args: Any) -> Any:
        read(args, FILTER)
        return function(*args)

    return limited


# -- what transformers gives templates -------------------------------------------------------------


class _GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Dict:
    """Jinja's `dict`, without the type behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, which stores no name that begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # As in Jinja, so that a template may store an attribute called `self`.
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot store {name[:40]!r}: it begins with an underscore")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes what is special in HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > _MAX_DATE_CHARS:
        raise SecurityError(f"a date of {len(form)} characters is too long")
    return datetime.now().strftime(form)


def environment() -> Sandbox:
    """A sandbox with what transformers gives chat templates."""
    made = Sandbox(
        optimized=False,  # it takes the cube of the depth of an expression
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlocks, jinja2.ext.loopcontrols],
    )
    filters = {name: f for name, f in made.filters.items() if name not in _WITHOUT_FILTERS}
    filters["tojson"] = _tojson
    made.filters = {name: _limited(name, function) for name, function in filters.items()}
    made.filters |= _CHECKS
    made.tests |= {name: _limited_test(made.tests[name]) for name in _OF_CONTENT.split()}
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    del made.globals["lipsum"]
    return made
