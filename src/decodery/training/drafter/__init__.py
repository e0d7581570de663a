"""Training a drafter: a small recurrent head that guesses what the model says next.

The model answers prompts, half of them its own (`self_written.py`); at every token its hidden state
and its most probable next tokens are recorded (`record.py`). The head is given the hidden state
before the last token, and that token, and is fitted to the model's law after it and after the
tokens that follow (`fit.py`), so that it can draft several tokens without the model. It guesses
among a few likely successors of the last token only, which makes a guess cost much less than a step
of the model (`methods/speculative/distilled.py`).

Ankner et al.: Hydra (2024), arXiv:2402.05109, and Li et al.: EAGLE (2024), arXiv:2401.15077, for
heads that read the model's hidden state and the drafted tokens; the shortlist is our own.
"""

from __future__ import annotations

from decodery.core.params import parameter
from decodery.training.frame import Trained, Training, TrainingParams
from decodery.training.run import Run


class Params(TrainingParams):
    prompts: tuple[str, ...] = parameter(
        (),
        help="Files of prompts, UTF-8, one prompt a line; default: half from templates of many"
        " kinds, half written by the model itself.",
    )
    answers: int = parameter(
        3000,
        ge=2,
        le=1_000_000,
        help="How many answers the model writes, where no prompts are given.",
    )
    text_tokens: int = parameter(
        200, ge=4, le=4096, unit="tokens", help="Most tokens of an answer."
    )
    text_temperature: float = parameter(
        0.7,
        gt=0.0,
        le=10.0,
        help="Temperature of every other answer, the rest are greedy; and of"
        " the law that is learnt.",
    )
    vocabulary: int = parameter(
        4096, ge=1, le=1 << 20, unit="tokens", help="The most frequent tokens: those it knows."
    )
    shortlist: int = parameter(
        256, ge=1, le=1 << 16, unit="tokens", help="Successors of a token that it chooses from."
    )
    state: int = parameter(256, ge=1, le=1 << 14, unit="units", help="Width of its state.")
    inner: int = parameter(512, ge=1, le=1 << 14, unit="units", help="Width of its inner layer.")
    factors: int = parameter(
        96, ge=1, le=1 << 14, unit="units", help="Width of its output embeddings."
    )
    depth: int = parameter(3, ge=1, le=16, unit="tokens", help="Tokens ahead that it learns from.")
    epochs: int = parameter(4, ge=1, le=1000, help="How often each position is learnt from.")
    batch: int = parameter(512, ge=1, unit="positions", help="Positions in a step.")
    learning_rate: float = parameter(3e-3, gt=0.0, le=1.0, help="Highest learning rate of AdamW.")
    weight_decay: float = parameter(0.1, ge=0.0, le=1.0, help="Weight decay of AdamW.")
    dropout: float = parameter(
        0.2, ge=0.0, lt=1.0, help="Share of the inner layer that a step leaves out by chance."
    )
    warmup: int = parameter(
        50, ge=0, unit="steps", help="Steps in which the learning rate rises; then it falls to 0."
    )


def train(params: Params, run: Run) -> Trained:
    from decodery.training.drafter.distil import distil

    return distil(params, run)


TRAINING = Training(
    "drafter",
    "A small head that drafts the model's next tokens (speculative decoding).",
    Params,
    train,
)
