"""Lines of a fixed grammar with free slots, and a character model trained on them.

The lines are certain almost everywhere and open where a slot begins, so what a temperature does to
either is seen apart: a line that parses has no error in its certain part, and different values of
its slots are its diversity. Slot values have Zipf's law, or a temperature would change nothing in
them. The model is a small feed-forward network, trained here in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from decodery.core.source import Grown, Growth, Model

Array = npt.NDArray[np.float32]

SLOTS: dict[str, tuple[str, ...]] = {
    "name": (
        *("anna", "boris", "carla", "dmitri", "elena", "felix", "greta", "hugo"),
        *("irene", "jonas", "klara", "leo", "marta", "nils", "olga", "pavel"),
        *("quinn", "rosa", "stefan", "tessa", "ulrich", "vera", "walter", "yara"),
    ),
    "city": (
        *("oslo", "paris", "rome", "vienna", "lisbon", "madrid", "prague", "warsaw"),
        *("dublin", "athens", "bern", "cairo", "delhi", "essen", "florence", "geneva"),
        *("hamburg", "istanbul", "jena", "kiev", "london", "naples", "quito", "tokyo"),
    ),
    "thing": (
        *("lamp", "basket", "violin", "carpet", "hammer", "ladder", "mirror", "kettle"),
        *("pencil", "blanket", "drum", "engine", "fork", "globe", "jacket", "needle"),
        *("oven", "pillow", "radio", "saddle", "teapot", "umbrella", "vase", "wagon"),
    ),
    "number": (
        *("112", "120", "145", "167", "203", "218", "256", "291"),
        *("304", "333", "372", "389", "410", "454", "477", "506"),
        *("528", "563", "602", "649", "715", "780", "824", "937"),
    ),
}
TEMPLATES = (
    ("order for ", "{name} ships to {city} today."),
    ("the train to ", "{city} leaves with {name} on board."),
    ("please send ", "one {thing} to {name} at once."),
    ("we found a ", "{thing} on the road near {city}."),
    ("the price list says that ", "{thing} costs {number} coins."),
    ("room ", "{number} is booked by {name}."),
)
ALPHABET = "\n .abcdefghijklmnopqrstuvwxyz0123456789"
END = 0  # the line break
LONGEST = 72  # characters of a line
WINDOW = 20  # characters that the model sees
WIDTH = 192  # of its hidden layer
BATCH = 48  # lines
PLACES = np.arange(WINDOW) * len(ALPHABET)


def encode(text: str) -> list[int]:
    return [ALPHABET.index(letter) for letter in text]


def decode(tokens: Sequence[int]) -> str:
    return "".join(ALPHABET[token] for token in tokens)


def slots_of(template: str) -> list[str]:
    """The names of a template's slots, in order."""
    return re.findall(r"{(\w+)}", template)


def zipf(count: int) -> npt.NDArray[np.float64]:
    """Probabilities [count] in proportion to 1 / rank."""
    weights = 1.0 / np.arange(1, count + 1)
    return weights / weights.sum()


def write_lines(generator: np.random.Generator, count: int) -> list[str]:
    """Lines to train on: templates at random, slot values by Zipf's law."""
    chosen = {
        slot: generator.choice(values, count, p=zipf(len(values))).tolist()
        for slot, values in SLOTS.items()
    }
    lines: list[str] = []
    for number, template in enumerate(generator.integers(len(TEMPLATES), size=count)):
        opening, rest = TEMPLATES[template]
        values = {slot: drawn[number] for slot, drawn in chosen.items()}
        lines.append(opening + rest.format(**values) + "\n")
    return lines


def parse(template: str, text: str) -> tuple[str, ...] | None:
    """The slot values of a completed line, or None where it breaks the grammar.

    >>> parse("{name} ships to {city} today.", "anna ships to oslo today.")
    ('anna', 'oslo')
    >>> parse("{name} ships to {city} today.", "anna ships to osla today.") is None
    True
    """
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    for slot in slots_of(template):
        pattern = pattern.replace(f"{{{slot}}}", f"({'|'.join(SLOTS[slot])})", 1)
    found = re.fullmatch(pattern, text)
    return found.groups() if found else None


# -- the model -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """One hidden layer over the last `WINDOW` characters (Bengio et al. 2003, without the direct
    connections): each character at each place adds its own row to the hidden layer."""

    rows: Array  # [WINDOW * characters, width]
    bias: Array  # [width]
    out: Array  # [characters, width]
    out_bias: Array  # [characters]

    def scores(self, windows: npt.NDArray[np.intp]) -> Array:
        """Scores [n, characters] of what follows `windows` [n, WINDOW], oldest character first."""
        hidden = np.tanh(self.rows[windows + PLACES].sum(axis=1) + self.bias)
        return hidden @ self.out.T + self.out_bias


class CharacterModel(Model):
    """A source of characters."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.name = "characters"
        self.vocab_size = len(ALPHABET)
        self.eos_ids = frozenset({END})

    def forward(self, growths: Sequence[Growth]) -> Sequence[Grown]:
        windows = np.array([window(growth.node.tokens) for growth in growths])
        return [Grown(row) for row in self.weights.scores(windows)]


def window(tokens: Sequence[int]) -> list[int]:
    """The last `WINDOW` tokens, with line breaks before the first.

    >>> window([5, 6])[-3:]
    [0, 5, 6]
    """
    last = list(tokens[-WINDOW:])
    return [END] * (WINDOW - len(last)) + last


def train(steps: int, seed: int = 0) -> tuple[Weights, float]:
    """Weights trained on written lines, and the loss of the last batches in nats a character."""
    import torch

    generator = np.random.default_rng(seed)
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        into = torch.nn.EmbeddingBag(WINDOW * len(ALPHABET), WIDTH, mode="sum")
        torch.nn.init.normal_(into.weight, std=0.1)
        bias = torch.nn.Parameter(torch.zeros(WIDTH))
        head = torch.nn.Linear(WIDTH, len(ALPHABET))
        parameters = [into.weight, bias, *head.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            windows, following = examples(write_lines(generator, BATCH))
            hidden = torch.tanh(into(torch.from_numpy(windows + PLACES)) + bias)
            loss = torch.nn.functional.cross_entropy(head(hidden), torch.from_numpy(following))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        arrays = [parameter.detach().numpy().copy() for parameter in parameters]
    return Weights(*arrays), float(np.mean(losses[-20:]))


def examples(
    lines: Sequence[str],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every character of the lines: the windows before it [n, WINDOW], and itself [n]."""
    windows: list[list[int]] = []
    following: list[int] = []
    for line in lines:
        padded = [END] * WINDOW + encode(line)
        windows += [padded[place : place + WINDOW] for place in range(len(line))]
        following += padded[WINDOW:]
    return np.array(windows), np.array(following)
