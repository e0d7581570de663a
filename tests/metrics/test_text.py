"""Text metrics: golden values, definitions written out, edges, and wrong variants."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from decodery.metrics.text import bleu, distinct, ngrams, repetition, rouge_l, self_bleu, words

SENTENCES = [
    words("the cat sat on the mat"),
    words("the cat sat on a mat"),
    words("a dog ran in the park today"),
]


@pytest.mark.parametrize(("order", "golden"), [(2, 0.516903), (3, 0.448354), (4, 0.379636)])
def test_self_bleu_golden(order: int, golden: float) -> None:
    """Computed by nltk.translate.bleu_score with smoothing method 1."""
    assert self_bleu(SENTENCES, order) == pytest.approx(golden, abs=1e-6)


def test_bleu_limits() -> None:
    text = SENTENCES[0]
    assert bleu(text, [text]) == pytest.approx(1.0)
    assert bleu(words("x y z"), [text]) == 0.0
    assert bleu([], [text]) == 0.0
    assert math.isnan(bleu(text, []))
    assert self_bleu([text] * 5) == pytest.approx(1.0)
    assert math.isnan(self_bleu([text]))


def test_bleu_clips_counts_and_punishes_brevity() -> None:
    """Papineni's example: "the" seven times; two of them are in the reference."""
    reference = words("the cat is on the mat")
    assert bleu(["the"] * 7, [reference], order=1) == pytest.approx(2 / 7)
    assert bleu(words("the cat"), [reference], order=1) == pytest.approx(math.exp(1 - 6 / 2))
    nearest = bleu(words("the cat is"), [reference, words("the cat is")], order=1)
    assert nearest == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "golden"), [(2, 0.5), (3, 0.4), (4, 0.25)])
def test_repetition_golden(n: int, golden: float) -> None:
    assert repetition(list("abababc"), n) == golden


def test_repetition_counts_what_came_before() -> None:
    """By its words: go through the n-grams and count those that were seen."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        text = generator.integers(0, 4, 30).tolist()
        for n in range(1, 6):
            grams = ngrams(text, n)
            before = sum(gram in grams[:place] for place, gram in enumerate(grams))
            assert repetition(text, n) == pytest.approx(before / len(grams))


def test_distinct_pools_texts() -> None:
    assert distinct([list("abacabd")], 2) == pytest.approx(5 / 6)
    assert distinct([[1, 2, 1, 2], [2, 1]], 2) == pytest.approx(2 / 4)
    assert math.isnan(distinct([[1]], 2))
    assert math.isnan(repetition([1, 2], 3))


def longest_common(one: str, other: str) -> int:
    """By trying every subsequence."""
    for size in range(len(one), 0, -1):
        for chosen in itertools.combinations(one, size):
            letters = iter(other)
            if all(letter in letters for letter in chosen):
                return size
    return 0


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    generator = np.random.default_rng(1)
    for _ in range(60):
        one, other = ("".join(generator.choice(list("abc"), size)) for size in (7, 6))
        assert rouge_l(one, other) == pytest.approx(2 * longest_common(one, other) / 13)
    assert rouge_l("", "abc") == 0.0
    assert rouge_l("abc", "abc") == 1.0
    assert math.isnan(rouge_l("abc", ""))


def test_rouge_l_minds_the_order() -> None:
    """A bag of words would give 1."""
    assert rouge_l(words("mat the on"), words("on the mat")) == pytest.approx(1 / 3)


def test_words() -> None:
    assert words("The cat, 9 lives\nÉté!") == ["the", "cat", "9", "lives", "t"]
