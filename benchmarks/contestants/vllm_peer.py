"""vLLM as a contestant. Settings: `folder` of safetensors, `dtype`, `compile`.

The engine runs inside this process: no messages between processes, nothing that polls while
another contestant runs. Intel's OpenMP, which comes with the package, is loaded first, as vLLM's
documentation advises.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from protocol import Contestant, Job, Loaded, Made, installed, serve

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

CONTEXT = 2048
BLOCK = 32  # samples share whole blocks of a prompt; the default of 128 would leave them little


class Vllm(Contestant):
    def load(self, settings: dict[str, Any]) -> Loaded:
        import torch
        from vllm import LLM

        self.engine = LLM(
            model=settings["folder"],
            dtype=settings["dtype"],
            max_model_len=CONTEXT,
            max_num_seqs=64,
            block_size=BLOCK,
            enforce_eager=not settings["compile"],
            distributed_executor_backend="uni",
            disable_log_stats=True,
        )
        note = f"{torch.get_num_threads()} threads"
        return Loaded(settings["weight_bytes"], installed("vllm-cpu", "torch"), note)

    def prepare(self, job: Job) -> None:
        core = self.engine.llm_engine.engine_core.engine_core
        core.scheduler.max_num_active_reqs = job.places * job.samples

    def run(self, job: Job) -> Made:
        from vllm import SamplingParams

        settings = [
            SamplingParams(
                n=job.samples,
                temperature=job.temperature,
                max_tokens=item.new_tokens,
                ignore_eos=True,
                detokenize=False,
            )
            for item in job.requests
        ]
        prompts = [{"prompt_token_ids": item.prompt} for item in job.requests]
        answers = self.engine.generate(prompts, settings, use_tqdm=False)
        made = [list(output.token_ids) for answer in answers for output in answer.outputs]
        return Made([len(tokens) for tokens in made], ids=made[0])


def _with_its_openmp() -> None:
    """Start this process anew with the library loaded before all others."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if library.exists() and "LD_PRELOAD" not in os.environ:
        os.environ["LD_PRELOAD"] = str(library)
        os.execv(sys.executable, [sys.executable, "-u", *sys.argv])


if __name__ == "__main__":
    _with_its_openmp()
    serve(Vllm())
