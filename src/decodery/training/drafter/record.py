"""What a drafter learns from: answers of the model, with its hidden states and laws at every token.

A text is the last token of a prompt and the answer after it, its last token excepted. At each of
these the model's hidden state is kept, and the `TOP` most probable next tokens with their ln p.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from decodery.core.decoder import Decoder, Decoding, Task, completion
from decodery.core.errors import ModelFileError, ParameterError
from decodery.core.handle import Handle
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner
from decodery.core.sampler import Context, Sampler, State, chain
from decodery.core.stopping import Stopping
from decodery.methods.sampling.temperature import Temperature
from decodery.models.bounds import file_bytes
from decodery.training.drafter.prompts import Message, first_round, second_round
from decodery.training.drafter.self_written import self_written
from decodery.training.run import Run

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel
    from decodery.training.drafter import Params

TOP = 16
MAX_PROMPT_BYTES = 64 << 20
LONGEST = 1024  # tokens of a prompt; longer ones are left out
_AGAIN = 5  # of so many answers one is to the second round
_TEXTS = 48  # in a chunk of what is kept, decoded side by side
_HELD_OUT = 40  # of so many texts two, a greedy and a drawn one, are not learnt from

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Record:
    """Texts one behind the other, n positions in all.

    tokens [n] int64; hidden [n, width] float16; top [n, TOP] ids int64, log_chances [n, TOP] their
    ln p at temperature 1, best first; lengths [texts], and which of them are greedy [texts].
    """

    tokens: Tensor
    hidden: Tensor
    top: Tensor
    log_chances: Tensor
    lengths: Tensor
    greedy: Tensor

    @classmethod
    def joined(cls, chunks: Sequence[Batch]) -> Record:
        return cls(
            torch.cat([chunk["tokens"] for chunk in chunks]).long(),
            torch.cat([chunk["hidden"] for chunk in chunks]),
            torch.cat([chunk["top"] for chunk in chunks]).long(),
            torch.cat([chunk["log_chances"] for chunk in chunks]).float(),
            torch.cat([chunk["lengths"] for chunk in chunks]).long(),
            torch.cat([_greedy(len(chunk["lengths"])) for chunk in chunks]),
        )

    def texts(self, kept: Sequence[bool]) -> Record:
        """Only some of the texts."""
        chosen = torch.tensor(list(kept))
        rows = torch.repeat_interleave(chosen, self.lengths)
        return Record(
            self.tokens[rows],
            self.hidden[rows],
            self.top[rows],
            self.log_chances[rows],
            self.lengths[chosen],
            self.greedy[chosen],
        )

    def left(self) -> Tensor:
        """How many positions of its text come after each position [n]."""
        return torch.cat([torch.arange(int(count) - 1, -1, -1) for count in self.lengths])

    def split(self) -> tuple[Record, Record]:
        """Texts to learn from, and one in twenty to measure on; of fewer, all are both."""
        held = [number % _HELD_OUT >= _HELD_OUT - 2 for number in range(len(self.lengths))]
        if not any(held):
            return self, self
        return self.texts([not item for item in held]), self.texts(held)


# -- prompts and answers -----------------------------------------------------------------------


def given(params: Params) -> list[list[Message]]:
    """The prompts of the files, or those of the first round, all from templates."""
    if not params.prompts:
        return first_round(params.answers - params.answers // _AGAIN, params.seed)
    found: list[list[Message]] = []
    for name in params.prompts:
        try:
            content = file_bytes(Path(name).expanduser(), MAX_PROMPT_BYTES).decode()
        except UnicodeDecodeError:
            raise ModelFileError(f"{name}: is not UTF-8 text") from None
        lines = (line for line in content.splitlines() if line.strip())
        found.extend([{"role": "user", "content": line}] for line in lines)
    if not found:
        raise ParameterError("prompts: the files hold no prompt; give lines of text")
    return found


def digest(conversations: Sequence[Sequence[Message]]) -> str:
    """A fingerprint of all prompts."""
    parts = [message["content"] for item in conversations for message in item]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def recorded(
    lm: LanguageModel, params: Params, run: Run, first: Sequence[Sequence[Message]]
) -> Record:
    """The answers to all prompts; where none were given, of two rounds.

    Where no prompts were given every other one of the first round is the model's own, if it has a
    chat and ended that one.
    """
    if not params.prompts and lm.language.has_chat:
        own = self_written(lm, params.seed, run, len(first) // 2)
        first = [
            [{"role": "user", "content": text}] if text else asked
            for asked, text in zip(first, _spread(own, len(first)), strict=True)
        ]
    chunks = _answered(lm, params, run, "first", first)
    again = 0 if params.prompts else params.answers // _AGAIN
    if again:
        answers = [lm.tokenizer.decode(tokens) for chunk in chunks for tokens in _answers(chunk)]
        second = second_round(first[:again], answers, params.seed)
        chunks += _answered(lm, params, run, "second", second)
    return Record.joined(chunks)


def _spread(own: Sequence[str | None], count: int) -> list[str | None]:
    """One in each second place of `count`, by turns an even and an odd one: greedy and drawn."""
    found: list[str | None] = [None] * count
    for number, text in enumerate(own):
        found[2 * number + number % 2] = text
    return found


def _greedy(count: int) -> Tensor:
    """Which texts of a chunk are greedy: every other one, from the first."""
    return torch.arange(count) % 2 == 0


def _answers(chunk: Batch) -> list[list[int]]:
    """The answers of a chunk; a prompt that was left out has an empty one."""
    parts = chunk["tokens"].split(chunk["lengths"].tolist())
    return [part[1:].tolist() for part in parts]


def _answered(
    lm: LanguageModel,
    params: Params,
    run: Run,
    name: str,
    conversations: Sequence[Sequence[Message]],
) -> list[Batch]:
    """The answers to some prompts, a chunk at a time, each chunk kept."""
    chunks: list[Batch] = []
    for start in range(0, len(conversations), _TEXTS):
        run.show(f"answers, {name} round", start, len(conversations))
        part = conversations[start : start + _TEXTS]
        make = partial(_write, lm, params, start, part, len(name))
        chunks.append(run.kept(f"{name}-{start // _TEXTS:05d}", make))
    run.show(f"answers, {name} round", len(conversations), len(conversations))
    return chunks


def _write(
    lm: LanguageModel,
    params: Params,
    start: int,
    conversations: Sequence[Sequence[Message]],
    salt: int,
) -> Batch:
    """The answers to a chunk of prompts, decoded side by side."""
    stopping = Stopping(params.text_tokens, eos_ids=lm.eos_ids)
    samplers = (chain(Temperature(params.text_temperature), Reading()), chain(Reading()))
    recorders: list[Recorder] = []
    handles: list[Handle] = []
    runner = Runner()
    try:
        greedy = _greedy(len(conversations)).tolist()
        for number, conversation in enumerate(conversations):
            recorder = Recorder(greedy=greedy[number])
            recorders.append(recorder)
            prompt = _prompt(lm, conversation)
            if len(prompt) > LONGEST:
                continue
            stream = Stream((params.seed * 16 + salt) * 2**24 + start + number)
            policy = lm | samplers[greedy[number]]
            handles.append(runner.submit(recorder, Task(policy, prompt, stopping, stream)))
        runner.run()
    finally:
        runner.close()
    for handle in handles:
        handle.result()  # raises what went wrong
    return _joined(recorders, lm.transformer.width)


def _prompt(lm: LanguageModel, conversation: Sequence[Message]) -> tuple[int, ...]:
    if lm.language.has_chat:
        return lm.read([dict(message) for message in conversation]).tokens
    return lm.read(conversation[-1]["content"]).tokens


def _joined(recorders: Sequence[Recorder], width: int) -> Batch:
    def stacked(rows: list[np.ndarray], size: int) -> Tensor:
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, size)

    steps = [step for recorder in recorders for step in recorder.steps]
    return {
        "tokens": torch.tensor([step.token for step in steps], dtype=torch.int32),
        "hidden": stacked([step.hidden for step in steps], width).half(),
        "top": stacked([step.top for step in steps], TOP).int(),
        "log_chances": stacked([step.log_chances for step in steps], TOP).half(),
        "lengths": torch.tensor([len(recorder.steps) for recorder in recorders]),
    }


# -- the decoder that records ------------------------------------------------------------------


class Reading(Sampler):
    """Changes nothing; asks for the hidden state of every node, the prompt's too."""

    needs_hidden: ClassVar[bool] = True

    def apply(self, row: Row, state: State, context: Context) -> Row:
        return row


@dataclass(frozen=True)
class Step:
    """A token, the hidden state after it, and the most probable next tokens with their ln p."""

    token: int
    hidden: np.ndarray
    top: np.ndarray
    log_chances: np.ndarray


@dataclass(frozen=True, eq=False)
class Recorder(Decoder):
    """One sequence, greedy or drawn, and what the model said at its tokens."""

    greedy: bool
    steps: list[Step] = field(default_factory=list[Step])

    def decode(self, task: Task) -> Decoding:
        node = yield Open(task.policy, task.prompt)
        while True:
            row: Row = node.row
            count = min(TOP, len(row))
            best = np.argpartition(-row.scores, count - 1)[:count]
            best = best[np.argsort(-row.scores[best], kind="stable")]
            log_chances = row.scores[best] - row.log_normaliser
            pad = (0, TOP - count)  # a vocabulary of fewer tokens
            self.steps.append(
                Step(
                    node.token,
                    node.hidden.astype(np.float16),
                    np.pad(best, pad),
                    np.pad(log_chances.astype(np.float32), pad, constant_values=-np.inf),
                )
            )
            node = node.child(row.argmax() if self.greedy else node.draw())
            reason = task.stopping.reason(node)
            if reason is not None:
                return [completion(node, reason)]
            yield Grow([node])
