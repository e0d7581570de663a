"""Metrics of diversity: closed forms, limits and invariances; nothing is random but test points."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest

from decodery.metrics import diversity, frontier, text

# -- kinds -----------------------------------------------------------------------------------------


def test_classes_are_opened_by_their_first_member():
    """Comparison is with first members only: c is like b and not like a."""
    near = {("a", "b"), ("b", "c")}

    def equivalent(one: str, other: str) -> bool:
        return one == other or (one, other) in near or (other, one) in near

    assert diversity.classes("abc", equivalent) == [0, 0, 1]
    assert diversity.classes("bac", equivalent) == [0, 0, 0]


def test_classes_of_a_true_equivalence_do_not_depend_on_the_order():
    """Oracle 8: between 1 and G, and stable under permutations."""
    answers = ["x1", "x2", "y1", "x3", "z1", "y2"]

    def equivalent(one: str, other: str) -> bool:
        return one[0] == other[0]

    counts = {diversity.distinct_k(order, equivalent) for order in permutations(answers)}
    assert counts == {3}
    assert diversity.distinct_k(["same"] * 7) == 1
    assert diversity.distinct_k(["red", "blue", "green"]) == 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Paris", "paris.", True),
        ("a b c d", "c d e f", True),  # two of four words
        ("a b c d e", "d e f g h", False),  # two of five
        ("a a b", "a c", True),  # one of two kinds
        ("one two three four five six", "one two three x y z", True),  # F = 0.5
        ("one two three four five six seven", "one two three x y z w", False),  # F = 0.43
        ("one two three four five six", "one two", True),  # F = 0.5, one is long
        ("", "", True),
        ("word", "", False),
    ],
)
def test_which_answers_are_alike(one: str, other: str, same: bool):
    assert diversity.alike(one, other) == diversity.alike(other, one) == same


def test_rouge_1_is_the_f1_of_shared_words():
    assert diversity.rouge_1(["a", "a", "b"], ["a", "c"]) == pytest.approx(2 / 5)
    assert diversity.rouge_1([], ["a"]) == 0


def test_utility_is_the_sum_it_says():
    answers, worth = ["red", "blue", "red", "green"], [3.0, 5.0, 9.0, 7.0]
    patience = 0.8
    scale = (1 - patience) / (1 - patience**4)
    wanted = scale * (3 + patience * 5 + patience**3 * 7)
    assert diversity.utility_k(answers, worth) == pytest.approx(wanted)
    assert diversity.utility_k(["red", "blue"], [4, 4]) == pytest.approx(4)
    assert math.isnan(diversity.utility_k([], []))


# -- words -----------------------------------------------------------------------------------------


def test_adjusted_distinct_is_one_on_average_for_uniform_draws():
    """Its denominator is the expected number of kinds: 2,000 sets of 30 draws among 12."""
    generator = np.random.default_rng(0)
    values = [
        diversity.expectation_adjusted_distinct([generator.integers(12, size=30).tolist()], 1, 12)
        for _ in range(2000)
    ]
    assert np.mean(values) == pytest.approx(1, abs=4 * np.std(values) / math.sqrt(2000))
    plain = [text.distinct([list(range(5)) * length], 1) for length in (1, 4)]
    assert plain == [1, 0.25]
    assert math.isnan(diversity.expectation_adjusted_distinct([[]], 1, 5))


def test_repeats_compress():
    alike = diversity.compression_ratio(["the same words again"] * 10)
    different = diversity.compression_ratio([f"{place} {place**7}" for place in range(10)])
    assert alike > 3 > 1.5 > different
    assert math.isnan(diversity.compression_ratio([]))


def test_sentences_are_compared_as_words():
    assert diversity.unique_sentences(["One. Two!", "two?\nThree"]) == 0.75
    assert math.isnan(diversity.unique_sentences(["...", ""]))


# -- spread ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7])
def test_vendi_counts_answers_that_differ(count: int):
    """Oracle 8: identical answers are 1, orthogonal ones as many as there are."""
    assert diversity.vendi(np.ones((count, count))) == pytest.approx(1)
    assert diversity.vendi(np.eye(count)) == pytest.approx(count)
    blocks = np.kron(np.eye(count), np.ones((3, 3)))
    assert diversity.vendi(blocks) == pytest.approx(count)


def test_vendi_of_two_answers_has_a_closed_form():
    for similarity in (0.0, 0.3, 0.9, 1.0):
        shares = [(1 + similarity) / 2, (1 - similarity) / 2]
        entropy = -sum(share * math.log(share) for share in shares if share)
        matrix = np.array([[1, similarity], [similarity, 1]])
        assert diversity.vendi(matrix) == pytest.approx(math.exp(entropy))


def test_bags_of_words():
    answers = ["the red rose", "The rose, red!", "a blue bird", "the the"]
    found = diversity.bag_similarity(answers, frozenset({"the", "a"}))
    wanted = np.eye(4)
    wanted[0, 1] = wanted[1, 0] = 1
    assert found == pytest.approx(wanted)
    assert diversity.mean_distance(found) == pytest.approx(1 - 2 / 12)
    assert diversity.bag_similarity(["a b", "b c"])[0, 1] == pytest.approx(0.5)
    assert math.isnan(diversity.mean_distance(np.ones((1, 1))))


# -- fronts ----------------------------------------------------------------------------------------


def test_coverage_is_the_area_of_the_union():
    """Oracle 7: against counting cells of a grid."""
    assert frontier.coverage([(1, 1)]) == 1
    assert frontier.coverage([(0.5, 0.4)]) == pytest.approx(0.2)
    generator = np.random.default_rng(0)
    middle = (np.arange(400) + 0.5) / 400
    for _ in range(20):
        points = generator.integers(0, 401, size=(6, 2)) / 400
        cells = np.zeros((400, 400), dtype=bool)
        for x, y in points:
            cells |= (middle[:, None] < x) & (middle[None] < y)
        assert frontier.coverage(points) == pytest.approx(cells.mean(), abs=1e-12)
        assert frontier.coverage([*points, *points]) == frontier.coverage(points)


def test_the_front_is_what_nothing_beats():
    generator = np.random.default_rng(1)
    points = generator.integers(0, 8, size=(40, 2)) / 8
    for point, on in zip(points, frontier.front(points), strict=True):
        beaten = any((other >= point).all() and (other > point).any() for other in points)
        assert on == (not beaten)


def test_dominance_is_shared_out():
    """Oracle 7: duplicates count once, the shares sum to one."""
    one = frontier.dominance({"a": [(1, 1), (1, 1)], "b": [(0.5, 2)], "c": [(0, 0)]})
    assert one == {"a": 0.5, "b": 0.5, "c": 0}
    tied = frontier.dominance({"a": [(1, 1)], "b": [(1, 1), (2, 0)]})
    assert tied == {"a": 0.25, "b": 0.75}
    generator = np.random.default_rng(2)
    for _ in range(20):
        found = frontier.dominance({name: generator.random((4, 2)) for name in "abc"})
        assert sum(found.values()) == pytest.approx(1)


def test_axes_are_made_equal_over_all_methods():
    found = frontier.normalised({"a": [(2, 10), (4, 20)], "b": [(3, 30)]})
    assert found["a"].tolist() == [[0, 0], [1, 0.5]]
    assert found["b"].tolist() == [[0.5, 1]]
    flat = frontier.normalised({"a": [(1, 5)], "b": [(2, 5)]})
    assert flat["b"].tolist() == [[1, 1]]


def test_a_point_that_beats_all_owns_everything():
    found = frontier.normalised({"best": [(9, 9)], "rest": list(product((0, 1), (0, 1)))})
    assert frontier.dominance(found) == {"best": 1, "rest": 0}
    assert frontier.coverage(found["best"]) == 1
