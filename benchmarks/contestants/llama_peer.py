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


class Llama(Contestant):
    server: llama.Server | None = None
    room: tuple[int, int] = (0, 0)

    def load(self, settings: dict[str, Any]) -> Loaded:
        self.settings = settings
        self._start(places=1, cells=2048)
        note = " ".join(llama.get_system_info().split())
        return Loaded(settings["weight_bytes"], installed("xllamacpp"), note)

    def prepare(self, job: Job) -> None:
        """A server with as many places as the job needs; a cache for their longest sequences."""
        places = max(job.places, job.samples)
        cells = places * -(-job.longest // CELLS_ALIGNED_TO) * CELLS_ALIGNED_TO
        if (places, cells) != self.room:
            self._start(places, cells)

    def run(self, job: Job) -> Made:
        with ThreadPoolExecutor(len(job.requests)) as pool:
            answers = list(pool.map(lambda item: self._complete(job, item), job.requests))
        choices = [choice for answer in answers for choice in answer["choices"]]
        reasons = {choice["finish_reason"] for choice in choices}
        if reasons != {"length"}:
            raise RuntimeError(f"completions ended for {reasons}; allowed is length alone")
        counts = [answer["usage"]["completion_tokens"] for answer in answers]
        each = [count for count in counts for _ in range(job.samples)]
        return Made(each[: len(choices)], text=choices[0]["text"])

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

    def _start(self, places: int, cells: int) -> None:
        self.server = None  # the old one is gone before the new one takes memory
        parameters = llama.CommonParams()
        parameters.model.path = self.settings["model"]
        parameters.n_parallel, parameters.n_ctx = places, cells
        parameters.cache_ram_mib = 0
        for threads in (parameters.cpuparams, parameters.cpuparams_batch):
            threads.n_threads = self.settings["threads"]
        self.server = llama.Server(parameters)
        self.room = (places, cells)


if __name__ == "__main__":
    serve(Llama())
