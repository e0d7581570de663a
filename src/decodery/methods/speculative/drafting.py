"""Who draws a shape: a source with a tree of its own, or the head distilled from the model.

`draft` is what a run names. Where it names nothing, the head drafts if one comes with the model,
else the model's own first layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.source import Model, Source
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.distilled import Distilled, head_of
from decodery.methods.speculative.drafters import Drafter, Session
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.shapes import Shape

DISTILLED = "distilled"
FILE = DISTILLED + ":"

HELP = (
    "Who drafts: a model by folder, file or hub id; 'distilled' for the head that comes with the"
    " model, 'distilled:FILE' for one of yours; 'exit:8' for its own first 8 layers; 'same'."
    " Default: its head, else a quarter of its layers."
)


def drafter_for(
    draft: str | Source | None,
    shape: Shape,
    *,
    temperature: float | None = None,
    most: int | None = None,
) -> Drafter:
    """The drafter that a run names, for a shape of at most `most` nodes."""
    drawing = Drawing(draft, shape, temperature=temperature, most=most)
    head = Distilled(shape, temperature, most=most)
    if draft is None:
        return Usual(drawing, head)
    if draft == DISTILLED:
        return head
    if not isinstance(draft, str) or not draft.startswith(FILE):
        return drawing
    file = draft.removeprefix(FILE)
    if not file:
        raise ParameterError(f"draft is {draft!r}; after {FILE} comes a file")
    return replace(head, file=file)


@dataclass(frozen=True)
class Usual(Drafter):
    """`head` where one comes with the source, else `drawing`; both draw the same shape."""

    drawing: Drawing
    head: Distilled

    hidden = True

    @property
    def drawn(self) -> Drawn:  # type: ignore[override]
        return self.drawing.drawn

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.drawing.width

    @property
    def nodes(self) -> int:  # type: ignore[override]
        return self.drawing.nodes

    def certain(self) -> Usual:
        return Usual(self.drawing.certain(), self.head.certain())

    def equipped(self, load: Callable[[str], Source]) -> Usual:
        return replace(self, drawing=self.drawing.equipped(load))

    def session(self, task: Task) -> Session:
        return self._for(task).session(task)

    def slots(self, task: Task, streams: int) -> dict[Model, int]:
        return self._for(task).slots(task, streams)

    def _for(self, task: Task) -> Drafter:
        try:
            head_of(task.policy.source)
        except ParameterError:
            return self.drawing
        return self.head
