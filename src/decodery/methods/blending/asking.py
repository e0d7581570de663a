"""Asking again: prompts made of a conversation and an earlier answer, or of its plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from decodery.core.errors import ParameterError
from decodery.core.language import Language, Message

Template = Literal["again", "brief", "extract", "detail"] | str | None

TEMPLATES = {
    "again": "{question}\n\nAn earlier answer:\n{answer}\n\nPlease answer the same question again:"
    " {question}",
    "brief": "{question}\n\nAn earlier answer:\n{answer}\n\nPlease answer the question again, in"
    " one or two sentences. Be factual.\nRefined answer:",
    "extract": "{question}\n\nAn earlier answer, which may contain errors:\n{answer}\n\nPlease keep"
    " what is correct in it and answer the question again, one sentence for each point.",
    "detail": "{question}\n\nAn earlier answer:\n{answer}\n\nPlease answer the question again and"
    " add further details. The question was: {question}",
}


def template_text(template: Template) -> str:
    """The text of a template, by name or as it is; `ParameterError` where it leaves out a part."""
    text = TEMPLATES.get(template or "again", cast("str", template))
    for part in ("{question}", "{answer}"):
        if part not in text:
            raise ParameterError(
                f"integrative: template is {text!r}; allowed are {', '.join(TEMPLATES)}, or a text"
                " with {question} and {answer}"
            )
    return text


def checked(template: Template, language: Language | None, source: str) -> str:
    """A template's text, or `ParameterError` where the source cannot read it."""
    if language is None and template is not None:
        raise ParameterError(
            f"integrative: template is {template!r}, and the tokens of {source} are numbers; leave"
            " it out"
        )
    return template_text(template)


def again(
    language: Language,
    messages: Sequence[Message],
    prompt: Sequence[int],
    template: str,
    answer: str,
) -> tuple[int, ...]:
    """The prompt that asks its question again, beside an earlier answer.

    In a conversation it takes the place of the last message; a plain text is asked as a whole.
    """
    if not messages:
        return language.encode(filled(template, question=language.decode(prompt), answer=answer))
    *before, last = messages
    if last.get("role") != "user":
        raise ParameterError(
            f"the conversation ends with a message of role {last.get('role')!r}; to ask again it"
            " must end with the user's"
        )
    asked = filled(template, question=content(last), answer=answer)
    return language.chat([*before, {**last, "content": asked}])


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation as plain text: what was said, with blank lines between."""
    return "\n\n".join(content(message) for message in messages)


def content(message: Message) -> str:
    """The text of a message, whose content may come in parts."""
    given: Any = message.get("content")
    if isinstance(given, str):
        return given.strip()
    parts = cast("list[Any]", given) if isinstance(given, (list, tuple)) else []
    texts = [
        str(cast("Mapping[str, Any]", part).get("text", ""))
        for part in parts
        if isinstance(part, Mapping)
    ]
    return "\n".join(texts).strip()


def filled(template: str, **values: str) -> str:
    """The template with `{name}` replaced, once; what the values hold is left as it is.

    >>> filled("{a} and {b}", a="{b}", b="2")
    '{b} and 2'
    """
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda found: values[found[1]], template)
