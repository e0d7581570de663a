"""Training a low-rank adapter: a small fine-tune of a model on texts of one kind.

The model is frozen; to each chosen matrix W a product B A of rank `rank` is added, and A and B are
fitted to the texts by AdamW. Of a conversation only the answer counts, of a plain text all of it.
The result is a folder in PEFT's layout, for `load(adapter=...)` and as an attribute of method mpg.

    {"prompt": "How are you?", "response": "Arr, shipshape, matey!"}     a line of a .jsonl file
    {"text": "All of this counts."}                                      another one
    All of this counts.                                                  a line of any other file

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA (2021), arXiv:2106.09685.
"""

from __future__ import annotations

from decodery.core.params import parameter
from decodery.training.frame import Trained, Training, TrainingParams
from decodery.training.run import Run

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Params(TrainingParams):
    texts: tuple[str, ...] = parameter(
        help="Files to learn from: .jsonl of prompt and response or of text, or one text a line."
    )
    rank: int = parameter(8, ge=1, le=256, help="Rank of the sum that is added to a matrix.")
    alpha: float = parameter(
        16.0, gt=0.0, le=4096.0, help="Scale: the sum is multiplied with alpha / rank."
    )
    matrices: tuple[str, ...] = parameter(
        MATRICES, help=f"Which matrices of a layer to add to, of {', '.join(MATRICES)}."
    )
    steps: int = parameter(200, ge=1, le=1_000_000, help="How many steps to take.")
    batch: int = parameter(8, ge=1, le=4096, unit="texts", help="Texts in a step.")
    text_tokens: int = parameter(
        256, ge=2, le=32768, unit="tokens", help="Of a text at most these many, from its beginning."
    )
    learning_rate: float = parameter(1e-3, gt=0.0, le=1.0, help="Highest learning rate of AdamW.")
    weight_decay: float = parameter(0.0, ge=0.0, le=1.0, help="Weight decay of AdamW.")
    warmup: int = parameter(
        10, ge=0, unit="steps", help="Steps in which the learning rate rises; then it falls to 0."
    )


def train(params: Params, run: Run) -> Trained:
    from decodery.training.adapter.fit import fit

    return fit(params, run)


TRAINING = Training(
    "adapter",
    "A low-rank adapter: a small fine-tune on texts of one kind (load(adapter=...), method mpg).",
    Params,
    train,
)
