"""Chat templates: a model's own Jinja program that turns messages into its prompt.

A template comes with the weights, so it is foreign code. It runs in Jinja's immutable sandbox, on
copies made of plain JSON types, with bounds on its length, its steps and what it makes; anything
that goes wrong in it is a one-line `TemplateError`. What it renders is what transformers renders:
the same block trimming, loop controls, `raise_exception`, `strftime_now`, `tojson`, `generation`
blocks and guarded `dict` and `namespace` (`_compile_jinja_template` in its
`chat_template_utils.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
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

from decodery.core.errors import TemplateError

MAX_TEMPLATE_CHARS = 1 << 20
MAX_OUTPUT_CHARS = 16 << 20
MAX_LOOP_STEPS = 1_000_000

Message = Mapping[str, Any]

# A field of ten million characters or more, or of a width given by an argument.
_WIDE_FORMAT = re.compile(r"%[^%a-zA-Z]*(\*|\d{8})|\{[^{}]*\d{8}")

_steps_left: ContextVar[int] = ContextVar("_steps_left", default=MAX_LOOP_STEPS)


def prompt_messages(prompt: str, system: str | None = None) -> list[dict[str, str]]:
    """A prompt as messages: the user's turn, after the system's if there is one."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": prompt}]


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str | None = None,
    eos_token: str | None = None,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """The prompt that `template` makes of `messages`, ready to be encoded without special tokens.

    `variables` are seen by the template under their names (`tools`, `enable_thinking`, ...).
    Raises `TemplateError` for messages that are none, a template that does not compile, refuses
    the messages, reaches outside the sandbox or exceeds the bounds.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise TemplateError(
            f"the chat template has {len(template)} characters; "
            f"at most {MAX_TEMPLATE_CHARS} are allowed"
        )
    for message in messages:
        if not isinstance(message, Mapping):
            raise TemplateError(f"a message is a {type(message).__name__}, not a mapping")
    given: dict[str, Any] = {"tools": None, "documents": None, **variables}
    if bos_token is not None:
        given["bos_token"] = bos_token
    if eos_token is not None:
        given["eos_token"] = eos_token
    given["messages"] = [_with_reasoning(message) for message in messages]
    given["add_generation_prompt"] = add_generation_prompt
    token = _steps_left.set(MAX_LOOP_STEPS)
    try:
        return _joined(_compiled(template).generate(_plain(given)))
    except TemplateError:
        raise
    except Exception as error:  # whatever a foreign program does wrong
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TemplateError(f"the chat template failed: {reason}") from None
    finally:
        _steps_left.reset(token)


def _joined(parts: Iterable[str]) -> str:
    kept: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        if size > MAX_OUTPUT_CHARS:
            raise TemplateError(f"the chat template made more than {MAX_OUTPUT_CHARS} characters")
        kept.append(part)
    return "".join(kept)


def _plain(value: Any) -> Any:
    """A copy out of plain JSON types, so that a template gets no object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    # The base types' own conversions: a subclass (an enum, say) may print as something else.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        copied = [_plain(item) for item in value]
        return copied if isinstance(value, list) else tuple(copied)
    return f"<{type(value).__name__}>"


def _with_reasoning(message: Message) -> Message:
    """A message with its reasoning under every name that templates read it from."""
    for name in ("reasoning_content", "thinking", "reasoning"):
        if message.get(name) is not None:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, which also counts the steps of loops and bounds what expressions make."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _refuse_large(operator, left, right)
        return _bounded(super().call_binop(context, operator, left, right))

    def call(*args: Any, **kwargs: Any) -> Any:
        # The signature leaves every keyword to the template, as Jinja's own does.
        _refuse_numbers((*args, *kwargs.values()))
        return _bounded(ImmutableSandboxedEnvironment.call(*args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _refuse_wide(value.__self__)
        return wrapped

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        return _Checks().visit(super()._parse(source, name, filename))


class _Checks(NodeTransformer):
    """Puts a check around what the sandbox does not intercept: loops and `~`."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted")
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "bounded")


def _filtered(node: jinja2.nodes.Node, name: str) -> jinja2.nodes.Filter:
    made = jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    made.environment = node.environment
    return made


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


def _refuse_large(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation that would make something huge in one step."""
    if operator == "%":
        _refuse_wide(left)
    if operator == "**":
        _refuse_numbers((left, right), most=1_000)
    if operator == "*":
        for size, times in ((left, right), (right, left)):
            if isinstance(size, Sized) and isinstance(times, int):
                _refuse_numbers([len(size) * times])


def _refuse_wide(form: Any) -> None:
    if isinstance(form, str) and _WIDE_FORMAT.search(form):
        raise SecurityError(f"the format {form[:40]!r} is too wide")


def _refuse_numbers(values: Iterable[Any], most: int = MAX_OUTPUT_CHARS) -> None:
    """Refuse numbers that a call could take as a width or a count: 'x'.ljust(10**12)."""
    for value in values:
        if isinstance(value, int) and abs(value) > most:
            raise SecurityError(f"the number {value.bit_length()} bits long is too large here")


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_OUTPUT_CHARS:
        raise SecurityError(f"a value of {len(value)} elements is too large")
    return value


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with the same checks as a call."""

    @wraps(function)  # also copies Jinja's marks on what it wants passed
    def limited(*args: Any, **kwargs: Any) -> Any:
        _refuse_numbers((*args[1:], *kwargs.values()))
        return _bounded(function(*args, **kwargs))

    return limited


@jinja2.pass_context  # keeps Jinja from evaluating it while compiling
def _counted(_context: Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        left = _steps_left.get() - 1
        if left < 0:
            raise SecurityError(f"loops take more than {MAX_LOOP_STEPS} steps")
        _steps_left.set(left)
        yield value


def _format(form: Any, *args: Any, **kwargs: Any) -> str:
    _refuse_wide(form)
    return jinja2.filters.do_format(form, *args, **kwargs)


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
    return datetime.now().strftime(form)


def _environment() -> _Environment:
    made = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlocks, jinja2.ext.loopcontrols],
    )
    made.filters["tojson"] = _tojson
    made.filters = {name: _limited(function) for name, function in made.filters.items()}
    made.filters |= {"counted": _counted, "bounded": _bounded, "format": _format}
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return made


_ENVIRONMENT = _environment()


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(template)
