"""A trace file's events, checked: what is no trace, or a damaged one, is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from decodery.core.errors import TraceError
from decodery.core.trace import FORMAT

Count = Annotated[int, Field(ge=0)]
Top = list[tuple[Count, float | None]]  # tokens and their ln p


class _Event(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class CallEvent(_Event):
    event: Literal["call"]
    step: Count
    model: str
    nodes: Count
    batch_nodes: Count
    seconds: float


class NodeEvent(_Event):
    """A node that was grown, or a leaf that never was."""

    event: Literal["node", "leaf"]
    tree: Count
    node: Count
    parent: Count | None
    token: Count
    depth: Count
    sequence: Count
    log_p: float | None = None
    log_q: float | None = None
    step: Count = 0
    prompt: list[Count] = []
    source: str = ""
    policy_row: Top | None = None


class DropEvent(_Event):
    event: Literal["drop"]
    tree: Count
    nodes: list[Count]


class EmitEvent(_Event):
    event: Literal["emit"]
    sequence: Count
    tokens: list[Count]


class ScoreEvent(_Event):
    event: Literal["score"]
    scorer: str
    values: list[float | None]


class CompletionEvent(_Event):
    event: Literal["completion"]
    sequence: Count
    tokens: list[Count]
    finish_reason: str
    score: float | None = None
    text: str | None = None


Event = Annotated[
    CallEvent | NodeEvent | DropEvent | EmitEvent | ScoreEvent | CompletionEvent,
    Field(discriminator="event"),
]


class TraceFile(_Event):
    """What stands in a file."""

    about: dict[str, Any]
    report: dict[str, Any]
    texts: dict[str, str]
    events: list[Event]


def read_events(path: Path) -> TraceFile:
    """The content of a trace file. Raises `TraceError` where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):  # no UTF-8, or no JSON
        raise TraceError(f"{path} is no trace: it is no JSON, or was cut short") from None
    if not isinstance(content, dict) or "events" not in content or "format" not in content:
        raise TraceError(f"{path} is no trace; `decodery run ... --trace FILE` writes one")
    if content["format"] != FORMAT:
        raise TraceError(
            f"{path} has trace format {content['format']!r}; this version reads {FORMAT}: make the"
            " trace again with it"
        )
    try:
        return TraceFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TraceError(f"{path} is a damaged trace: {place}: {first['msg']}") from None
