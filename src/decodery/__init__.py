"""decodery: every published way to decode from a generative model, on one engine.

    import decodery as dc

    lm = dc.load()
    print(lm.generate("Why is the sea salty?", method="min_p", temperature=1.5, min_p=0.1).text)

    policy = lm | dc.chain(dc.temperature(0.8), dc.min_p(0.05))
    for event in dc.stream(policy, "Once upon a time", seed=7):
        print(event.text, end="")

Every registered method is an attribute under its name: `dc.min_p(0.05)`, `dc.beam(beams=4)`.
`decodery methods` lists them.
"""

from __future__ import annotations

import os

# Said before torch is first imported: a waiting thread spins for some tens of microseconds, then
# sleeps. Spinning for long collapses as soon as more threads run than there are cores (measured:
# 35 ms a step becomes 1300 ms); sleeping at once pays for a wake-up in each of a step's hundreds
# of parallel loops (measured: 89 ms a step instead of 44). A caller's own settings are left alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from decodery.core.card import Method
from decodery.core.errors import DecoderyError
from decodery.core.registry import methods as all_methods
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.trace import Trace

if TYPE_CHECKING:
    from decodery.api.generation import Event, Generation, Sample
    from decodery.api.language_model import LanguageModel, generate, stream
    from decodery.api.load import load
    from decodery.api.transformers_bridge import as_logits_processor
    from decodery.api.transformers_processors import from_logits_processor

try:
    __version__ = version("decodery")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

# What brings torch is imported when it is first used: the command line's help stays fast.
_LAZY = {
    "load": "decodery.api.load",
    "generate": "decodery.api.language_model",
    "stream": "decodery.api.language_model",
    "LanguageModel": "decodery.api.language_model",
    "Generation": "decodery.api.generation",
    "Sample": "decodery.api.generation",
    "Event": "decodery.api.generation",
    "as_logits_processor": "decodery.api.transformers_bridge",
    "from_logits_processor": "decodery.api.transformers_processors",
    "Integrative": "decodery.methods.blending.integrative",
    "Baco": "decodery.methods.blending.baco",
    "Cfg": "decodery.methods.blending.cfg",
    "Contrastive": "decodery.methods.blending.contrastive",
    "Dola": "decodery.methods.blending.dola",
    "Mpg": "decodery.methods.blending.mpg",
}

__all__ = [
    "DecoderyError",
    "Event",
    "Generation",
    "LanguageModel",
    "Method",
    "Policy",
    "Sample",
    "Trace",
    "all_methods",
    "as_logits_processor",
    "chain",
    "from_logits_processor",
    "generate",
    "load",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if not name.startswith("_") and name in all_methods():
        return all_methods()[name]
    raise AttributeError(f"module 'decodery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *all_methods()})
