"""A training small enough to interrupt at every step: a linear map fitted by AdamW, in two phases.

It draws by seed and step and hands over all that changes, as trainings must.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from decodery.core.params import parameter
from decodery.models.parts import MadeFor
from decodery.training.frame import Trained, Training, TrainingParams
from decodery.training.run import Run
from decodery.training.tools import optimizer_state, restore_optimizer

WIDTH = 3
MODEL = MadeFor("toy", "0" * 64, WIDTH)
Hook = Callable[[str, int], None]


class Params(TrainingParams):
    steps: int = parameter(12, ge=1, help="Steps of the fit.")
    rates: tuple[float, ...] = parameter((0.1,), help="Learning rates, the first is used.")


def toy(hook: Hook = lambda *_: None) -> Training:
    """`hook(phase, step)` is called in the middle of all work."""

    def run(params: Any, run: Run) -> Trained:
        run.begin(model="toy", data="d" * 8)

        def data() -> dict[str, torch.Tensor]:
            hook("data", 0)
            generator = torch.Generator().manual_seed(params.seed)
            return {"x": torch.randn(64, WIDTH, generator=generator)}

        x = run.kept("data", data)["x"]
        y = x @ torch.tensor([1.0, -2.0, 3.0])
        restored = run.restored("fit")
        weight = torch.zeros(WIDTH) if restored is None else restored["weight"]
        weight.requires_grad_()
        optimizer = torch.optim.AdamW([weight], lr=params.rates[0])
        if restored is not None:
            restore_optimizer(optimizer, restored)

        def state() -> dict[str, torch.Tensor]:
            return {"weight": weight.detach(), **optimizer_state(optimizer)}

        for step in run.steps("fit", params.steps, state):
            rows = np.random.default_rng([params.seed, step]).integers(64, size=8)
            optimizer.zero_grad()
            loss = ((x[rows] @ weight - y[rows]) ** 2).mean()
            loss.backward()
            hook("fit", step)
            optimizer.step()
            run.note = f"loss {loss.item():.3f}"
        error = float((x @ weight.detach() - y).abs().max())
        return Trained({"weight": weight.detach().numpy()}, MODEL, {"error": error})

    return Training("toy", "A toy.", Params, run)
