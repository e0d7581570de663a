"""Training a language gate: the model's own candidates teach a gate which scripts may come next.

The model is frozen. At every position of the texts its logits are divided by the norms of their
output embeddings, and the script families of the candidates are the label (`distil.py`). The paper
takes the top 20 within mass 0.95 as candidates. A model of 135 million parameters nearly always has
a Latin token there, and a gate that learns so stops next to nothing; the default is the likeliest
token alone, so that the gate says which family is likelier than not. Texts are the user's, or
sentences in fourteen languages; the model continues their beginnings and answers questions, and
learns from what it wrote as well.

Zhang, Huang, Yuan, Lin: Language Confusion Gate (2025), arXiv:2510.17555. They train on 78,000
texts; a small gate for a small model is trained on a few hundred here, in more and larger steps.
"""

from __future__ import annotations

from typing import Literal

from decodery.core.params import parameter
from decodery.training.frame import Trained, Training, TrainingParams
from decodery.training.run import Run


class Params(TrainingParams):
    texts: tuple[str, ...] = parameter(
        (), help="Files of texts, UTF-8, one text a line; default: sentences in many languages."
    )
    continuations: int = parameter(
        4, ge=0, le=100, help="How often the model continues the beginning of each text."
    )
    text_tokens: int = parameter(
        64, ge=1, le=2048, unit="tokens", help="Most tokens that the model writes at a time."
    )
    text_temperature: float = parameter(
        1.0, gt=0.0, le=10.0, help="Temperature at which the model writes."
    )
    label_top_k: int = parameter(
        1, ge=1, unit="tokens", help="Top-k of the model's candidates; the paper has 20."
    )
    label_top_p: float = parameter(
        0.95, gt=0.0, le=1.0, unit="probability", help="Top-p of the model's candidates."
    )
    norm_adjust: Literal["centred", "mean", "absolute", "off"] = parameter(
        "centred",
        help="Divide logits by norms of output embeddings: both from their mean, the norms relative"
        " to theirs, or as they are.",
    )
    epochs: int = parameter(6, ge=1, le=1000, help="How often each position is learnt from.")
    batch: int = parameter(256, ge=1, unit="positions", help="Positions in a step.")
    learning_rate: float = parameter(1e-3, gt=0.0, le=1.0, help="Highest learning rate of AdamW.")
    weight_decay: float = parameter(0.01, ge=0.0, le=1.0, help="Weight decay of AdamW.")
    warmup: int = parameter(
        100, ge=0, unit="steps", help="Steps in which the learning rate rises; then it falls."
    )


def train(params: Params, run: Run) -> Trained:
    from decodery.training.language_gate.distil import distil

    return distil(params, run)


TRAINING = Training(
    "language_gate",
    "A gate that keeps wrong scripts out of a model's answers (method language_gate).",
    Params,
    train,
)
