"""decodery as a contestant. Settings as for `decodery.load`: `model`, `weights`, `device`, and
`prefix_cache`. A job's `speculation` is the parameter of that name."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from protocol import Contestant, Job, Loaded, Made, Request, installed, serve

import decodery as dc
from decodery import load  # here, since it brings torch: a matter of import, not of load
from decodery.core.decoder import Task
from decodery.core.handle import Handle
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Policy
from decodery.core.stopping import Stopping


class Ours(Contestant):
    def load(self, settings: dict[str, Any]) -> Loaded:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        device = settings.get("device", "cpu")
        self.model = load(
            settings.get("model"),
            weights=settings["weights"],
            device=device,
            prefix_cache=settings.get("prefix_cache", True),
        )
        transformer = self.model.transformer
        floats = transformer.parameters * transformer.dtype.itemsize
        return Loaded(
            weight_bytes=getattr(transformer, "weight_bytes", floats),
            versions=installed("decodery", "torch"),
            note=torch.cuda.get_device_name() if device == "cuda" else "",
        )

    def run(self, job: Job) -> Made:
        return self._in_turn(job) if job.places == 1 else self._together(job)

    def _in_turn(self, job: Job) -> Made:
        """One prompt after another, as a user asks for it."""
        greedy = {"method": "greedy"}
        sampled = {"method": "sample", "n": job.samples, "temperature": job.temperature}
        found = [
            self.model.generate(
                request.prompt,
                max_tokens=request.new_tokens,
                ignore_eos=True,
                seed=job.seed,
                speculation=job.speculation or "off",
                **(sampled if job.temperature else greedy),
            )
            for request in job.requests
        ]
        samples = [sample for item in found for sample in item.samples]
        calls = sum(item.report.model_calls - 1 for item in found)
        first = sum(item.report.first_token_seconds or 0.0 for item in found)
        return Made([len(sample.tokens) for sample in samples], samples[0].text, [], calls, first)

    def _together(self, job: Job) -> Made:
        """Many prompts in one runner, at most `places` of them at once."""
        runner = Runner()
        waiting = deque(job.requests)
        handles: list[Handle] = []
        while waiting or runner.live or runner.waiting:
            while waiting and len(runner.live) + len(runner.waiting) < job.places:
                handles.append(self._submit(runner, job, waiting.popleft()))
            runner.step()
        made = [handle.result()[0].tokens for handle in handles]
        return Made([len(tokens) for tokens in made], ids=list(made[0]))

    def _submit(self, runner: Runner, job: Job, request: Request) -> Handle:
        sampler = dc.chain(dc.temperature(job.temperature)) if job.temperature else dc.chain()
        task = Task(
            Policy(self.model, sampler),
            tuple(request.prompt),
            Stopping(request.new_tokens, ignore_eos=True),
            Stream(job.seed),
        )
        return runner.submit(dc.sample() if job.temperature else dc.greedy(), task)


if __name__ == "__main__":
    serve(Ours())
