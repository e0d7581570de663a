"""The frame of trainings: a registry by module, strict parameters, one way to run them.

A training is data and a function: `run(params, run)` checks its input, calls `run.begin()`, does
its work in the phases and steps of `run` (see `run.py`), and returns what it has trained. The frame
writes that as a part (`models/parts.py`), which a method reads by its name, and a report.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.core.errors import ParameterError, UnknownNameError, nearest
from decodery.core.params import Parameters, make, parameter
from decodery.models.parts import MadeFor, write_part
from decodery.training.run import Progress, Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_PACKAGE = "decodery.training"


class TrainingParams(Parameters):
    """What every training is given; a training's own `Params` inherits from it."""

    model: str | None = parameter(
        None, help="A hub id, a folder, or a .gguf file to train for; default: the embedded model."
    )
    seed: int = parameter(0, ge=0, lt=2**32, help="Seed of all that is drawn.")


@dataclass(frozen=True)
class Trained:
    """What a training made: the tensors of a part, what it was made for, and what was measured.

    With `write` it is no part: that is given the run's folder, writes the result there in a format
    of its own, and returns where.
    """

    tensors: Mapping[str, npt.NDArray[np.floating]]
    made_for: MadeFor
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    write: Callable[[Path], Path] | None = None


@dataclass(frozen=True)
class Training:
    """A training: its name, which is also the part's, one line, its parameters, its work."""

    name: str
    summary: str
    params: type[TrainingParams]
    run: Callable[[Any, Run], Trained]


@dataclass(frozen=True)
class Result:
    """A finished training: where the part's file or the result is, and what was measured."""

    part: Path
    facts: Mapping[str, Any]


def trainings() -> dict[str, Training]:
    """All trainings by name, sorted."""
    package = importlib.import_module(_PACKAGE)
    found: list[Training] = []
    for info in pkgutil.iter_modules(package.__path__, f"{_PACKAGE}."):
        training = getattr(importlib.import_module(info.name), "TRAINING", None)
        if isinstance(training, Training):
            found.append(training)
    return {training.name: training for training in sorted(found, key=lambda item: item.name)}


def get(name: str) -> Training:
    """The training called `name`, in which - is as good as _."""
    known = trainings()
    wanted = name.replace("-", "_")
    if wanted not in known:
        raise UnknownNameError(f"there is no training {name!r}; {nearest(wanted, known)}")
    return known[wanted]


def train(
    training: Training,
    values: Mapping[str, Any],
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Train into the folder `out`, or go on with the run that was interrupted there.

    With `resume` the parameters are those the run began with; one given again must be equal. Raises
    `ParameterError` for parameters, inputs and folders before any work is done, and
    `KeyboardInterrupt` after Ctrl-C, when all that was done is saved.
    """
    run = Run(out, training.name, resume=resume, progress=progress)
    params = make(training.params, run.merged(values), training.name)
    run.parameters = params.model_dump(mode="json")
    with run:
        trained = training.run(params, run)
        if not run.begun:
            raise ParameterError(f"the training {training.name} has not begun its run")
        written: list[Path] = []
        run.finish(
            {"made_for": trained.made_for.to_dict(), "facts": dict(trained.facts)},
            lambda: written.append(_write(training, trained, out)),
        )
    return Result(written[0], trained.facts)


def _write(training: Training, trained: Trained, out: Path) -> Path:
    """Write what was trained; returns where."""
    if trained.write is not None:
        return trained.write(out)
    path = out / f"{training.name}.safetensors"
    write_part(path, training.name, trained.made_for, trained.tensors)
    return path
