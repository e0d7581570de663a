"""What a run gives back: texts, tokens, cost, and every effective parameter; and text streams."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from decodery.core.decoder import Completion
from decodery.core.errors import DecoderyError
from decodery.core.handle import Handle, Report
from decodery.core.runner import Runner
from decodery.core.stopping import Stopping
from decodery.core.trace import Trace
from decodery.models.tokenizer import TextStream, Tokenizer


@dataclass(frozen=True)
class Sample:
    """One answer. `text` is cut before the first stop string; `tokens` are all that were drawn."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    log_probability: float | None = None
    score: float | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_dict(self) -> dict[str, Any]:
        known: dict[str, Any] = {
            "text": self.text,
            "tokens": list(self.tokens),
            "finish_reason": self.finish_reason,
        }
        if self.log_probability is not None:
            known["log_probability"] = self.log_probability
        if self.score is not None:
            known["score"] = self.score
        if self.details:
            known["details"] = self.details
        return known


@dataclass(frozen=True)
class Generation:
    """The result of a run: one sample or several, what it cost, and what was in force."""

    samples: tuple[Sample, ...]
    method: str
    model: str
    seed: int
    parameters: dict[str, dict[str, Any]]
    report: Report
    trace: Trace | None = None

    @property
    def text(self) -> str:
        """The first sample's text; empty when the run was cut before any token."""
        return self.samples[0].text if self.samples else ""

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.samples[0].tokens if self.samples else ()

    @property
    def finish_reason(self) -> str | None:
        return self.samples[0].finish_reason if self.samples else None

    def to_dict(self, *, several: bool | None = None) -> dict[str, Any]:
        """The run as JSON. One sample stands at the top level; `several` puts all in `samples`."""
        several = len(self.samples) > 1 if several is None else several
        head: dict[str, Any]
        if several:
            head = {"samples": [sample.to_dict() for sample in self.samples]}
        elif self.samples:
            head = self.samples[0].to_dict()
        else:
            head = {"text": "", "tokens": [], "finish_reason": None}
        return {
            **head,
            "method": self.method,
            "model": self.model,
            "seed": self.seed,
            "parameters": self.parameters,
            "report": self.report.to_dict(),
        }


@dataclass(frozen=True)
class Event:
    """A piece of text that is final, and whose sequence it belongs to."""

    text: str
    sequence: int = 0


class Finisher(Protocol):
    """Makes the generation of an ended request."""

    def __call__(self, handle: Handle) -> Generation: ...


class TextFeed:
    """Text of one sequence as tokens arrive, held back while a stop string may be completing."""

    def __init__(self, stream: TextStream, stopping: Stopping) -> None:
        self._stream = stream
        self._stopping = stopping
        self._text = ""
        self._shown = 0
        self._cut = False

    def push(self, tokens: tuple[int, ...] | list[int]) -> str:
        """The text that can be shown now."""
        self._text += "".join(self._stream.push(token) for token in tokens)
        return self._show(self._stopping.safe_length(self._text))

    def flush(self) -> str:
        """The rest, when the sequence has ended."""
        self._text += self._stream.flush()
        return self._show(len(self._text))

    def _show(self, end: int) -> str:
        if self._cut:
            return ""
        whole = self._stopping.cut(self._text)
        self._cut = len(whole) < len(self._text)
        end = min(len(whole), end) if not self._cut else len(whole)
        shown, self._shown = whole[self._shown : end], max(self._shown, end)
        return shown


class TextEvents:
    """Iterate to get text as it becomes final; `generation` holds the result at the end.

    Closing it, or leaving the loop, cancels the request; what was emitted stays in `generation`.
    """

    def __init__(
        self, runner: Runner, handle: Handle, tokenizer: Tokenizer, finish: Finisher
    ) -> None:
        self._runner = runner
        self._handle = handle
        self._tokenizer = tokenizer
        self._finish = finish
        self._feeds: dict[int, TextFeed] = {}
        self._events = self._run()
        self._generation: Generation | None = None

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def __enter__(self) -> TextEvents:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def sequences(self) -> int:
        """How many samples the run will return."""
        return self._handle.decoder.sequences

    @property
    def generation(self) -> Generation:
        """The whole result, once the stream is at its end or closed."""
        if self._generation is None:
            raise DecoderyError("the stream is not at its end; read it to the end or close it")
        return self._generation

    def close(self) -> None:
        """Cancel what is still running; keep what was emitted."""
        self._events.close()
        self._settle()

    def _run(self) -> Generator[Event]:
        try:
            for emit in self._runner.stream(self._handle):
                text = self._feed(emit.sequence).push(list(emit.tokens))
                if text:
                    yield Event(text, emit.sequence)
            for sequence, feed in sorted(self._feeds.items()):
                text = feed.flush()
                if text:
                    yield Event(text, sequence)
        finally:
            self._settle()

    def _settle(self) -> None:
        if self._generation is None:
            self._runner.close()
            if self._handle.error is None:
                self._generation = self._finish(self._handle)

    def _feed(self, sequence: int) -> TextFeed:
        if sequence not in self._feeds:
            stopping = self._handle.task.stopping
            self._feeds[sequence] = TextFeed(self._tokenizer.stream(), stopping)
        return self._feeds[sequence]


def sample(completion: Completion, tokenizer: Tokenizer, stopping: Stopping) -> Sample:
    """The text form of a completion."""
    return Sample(
        text=stopping.cut(tokenizer.decode(completion.tokens)),
        tokens=completion.tokens,
        finish_reason=completion.finish_reason,
        log_probability=completion.log_probability,
        score=completion.score,
        details=completion.details,
    )
