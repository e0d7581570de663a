"""What a request must satisfy before it runs: prompts that fit, and slots for all it may need."""

from __future__ import annotations

from decodery.core.decoder import Decoder, Task
from decodery.core.source import Model


def needs(decoder: Decoder, task: Task) -> dict[Model, int]:
    """The slots of every model that the request may need; members have prompts of their own."""
    task.policy.source.check_prompt(task.prompt, task.stopping.max_tokens)
    return decoder.slots(task)
