"""What a request must satisfy before it runs: prompts that fit, and slots for all it may need."""

from __future__ import annotations

from collections.abc import Sequence

from decodery.core.decoder import Decoder, Task
from decodery.core.errors import PromptError
from decodery.core.source import Blend, Model, Source, leaves


def check_prompt(source: Source, prompt: Sequence[int], max_tokens: int) -> None:
    if not prompt:
        raise PromptError("the prompt is empty; give at least one token")
    if min(prompt) < 0 or max(prompt) >= source.vocab_size:
        raise PromptError(f"the prompt has a token outside the vocabulary of {source.vocab_size}")
    limit = source.context_length
    if limit is not None and len(prompt) + max_tokens > limit:
        asked = f" and max_tokens {max_tokens}" if max_tokens else ""
        raise PromptError(
            f"the prompt of {len(prompt)} tokens{asked} exceed the context of {limit} tokens"
            f" of {source.name}"
        )


def needs(decoder: Decoder, task: Task) -> dict[Model, int]:
    """The slots of every model that the request may need; members have prompts of their own."""
    slots: dict[Model, int] = {}
    source = task.policy.source
    for leaf, prompt in zip(leaves(source), _leaf_prompts(source, task.prompt), strict=True):
        check_prompt(leaf, prompt, task.stopping.max_tokens)
        need = decoder.footprint(len(prompt), task.stopping.max_tokens)
        slots[leaf] = slots.get(leaf, 0) + need
    return slots


def _leaf_prompts(source: Source, prompt: Sequence[int]) -> list[Sequence[int]]:
    """The prompts of `leaves(source)`, in their order."""
    if not isinstance(source, Blend):
        return [prompt]
    pairs = zip(source.members, source.prompts(prompt), strict=True)
    return [own for member, given in pairs for own in _leaf_prompts(member, given)]
