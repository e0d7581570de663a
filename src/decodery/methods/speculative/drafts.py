"""Which source drafts: named by a run, found when the run's own source is known."""

from __future__ import annotations

from collections.abc import Callable

from decodery.core.errors import ParameterError
from decodery.core.source import Source

SAME = "same"
EXIT = "exit:"
SHARE = 4  # of the layers, one in so many: the early exit that drafts where none is named


def draft_source(source: Source, draft: str | Source | None) -> Source:
    """The source that drafts for `source`, where no file has to be loaded for it."""
    if isinstance(draft, Source):
        return draft
    if draft is None:
        return source.exit(max(1, source.depth // SHARE)) if source.depth else source
    if draft == SAME:
        return source
    if draft.startswith(EXIT):
        return source.exit(_layer(draft))
    raise ParameterError(f"draft is {draft!r}, which has not been loaded")


def loaded(draft: str | Source | None, load: Callable[[str], Source]) -> str | Source | None:
    """A draft that names a model, loaded; others as they are."""
    if not isinstance(draft, str) or draft == SAME:
        return draft
    if draft.startswith(EXIT):
        _layer(draft)
        return draft
    return load(draft)


def _layer(draft: str) -> int:
    number = draft.removeprefix(EXIT)
    if not number.isdecimal():
        raise ParameterError(f"draft is {draft!r}; after {EXIT} comes a number of layers")
    return int(number)
