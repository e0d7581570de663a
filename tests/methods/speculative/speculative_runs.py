"""Tables, policies and decoders for whole speculative runs, and what counts their answers.

Three tokens: a, b and the end of a text. A text has at most four tokens, so there are 31 of them,
and the law of each is enumerated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import decodery as dc
from decodery.core.decoder import Decoder, Task
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.sampler import Chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.consensus import Consensus
from decodery.methods.speculative.guesses import Guess, Random, Repeat
from decodery.methods.speculative.jacobi import Coupling, Jacobi
from decodery.methods.speculative.lookup import Lookup
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.shapes import Beam, Branching, Shape
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Greedy, Hub, KSeq, Match, Recursive
from decodery.methods.speculative.walks import Block, NodeWise
from decodery.testing import enumerate_law
from decodery.testing.enumerate import Law
from decodery.testing.spelling import speller

PIECES = (b"a", b"b", None)
END = 2
PROMPT = (0, 1, 1, 0, 1)  # lookups find what came after its last tokens
STOPPING = Stopping(4, frozenset({END}))
TARGET = speller(PIECES, seed=9, order=2)
DRAFT = speller(PIECES, seed=19, order=2)
TOGETHER = 100  # sequences of a request


@cache
def policies() -> dict[str, Policy]:
    """Samplers of every kind: none, a cut, states that read rows or text, a grammar."""
    chains: dict[str, Chain] = {
        "plain": dc.chain(),
        "top_p": dc.chain(dc.temperature(1.3), dc.top_p(0.9)),
        "mirostat": dc.chain(dc.mirostat(1.2)),
        "penalty": dc.chain(dc.repetition_penalty(1.6)),
        "grammar": dc.chain(dc.regex("(ab|b)*a?")),
    }
    return {name: Policy(TARGET, item) for name, item in chains.items()}


@cache
def law(policy: str) -> Law:
    """Of whole texts."""
    return enumerate_law(policies()[policy], PROMPT, STOPPING)


def _tree(shape: Shape, rule: type[Recursive] | Callable[[], object]) -> Callable[[int], Decoder]:
    made = rule(shape.drawn) if rule is Recursive else rule()  # type: ignore[call-arg]
    walk = made if isinstance(made, Block) else NodeWise(made)  # type: ignore[arg-type]
    return lambda n: Speculation(Drawing(DRAFT, shape), walk, n)


def _branching(counts: tuple[int, ...], drawn: Drawn) -> Branching:
    return Branching(counts, drawn)


def _jacobi(coupling: Coupling, guess: Guess, strength: float = 1.0) -> Callable[[int], Decoder]:
    return lambda n: Jacobi(3, coupling, guess, strength, n)


# Every lossless combination: a decoder for so many sequences of a request.
DECODERS: dict[str, Callable[[int], Decoder]] = {
    "chain": _tree(Branching((1, 1, 1)), Recursive),
    "rsd_c": _tree(Branching((2, 2)), Recursive),
    "rsd_s": _tree(Beam(2, 3), Recursive),
    "iid": _tree(Branching((2, 2), "iid"), Recursive),
    "k_seq": _tree(Branching((2, 2), "iid"), KSeq),
    "greedy": _tree(Branching((2, 2), "greedy"), Greedy),
    "hub": _tree(Branching((2, 2), "hub"), Hub),
    "match_fixed": _tree(Branching((2, 1), "fixed"), Match),
    "match_beam": _tree(Beam(2, 2), Match),
    "block": _tree(Branching((1, 1, 1)), Block),
    "lookup": lambda n: Speculation(Lookup(3, 1, 2), NodeWise(Match()), n),
    "consensus": lambda n: Speculation(Consensus(tokens=3, shortest=1), NodeWise(Match()), n),
    "sjd": _jacobi("sjd", Random()),
    "sjd_uniform": _jacobi("sjd", Random(spread=True)),
    "mc_sjd": _jacobi("mc", Random(spread=True)),
    "mc_sjd_half": _jacobi("mc", Repeat(), 0.5),
    "gs_sjd": _jacobi("gs", Random()),
}


def task(policy: Policy, seed: int = 0, stopping: Stopping = STOPPING) -> Task:
    return Task(policy, PROMPT, stopping, Stream(seed))


def count(
    decoder: Callable[[int], Decoder], policy: Policy, runs: int, together: int = TOGETHER
) -> Counter[tuple[int, ...]]:
    """The texts of so many runs: sequences of requests, each request with a seed of its own."""
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(runs // together):
        runner = Runner()
        handle = runner.submit(decoder(together), task(policy, seed))
        runner.run()
        found.update(item.tokens for item in handle.result())
    return found
