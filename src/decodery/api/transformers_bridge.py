"""Samplers inside transformers' `generate`: a chain as a `LogitsProcessor`.

    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    processor = dc.as_logits_processor(
        dc.chain(dc.temperature(0.8), dc.min_p(0.05)), model, attention_mask=inputs.attention_mask
    )
    model.generate(**inputs, do_sample=True, top_k=0, logits_processor=[processor])

A processor is called once a step with all rows of a batch. It keeps the state of the chain for each
path of tokens, and a row finds its state by its own tokens: rows that stop, are copied or change
places in a beam search, and candidates of assisted generation that are rejected, need no care.

What the interface does not carry is refused: hidden states, and raw logits where `generate` hands
over log-probabilities. The other direction is `api/transformers_processors.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import LogitsProcessor

from decodery.core.decoder import Task
from decodery.core.distribution import log_sum_exp
from decodery.core.errors import ParameterError
from decodery.core.language import Language
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.sampler import Chain, Context, Sampler, State, chain
from decodery.core.source import Footprint, Model, Source
from decodery.models.language import TokenizerLanguage
from decodery.models.tokenizer import Tokenizer

HISTORY = 64  # steps whose places are kept: more than the candidates of one assisted step
NORMALISED = 1e-3  # a row whose log-normaliser is nearer to 0 than this holds log-probabilities
SAME_ROW = 1e-2  # two forwards of one model over the same tokens differ by less than this

Path = tuple[int, ...]


def as_logits_processor(
    sampler: Sampler | Iterable[Sampler],
    model: Any,
    *,
    tokenizer: Any = None,
    attention_mask: Any = None,
    eos_token_id: int | Sequence[int] | None = None,
    seed: int = 0,
) -> SamplerProcessor:
    """Samplers as a `LogitsProcessor` for `model.generate`; `model` is transformers' model.

    `tokenizer` (transformers') is needed by samplers that look at text, such as `json_schema`.
    `attention_mask` [batch, width] is that of the prompts, and needed where they are padded.
    `eos_token_id` defaults to the model's. `seed` keys the noise of samplers that have noise of
    their own; the sequence of a row is its place in the batch.

    Make a new one for each batch of prompts. `generate` applies the temperature, top-k (50 unless
    `top_k=0` is given) and the other settings of its own after it.
    """
    source = _Outside(model, tokenizer, eos_token_id)
    stages = chain(sampler)
    if stages.needs_hidden:
        needing = next(stage for stage in stages.stages if stage.needs_hidden)
        raise ParameterError(
            f"{needing!r} reads the model's hidden states, and generate gives a logits processor"
            " token ids and scores alone; load the model with decodery.load"
        )
    padding = None if attention_mask is None else _padding(attention_mask)
    return SamplerProcessor(stages.bind(source), source, padding, Stream(seed))


@dataclass
class _Place:
    """A path that was reached: the chain's state, and what its row allowed once it was seen.

    `over` says that an end token or an impossible one is on the path, so that nothing that the
    chain says matters any more.
    """

    state: State
    over: bool = False
    possible: npt.NDArray[np.uint8] | None = None
    row: Row | None = None


@dataclass(frozen=True)
class _Prompts:
    """The rows of the first call of a `generate`."""

    rows: list[list[int]]
    padding: list[int]

    @property
    def width(self) -> int:
        return len(self.rows[0])


class SamplerProcessor(LogitsProcessor):
    """A chain of samplers as transformers calls it; made by `as_logits_processor`."""

    supports_continuous_batching = False

    def __init__(
        self, sampler: Chain, source: _Outside, padding: list[int] | None, stream: Stream
    ) -> None:
        self.sampler = sampler
        self._source = source
        self._padding = padding  # of the prompts, where it is known
        self._stream = stream
        self._width = 0  # of the call before
        self._prompts: _Prompts | None = None
        self._places: dict[tuple[int, Path], _Place] = {}

    def __repr__(self) -> str:
        return f"as_logits_processor({self.sampler!r})"

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Scores [batch, vocab_size] after the chain; -inf for tokens that it dropped."""
        if scores.dim() != 2 or input_ids.dim() != 2:
            raise ParameterError(
                f"{self!r} takes ids [batch, length] and scores [batch, vocabulary], not"
                f" {list(input_ids.shape)} and {list(scores.shape)}"
            )
        dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
        given = np.array(scores.detach().to("cpu", dtype).numpy())  # ours: rows are kept
        rows: list[list[int]] = input_ids.tolist()
        if not self._goes_on(rows):
            self._begin(rows, given)
        assert self._prompts is not None
        self._width = len(rows[0])
        made = np.empty_like(given)
        for index, ids in enumerate(rows):
            path = tuple(ids[self._prompts.padding[index] :])
            made[index] = self._reshaped(index, path, given[index])
        self._let_go()
        return torch.from_numpy(made).to(scores.device, scores.dtype)

    # -- which generate this is ------------------------------------------------------------------

    def _goes_on(self, rows: list[list[int]]) -> bool:
        """Whether the rows continue those of the first call: else another `generate` begins."""
        prompts = self._prompts
        if prompts is None or len(rows) != len(prompts.rows):
            return False
        if not prompts.width < len(rows[0]) <= self._width + 1:
            return False
        return all(
            row[: prompts.width] == first for row, first in zip(rows, prompts.rows, strict=True)
        )

    def _begin(self, rows: list[list[int]], given: npt.NDArray[np.floating]) -> None:
        if given.shape[1] != self._source.vocab_size:
            raise ParameterError(
                f"{self!r} is for {self._source.name} with {self._source.vocab_size} tokens, and is"
                f" given scores for {given.shape[1]}"
            )
        self._refuse_log_probabilities(given)
        self._prompts = _Prompts(rows, self._paddings(rows))
        self._places = {}
        for index, padding in enumerate(self._prompts.padding):
            path = tuple(rows[index][padding:])
            state = self.sampler.start(self._context(index, path))
            self._places[self._key(index, path)] = _Place(state)

    def _refuse_log_probabilities(self, given: npt.NDArray[np.floating]) -> None:
        if not self.sampler.reads_logits:
            return
        if any(abs(log_sum_exp(scores)) > NORMALISED for scores in given):
            return
        reading = next(stage for stage in self.sampler.stages if stage.reads_logits)
        raise ParameterError(
            f"{reading!r} depends on where zero is in the model's logits, and this generate hands"
            " over log-probabilities (beam search does); use beam search of decodery, or leave it"
            " out"
        )

    def _paddings(self, rows: list[list[int]]) -> list[int]:
        """How many tokens of padding each row of the batch begins with."""
        if self._padding is None:
            pad = self._source.pad_id
            for index, row in enumerate(rows):
                if pad is not None and row[0] == pad:
                    raise ParameterError(
                        f"row {index} begins with the padding token {pad}; give the prompts'"
                        " attention_mask, which tells padding from text"
                    )
            return [0] * len(rows)
        copies, left = divmod(len(rows), len(self._padding))
        if left or max(self._padding) >= len(rows[0]):
            raise ParameterError(
                f"attention_mask of {len(self._padding)} rows does not fit {len(rows)} rows of"
                f" {len(rows[0])} tokens; make a new processor for each batch of prompts"
            )
        return [padding for padding in self._padding for _ in range(copies)]

    # -- places ----------------------------------------------------------------------------------

    def _key(self, index: int, path: Path) -> tuple[int, Path]:
        """Equal prompts with equal tokens behind them share a place, unless their noise differs."""
        assert self._prompts is not None
        return (index if self.sampler.needs_noise else self._prompts.padding[index], path)

    def _context(self, index: int, path: Path) -> Context:
        assert self._prompts is not None
        return Context(
            tokens=list(path),
            prompt_length=self._prompts.width - self._prompts.padding[index],
            eos_ids=self._source.eos_ids,
            stream=self._stream,
            sequence=index,
        )

    def _reshaped(
        self, index: int, path: Path, scores: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.floating]:
        place = self._place(index, path)
        if place.over:  # nobody reads this row, but a row without any token would be refused
            return scores
        row = Row(scores, self._source.vocab_size)
        self._note(place, row)
        made = self.sampler.apply(row, place.state, self._context(index, path)).dense_scores()
        place.possible = np.packbits(made > -np.inf)
        return made

    def _note(self, place: _Place, row: Row) -> None:
        """Keep the row for states that observe rows; it must be the only one of its path."""
        if not self.sampler.observes_rows:
            return
        if place.row is None:
            place.row = row
        elif not np.allclose(row.scores, place.row.scores, atol=SAME_ROW):
            raise ParameterError(
                f"{self!r} remembers the rows that tokens were drawn from, and is given two for the"
                " same tokens: assisted generation calls it for its guesses too"
            )

    def _place(self, index: int, path: Path) -> _Place:
        """The place of a path, made from the nearest one before it that is known."""
        known = len(path)
        while self._key(index, path[:known]) not in self._places:
            known -= 1
        place = self._places[self._key(index, path[:known])]
        for length in range(known, len(path)):
            place = self._child(index, path[:length], place, path[length])
            self._places[self._key(index, path[: length + 1])] = place
        return place

    def _child(self, index: int, path: Path, place: _Place, token: int) -> _Place:
        if place.over or token in self._source.eos_ids or not _could_come(place, token):
            return _Place(None, over=True)
        if self.sampler.observes_rows and place.row is None:
            raise ParameterError(
                f"{self!r} remembers the rows that tokens were drawn from, and was not called with"
                f" the row of token {len(path)}; call it at every step"
            )
        row = place.row if self.sampler.observes_rows else None
        return _Place(self.sampler.advance(place.state, token, row, self._context(index, path)))

    def _let_go(self) -> None:
        """Forget the places of long ago; the prompts stay, so that any path can be made again."""
        assert self._prompts is not None
        newest = max(len(path) for _, path in self._places)
        if newest - self._prompts.width <= HISTORY:
            return
        roots = {
            self._key(index, tuple(row[padding:]))
            for index, (row, padding) in enumerate(
                zip(self._prompts.rows, self._prompts.padding, strict=True)
            )
        }
        self._places = {
            key: place
            for key, place in self._places.items()
            if key in roots or len(key[1]) > newest - HISTORY
        }


def _could_come(place: _Place, token: int) -> bool:
    if place.possible is None:
        return True
    return bool(place.possible[token >> 3] >> (7 - (token & 7)) & 1)


class _Outside(Source):
    """transformers' model as the source that samplers are bound to; it grows nothing."""

    def __init__(
        self, model: Any, tokenizer: Any, eos_token_id: int | Sequence[int] | None
    ) -> None:
        config = getattr(model, "config", None)
        if config is None:
            raise ParameterError(f"model is a {type(model).__name__}, no model of transformers")
        text = config.get_text_config(decoder=True)
        generation = getattr(model, "generation_config", None)
        given = getattr(generation, "eos_token_id", None) if eos_token_id is None else eos_token_id
        self.name = config.name_or_path or type(model).__name__
        self.vocab_size = int(text.vocab_size)
        self.eos_ids = frozenset(_ids(text.eos_token_id if given is None else given))
        # The decoder's texts of an encoder-decoder are never padded, and may begin with that token.
        self.pad_id = None if config.is_encoder_decoder else _pad_id(tokenizer, generation, text)
        self.language = None if tokenizer is None else self._language(tokenizer)

    def _language(self, tokenizer: Any) -> Language:
        from tokenizers import Tokenizer as Backend

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ParameterError(
                f"tokenizer is a {type(tokenizer).__name__}; a fast tokenizer is needed"
            )
        copy = Backend.from_str(backend.to_str())  # ours is changed: no cutting, no padding
        return TokenizerLanguage(Tokenizer(copy), self.name, self.vocab_size)

    def slots(self, task: Task, prompt: Sequence[int], footprint: Footprint) -> dict[Model, int]:
        raise ParameterError(f"{self.name} belongs to transformers; load it with decodery.load")


def _pad_id(*holders: Any) -> int | None:
    """The padding token that the first of the holders names."""
    found = (getattr(holder, "pad_token_id", None) for holder in holders)
    return next((pad for pad in found if pad is not None), None)


def _ids(value: int | Sequence[int] | Tensor | None) -> list[int]:
    if value is None:
        return []
    if isinstance(value, Tensor):
        value = value.tolist()
    return [value] if isinstance(value, int) else list(value)


def _padding(attention_mask: Any) -> list[int]:
    """How many tokens of padding each prompt begins with, from its mask [batch, width]."""
    mask = torch.as_tensor(attention_mask).to("cpu", torch.int64).numpy()
    if mask.ndim != 2 or mask.size == 0 or not np.isin(mask, (0, 1)).all():
        raise ParameterError(
            f"attention_mask has the shape {mask.shape}; allowed is [batch, width] of 0 and 1"
        )
    if (np.diff(mask, axis=1) < 0).any() or not mask[:, -1].all():
        raise ParameterError(
            "attention_mask has padding behind text; generate goes on from the right end, so pad on"
            " the left: tokenizer.padding_side = 'left'"
        )
    return [int(width) for width in mask.shape[1] - mask.sum(axis=1)]
