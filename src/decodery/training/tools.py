"""What trainings on a frozen model share: hidden states of texts, norms of the output matrix, and
the state of an optimiser as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from decodery.models.transformer import Transformer

_ROWS = 64
# Unit vectors are shrunk by it, so that a soft cap on logits is as good as linear.
_SCALE = 2.0**-6


def hidden_states(transformer: Transformer, tokens: Sequence[int]) -> Tensor:
    """The last hidden states [n, width] of a text, as the engine has them at its nodes."""
    import torch

    from decodery.models.attention import Attention, Clump
    from decodery.models.cache_slots import SlotCache

    count = len(tokens)
    cache = SlotCache(
        layers=len(transformer.layers),
        kv_heads=transformer.kv_heads,
        head_dim=transformer.head_dim,
        slots=count,
        dtype=transformer.cache_dtype,
        device=str(transformer.device),
    )
    rows = list(range(count))
    clump = Clump((), rows, rows, list(range(-1, count - 1)))
    attention = Attention(transformer.layers, cache, rows, [clump])
    device = transformer.device
    with torch.no_grad():
        return transformer.hidden(
            torch.tensor(list(tokens), device=device), torch.arange(count, device=device), attention
        )


@dataclass(frozen=True)
class Norms:
    """Euclidean norms [vocab_size] of a model's output embeddings e_v: as they are, and measured
    from their mean."""

    plain: Tensor
    centred: Tensor

    def adjust(self, logits: Tensor, mode: str) -> Tensor:
        """Logits [n, vocab_size] divided by the norms.

        absolute: z_v / ||e_v||. mean: the same times the mean norm. centred: by the centred norms,
        after the mean logit of each position, which is h . mean(e), is taken away, so that the
        result does not depend on where zero is. off: as they are.
        """
        if mode == "off":
            return logits
        if mode == "centred":
            return (logits - logits.mean(-1, keepdim=True)) * _shrinking(self.centred)
        factors = _shrinking(self.plain)
        return logits * (factors if mode == "mean" else factors / self.plain.mean())


def _shrinking(norms: Tensor) -> Tensor:
    """mean / norm; a row of zeros (padding) counts like the smallest that is none."""
    return norms.mean() / norms.clamp(min=float(norms[norms > 0].min()))


def output_norms(transformer: Transformer) -> Norms:
    """The norms of the rows that hidden states are multiplied with to get logits.

    They are measured on the multiplication itself, so they are those of tied, quantised and foreign
    matrices alike; a bias does not count.
    """
    import torch

    with torch.no_grad():
        eye = _SCALE * torch.eye(transformer.width, device=transformer.device)
        eye = eye.to(transformer.dtype)
        bias = transformer.logits(torch.zeros_like(eye[:1]))
        plain = torch.zeros(transformer.vocab_size, dtype=torch.float64)
        centred = torch.zeros_like(plain)
        for units in eye.split(_ROWS):
            columns = ((transformer.logits(units) - bias) / _SCALE).cpu()
            plain += columns.double().pow(2).sum(0)
            centred += (columns - columns.mean(-1, keepdim=True)).double().pow(2).sum(0)
        return Norms(plain.sqrt().float(), centred.sqrt().float())


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """All that an optimiser remembers of its parameters, by names of its own."""
    states = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": value
        for index, state in states.items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave; other names are left alone."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            index, _, name = rest.partition(".")
            states.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
