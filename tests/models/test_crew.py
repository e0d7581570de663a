"""The threads of the compiled kernels: any number, from any thread, after a fork, without memory.

What could go wrong here is a deadlock, a crash or a result that depends on who came first; the
whole file runs under a time limit, and every result is compared bit for bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forwards import fed
from small_models import Make, text

from decodery.models import native
from decodery.models.codes import quantise
from decodery.models.packed import PackedMatrix
from decodery.models.transformer import load_transformer

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason="no C++ compiler here"),
    pytest.mark.timeout(300),
]


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_thousands_of_tiny_jobs() -> None:
    """Matrices come and go while helpers of the last job may still be on their way."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 64, generator=generator)
    x = torch.randn(3, 64, generator=generator)
    for made in (weight, weight.bfloat16(), quantise(weight, 4)):
        torch.set_num_threads(1)
        expected = PackedMatrix(made, None)(x)
        for number in range(1500):
            torch.set_num_threads(1 + number % 5)
            assert torch.equal(PackedMatrix(made, None)(x), expected)


@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_far_more_threads_than_cores(make: Make, weights: str) -> None:
    model = load_transformer(make("llama wider"), weights, "cpu")
    tokens = text(200)
    torch.set_num_threads(1)
    expected = fed(model, tokens)
    torch.set_num_threads(16 * len(os.sched_getaffinity(0)))
    for pieces in (None, [190] + [1] * 10):
        assert torch.equal(fed(model, tokens, pieces), expected)


def test_several_python_threads_at_a_time(make: Make) -> None:
    """Four callers, two models, each with a number of threads of its own."""
    models = [load_transformer(make("llama wider"), w, "cpu") for w in ("int8", "float32")]
    texts = [text(60, seed=number) for number in range(4)]
    expected = [fed(models[number % 2], tokens) for number, tokens in enumerate(texts)]
    equal: list[bool] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        torch.set_num_threads(2 + number)  # counts for this thread alone
        start.wait()
        for turn in range(25):
            pieces = None if turn % 2 else [50] + [1] * 10
            rows = fed(models[number % 2], texts[number], pieces)
            equal.append(torch.equal(rows, expected[number]))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert equal == [True] * 100


# Runs in a process of its own. What torch does with threads of its own is done before: those do not
# survive a fork, and end the process where there are no more.
PREAMBLE = """
import os, resource, signal, sys
import torch
from forwards import fed, new_cache
from small_models import text
from decodery.models.attention import Attention, Clump
from decodery.models.transformer import load_transformer

torch.set_num_threads(1)
model = load_transformer(__import__("pathlib").Path(sys.argv[1]), "int8", "cpu")
tokens = text(60)
cache = new_cache(model)

def rows(pieces=None):
    return fed(model, tokens, pieces, cache=cache)

def limit_memory(more):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))
"""

FORK = """
torch.set_num_threads(3)
expected = rows()
for trial in range(6):
    rows()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        torch.set_num_threads(1 + trial)  # also more than the parent ever had
        same = all(torch.equal(rows([40] + [1] * 20), expected) for _ in range(5))
        if same and trial == 5:  # a child of a child
            grandchild = os.fork()
            if grandchild == 0:
                signal.alarm(30)
                os._exit(0 if torch.equal(rows(), expected) else 1)
            same = os.waitpid(grandchild, 0)[1] == 0
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0, "the child's rows differ, or it hung"
assert torch.equal(rows(), expected)
"""

NO_THREADS = """
expected = rows()
limit_memory(20 * 2**20)  # no room for the stacks of more than a few threads
torch.set_num_threads(64)
assert torch.equal(rows(), expected)
"""

NO_MEMORY = """
expected = rows()
count = 200_000
many, positions = torch.zeros(count, dtype=torch.int64), torch.arange(count)
slots = [0] * count
clump = Clump((), list(range(count)), slots, list(range(-1, count - 1)))
attention = Attention(model.layers, cache, slots, [clump])
limit_memory(300 * 2**20)
try:
    model.hidden(many, positions, attention)
except MemoryError as error:
    assert "no memory for a forward of 200000 nodes" in str(error), error
else:
    raise SystemExit("200,000 nodes should not fit")
assert torch.equal(rows(), expected)
"""


@pytest.mark.parametrize("script", [FORK, NO_THREADS, NO_MEMORY], ids=["fork", "threads", "memory"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork and no limits on this system")
def test_forks_and_limits(make: Make, script: str) -> None:
    """A forked child has a crew of its own; what the system refuses is an error or done without."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script, str(make("llama wider"))],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
