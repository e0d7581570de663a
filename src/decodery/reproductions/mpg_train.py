"""The models of the full mpg reproduction: three small adapters on the embedded model, trained now.

One adapter for each voice, the neutral one included: it is the reference, a model that answers as
the attribute models do but in neither of their voices.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from decodery.reproductions.frame import Progress
from decodery.reproductions.mpg_measure import Bench
from decodery.reproductions.mpg_texts import VOICES, Voice, asked, examples

RANK, STEPS, BATCH, RATE, VARIATIONS = 8, 30, 4, 0.002, 6
ASK_FOR_BOTH = "Answer in one sentence, like a pirate and at the same time in very formal words."


def trained(seed: int, progress: Progress) -> tuple[Bench, dict[str, Any]]:
    """Train an adapter for each voice, load them, and say how they did."""
    from decodery.api.load import load
    from decodery.training import frame

    training, facts = frame.get("adapter"), {}
    with tempfile.TemporaryDirectory() as folder:
        voices = {}
        for number, voice in enumerate(VOICES):
            texts, out = Path(folder) / f"{voice}.jsonl", Path(folder) / voice
            write_examples(texts, voice, seed)
            values = {
                "texts": (str(texts),),
                "rank": RANK,
                "steps": STEPS,
                "batch": BATCH,
                "learning_rate": RATE,
            }
            facts[f"adapter {voice}"] = dict(
                frame.train(training, values, out, progress=_shown(progress, number)).facts
            )
            voices[voice] = load(adapter=out, cache_tokens=8192)
        base = load(cache_tokens=8192)
    prompts = [base.read(question).tokens for question in asked()]
    asking = [base.read(question, system=ASK_FOR_BOTH).tokens for question in asked()]
    decode = base.tokenizer.decode
    return Bench(f"{base.name} with adapters", voices, prompts, decode, (base, asking)), facts


def _shown(progress: Progress, number: int) -> Any:
    """The steps of all three trainings as one progress."""

    def show(phase: str, done: int, _total: int, _note: str = "") -> None:
        if phase == "training":
            progress(number * STEPS + done, len(VOICES) * STEPS)

    return show


def write_examples(path: Path, voice: Voice, seed: int) -> None:
    """The texts of a voice as a file to train on."""
    records = [
        json.dumps({"prompt": item.prompt, "response": item.response})
        for item in examples(voice, VARIATIONS, seed)
    ]
    path.write_text("\n".join(records) + "\n", encoding="utf-8")
