"""transformers' `generate` as a contestant.

Settings: `folder` of safetensors, or with `gguf_file` the folder of that file; `dtype`; `device`;
`tokenizer` to load that as well.

Many prompts are batches of `places`, in their order, padded on the left; a batch runs until its
longest request has its tokens, and only wanted tokens are counted.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from protocol import Contestant, Job, Loaded, Made, Request, installed, serve
from transformers import AutoModelForCausalLM, AutoTokenizer

PADDING = 0
SPECULATION = {
    "": {},
    "prompt lookup 3": {"prompt_lookup_num_tokens": 3},
    "prompt lookup 10": {"prompt_lookup_num_tokens": 10},
    "early exit 8": {"assistant_early_exit": 8},
}


class Transformers(Contestant):
    def load(self, settings: dict[str, Any]) -> Loaded:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        dtype = getattr(torch, settings["dtype"])
        source, gguf = settings["folder"], settings.get("gguf_file")
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=dtype)
        self.model = model.eval().to(settings.get("device", "cpu"))
        if settings.get("tokenizer"):
            self.tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
        # No end token: nothing stops early, and no processor has to forbid it at every step.
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = PADDING
        read = sum(item.numel() * item.element_size() for item in self.model.parameters())
        return Loaded(weight_bytes=read, versions=installed("transformers", "torch"))

    @torch.inference_mode()
    def run(self, job: Job) -> Made:
        counts: list[int] = []
        ids: list[int] = []
        for start in range(0, len(job.requests), job.places):
            batch = job.requests[start : start + job.places]
            rows = self._batch(job, batch)
            wanted = [item.new_tokens for item in batch for _ in range(job.samples)]
            counts += [min(want, rows.shape[1]) for want in wanted]
            ids = ids or rows[0, : wanted[0]].tolist()
        return Made(counts, ids=ids)

    def _batch(self, job: Job, batch: list[Request]) -> torch.Tensor:
        """The new tokens [requests * samples, most tokens wanted]."""
        longest = max(len(item.prompt) for item in batch)
        gaps = [longest - len(item.prompt) for item in batch]
        tokens = [[PADDING] * gap + item.prompt for gap, item in zip(gaps, batch, strict=True)]
        mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
        torch.manual_seed(job.seed)
        sampling = {"do_sample": True, "temperature": job.temperature, "top_k": 0, "top_p": 1.0}
        made = self.model.generate(
            torch.tensor(tokens, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            max_new_tokens=max(item.new_tokens for item in batch),
            num_return_sequences=job.samples,
            **SPECULATION[job.speculation],
            **(sampling if job.temperature else {"do_sample": False}),
        )
        return made[:, longest:]


if __name__ == "__main__":
    serve(Transformers())
