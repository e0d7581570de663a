"""A recorder that does on a CPU what a CUDA graph does on its device.

While a body runs, every tensor operation is written down with the tensors it reads and writes. A
replay runs the operations again on the same memory, and no line of the body's Python: a number that
was taken from a tensor, a list or a length at recording stays what it was. What a graph cannot
record (a look at a number from the host, a tensor made of Python numbers, a shape that follows the
numbers) raises RuntimeError, as CUDA would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = (
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "item",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "nonzero in index",
    "repeat_interleave.Tensor",
)


class Tape(TorchDispatchMode):
    """Takes a body, runs it once, and returns what repeats its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[..., Any], tuple, dict, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = _name(func, args)
        if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN):
            raise RuntimeError(f"operation {name} is not permitted when a stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, recorded in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and not _same_memory(old, new):
                    old.copy_(new)


def _name(func: Any, args: tuple) -> str:
    """Such as `index.Tensor`; with a mask as an index it is a `nonzero`."""
    name = str(func).removeprefix("aten.")
    indices = args[1] if name == "index.Tensor" else ()
    masks = [index for index in indices if index is not None and index.dtype == torch.bool]
    return f"nonzero in {name}" if masks else name


def _same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether an operation answered with memory it was given: a view, or a change in place."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def record(body: Callable[[], None]) -> Callable[[], None]:
    """A `Recorder`: see the module's first lines."""
    tape = Tape()
    with tape:
        body()
    return tape.replay
