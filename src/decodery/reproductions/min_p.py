"""Min-p against top-p at high temperature, on the embedded SmolLM2-135M-Instruct.

Two tasks stand for the paper's GSM8K and GPQA, which are too hard for this model: facts (questions
with a short answer, two examples in the prompt) and copying a sentence. An answer is right when its
first line equals the answer, ignoring case, surrounding space and a final full stop. Of the
candidates below, those are used that the model answers right under greedy decoding, measured in the
same run. Coherence is the mean log-probability that the untempered model gives to each token of a
freely continued text; diversity is distinct-2, the share of distinct pairs among the pairs of
neighbouring tokens of one prompt's texts.

A setting is a temperature, a truncation, and whether the temperature comes first (the paper's
order) or last (llama.cpp's). All settings draw with the same noise. Top-k keeps the same set and so
draws the same tokens in either order: it is run once.

Nguyen et al. (2024), arXiv:2407.01082; the fair version follows Schaeffer et al. (2025),
arXiv:2506.13681. The thresholds were fixed before the runs: factor 3 for (a); 0.05 for (b), two
standard errors of the paper's own accuracies; "far less" is less than half for (c); (d) compares
with the middle between the model's own text and uniform noise; any advantage counts for (e).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from decodery.core.branches import branch_footprint, branches
from decodery.core.decoder import Completion, Decoder, Decoding, Task
from decodery.core.rng import Stream
from decodery.core.runner import Handle, Runner
from decodery.core.sampler import Chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.reproductions.frame import (
    Array,
    Check,
    Claim,
    Measurements,
    Means,
    Mode,
    Progress,
    Reproduction,
    Result,
)
from decodery.reproductions.graded import GradedDraws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from decodery.api.language_model import LanguageModel

# -- the tasks ----------------------------------------------------------------------------------

_EXAMPLES = "Q: What is the capital of Italy?\nA: Rome\nQ: What color is grass?\nA: Green\n"
FACTS = (
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of England?", "London"),
    ("What is the capital of Germany?", "Berlin"),
    ("What is the capital of Russia?", "Moscow"),
    ("What is the capital of China?", "Beijing"),
    ("What is the capital of Greece?", "Athens"),
    ("What is the largest planet?", "Jupiter"),
    ("Who wrote Romeo and Juliet?", "William Shakespeare"),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci"),
    ("Who developed the theory of relativity?", "Albert Einstein"),
    ("Who was the first man on the Moon?", "Neil Armstrong"),
    ("What gas do plants absorb?", "Carbon dioxide"),
    ("What language is spoken in Brazil?", "Portuguese"),
    ("What is frozen water called?", "Ice"),
    ("On which continent is Egypt?", "Africa"),
    ("What is the opposite of hot?", "Cold"),
    ("What is the longest river in Africa?", "Nile"),
)
SENTENCES = (
    "The cat sat on the mat.",
    "Seven small boats left the harbor.",
    "My brother plays the piano every evening.",
    "A red car stopped near the old bridge.",
    "The train to London leaves at noon.",
    "She bought three apples and a lemon.",
    "Our teacher reads a story every day.",
    "The dog ran across the green field.",
    "Rain fell on the quiet village all night.",
    "He opened the window and looked outside.",
    "The old clock stopped at midnight.",
    "Two birds built a nest in the tree.",
    "The river flows into the cold sea.",
    "We walked home after the game.",
)
OPENINGS = (
    "Once upon a time",
    "The best thing about summer is",
    "Last night I dreamed that",
    "In the middle of the city",
    "My favorite book is",
    "When the door opened,",
)
ANSWER_TOKENS = 14


@dataclass(frozen=True)
class Item:
    """A prompt, taken as raw text, and its right answer."""

    task: Literal["facts", "copy"]
    prompt: str
    answer: str


def candidates() -> list[Item]:
    """All items, before the model's greedy answers select among them."""
    facts = [Item("facts", f"{_EXAMPLES}Q: {question}\nA:", answer) for question, answer in FACTS]
    copies = [Item("copy", f"Original: {text}\nCopy:", text) for text in SENTENCES]
    return [*facts, *copies]


def grade(answer: str, text: str, ended: bool) -> bool | None:
    """Whether `text` answers right; None while it may still become right.

    >>> grade("Paris", " paris.", True), grade("Paris", " Par", False), grade("Paris", " Pat", False)
    (True, None, False)
    """
    line, newline, _ = text.partition("\n")
    wanted = _plain(answer)
    if newline or ended:
        return _plain(line) == wanted
    return None if f"{wanted}.".startswith(line.strip().casefold()) else False


def _plain(text: str) -> str:
    return text.strip().casefold().removesuffix(".")


# -- the settings -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A temperature, a truncation by name and strength, and the place of the temperature."""

    temperature: float
    sampler: Literal["none", "top_p", "min_p", "top_k"] = "none"
    strength: float = 0.0
    last: bool = False

    def __str__(self) -> str:
        temperature = f"T={self.temperature:g}"
        if self.sampler == "none":
            return temperature
        return f"{self.truncation}, {temperature}" + (" last" if self.last else "")

    @property
    def truncation(self) -> str:
        return "none" if self.sampler == "none" else f"{self.sampler} {self.strength:g}"

    def chain(self) -> Chain:
        """The sampler chain, planned as for any run."""
        from decodery.api.plan import make_plan

        values: dict[str, Any] = {"temperature": self.temperature, "seed": 0}
        order = ["temperature"]
        if self.sampler != "none":
            values[self.sampler] = int(self.strength) if self.sampler == "top_k" else self.strength
            order.insert(0 if self.last else 1, self.sampler)
        return make_plan("sample", {**values, "sampler_order": tuple(order)}).sampler


TEMPERATURES = (0.7, 1.0, 1.5, 2.0, 3.0)
HIGH = (2.0, 3.0)
LOW = 0.7
GREEDY = Setting(0.0)
OWN = Setting(1.0)  # the model's own law
CHANCE = Setting(100.0)  # uniform over the vocabulary, near enough
TOP_P, MIN_P, TOP_K = ("top_p", 0.9), ("min_p", 0.1), ("top_k", 40)
STRENGTHS = {
    "top_p": (0.8, 0.9, 0.95),
    "min_p": (0.05, 0.1, 0.3),
    "top_k": (10, 40, 100),
}


def grid(truncations: Sequence[tuple[Any, float]]) -> list[Setting]:
    """Every temperature with no truncation and with each of these, in both orders."""
    settings = [Setting(temperature) for temperature in TEMPERATURES]
    for sampler, strength in truncations:
        for last in (False,) if sampler == "top_k" else (False, True):
            settings += [Setting(heat, sampler, strength, last) for heat in TEMPERATURES]
    return settings


def family(sampler: Any) -> list[Setting]:
    """All settings of one truncation in the fair comparison."""
    return [
        setting
        for setting in grid([(sampler, strength) for strength in STRENGTHS[sampler]])
        if setting.sampler == sampler
    ]


@dataclass(frozen=True)
class Size:
    """How much a mode measures. `draws` and `texts` are for each item, setting and seed."""

    graded: tuple[Setting, ...]
    written: tuple[Setting, ...]
    seeds: int
    draws: int
    texts: int
    text_tokens: int


def size(mode: Mode) -> Size:
    """The grid and the numbers of draws of a mode."""
    reference = (OWN, CHANCE)
    if mode == "quick":
        hot = tuple(Setting(3.0, *truncation) for truncation in (TOP_P, MIN_P))
        graded = tuple(grid([TOP_P, MIN_P, TOP_K]))
        return Size(graded, (*reference, *hot), seeds=4, draws=8, texts=2, text_tokens=12)
    everything = [
        (sampler, strength) for sampler, strengths in STRENGTHS.items() for strength in strengths
    ]
    graded = tuple(grid(everything))
    written = tuple(dict.fromkeys([*reference, *graded]))
    return Size(graded, written, seeds=4, draws=16, texts=4, text_tokens=16)


# -- measuring ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts(Decoder):
    """`n` texts with the log-probability of their tokens under the source itself."""

    n: int

    @property
    def sequences(self) -> int:
        return self.n

    def decode(self, task: Task) -> Decoding:
        return (yield from branches(task, self.n, emit=False, log_probabilities=True))

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return branch_footprint(self.n, prompt_length, max_tokens)


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Run the whole grid of a mode on the embedded model, everything in one runner."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    seeds = tuple((seed + offset) % 2**32 for offset in range(todo.seeds))
    runner = Runner()
    items = candidates()
    answers = [
        _submit_answers(runner, lm, number, item, todo, seeds) for number, item in enumerate(items)
    ]
    texts = [
        [
            [_submit_texts(runner, lm, setting, opening, (key, place), todo) for key in seeds]
            for place, opening in enumerate(OPENINGS)
        ]
        for setting in todo.written
    ]
    _run(
        runner, [*answers, *(handle for item in texts for row in item for handle in row)], progress
    )
    graded = np.array([_right(handle, todo) for handle in answers])
    written = [[[handle.result() for handle in row] for row in setting] for setting in texts]
    kept = selected(graded)
    return Measurements(
        model=lm.name,
        seeds=seeds,
        cells={
            **accuracies([item.task for item in items], graded, kept, todo.graded),
            "log-probability": _per_prompt(written, todo.written, mean_log_probability),
            "distinct-2": _per_prompt(written, todo.written, distinct_2),
        },
        facts={
            "items": {"candidates": len(items), "answered right under greedy": int(kept.sum())},
            "left out": [item.prompt for item, keep in zip(items, kept, strict=True) if not keep],
            "draws for each item and seed": todo.draws,
            "texts for each opening and seed": todo.texts,
            "examples": {
                str(setting): lm.tokenizer.decode(rows[0][0][0].tokens)
                for setting, rows in zip(todo.written, written, strict=True)
            },
        },
    )


def _submit_answers(
    runner: Runner, lm: LanguageModel, number: int, item: Item, todo: Size, seeds: Sequence[int]
) -> Handle:
    chains = tuple(setting.chain() for setting in (GREEDY, *todo.graded))
    streams = tuple(_stream(seed, number) for seed in seeds)
    decoder = GradedDraws(chains, streams, todo.draws, partial(grade, item.answer))
    return runner.submit(decoder, _task(lm, Policy(lm), item.prompt, ANSWER_TOKENS, Stream(0)))


def _submit_texts(
    runner: Runner,
    lm: LanguageModel,
    setting: Setting,
    opening: str,
    key: tuple[int, int],
    todo: Size,
) -> Handle:
    policy = Policy(lm, setting.chain())
    return runner.submit(
        Texts(todo.texts), _task(lm, policy, opening, todo.text_tokens, _stream(*key))
    )


def _stream(seed: int, number: int) -> Stream:
    """Noise of a seed and an item: items must not share noise, or they would err together."""
    return Stream(seed * 2**16 + number)


def _task(lm: LanguageModel, policy: Policy, prompt: str, tokens: int, stream: Stream) -> Task:
    ids, text = lm.prompt_tokens(prompt, raw=True)
    stopping = Stopping(tokens, eos_ids=lm.eos_ids)
    return Task(policy, ids, stopping, stream, text, lm.tokenizer.decode)


def _run(runner: Runner, handles: Sequence[Handle], progress: Progress) -> None:
    try:
        while runner.step():
            progress(sum(handle.done for handle in handles), len(handles))
    finally:
        runner.close()


def _right(handle: Handle, todo: Size) -> Array:
    """One item's scores as [1 + settings, seeds]: the share of draws that are right."""
    scores = np.array([completion.score for completion in handle.result()], dtype=np.float64)
    return scores.reshape(1 + len(todo.graded), todo.seeds, todo.draws).mean(axis=2)


def selected(graded: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which items [items] greedy decoding, the first of the settings, answers right."""
    return graded[:, 0].min(axis=1) == 1


def accuracies(
    tasks: Sequence[str], graded: Array, kept: Any, settings: Sequence[Setting]
) -> dict[str, dict[Setting, Array]]:
    """Cells [items, seeds] of the kept items: all, by task, and by halves of the seeds.

    `graded` is [items, 1 + settings, seeds]. The halves serve the fair comparison: on one the best
    setting is chosen, on the other it is measured.
    """
    half = graded.shape[2] // 2
    parts: dict[str, tuple[Any, slice]] = {
        "accuracy": (kept, slice(None)),
        "facts": (kept & (np.array(tasks) == "facts"), slice(None)),
        "copy": (kept & (np.array(tasks) == "copy"), slice(None)),
        "accuracy to choose": (kept, slice(None, half)),
        "accuracy to judge": (kept, slice(half, None)),
    }
    return {
        name: {setting: graded[rows, 1 + number, seeds] for number, setting in enumerate(settings)}
        for name, (rows, seeds) in parts.items()
    }


def _per_prompt(
    written: Sequence[Sequence[Sequence[list[Completion]]]],
    settings: Sequence[Setting],
    measure_texts: Callable[[Sequence[Completion]], float],
) -> dict[Setting, Array]:
    return {
        setting: np.array([[measure_texts(texts) for texts in row] for row in rows])
        for setting, rows in zip(settings, written, strict=True)
    }


def mean_log_probability(texts: Sequence[Completion]) -> float:
    """Nats a token under the untempered model, all texts together."""
    total = sum(text.log_probability or 0.0 for text in texts)
    return total / sum(len(text.tokens) for text in texts)


def distinct_2(texts: Sequence[Completion]) -> float:
    """The share of distinct pairs among all pairs of neighbouring tokens; 0 without any pair."""
    pairs = [pair for text in texts for pair in pairwise(text.tokens)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


# -- the claims ---------------------------------------------------------------------------------


def _accuracy(
    means: Means, temperature: float, cut: tuple[Any, float], last: bool = False
) -> Array:
    return means["accuracy", Setting(temperature, *cut, last)]


def _threefold(means: Means, temperature: float) -> Array:
    """A ratio above 3 as a difference, which also holds its sense where top-p is at zero."""
    return _accuracy(means, temperature, MIN_P) - 3 * _accuracy(means, temperature, TOP_P)


def _low_difference(means: Means) -> Array:
    return _accuracy(means, LOW, MIN_P) - _accuracy(means, LOW, TOP_P)


def _spared_loss(means: Means, temperature: float, cut: tuple[Any, float]) -> Array:
    """Half the loss with the temperature first, less the loss with it last."""
    first, last = (
        _accuracy(means, LOW, cut, order) - _accuracy(means, temperature, cut, order)
        for order in (False, True)
    )
    return first / 2 - last


def _closed_gap(means: Means, temperature: float) -> Array:
    """Half the lead of min-p with the temperature first, less its lead with it last."""
    first, last = (
        _accuracy(means, temperature, MIN_P, order) - _accuracy(means, temperature, TOP_P, order)
        for order in (False, True)
    )
    return first / 2 - last


def _above_middle(means: Means, cut: tuple[Any, float]) -> Array:
    """Nats a token above the middle between the model's own text and chance."""
    own, chance = means["log-probability", OWN], means["log-probability", CHANCE]
    return means["log-probability", Setting(3.0, *cut)] - (own + chance) / 2


def _fair_lead(means: Means, rival: str) -> Array:
    return fair_accuracy(means, "min_p") - fair_accuracy(means, rival)


def fair_accuracy(means: Means, sampler: str) -> Array:
    """Accuracy of a sampler's best setting that is at least as diverse as the model's own text.

    Best is chosen on one half of the seeds and judged on the other. Where no setting is diverse
    enough, the most diverse one is taken: it ranks below zero, that is below every accuracy.
    """
    settings = family(sampler)
    chosen, judged, diversity = (
        np.stack([means[quantity, setting] for setting in settings])
        for quantity in ("accuracy to choose", "accuracy to judge", "distinct-2")
    )
    worth = np.where(diversity >= means["distinct-2", OWN], chosen, diversity - 2)
    best = np.expand_dims(worth.argmax(axis=0), 0)
    return np.take_along_axis(judged, best, axis=0)[0]


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a",
        "At T >= 2 (temperature first) min-p 0.1 answers right more than three times as often as"
        " top-p 0.9.",
        "accuracy(min-p) - 3 accuracy(top-p) above 0 at T = 2 and at T = 3",
        tuple(
            Check(f"min-p - 3 top-p at T={heat:g}", partial(_threefold, temperature=heat), above=0)
            for heat in HIGH
        ),
    )
    yield Claim(
        "b",
        "At T = 0.7 min-p 0.1 and top-p 0.9 are equal within noise.",
        "accuracy(min-p) - accuracy(top-p) within 0.05 of 0",
        (Check("min-p - top-p at T=0.7", _low_difference, above=-0.05, below=0.05),),
    )
    yield Claim(
        "c1",
        "With the temperature last, truncation at high temperature loses far less accuracy.",
        "the loss from T = 0.7 with temperature last is less than half of that with it first, for"
        " top-p 0.9 and min-p 0.1, at T = 2 and T = 3",
        tuple(
            Check(
                f"{name}: half the loss first - loss last, T={heat:g}",
                partial(_spared_loss, temperature=heat, cut=cut),
                above=0,
            )
            for name, cut in (("top-p", TOP_P), ("min-p", MIN_P))
            for heat in HIGH
        ),
    )
    yield Claim(
        "c2",
        "The gap between min-p and top-p at high temperature is largely an effect of the order.",
        "the gap with temperature last is less than half of that with it first, at T = 2 and T = 3",
        tuple(
            Check(
                f"half the gap first - gap last, T={heat:g}",
                partial(_closed_gap, temperature=heat),
                above=0,
            )
            for heat in HIGH
        ),
    )
    yield Claim(
        "d",
        "At T = 3 text stays coherent with min-p 0.1 and collapses with top-p 0.9.",
        "log-probability a token under the untempered model: min-p above, top-p below the middle"
        " between the model's own text (T = 1) and uniform noise",
        (
            Check("min-p - middle [nats]", partial(_above_middle, cut=MIN_P), above=0),
            Check("top-p - middle [nats]", partial(_above_middle, cut=TOP_P), below=0),
        ),
    )
    yield Claim(
        "e",
        "Min-p is better than top-p and top-k also when each has its best setting at equal"
        " diversity and equal grids.",
        "best accuracy at a distinct-2 of at least the model's own text: min-p above top-p and"
        " top-k (30 settings each, both orders; the orders of top-k coincide)",
        tuple(
            Check(f"min-p - {rival.replace('_', '-')}", partial(_fair_lead, rival=rival), above=0)
            for rival in ("top_p", "top_k")
        ),
        modes=("full",),
    )


# -- the figure ---------------------------------------------------------------------------------

_COLOURS = {"none": "0.45", "top_p": "tab:red", "min_p": "tab:blue", "top_k": "tab:green"}


def draw(figure: Figure, result: Result) -> None:
    """Accuracy over temperature in each order, coherence at T = 3, and in full mode the fair view."""
    panels: list[Any] = list(figure.subplots(1, 3 if result.mode == "quick" else 4))
    _draw_accuracy(panels[0], result, last=False)
    _draw_accuracy(panels[1], result, last=True)
    panels[1].sharey(panels[0])
    _draw_coherence(panels[2], result)
    if result.mode == "full":
        _draw_diversity(panels[3], result)
    figure.suptitle(
        f"{result.reproduction.title}: {result.measurements.model}, {result.mode},"
        f" {len(result.measurements.seeds)} seeds, 95 % bootstrap intervals"
    )


def _draw_accuracy(axes: Axes, result: Result, *, last: bool) -> None:
    for cut in (("none", 0.0), TOP_P, MIN_P, TOP_K):
        # Without truncation, and with top-k, both orders are the same.
        ordered = last and cut[0] in ("top_p", "min_p")
        settings = [Setting(heat, *cut, ordered) for heat in TEMPERATURES]
        _draw_line(axes, result, settings)
    axes.set_title(f"temperature {'last' if last else 'first'}")
    axes.set_xlabel("temperature")
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_line(axes: Axes, result: Result, settings: Sequence[Setting]) -> None:
    estimates = [result.table["accuracy", setting] for setting in settings]
    axes.errorbar(
        [setting.temperature for setting in settings],
        [item.value for item in estimates],
        yerr=_bars(estimates),
        label=settings[0].truncation,
        color=_COLOURS[settings[0].sampler],
        marker="o",
        markersize=4,
        capsize=3,
    )


def _bars(estimates: Sequence[Any]) -> list[list[float]]:
    """Distances from values to interval ends, as matplotlib wants them; never below zero."""
    return [
        [max(item.value - item.low, 0.0) for item in estimates],
        [max(item.high - item.value, 0.0) for item in estimates],
    ]


def _draw_coherence(axes: Axes, result: Result) -> None:
    settings = {
        "own text\nT=1": OWN,
        "min_p 0.1\nT=3": Setting(3.0, *MIN_P),
        "top_p 0.9\nT=3": Setting(3.0, *TOP_P),
        "uniform\nnoise": CHANCE,
    }
    estimates = [result.table["log-probability", setting] for setting in settings.values()]
    axes.bar(
        list(settings),
        [item.value for item in estimates],
        yerr=_bars(estimates),
        color=["0.45", _COLOURS["min_p"], _COLOURS["top_p"], "0.75"],
        capsize=3,
    )
    middle = (estimates[0].value + estimates[-1].value) / 2
    axes.axhline(middle, color="black", linestyle="--", linewidth=1, label="middle")
    axes.set_title("coherence, temperature first")
    axes.set_ylabel("log-probability, nats a token")
    axes.tick_params(axis="x", labelsize="small")
    axes.legend(fontsize="small", loc="lower left")


def _draw_diversity(axes: Axes, result: Result) -> None:
    for sampler in ("top_p", "min_p", "top_k"):
        settings = family(sampler)
        axes.scatter(
            [result.table["distinct-2", setting].value for setting in settings],
            [result.table["accuracy", setting].value for setting in settings],
            color=_COLOURS[sampler],
            s=16,
            alpha=0.7,
            label=sampler,
        )
    own = result.table["distinct-2", OWN].value
    axes.axvline(own, color="black", linestyle="--", linewidth=1, label="own text, T=1")
    axes.set_title("every setting, both orders")
    axes.set_xlabel("distinct-2")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower left")


REPRODUCTION = Reproduction(
    method="min_p",
    title="Min-p at high temperature",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    size=(15.0, 4.6),
)
