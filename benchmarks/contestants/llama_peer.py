"""llama.cpp as a contestant: the server inside the xllamacpp package, called without HTTP.

Settings: `model` (a GGUF file), `threads`, `weight_bytes` of that file. Samples of a prompt are one
completion with `n`, which evaluates the prompt once. Many prompts are posted at once; the server
runs `places` of them side by side and takes the next when one is done.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp as llama
from protocol import Contestant, Job, Loaded, Made, Request, installed, serve

CELLS_ALIGNED_TO = 256
Kind = llama.common_speculative_type
# By name: the kind of drafts, and the lengths of what is looked up and of the draft, where the
# kind has them; None is the package's own.
SPECULATION: dict[str, tuple[Any, str, tuple[int, int] | None]] = {
    "": (Kind.COMMON_SPECULATIVE_TYPE_NONE, "", None),
    "ngram-simple": (Kind.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE, "ngram_simple", None),
    "ngram-simple 3, 4": (Kind.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE, "ngram_simple", (3, 4)),
    "ngram-map 3, 4": (Kind.COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K, "ngram_map_k", (3, 4)),
    "ngram-cache": (Kind.COMMON_SPECULATIVE_TYPE_NGRAM_CACHE, "", None),
}


class Llama(Contestant):
    server: llama.Server | None = None
    room: tuple[int, int, str] = (0, 0, "")

    def load(self, settings: dict[str, Any]) -> Loaded:
        self.settings = settings
        self._start(1, 2048, "")
        note = " ".join(llama.get_system_info().split())
        return Loaded(settings["weight_bytes"], installed("xllamacpp"), note)

    def prepare(self, job: Job) -> None:
        """A server with as many places as the job needs; a cache for their longest sequences."""
        places = max(job.places, job.samples)
        cells = places * -(-job.longest // CELLS_ALIGNED_TO) * CELLS_ALIGNED_TO
        if (places, cells, job.speculation) != self.room:
            self._start(places, cells, job.speculation)

    def run(self, job: Job) -> Made:
        at_once = 1 if job.places == 1 else len(job.requests)
        with ThreadPoolExecutor(at_once) as pool:
            answers = list(pool.map(lambda item: self._complete(job, item), job.requests))
        choices = [choice for answer in answers for choice in answer["choices"]]
        reasons = {choice["finish_reason"] for choice in choices}
        if reasons != {"length"}:
            raise RuntimeError(f"completions ended for {reasons}; allowed is length alone")
        counts = [answer["usage"]["completion_tokens"] for answer in answers]
        each = [count for count in counts for _ in range(job.samples)]
        first = sum(answer["timings"]["prompt_ms"] for answer in answers) / 1e3
        return Made(each[: len(choices)], text=choices[0]["text"], first_seconds=first)

    def _complete(self, job: Job, request: Request) -> dict[str, Any]:
        sampling = {"samplers": ["temperature"], "temperature": job.temperature}
        greedy = {"samplers": ["top_k"], "top_k": 1}
        order = {
            "prompt": request.prompt,
            "max_tokens": request.new_tokens,
            "n": job.samples,
            "seed": job.seed,
            "ignore_eos": True,
            "cache_prompt": False,
            **(sampling if job.temperature else greedy),
        }
        answer = self.server.handle_completions(order)
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp answered {answer}")
        return answer

    def _start(self, places: int, cells: int, speculation: str) -> None:
        self.server = None  # the old one is gone before the new one takes memory
        parameters = llama.CommonParams()
        parameters.model.path = self.settings["model"]
        parameters.n_parallel, parameters.n_ctx = places, cells
        parameters.cache_ram_mib = 0
        kind, name, sizes = SPECULATION[speculation]
        parameters.speculative.types = [kind]
        if sizes is not None:
            lengths = getattr(parameters.speculative, name)
            lengths.size_n, lengths.size_m = sizes
        for threads in (parameters.cpuparams, parameters.cpuparams_batch):
            threads.n_threads = self.settings["threads"]
        self.server = llama.Server(parameters)
        self.room = (places, cells, speculation)


if __name__ == "__main__":
    serve(Llama())
