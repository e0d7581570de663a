"""When a sequence ends: end tokens, stop ids, stop strings across token borders, token budget.

The rule looks at a path, not at a loop: whatever way a token came to be on the path (plain draw,
accepted draft, beam), the same tokens end at the same place. Budgets of calls and seconds belong
to the request and are kept by the runner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from decodery.core.errors import ParameterError
from decodery.core.tree import Node

FinishReason = Literal[
    "eos", "stop_id", "stop_string", "max_tokens", "max_calls", "max_seconds", "cancelled"
]
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 1000


@dataclass(frozen=True)
class Stopping:
    """The ends of a sequence.

    `max_tokens` counts tokens after the prompt. `stop` holds strings; the text is cut before the
    first one, and they are found however tokens split them. `decode` turns token ids into text and
    is needed only for `stop`. With `ignore_eos` the end tokens are ordinary tokens.
    """

    max_tokens: int
    eos_ids: frozenset[int] = frozenset()
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    decode: Callable[[Sequence[int]], str] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ParameterError(f"max_tokens {self.max_tokens} is below 1")
        check_stop_strings(self.stop)
        if self.stop and self.decode is None:
            raise ParameterError("stop strings need a source with a tokenizer")

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a text wherever they stand."""
        return self.stop_ids if self.ignore_eos else self.stop_ids | self.eos_ids

    def reason(self, node: Node) -> FinishReason | None:
        """Why the path ends at `node`, or None. Assumes that no earlier node ended it."""
        if not self.ignore_eos and node.token in self.eos_ids:
            return "eos"
        if node.token in self.stop_ids:
            return "stop_id"
        if self.stop and self._completes_stop_string(node):
            return "stop_string"
        if node.depth - len(node.tree.prompt) >= self.max_tokens:
            return "max_tokens"
        return None

    def _completes_stop_string(self, node: Node) -> bool:
        # Every token that is not special holds at least one byte, so this many tokens cover the
        # longest stop string, the rest of a split character, and one more for decoders that treat
        # the first token of a text in a special way.
        assert self.decode is not None
        longest = max(len(stop.encode()) for stop in self.stop)
        text = self.decode(node.tail(longest + 5))
        return any(stop in text for stop in self.stop)

    def cut(self, text: str) -> str:
        """`text` before the first stop string."""
        places = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text

    def safe_length(self, text: str) -> int:
        """How much of `text` can be shown while a stop string may still be completing."""
        held = 0
        for stop in self.stop:
            for size in range(min(len(stop) - 1, len(text)), held, -1):
                if text.endswith(stop[:size]):
                    held = size
                    break
        return len(text) - held


def check_stop_strings(stop: Sequence[str]) -> None:
    """Refuse too many, too long or empty stop strings."""
    if len(stop) > MAX_STOP_STRINGS:
        raise ParameterError(f"{len(stop)} stop strings; at most {MAX_STOP_STRINGS} are allowed")
    for text in stop:
        if not text:
            raise ParameterError("a stop string is empty; give at least one character")
        if len(text) > MAX_STOP_CHARACTERS:
            raise ParameterError(
                f"a stop string has {len(text)} characters; at most {MAX_STOP_CHARACTERS}"
            )
