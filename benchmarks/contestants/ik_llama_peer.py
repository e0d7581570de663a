"""ik_llama.cpp, the fork of llama.cpp with faster kernels for CPUs, as a contestant.

Its wheel has the C functions alone, so the loop is here: prompts join when a place is free, all
sequences take one token a decode, samples of a prompt share its cells. Tokens are drawn from the
logits with numpy, which is faster than the library's own sampling of a full vocabulary.

Two of its ways give wrong rows. Flash attention does with several sequences, so it is off; that
costs nothing with one. Kernels for 32 and more positions at a time do for Q4_1 on some processors.
At load a prompt is therefore evaluated in one large piece and token by token; where the two
disagree, prompts are evaluated in pieces of 31, and the note says so.

Settings: `model` (a GGUF file), `threads`, `weight_bytes` of that file, `check` to leave that out.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import ik_llama_cpp._ctypes_api as ik
import numpy as np
from protocol import Contestant, Job, Loaded, Made, Request, installed, serve

MOST_SEQUENCES = 64
CELLS = 16384
BATCH = 2048
LARGE_PIECE, SMALL_PIECE = 512, 31
CHECKED = 128
MOST_DIVERGENCE = 0.1


@dataclass
class Sequence:
    """A live continuation; `number` is its id in the key-value cache."""

    number: int
    position: int  # of the token made last
    left: int  # tokens still wanted
    tokens: list[int] = field(default_factory=list)


class IkLlama(Contestant):
    def load(self, settings: dict[str, Any]) -> Loaded:
        ik.llama_backend_init()
        _declare_cache_functions()
        model = ik.llama_model_default_params()
        self.model = ik.llama_model_load_from_file(settings["model"].encode(), model)
        if not self.model:
            raise RuntimeError(f"{settings['model']} was not loaded")
        self.vocabulary = ik.llama_vocab_n_tokens(ik.llama_model_get_vocab(self.model))
        self.threads = settings["threads"]
        self.batch = ik.llama_batch_init(BATCH, 0, 1)
        self._open_context(LARGE_PIECE)
        note = ik._lib.llama_print_system_info().decode()
        divergence = self._divergence() if settings.get("check", True) else 0.0
        if divergence > MOST_DIVERGENCE:
            self._open_context(SMALL_PIECE)
            note = (
                f"prompts in pieces of {SMALL_PIECE}: in larger ones its rows are wrong here"
                f" ({divergence:.2f} nats from its own token by token); {note}"
            )
        return Loaded(settings["weight_bytes"], installed("ik-llama-cpp-python"), note)

    def _open_context(self, piece: int) -> None:
        context = ik.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = CELLS, BATCH, piece
        context.n_seq_max = MOST_SEQUENCES
        context.n_threads = context.n_threads_batch = self.threads
        context.flash_attn = False
        self.context = ik.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError("no context was made")

    def _divergence(self) -> float:
        """How far a row after a prompt at once is from the same token by token, in nats (KL)."""
        large, single = self._checked_row(CHECKED), self._checked_row(1)
        return float(np.exp(single) @ (single - large))

    def _checked_row(self, piece: int) -> np.ndarray:
        """Log-probabilities after a fixed prompt evaluated in pieces; the cache is clear then."""
        tokens = [(1000 + at, at, 0, at == CHECKED - 1) for at in range(CHECKED)]
        for start in range(0, CHECKED, piece):
            self._decode(tokens[start : start + piece])
        logits = self._logits(piece - 1).astype(np.float64)
        ik.llama_kv_cache_clear(self.context)
        return logits - np.logaddexp.reduce(logits)

    def run(self, job: Job) -> Made:
        ik.llama_kv_cache_clear(self.context)
        generator = np.random.default_rng(job.seed)
        waiting = deque(job.requests)
        free = deque(range(max(job.places, job.samples)))
        live: list[Sequence] = []
        done: list[list[int]] = []
        while waiting or live:
            while waiting and len(free) >= job.samples:
                numbers = [free.popleft() for _ in range(job.samples)]
                live += self._join(waiting.popleft(), numbers, job.temperature, generator)
            going = [sequence for sequence in live if sequence.left]
            for sequence in live:
                if not sequence.left:
                    done.append(sequence.tokens)
                    free.append(sequence.number)
                    ik._lib.llama_kv_cache_seq_rm(self.context, sequence.number, -1, -1)
            live = going
            if live:
                self._step(live, job.temperature, generator)
        return Made([len(tokens) for tokens in done], ids=done[0])

    def _join(
        self,
        request: Request,
        numbers: list[int],
        temperature: float,
        generator: np.random.Generator,
    ) -> list[Sequence]:
        """Evaluate a prompt and draw the first token of each of its samples."""
        last = len(request.prompt) - 1
        for start in range(0, len(request.prompt), BATCH):
            piece = request.prompt[start : start + BATCH]
            self._decode(
                [(token, at, numbers[0], at == last) for at, token in enumerate(piece, start)]
            )
        for number in numbers[1:]:
            ik._lib.llama_kv_cache_seq_cp(self.context, numbers[0], number, -1, -1)
        place = last % BATCH
        drawn = [self._draw(place, temperature, generator) for _ in numbers]
        left = request.new_tokens - 1
        return [
            Sequence(number, last + 1, left, [token])
            for number, token in zip(numbers, drawn, strict=True)
        ]

    def _step(
        self, live: list[Sequence], temperature: float, generator: np.random.Generator
    ) -> None:
        self._decode([(item.tokens[-1], item.position, item.number, True) for item in live])
        for place, sequence in enumerate(live):
            sequence.tokens.append(self._draw(place, temperature, generator))
            sequence.position += 1
            sequence.left -= 1

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows are token, position, sequence, and whether its logits are wanted."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for place, (token, position, number, wanted) in enumerate(rows):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = number
            batch.logits[place] = wanted
        failed = ik.llama_decode(self.context, batch)
        if failed:
            raise RuntimeError(f"llama_decode answered {failed} for {len(rows)} rows")

    def _draw(self, place: int, temperature: float, generator: np.random.Generator) -> int:
        """Greedy, or by inverse CDF."""
        logits = self._logits(place)
        if temperature == 0:
            return int(logits.argmax())
        cumulated = np.exp((logits - logits.max()) / temperature).cumsum()
        return int(cumulated.searchsorted(generator.random() * cumulated[-1]))

    def _logits(self, place: int) -> np.ndarray:
        """The row of a position of the last decode, [vocabulary]; valid until the next one."""
        pointer = ik.llama_get_logits_ith(self.context, place)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary,))


def _declare_cache_functions() -> None:
    """Functions of the library that its package does not declare."""
    sequence = [ctypes.c_void_p, ctypes.c_int32]
    spans = [ctypes.c_int32, ctypes.c_int32]
    ik._lib.llama_kv_cache_seq_cp.argtypes = [*sequence, ctypes.c_int32, *spans]
    ik._lib.llama_kv_cache_seq_cp.restype = None
    ik._lib.llama_kv_cache_seq_rm.argtypes = [*sequence, *spans]
    ik._lib.llama_kv_cache_seq_rm.restype = ctypes.c_bool
    ik._lib.llama_print_system_info.restype = ctypes.c_char_p


if __name__ == "__main__":
    serve(IkLlama())
