"""Chat templates: a model's own Jinja program that turns messages into its prompt.

A template comes with the weights, so it is foreign code. It runs in a sandbox (`sandbox.py`), on
copies made of plain JSON types, with bounds on its length, its work and what it makes; anything
that goes wrong in it is a one-line `TemplateError`. What it renders is what transformers renders:
the same block trimming, loop controls, `raise_exception`, `strftime_now`, `tojson`, `generation`
blocks and guarded `dict` and `namespace` (`_compile_jinja_template` in its
`chat_template_utils.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2

from decodery.core.errors import TemplateError
from decodery.models.bounds import one_line
from decodery.models.sandbox import environment
from decodery.models.template_bounds import MAX_OUTPUT_CHARS, Budget, budget

MAX_TEMPLATE_CHARS = 1 << 16  # three times the longest that is published

Message = Mapping[str, Any]


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
    token = budget.set(Budget())
    try:
        return _joined(_compiled(template).generate(_plain(given)))
    except TemplateError:
        raise
    except Exception as error:  # whatever a foreign program does wrong
        raise TemplateError(f"the chat template failed: {one_line(error)}") from None
    finally:
        budget.reset(token)


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


_ENVIRONMENT = environment()


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(template)
