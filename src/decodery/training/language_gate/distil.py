"""Self-distillation of a language gate: texts, features of a frozen model, labels, and the fit.

Labels: z~_v = z_v * mean_u ||e_u|| / ||e_v||; the candidates are the top k of z~ whose mass before
them is below p, probabilities taken over the whole vocabulary (so the crossing token and the top
one are in); y_i = 1 where a candidate is of family i. Loss: the mean over positions and families of
the binary cross-entropy of y and sigmoid(A2 relu(A1 h)).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from decodery.core.decoder import Task
from decodery.core.errors import DecoderyError, ModelFileError, ParameterError
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.sampler import chain
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.sample import Sample
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.token_families import NAMES, families_of
from decodery.models.bounds import file_bytes
from decodery.training.frame import Trained
from decodery.training.language_gate.sentences import MIXED, QUESTIONS, SENTENCES
from decodery.training.run import Run
from decodery.training.tools import (
    Norms,
    hidden_states,
    optimizer_state,
    output_norms,
    restore_optimizer,
)

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel
    from decodery.training.language_gate import Params

MAX_TEXT_BYTES = 64 << 20
LONGEST = 2048  # tokens of a text; the rest of it is left out
_TEXTS = 16  # in a chunk of what is kept
_ROWS = 128  # positions whose labels are computed at once
_HELD_OUT = 10  # one text in so many is not learnt from
_CLIP = 1.0

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Features:
    """What the gate is fitted to: hidden [n, width] float32, labels [n, 4] 0 or 1."""

    hidden: Tensor
    labels: Tensor


def distil(params: Params, run: Run) -> Trained:
    """The whole training, in phases that a resumed run finds again."""
    texts, questions = given(params)
    from decodery.api.load import load

    lm = load(params.model)
    digest = hashlib.sha256("\0".join([*texts, *questions]).encode()).hexdigest()
    run.begin(model=lm.name, vocabulary=lm.identity.vocabulary, texts=digest)
    paths = paths_of(lm, params, run, texts, questions)
    teacher = Teacher.of(lm, params)
    learnt, held = (
        _features(_in_chunks(run, f"features-{name}", part, teacher.features))
        for name, part in _split(paths)
    )
    first, second = fit(params, run, learnt)
    halves = [tensor.half() for tensor in (first, second)]
    facts = {
        "texts": len(paths),
        "positions": len(learnt.hidden),
        "held-out positions": len(held.hidden),
        **_norm_facts(teacher.norms, teacher.families),
        **agreement(halves[0].float(), halves[1].float(), held),
    }
    tensors = {name: half.numpy() for name, half in zip(("A1", "A2"), halves, strict=True)}
    return Trained(tensors, lm.identity, facts)


# -- texts -----------------------------------------------------------------------------------------


def given(params: Params) -> tuple[list[str], list[str]]:
    """The texts to learn from, and questions for the model to answer."""
    if not params.texts:
        sentences = [text for group in SENTENCES.values() for text in group]
        return [*sentences, *MIXED], [text for group in QUESTIONS.values() for text in group]
    texts: list[str] = []
    for name in params.texts:
        try:
            content = file_bytes(Path(name).expanduser(), MAX_TEXT_BYTES).decode()
        except UnicodeDecodeError:
            raise ModelFileError(f"{name}: is not UTF-8 text") from None
        texts += [line for line in content.splitlines() if line.strip()]
    if len(texts) < 2:
        raise ParameterError(f"the files of texts hold {len(texts)} texts; give two or more lines")
    return texts, []


def paths_of(
    lm: LanguageModel, params: Params, run: Run, texts: Sequence[str], questions: Sequence[str]
) -> list[tuple[int, ...]]:
    """The texts as tokens, and after them what the model writes: each is learnt from."""
    own = [lm.language.encode(text)[:LONGEST] for text in texts]
    prompts = _prompts(lm, params, own, questions)
    written = _in_chunks(run, "texts", prompts, partial(_write, lm, params))
    return [path for path in own if path] + [
        tuple(tokens[:length].tolist())
        for chunk in written
        for tokens, length in zip(chunk["tokens"], chunk["lengths"], strict=True)
    ]


def _prompts(
    lm: LanguageModel,
    params: Params,
    paths: Sequence[Sequence[int]],
    questions: Sequence[str],
) -> list[tuple[int, ...]]:
    """What the model writes after: questions, and the first third of each text."""
    asked = [lm.read(question).tokens for question in questions] if lm.language.has_chat else []
    begun = [tuple(path[: max(1, len(path) // 3)]) for path in paths if path]
    return [*asked, *begun] * params.continuations


def _write(
    lm: LanguageModel,
    params: Params,
    start: int,
    prompts: Sequence[Sequence[int]],
) -> Batch:
    """The prompts of a chunk with what the model writes after them, all at once."""
    policy = lm | chain(Temperature(params.text_temperature))
    runner = Runner()
    stopping = Stopping(params.text_tokens, eos_ids=lm.eos_ids)
    handles = [
        runner.submit(
            Sample(1),
            Task(policy, tuple(prompt), stopping, Stream(params.seed * 2**20 + start + number)),
        )
        for number, prompt in enumerate(prompts)
    ]
    try:
        runner.run()
    finally:
        runner.close()
    rows = [
        torch.tensor([*prompt, *handle.result()[0].tokens])
        for prompt, handle in zip(prompts, handles, strict=True)
    ]
    return {
        "tokens": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        "lengths": torch.tensor([len(row) for row in rows]),
    }


def _in_chunks(
    run: Run,
    name: str,
    items: Sequence[Sequence[int]],
    make: Callable[[int, Sequence[Sequence[int]]], Batch],
) -> list[Batch]:
    """`make` of where a chunk starts and its items, a few at a time, each result kept."""
    chunks: list[Batch] = []
    for start in range(0, len(items), _TEXTS):
        run.show(name, start, len(items))
        part = items[start : start + _TEXTS]
        key = f"{name}-{start // _TEXTS:04d}"
        chunks.append(run.kept(key, partial(make, start, part)))
    run.show(name, len(items), len(items))
    return chunks


def _split(paths: Sequence[Sequence[int]]) -> list[tuple[str, list[Sequence[int]]]]:
    """The texts to learn from, and those held out to measure on."""
    held = [path for number, path in enumerate(paths) if number % _HELD_OUT == _HELD_OUT - 1]
    learnt = [path for number, path in enumerate(paths) if number % _HELD_OUT != _HELD_OUT - 1]
    return [("learnt", learnt), ("held", held or learnt)]


# -- labels ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Teacher:
    """The frozen model as a teacher; `families` [vocab_size]."""

    lm: LanguageModel
    families: Tensor
    norms: Norms
    params: Params

    @classmethod
    def of(cls, lm: LanguageModel, params: Params) -> Teacher:
        families = torch.tensor(families_of(tuple(lm.language.pieces()))).long()
        return cls(lm, families, output_norms(lm.transformer), params)

    def features(self, _start: int, paths: Sequence[Sequence[int]]) -> Batch:
        """Hidden states and labels of every position of some texts."""
        pairs = [(rows, self.label(logits)) for rows, logits in states(self.lm, paths)]
        hidden, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return {"hidden": hidden, "labels": labels.to(torch.uint8)}

    def label(self, logits: Tensor) -> Tensor:
        """Which families [n, 4] the candidates of logits [n, vocab] are of."""
        adjusted = self.norms.adjust(logits, self.params.norm_adjust)
        return candidate_families(
            adjusted, self.families, self.params.label_top_k, self.params.label_top_p
        )


def states(lm: LanguageModel, paths: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states [n, width] and logits [n, vocab] of all positions, some at a time."""
    transformer = lm.transformer
    hidden = torch.cat([hidden_states(transformer, path).float().cpu() for path in paths])
    for rows in hidden.split(_ROWS):
        with torch.no_grad():
            logits = transformer.logits(rows.to(transformer.device, transformer.dtype))
        yield rows, logits.float().cpu()


def candidate_families(logits: Tensor, families: Tensor, top_k: int, top_p: float) -> Tensor:
    """Which families [n, 4] are among the top k of logits [n, vocab] with mass below p before."""
    best = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    mass = (best.values - logits.logsumexp(-1, keepdim=True)).exp()
    inside = mass.cumsum(-1) - mass < top_p
    inside[:, 0] = True
    named = F.one_hot(families[best.indices], len(NAMES)).bool()
    return (named & inside[..., None]).any(1)


def _features(chunks: Sequence[Batch]) -> Features:
    hidden = torch.cat([chunk["hidden"] for chunk in chunks])
    labels = torch.cat([chunk["labels"] for chunk in chunks])
    return Features(hidden, labels.float())


# -- the fit ---------------------------------------------------------------------------------------


def fit(params: Params, run: Run, features: Features) -> tuple[Tensor, Tensor]:
    """A1 [width, width] and A2 [4, width], float32, by AdamW in the steps of the run."""
    width, count = features.hidden.shape[1], len(features.hidden)
    per_epoch = -(-count // params.batch)
    total = params.epochs * per_epoch
    drawn = torch.Generator().manual_seed(params.seed)
    bound = width**-0.5
    weights = [
        torch.empty(size, width).uniform_(-bound, bound, generator=drawn)
        for size in (width, len(NAMES))
    ]
    restored = run.restored("fit")
    if restored is not None:
        weights = [restored[name] for name in ("A1", "A2")]
    first, second = (weight.requires_grad_() for weight in weights)
    optimizer = torch.optim.AdamW(
        [first, second], lr=params.learning_rate, weight_decay=params.weight_decay
    )
    if restored is not None:
        restore_optimizer(optimizer, restored)

    def state() -> dict[str, Tensor]:
        return {"A1": first.detach(), "A2": second.detach(), **optimizer_state(optimizer)}

    epoch, order = -1, np.empty(0, dtype=np.intp)
    for step in run.steps("fit", total, state):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = np.random.default_rng([params.seed, epoch]).permutation(count)
        place = step % per_epoch * params.batch
        rows = torch.from_numpy(order[place : place + params.batch])
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * _schedule(step, total, params.warmup)
        optimizer.zero_grad()
        scores = gate_scores(first, second, features.hidden[rows])
        loss = F.binary_cross_entropy_with_logits(scores, features.labels[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_([first, second], _CLIP)
        optimizer.step()
        if not bool(torch.isfinite(loss)):
            raise DecoderyError(f"the loss is {loss.item()} at step {step}; lower learning_rate")
        run.note = f"loss {loss.item():.4f}"
    return first.detach(), second.detach()


def _schedule(step: int, total: int, warmup: int) -> float:
    """The share of the learning rate: it rises for `warmup` steps, then falls to 0 at the end."""
    rising = (step + 1) / warmup if warmup else 1.0
    return min(rising, (total - step) / max(1, total - warmup), 1.0)


def gate_scores(first: Tensor, second: Tensor, hidden: Tensor) -> Tensor:
    """u [n, 4] of hidden states [n, width]."""
    return F.linear(F.relu(F.linear(hidden, first)), second)


# -- what was measured -----------------------------------------------------------------------------


def agreement(first: Tensor, second: Tensor, features: Features) -> dict[str, float]:
    """How often gate and label agree, for each family: of all, of those labelled, of the others."""
    passed = gate_scores(first, second, features.hidden) >= 0
    wanted = features.labels.bool()
    facts: dict[str, float] = {}
    for family, name in enumerate(NAMES):
        given, said = wanted[:, family], passed[:, family]
        facts[f"{name}: labelled"] = float(given.float().mean())
        facts[f"{name}: gate agrees"] = float((given == said).float().mean())
        for value, what in ((True, "passed where labelled"), (False, "stopped where not")):
            rows = given == value
            if bool(rows.any()):
                facts[f"{name}: {what}"] = float((said[rows] == value).float().mean())
    return facts


def _norm_facts(norms: Norms, families: Tensor) -> dict[str, Any]:
    """The mean norms of each family's output embeddings."""
    return {
        f"{name}: mean {what}norm": float(values[families == family].mean())
        for family, name in enumerate(NAMES)
        if bool((families == family).any())
        for what, values in (("", norms.plain), ("centred ", norms.centred))
    }
