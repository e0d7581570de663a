"""Running a small random Llama under transformers' `generate` and under our decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import decodery as dc
from decodery.api.transformers_bridge import SamplerProcessor, as_logits_processor
from decodery.core.decoder import Decoder, Task
from decodery.core.runner import run_alone
from decodery.core.sampler import Sampler
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.models.causal import CausalModel

VOCAB, PAD, EOS = 61, 0, 2  # of the fixtures `small_peer` and `small_model`
STEPS = 14
PROMPTS = [[5, 6, 7, 5, 6], [9, 10], [11, 4, 3, 11]]


def padded(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = [[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def generated(peer: Any, processor: Any, prompts: Any = None, **options: Any) -> Any:
    """`generate` with our processor and none of its own settings."""
    inputs = padded(PROMPTS if prompts is None else prompts)
    plain: dict[str, Any] = {"do_sample": False, "max_new_tokens": STEPS, "top_k": 0}
    with torch.no_grad():
        parts = list(processor) if isinstance(processor, list) else [processor]
        return peer.generate(**inputs, **{**plain, **options}, logits_processor=parts)


def answers(output: Any, prompts: Sequence[Sequence[int]], copies: int = 1) -> list[list[int]]:
    """The tokens behind each prompt, up to the end token."""
    width = max(map(len, prompts))
    rows = [row[width:] for row in output.tolist()]
    assert len(rows) == copies * len(prompts)
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


def ours(model: CausalModel, sampler: Sampler, decoder: Decoder, prompt: Sequence[int]) -> Any:
    stopping = Stopping(STEPS, model.eos_ids)
    return run_alone(decoder, Task(Policy(model, dc.chain(sampler)), tuple(prompt), stopping))


def processor_of(sampler: Sampler, peer: Any, **options: Any) -> SamplerProcessor:
    mask = padded(PROMPTS)["attention_mask"]
    return as_logits_processor(sampler, peer, **{"attention_mask": mask, **options})
