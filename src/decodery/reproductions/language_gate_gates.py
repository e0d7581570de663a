"""The gates that the shipped one is compared with, as files: controls, and other trainings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from decodery.models.parts import write_part
from decodery.reproductions.language_gate_settings import TAUGHT, Name

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel

PART = "language_gate"
CONTINUATIONS, TEXT_TOKENS = 1, 48  # of the small trainings
Tensors = Mapping[str, npt.NDArray[np.floating]]


def gate_files(lm: LanguageModel, names: set[Name], folder: Path) -> dict[Name, str | None]:
    """A file for every gate; None is the one that comes with the model."""
    files: dict[Name, str | None] = {"none": None, "gate": None}
    made: dict[Name, Tensors] = {}
    if "scrambled" in names:
        made["scrambled"] = scrambled(lm.part(PART))
    if "own script" in names:
        made["own script"] = own_script(lm.identity.width)
    if names & set(TAUGHT):
        made |= taught(lm, folder)
    for name, tensors in made.items():
        path = folder / f"{name.replace(' ', '-')}.safetensors"
        write_part(path, PART, lm.identity, tensors)
        files[name] = str(path)
    return files


def scrambled(gate: Tensors) -> Tensors:
    """The same gate with the coordinates of the hidden state in another order."""
    order = np.random.default_rng(0).permutation(gate["A1"].shape[1])
    return {"A1": np.ascontiguousarray(gate["A1"][:, order]), "A2": gate["A2"]}


def own_script(width: int) -> Tensors:
    """A gate that never permits CJ or Latin: only the script being written goes on.

    relu(h_0) + relu(-h_0) is the size of h_0, which is weighed -1 for both and 1 for the others.
    """
    first = np.zeros((2, width), dtype=np.float32)
    first[:, 0] = (1, -1)
    second = np.repeat(np.array([[-1], [-1], [1], [1]], dtype=np.float32), 2, axis=1)
    return {"A1": first, "A2": second}


def taught(lm: LanguageModel, folder: Path) -> dict[Name, Tensors]:
    """Gates of one small training, on the same texts and from the same beginning, by their labels:
    as shipped, without the division by norms, the paper's top 20, and those of other positions."""
    import torch

    from decodery.training.language_gate import Params
    from decodery.training.language_gate.distil import (
        Features,
        Teacher,
        fit,
        given,
        paths_of,
        states,
    )
    from decodery.training.run import Run

    params = Params(continuations=CONTINUATIONS, text_tokens=TEXT_TOKENS)
    kinds: dict[Name, Params] = {
        "adjusted": params,
        "unadjusted": params.model_copy(update={"norm_adjust": "off"}),
        "paper's labels": params.model_copy(update={"label_top_k": 20, "label_top_p": 0.95}),
    }
    run = Run(folder / "run", PART)
    run.begin()
    teachers: dict[Name, Teacher] = {name: Teacher.of(lm, kind) for name, kind in kinds.items()}
    hidden: list[torch.Tensor] = []
    labels: dict[Name, list[torch.Tensor]] = {name: [] for name in kinds}
    for path in paths_of(lm, params, run, *given(params)):
        for rows, logits in states(lm, [path]):
            hidden.append(rows)
            for name, teacher in teachers.items():
                labels[name].append(teacher.label(logits).float())
    found: dict[Name, torch.Tensor] = {name: torch.cat(parts) for name, parts in labels.items()}
    order = np.random.default_rng(0).permutation(len(found["adjusted"]))
    found["shuffled"] = found["adjusted"][torch.from_numpy(order)]
    features = torch.cat(hidden)
    gates: dict[Name, Tensors] = {}
    for name, wanted in found.items():
        first, second = fit(params, run, Features(features, wanted))
        gates[name] = {"A1": first.half().numpy(), "A2": second.half().numpy()}
    return gates
