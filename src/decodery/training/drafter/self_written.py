"""Prompts that the model writes itself: a conversation is cut off where the user begins to speak.

What it was tuned on comes back in all its breadth, more than templates have. Xu et al.: Magpie
(2024), arXiv:2406.08464.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.sampler import chain
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.sample import Sample
from decodery.training.run import Run

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel

LONGEST = 128  # tokens of a prompt; those that go on are not used
_TOGETHER = 48  # written side by side
_SALT = 9  # of the seeds; answers have others
_PLACE = "what the user says"


def opening(lm: LanguageModel) -> tuple[int, ...]:
    """A conversation as the model reads it, up to the first word of the user."""
    text = lm.language.chat_text([{"role": "user", "content": _PLACE}])
    before, found, _ = text.partition(_PLACE)
    if not found or not before:
        raise ParameterError(
            f"{lm.name} cannot write prompts: its chat template does not show where a user begins;"
            " give prompts"
        )
    return tuple(lm.tokenizer.encode(before, add_special=False))


def self_written(lm: LanguageModel, seed: int, run: Run, count: int) -> list[str | None]:
    """`count` prompts drawn at temperature 1; None for one that was empty or did not end."""
    before = opening(lm)
    found: list[str | None] = []
    for start in range(0, count, _TOGETHER):
        run.show("prompts", start, count)
        make = partial(_write, lm, before, seed, start, min(_TOGETHER, count - start))
        kept = run.kept(f"prompts-{start // _TOGETHER:05d}", make)
        parts = kept["tokens"].split(kept["lengths"].tolist())
        found.extend(lm.tokenizer.decode(part.tolist()).strip() or None for part in parts)
    run.show("prompts", count, count)
    return found


def _write(
    lm: LanguageModel, before: tuple[int, ...], seed: int, start: int, count: int
) -> Mapping[str, Tensor]:
    """Some prompts, one behind the other; of one that did not end nothing."""
    stopping = Stopping(LONGEST, eos_ids=lm.eos_ids)
    runner = Runner()
    try:
        tasks = [
            Task(lm | chain(), before, stopping, Stream((seed * 16 + _SALT) * 2**24 + number))
            for number in range(start, start + count)
        ]
        handles = [runner.submit(Sample(), task) for task in tasks]
        runner.run()
    finally:
        runner.close()
    texts = [handle.result()[0] for handle in handles]
    ended = [text.tokens[:-1] if text.finish_reason == "eos" else () for text in texts]
    return {
        "tokens": torch.tensor([token for tokens in ended for token in tokens], dtype=torch.int32),
        "lengths": torch.tensor([len(tokens) for tokens in ended]),
    }
