"""The fit of an adapter: texts to tokens, AdamW on A and B, the loss on held-out texts.

Every step draws its texts from the seed and its own number, so a run that was interrupted takes the
steps it would have taken. The forward pass is transformers', in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from decodery.core.errors import ModelFileError, ParameterError
from decodery.models.adapters import base_norm, write_adapter
from decodery.models.architecture import MODEL_TYPES
from decodery.models.bounds import one_line, shown
from decodery.models.language import TokenizerLanguage
from decodery.models.parts import MadeFor, vocabulary_of
from decodery.models.tokenizer import Tokenizer
from decodery.models.weight_store import open_weights
from decodery.models.weights import read_json
from decodery.training.adapter.low_rank import LowRank, add_low_rank
from decodery.training.adapter.texts import Tokens, digest, read_texts, split, tokenised
from decodery.training.frame import Trained
from decodery.training.run import Run
from decodery.training.tools import optimizer_state, restore_optimizer

if TYPE_CHECKING:
    from decodery.training.adapter import Params

PHASE = "training"
_CLIP = 1.0
_IGNORED = -100


def fit(params: Params, run: Run) -> Trained:
    """The whole training."""
    from decodery.api.load import float_folder

    examples = read_texts(params.texts)
    folder, base = float_folder(params.model)
    language = TokenizerLanguage(Tokenizer.from_folder(folder), base, _vocabulary(folder))
    texts, cut = tokenised(examples, language, params.text_tokens)
    learnt, held = split(texts)
    with open_weights(folder) as store:
        norm = base_norm(store)
    model = _model(folder)
    added = add_low_rank(model, params.matrices, params.rank, params.alpha, params.seed)
    run.begin(base=norm, texts=digest(examples))
    before = run.kept("before", lambda: {"loss": torch.tensor(loss_of(model, held, run))})
    _train(params, run, model, added, learnt)
    facts = {
        "texts": len(texts),
        "texts cut": cut,
        "learnt weights": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "held-out loss before, nats a token": float(before["loss"]),
        "held-out loss after, nats a token": loss_of(model, held, run),
    }
    made_for = MadeFor(base, vocabulary_of(tuple(language.pieces())), model.config.hidden_size)
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        name: (item.first, item.second) for name, item in added.items()
    }
    return Trained({}, made_for, facts, partial(_write, pairs, params.alpha, base, norm))


def _write(
    pairs: dict[str, tuple[Tensor, Tensor]], alpha: float, base: str, norm: str, folder: Path
) -> Path:
    write_adapter(folder, pairs, alpha=alpha, base=base, base_norm=norm)
    return folder


def _vocabulary(folder: Path) -> int:
    config = read_json(folder / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        raise ParameterError(
            f"{folder}: adapters are trained and merged for {', '.join(MODEL_TYPES)}, not for"
            f" {shown(config.get('model_type'))}"
        )
    size = config.get("vocab_size")
    if type(size) is not int:
        raise ModelFileError(f"{folder}: vocab_size is {shown(size)}")
    return size


def _model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except Exception as error:  # a model class of transformers may raise anything
        raise ModelFileError(f"{folder}: transformers cannot load it: {one_line(error)}") from error
    return model.eval()  # no dropout: a step is a function of the seed


# -- training ------------------------------------------------------------------------------------


def _train(
    params: Params, run: Run, model: Any, added: dict[str, LowRank], learnt: Sequence[Tokens]
) -> None:
    weights = [part for item in added.values() for part in (item.first, item.second)]
    optimizer = torch.optim.AdamW(
        weights, lr=params.learning_rate, weight_decay=params.weight_decay
    )

    def state() -> dict[str, Tensor]:
        own = {f"weight.{number}": weight.detach() for number, weight in enumerate(weights)}
        return own | optimizer_state(optimizer)

    known = run.restored(PHASE)
    if known is not None:
        with torch.no_grad():
            for number, weight in enumerate(weights):
                weight.copy_(known[f"weight.{number}"])
        restore_optimizer(optimizer, known)
    for step in run.steps(PHASE, params.steps, state):
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * factor(step, params.steps, params.warmup)
        drawn = np.random.default_rng([params.seed, step]).integers(len(learnt), size=params.batch)
        total, count = _loss(model, [learnt[index] for index in drawn.tolist()])
        loss = total / count
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, _CLIP)
        if not norm.isfinite():
            raise ParameterError(f"step {step}: the loss is not finite; lower learning_rate")
        optimizer.step()
        run.note = f"loss {loss.item():.3f}"


def factor(step: int, steps: int, warmup: int) -> float:
    """What the learning rate is multiplied with: up in a line, down in half a cosine.

    >>> [round(factor(step, 4, 1), 3) for step in range(4)]
    [1.0, 1.0, 0.75, 0.25]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def loss_of(model: Any, texts: Sequence[Tokens], run: Run, most: int = 64) -> float:
    """The mean loss, in nats a learnt token, of the first texts."""
    total, count = 0.0, 0
    chosen = texts[:most]
    with torch.inference_mode():
        for number, text in enumerate(chosen, 1):
            loss, tokens = _loss(model, [text])
            total, count = total + float(loss), count + tokens
            run.show("measuring", number, len(chosen))
    return total / count


def _loss(model: Any, texts: Sequence[Tokens]) -> tuple[Tensor, int]:
    """The sum of -ln p over the learnt tokens of a batch, and how many these are."""
    longest = max(len(text.tokens) for text in texts)
    tokens = torch.zeros((len(texts), longest), dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    labels = torch.full_like(tokens, _IGNORED)
    for row, text in enumerate(texts):
        size = len(text.tokens)
        tokens[row, :size] = torch.tensor(text.tokens)
        mask[row, :size] = 1
        labels[row, text.first - 1 : size - 1] = tokens[row, text.first : size]
    hidden = model.model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    wanted = labels != _IGNORED
    logits = model.lm_head(hidden[wanted])  # most positions are prompts: not needed
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return F.cross_entropy(logits.float(), labels[wanted], reduction="sum"), int(wanted.sum())
