"""Numbers of texts: how much they repeat themselves, differ, and agree with a reference.

A text is a sequence of tokens (ids or words; `words` makes words); which tokens these are must be
said with every number. All values lie in [0, 1] and are NaN where there is nothing to measure.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

Text = Sequence[Hashable]
Gram = tuple[Hashable, ...]

SMOOTHING = 0.1  # stands for a count of zero in BLEU (Chen and Cherry 2014, method 1)
_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, as ROUGE counts them.

    >>> words("It's 3 o'clock.")
    ['it', 's', '3', 'o', 'clock']
    """
    return _WORD.findall(text.lower())


def ngrams(text: Text, n: int) -> list[Gram]:
    """All n-grams [len - n + 1] in their order."""
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]


def repetition(text: Text, n: int) -> float:
    """The share of n-grams that have occurred before in the text; NaN when it is shorter than n.

    Also known as seq-rep-n: 1 - distinct / all.

    >>> [repetition("abababc", n) for n in (2, 3, 4)]
    [0.5, 0.4, 0.25]
    """
    return 1.0 - distinct([text], n)


def distinct(texts: Sequence[Text], n: int) -> float:
    """The share of different n-grams among all n-grams of all texts together (distinct-n).

    Li et al. (2016), arXiv:1510.03055. NaN when every text is shorter than n.

    >>> round(distinct(["abacabd"], 2), 4)
    0.8333
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(texts: Sequence[Text], order: int = 4) -> float:
    """The mean BLEU of each text with all the others as references; lower is more diverse.

    Zhu et al. (2018), arXiv:1802.01886. NaN for fewer than two texts.
    """
    if len(texts) < 2:
        return math.nan
    counts = [[Counter(ngrams(text, n)) for n in range(1, order + 1)] for text in texts]
    total = 0.0
    for place, text in enumerate(texts):
        others = [index for index in range(len(texts)) if index != place]
        total += _bleu(
            len(text),
            counts[place],
            [len(texts[index]) for index in others],
            [counts[index] for index in others],
        )
    return total / len(texts)


def bleu(candidate: Text, references: Sequence[Text], order: int = 4) -> float:
    """Sentence BLEU: geometric mean of clipped n-gram precisions up to `order`, times brevity.

    A precision without any match counts 0.1 matches; without a common token BLEU is 0. Of
    references of different lengths the nearest counts, of two the shorter.
    """
    if not references:
        return math.nan
    counts = [
        [Counter(ngrams(text, n)) for n in range(1, order + 1)] for text in (candidate, *references)
    ]
    return _bleu(len(candidate), counts[0], [len(text) for text in references], counts[1:])


def _bleu(
    length: int,
    candidate: Sequence[Counter[Gram]],
    reference_lengths: Sequence[int],
    references: Sequence[Sequence[Counter[Gram]]],
) -> float:
    log_precision = 0.0
    for place, counts in enumerate(candidate):
        matched = sum(
            min(count, max(reference[place][gram] for reference in references))
            for gram, count in counts.items()
        )
        if place == 0 and matched == 0:
            return 0.0
        log_precision += math.log((matched or SMOOTHING) / max(1, counts.total()))
    nearest = min(reference_lengths, key=lambda other: (abs(other - length), other))
    brevity = 1.0 if length > nearest else math.exp(1.0 - nearest / length)
    return brevity * math.exp(log_precision / len(candidate))


def rouge_l(candidate: Text, reference: Text) -> float:
    """ROUGE-L: F1 of the longest common subsequence; NaN for an empty reference.

    Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries.

    >>> round(rouge_l("the cat sat".split(), "the big cat sat down".split()), 4)
    0.75
    """
    if not reference:
        return math.nan
    common = _longest_common(candidate, reference)
    return 2.0 * common / (len(candidate) + len(reference))


def _longest_common(one: Text, other: Text) -> int:
    """The length of the longest common subsequence, row by row."""
    row = [0] * (len(other) + 1)
    for token in one:
        diagonal = 0
        for place, against in enumerate(other, 1):
            above = row[place]
            row[place] = diagonal + 1 if token == against else max(above, row[place - 1])
            diagonal = above
    return row[-1]
