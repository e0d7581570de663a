"""How different the answers to one prompt are: kinds of answers, their spread, their worth.

`answers` are texts as they are read. What is equivalent, and how alike two answers are, is said by
a function or a kernel of similarities, so that a lexical and a learned judge share the rest.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from decodery.metrics.text import Text, ngrams, words

Array = npt.NDArray[np.float64]
Equivalent = Callable[[str, str], bool]

SHORT = 5  # words up to which an answer is compared by shared words
ROUGE_BOUND = 0.458  # ROUGE-1 F above which longer answers are equivalent (NoveltyBench)
PATIENCE = 0.8
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def expectation_adjusted_distinct(texts: Sequence[Text], n: int, kinds: int) -> float:
    """Different n-grams over the number expected of so many draws among `kinds`; NaN without any.

    Unlike distinct-n it does not fall with the length of the texts. Liu et al. (2022),
    arXiv:2202.13587, with `kinds` the size of the vocabulary.

    >>> round(expectation_adjusted_distinct(["abab"], 1, 2), 4)
    1.0667
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    if not grams:
        return math.nan
    return len(set(grams)) / (kinds * (1.0 - (1.0 - 1.0 / kinds) ** len(grams)))


def compression_ratio(answers: Sequence[str]) -> float:
    """Bytes of all answers together over their bytes when compressed; lower is more diverse."""
    joined = "\n".join(answers).encode()
    return len(joined) / len(zlib.compress(joined, 9)) if joined else math.nan


def unique_sentences(answers: Sequence[str]) -> float:
    """The share of different sentences among all sentences, as words; NaN without any.

    >>> unique_sentences(["It rains. I stay.", "it rains! We go."])
    0.75
    """
    said = [
        tuple(words(part)) for answer in answers for part in _SENTENCE.split(answer) if words(part)
    ]
    return len(set(said)) / len(said) if said else math.nan


# -- kinds of answers ------------------------------------------------------------------------------


def rouge_1(one: Text, other: Text) -> float:
    """ROUGE-1 F1: shared tokens, each as often as both have it; 1 for two empty texts.

    >>> rouge_1("the cat sat".split(), "the cat".split())
    0.8
    """
    if not one and not other:
        return 1.0
    shared = (Counter(one) & Counter(other)).total()
    return 2.0 * shared / (len(one) + len(other))


def alike(one: str, other: str) -> bool:
    """NoveltyBench's rule without a trained judge.

    Two answers of at most five words are equivalent when at least half of the words of the longer
    are shared; others when ROUGE-1 F is above 0.458.

    >>> alike("A red rose", "red rose"), alike("A red rose", "Tulips")
    (True, False)
    """
    first, second = words(one), words(other)
    if max(len(first), len(second)) <= SHORT:
        kinds = set(first), set(second)
        return 2 * len(kinds[0] & kinds[1]) >= max(map(len, kinds))
    return rouge_1(first, second) > ROUGE_BOUND


def classes(answers: Sequence[str], equivalent: Equivalent = alike) -> list[int]:
    """The class of each answer: the first whose first member it is equivalent to, or a new one.

    NoveltyBench, arXiv:2504.05228. Classes are numbered from 0 as they open.

    >>> classes(["red", "blue", "red"])
    [0, 1, 0]
    """
    opened: list[str] = []
    found: list[int] = []
    for answer in answers:
        same = (place for place, first in enumerate(opened) if equivalent(first, answer))
        place = next(same, len(opened))
        if place == len(opened):
            opened.append(answer)
        found.append(place)
    return found


def distinct_k(answers: Sequence[str], equivalent: Equivalent = alike) -> int:
    """How many classes the answers make."""
    return len(set(classes(answers, equivalent)))


def utility_k(
    answers: Sequence[str],
    worth: Sequence[float],
    equivalent: Equivalent = alike,
    patience: float = PATIENCE,
) -> float:
    """The worth of answers to a reader who goes on after each with chance `patience`.

    An answer of a class that was seen before is worth nothing. Weights sum to one, so that the
    utility of answers that are all new and all worth u is u.

    >>> round(utility_k(["red", "red", "blue"], [10, 10, 10]), 3)
    6.721
    """
    found = classes(answers, equivalent)
    weights = patience ** np.arange(len(found))
    new = np.array([kind not in found[:place] for place, kind in enumerate(found)])
    return float((weights * new * np.asarray(worth)).sum() / weights.sum()) if found else math.nan


# -- spread ----------------------------------------------------------------------------------------


def bag_similarity(answers: Sequence[str], ignored: frozenset[str] = frozenset()) -> Array:
    """Cosines [n, n] of the counts of words that are not `ignored`.

    An answer without any such word is like itself and like nothing else.
    """
    bags = [Counter(word for word in words(answer) if word not in ignored) for answer in answers]
    kinds = {word: place for place, word in enumerate(sorted(set().union(*bags)))}
    counts = np.zeros((len(bags), len(kinds)))
    for place, bag in enumerate(bags):
        for word, count in bag.items():
            counts[place, kinds[word]] = count
    norms = np.linalg.norm(counts, axis=1)
    unit = counts / np.where(norms > 0, norms, 1.0)[:, None]
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, 1.0)
    return similarity


def mean_distance(similarity: Array) -> float:
    """The mean of 1 - similarity over pairs of different answers; NaN for fewer than two."""
    count = len(similarity)
    if count < 2:
        return math.nan
    off = similarity.sum() - np.trace(similarity)
    return float(1.0 - off / (count * (count - 1)))


def vendi(similarity: Array) -> float:
    """The Vendi score: exp of the entropy of the eigenvalues of K / n, K [n, n] with K_ii = 1.

    It is 1 for n answers that are alike and n for answers that have nothing in common. Friedman and
    Dieng (2022), arXiv:2210.02410.

    >>> round(vendi(np.eye(3)), 9), round(vendi(np.ones((3, 3))), 9)
    (3.0, 1.0)
    """
    values = np.linalg.eigvalsh(np.asarray(similarity, dtype=np.float64) / len(similarity))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))
