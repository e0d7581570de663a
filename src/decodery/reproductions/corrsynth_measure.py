"""Measuring for the CorrSynth reproduction: headlines of four classes, contrasts along texts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from decodery.core.decoder import Completion, Task
from decodery.core.handle import Handle
from decodery.core.requests import Request
from decodery.core.runner import Runner
from decodery.core.source import Policy
from decodery.core.stopping import FinishReason, Stopping
from decodery.core.tree import Node
from decodery.methods.autoregressive.corrsynth import PLACEHOLDER, CorrSynth, Sibling
from decodery.methods.blending.cfg import Cfg
from decodery.metrics.text import distinct, ngrams, repetition, self_bleu, words
from decodery.reproductions.corrsynth_settings import (
    ALONG,
    FADING,
    GAMMA,
    LASTING,
    LATE_FROM,
    WINDOW,
    Setting,
    Size,
    size,
)
from decodery.reproductions.corrsynth_texts import CLASSES, REQUESTS, TEST, TOPICS, prompts
from decodery.reproductions.drawing import NotedDraws, item_stream, run, seeds_from
from decodery.reproductions.frame import Array, Measurements, Mode, Progress

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel

Headlines = dict[Setting, list[list[list[list[Completion]]]]]  # [demonstrations][seeds][classes]


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Write all data sets and follow the contrasts, all in one runner."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    seeds, runner = seeds_from(seed, todo.seeds), Runner()
    batches = {
        setting: [
            [write(runner, lm, setting, place, key, todo) for key in seeds]
            for place in range(todo.demonstrations)
        ]
        for setting in todo.settings
    }
    followed = {
        setting: [
            [follow(runner, lm, setting, place, key, todo) for key in seeds]
            for place in range(todo.requests)
        ]
        for setting in ALONG
    }
    everything = chain(*batches.values(), *followed.values())
    run(runner, [handle for row in everything for batch in row for handle in batch], progress)
    headlines: Headlines = {
        setting: [[by_class(batch, todo) for batch in row] for row in rows]
        for setting, rows in batches.items()
    }
    texts = {
        setting: [[[texts_of(lm, group) for group in batch] for batch in row] for row in rows]
        for setting, rows in headlines.items()
    }
    terms = {
        setting: [[by_topic(batch, todo) for batch in row] for row in rows]
        for setting, rows in followed.items()
    }
    cells = {**qualities(headlines), **diversities(texts), **students(texts), **along(terms, todo)}
    return Measurements(lm.name, seeds, cells, _facts(todo, texts))


# -- writing headlines -----------------------------------------------------------------------------


def worth(node: Node, token: int) -> float:
    """ln p of a token under the model itself, for a blend its first member."""
    source = node.members[0] if node.members else node
    return source.row.log_probability(token)


class WatchedCfg(Cfg):
    """Guidance whose members' rows are kept for notes."""

    observes_rows: ClassVar[bool] = True


def write(
    runner: Runner, lm: LanguageModel, setting: Setting, place: int, seed: int, todo: Size
) -> list[Handle]:
    """Queue one batch: `repeats` headlines of each class, with one choice of examples."""
    asked = prompts(place)
    if setting.contrast is not None:
        decoder = CorrSynth(
            asked, todo.repeats, setting.contrast, gamma=1.0, delta=setting.strength
        )
        task = _task(lm, Policy(lm, setting.chain()), PLACEHOLDER, todo, seed, place)
        return [runner.submit(decoder, task)]
    handles: list[Handle] = []
    for number, prompt in enumerate(asked):
        source = lm
        if setting.name == "cfg":
            other = lm.language.encode(asked[(number + 1) % len(asked)])
            source = WatchedCfg(lm, setting.strength, other)
        policy = Policy(source, setting.chain())
        task = _task(lm, policy, prompt, todo, seed, place * len(asked) + number)
        handles.append(runner.submit(NotedDraws(todo.repeats, {"worth": worth}), task))
    return handles


def _task(lm: LanguageModel, policy: Policy, prompt: str, todo: Size, seed: int, item: int) -> Task:
    """A headline ends at the end of its line."""
    decode = lm.tokenizer.decode
    stopping = Stopping(todo.tokens, lm.eos_ids, stop=("\n",), decode=decode)
    tokens = lm.language.encode(prompt)
    return Task(policy, tokens, stopping, item_stream(seed, item), prompt, decode)


def by_class(batch: Sequence[Handle], todo: Size) -> list[list[Completion]]:
    """The completions of a batch [classes][repeats]."""
    items = [item for handle in batch for item in handle.result()]
    return [items[start : start + todo.repeats] for start in range(0, len(items), todo.repeats)]


def texts_of(lm: LanguageModel, group: Sequence[Completion]) -> list[str]:
    return [lm.tokenizer.decode(item.tokens).split("\n")[0].strip() for item in group]


# -- following the contrast along texts ------------------------------------------------------------


def contrast_term(own: Array, against: Array) -> float:
    """The mean under P of |ln P - ln Q|, from scores of P and Q [vocab_size].

    A row that has Q in its exponent 1 - gamma moves by gamma - 1 times as much.
    """
    log_p, log_q = (scores - _log_sum(scores) for scores in (own, against))
    return float(np.exp(log_p) @ np.abs(log_p - log_q))


def _log_sum(scores: Array) -> float:
    top = float(scores.max())
    return top + math.log(float(np.exp(scores - top).sum()))


def guidance(node: Node, _token: int) -> float:
    own, other = (np.asarray(item.row.dense_scores(), np.float64) for item in node.members)
    return contrast_term(own, other)


@dataclass(frozen=True)
class Followed(CorrSynth):
    """CorrSynth that notes the contrast of every token in details["contrast"]."""

    noted: dict[int, list[float]] = field(default_factory=dict[int, list[float]])

    def _draw(self, live: Sequence[Sibling]) -> list[Request]:
        rows = [sibling.tip.row for sibling in live]
        logs = [np.asarray(row.dense_scores() - row.log_normaliser, np.float64) for row in rows]
        shares = self.shares([sibling.group for sibling in live])
        floored = np.maximum(np.stack(logs), math.log(self.floor))
        for sibling, own, mean in zip(live, logs, shares @ floored, strict=True):
            self.noted.setdefault(sibling.sequence, []).append(contrast_term(own, mean))
        return super()._draw(live)

    def _completion(self, sibling: Sibling, reason: FinishReason) -> Completion:
        made = super()._completion(sibling, reason)
        made.details["contrast"] = self.noted[sibling.sequence]
        return made


def follow(
    runner: Runner, lm: LanguageModel, setting: Setting, place: int, seed: int, todo: Size
) -> list[Handle]:
    """Queue longer texts about every topic; end tokens are ordinary tokens."""
    request, policy = REQUESTS[place], Policy(lm, setting.chain())
    stopping = Stopping(todo.length, ignore_eos=True)
    if setting == LASTING:
        whole = lm.read(request)
        decoder = Followed(TOPICS, todo.following, "cross", gamma=GAMMA, delta=setting.strength)
        stream = item_stream(seed, place)
        task = Task(policy, whole.tokens, stopping, stream, whole.text, messages=whole.messages)
        return [runner.submit(decoder, task)]
    read = [lm.read(request.replace(PLACEHOLDER, topic)).tokens for topic in TOPICS]
    handles: list[Handle] = []
    for number, tokens in enumerate(read):
        source = WatchedCfg(lm, setting.strength, read[(number + 1) % len(read)])
        stream = item_stream(seed, place * len(TOPICS) + number)
        task = Task(Policy(source, setting.chain()), tokens, stopping, stream)
        handles.append(runner.submit(NotedDraws(todo.following, {"contrast": guidance}), task))
    return handles


def by_topic(batch: Sequence[Handle], todo: Size) -> Array:
    """The contrast [topics, positions], the mean over a topic's texts."""
    noted = [item.details["contrast"] for handle in batch for item in handle.result()]
    return np.array(noted).reshape(len(TOPICS), todo.following, todo.length).mean(axis=1)


# -- from texts and terms to cells -----------------------------------------------------------------


def qualities(headlines: Headlines) -> dict[str, dict[Setting, Array]]:
    """ "log-prob" [demonstrations * classes, seeds]: nats a token under the model itself."""

    def mean(group: Sequence[Completion]) -> float:
        return sum(_worth(item) for item in group) / sum(len(item.tokens) for item in group)

    return {"log-prob": {setting: _each(rows, mean) for setting, rows in headlines.items()}}


def _worth(item: Completion) -> float:
    noted = item.details.get("worth")
    return float(sum(noted)) if noted is not None else float(item.log_probability or 0.0)


def diversities(texts: Mapping[Setting, Any]) -> dict[str, dict[Setting, Array]]:
    """Diversity within a class, of words.

    "self-BLEU" of orders 5 and 2, "distinct-2", "across" and "entities" [demonstrations * classes,
    1] of all texts that were written with one choice of examples; "siblings" is self-BLEU-5 in a
    batch, "words" the length of a text and "repeats" the share of its pairs of words that it has
    had before [demonstrations * classes, seeds].
    """
    found: dict[str, dict[Setting, Array]] = {}
    for setting, rows in texts.items():
        found.setdefault("words", {})[setting] = _each(rows, length)
        found.setdefault("repeats", {})[setting] = _each(rows, repeats)
        found.setdefault("siblings", {})[setting] = _each(rows, partial(bleu, order=5))
        pooled = [
            [[[text for batch in row for text in batch[k]] for k in range(len(CLASSES))]]
            for row in rows
        ]
        for name, metric in POOLED.items():
            found.setdefault(name, {})[setting] = _each(pooled, metric)
    return found


def _each(rows: Any, metric: Any) -> Array:
    """A metric of every class in every batch: [demonstrations * classes, seeds]."""
    values = np.array([[[metric(group) for group in batch] for batch in row] for row in rows])
    return values.transpose(0, 2, 1).reshape(-1, values.shape[1])


def length(texts: Sequence[str]) -> float:
    return float(np.mean([len(words(text)) for text in texts]))


def bleu(texts: Sequence[str], order: int) -> float:
    return self_bleu([words(text) for text in texts], order)


def bigrams(texts: Sequence[str]) -> float:
    share = distinct([words(text) for text in texts], 2)
    return 0.0 if math.isnan(share) else share


def across(texts: Sequence[str]) -> float:
    """distinct-2 in which a text has each pair of words once: what texts share, not their loops.

    >>> across(["a b a b", "a b c"])
    0.75
    """
    pairs = [pair for text in texts for pair in set(ngrams(words(text), 2))]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def repeats(texts: Sequence[str]) -> float:
    """The mean share of a text's pairs of words that it has had before; 0 for less than a pair."""
    return float(np.mean(np.nan_to_num([repetition(words(text), 2) for text in texts])))


_CAPITALS = re.compile(r"[A-Z][\w'’-]*(?:\s+[A-Z][\w'’-]*)*")


def names(text: str) -> list[str]:
    """Runs of capitalised words, less a single one at the start of the text.

    >>> names("Late goal sends Ajax past Real Madrid in Rome")
    ['Ajax', 'Real Madrid', 'Rome']
    """
    found = [match for match in _CAPITALS.finditer(text) if match.start() or " " in match.group()]
    return [match.group() for match in found]


def entities(texts: Sequence[str]) -> float:
    """The entropy of names in nats; 0 where there is none."""
    counts = np.array(list(Counter(name for text in texts for name in names(text)).values()), float)
    if not counts.size:
        return 0.0
    law = counts / counts.sum()
    return float(-(law * np.log(law)).sum())


POOLED: Mapping[str, Callable[[Sequence[str]], float]] = {
    "self-BLEU-5": partial(bleu, order=5),
    "self-BLEU-2": partial(bleu, order=2),
    "distinct-2": bigrams,
    "across": across,
    "entities": entities,
}


def students(texts: Mapping[Setting, Any]) -> dict[str, dict[Setting, Array]]:
    """ "accuracy" [test headlines, seeds] of naive Bayes that has read the data set of a seed."""
    tested = [(number, words(line)) for number, name in enumerate(CLASSES) for line in TEST[name]]
    found: dict[Setting, Array] = {}
    for setting, rows in texts.items():
        right: list[list[float]] = []
        for seed in range(len(rows[0])):
            read = [
                [word for row in rows for text in row[seed][k] for word in words(text)]
                for k in range(len(CLASSES))
            ]
            right.append([accuracy(read, number, line) for number, line in tested])
        found[setting] = np.array(right).T
    return {"accuracy": found}


def accuracy(read: Sequence[Sequence[str]], number: int, line: Sequence[str]) -> float:
    """Whether naive Bayes with add-one counts of words, classes alike, says class `number`."""
    known = {word for text in read for word in text}
    scores: list[float] = []
    for text in read:
        counts = Counter(text)
        total = len(text) + len(known)
        scores.append(sum(math.log((counts[word] + 1) / total) for word in line if word in known))
    return float(int(np.argmax(scores)) == number)


def along(terms: Mapping[Setting, Any], todo: Size) -> dict[str, dict[Setting, Array]]:
    """The contrast in windows of the text [requests * topics, seeds], and "late" over them."""
    found: dict[str, dict[Setting, Array]] = {"late": {}}
    for setting, rows in terms.items():
        values = np.array(rows)  # [requests, seeds, topics, positions]
        values = values.transpose(0, 2, 1, 3).reshape(-1, values.shape[1], todo.windows, WINDOW)
        windows = values.mean(axis=3)
        for number in range(todo.windows):
            found.setdefault(f"window {number}", {})[setting] = windows[:, :, number]
        found["late"][setting] = windows[:, :, LATE_FROM:].mean(axis=2)
    return found


def _facts(todo: Size, texts: Mapping[Setting, Any]) -> dict[str, Any]:
    return {
        "headlines of a setting": todo.demonstrations * todo.seeds * todo.repeats * len(CLASSES),
        "tokens of a window": WINDOW,
        "followed": {str(setting): f"gamma {GAMMA:g}" for setting in (FADING, LASTING)},
        "examples": {
            str(setting): {name: rows[0][0][number] for number, name in enumerate(CLASSES)}
            for setting, rows in texts.items()
        },
    }
