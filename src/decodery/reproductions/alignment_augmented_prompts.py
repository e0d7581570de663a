"""Items of the alignment_augmented reproduction: texts to quote from, and code to go on with.

All were written for it. A reference is what a careful reader would quote, or the code that came
next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["answer", "summary", "code"]


@dataclass(frozen=True)
class Item:
    """A prompt, whether it is a chat's, and a reference to compare with."""

    kind: Kind
    prompt: str
    reference: str

    @property
    def raw(self) -> bool:
        """Whether the model goes on with the prompt as it is."""
        return self.kind == "code"


LIGHTHOUSE = (
    "The lighthouse at Cape Tern was built in 1874 by the engineer Maria Holst. It is forty metres"
    " high, and its walls are two metres thick at the foot. The lamp was lit with whale oil until"
    " 1912, when the keepers were given an electric lamp. Three keepers and their families lived at"
    " the lighthouse and took turns at the lamp, four hours at a time. In 1931 a storm broke the"
    " upper gallery, and the stones of the old harbour wall were used to mend it. The keepers of"
    " Cape Tern wrote down every ship that passed, and their forty books are kept in the town"
    " library. Since 1988 nobody lives in the tower. The lamp is switched on by a clock, and the"
    " keepers' house is a small museum with four rooms. Visitors may climb the tower from May to"
    " September, but not when the wind is strong."
)
ORCHARD = (
    "The orchard of Lindenau has two hundred apple trees of thirty sorts. It was planted by the"
    " village school in 1902, so that every child could look after a tree. The trees of the upper"
    " slope bear fruit in August, and the trees of the lower slope bear fruit in October. Half of"
    " the apples are eaten fresh, and half of the apples are pressed into juice at the mill by the"
    " river. In the dry summer of 1976 the village carried water from the river for nine weeks, and"
    " only four trees died. Bees are kept at the northern fence because apple trees need them in"
    " spring. An old sort called the Red Bell grows nowhere else, and gardeners come from far away"
    " to cut its branches for grafting. The school still gives each child a tree in the first year,"
    " and the child's name is painted on a wooden sign."
)
FERRY = (
    "The ferry between Norr and the island of Halm sails six times a day. The crossing takes fifty"
    " minutes in calm weather and up to two hours when the sea is rough. The ferry Alma was built"
    " in 1969 and carried twenty cars; the ferry Runa replaced it in 2004 and carries sixty cars."
    " In winter the ferry sails only four times a day, because ice forms in the shallow bay of"
    " Norr. The captain decides every morning at five whether the ferry can sail. When the ferry"
    " does not sail, a small plane brings the post and the medicine to the island. About nine"
    " hundred people live on Halm all year, and most of them work on the mainland. In 2019 the"
    " council planned a bridge, but the people of Halm voted against it, because a bridge would"
    " have crossed the bird reserve."
)
CLOCK = (
    "The town clock of Veldhaven shows the hour, the tide and the phase of the moon. It was made by"
    " the brothers Anton and Piet Maas between 1781 and 1786. The tide dial has a single golden"
    " hand that turns twice in a lunar day, so fishermen could see from the harbour when to leave."
    " Every evening at nine the clock plays one of seven songs, a different song for each day of"
    " the week. During the war the bells were taken down and hidden under the floor of a barn. They"
    " came back in 1946, but the smallest bell was never found, and so the song of Thursday lacks"
    " one note. The weights are wound up by hand twice a week, which takes one person forty"
    " minutes. In 2011 a student found that the moon dial had been wrong by two days for a hundred"
    " years."
)

INVENTORY = '''"""A small shop: what is in it, and what was sold."""


class Item:
    def __init__(self, name, price, count):
        self.name = name
        self.price = price
        self.count = count

    def total_price(self):
        return self.price * self.count


class Shop:
    def __init__(self):
        self.items = {}

    def add_item(self, name, price, count):
        if name in self.items:
            self.items[name].count += count
        else:
            self.items[name] = Item(name, price, count)

    def remove_item(self, name, count):
        if name not in self.items:
            raise KeyError(f"there is no item {name}")
        if self.items[name].count < count:
            raise ValueError(f"there are not enough items of {name}")
        self.items[name].count -= count

    def total_price(self):
        total = 0
        for item in self.items.values():
            total += item.total_price()
        return total

    def change_price(self, name, price):
        if name not in self.items:
'''
INVENTORY_REST = """            raise KeyError(f"there is no item {name}")
        self.items[name].price = price
"""
SHAPES = """import math


class Circle:
    def __init__(self, radius):
        if radius <= 0:
            raise ValueError("radius must be positive")
        self.radius = radius

    def area(self):
        return math.pi * self.radius ** 2

    def perimeter(self):
        return 2 * math.pi * self.radius

    def scaled(self, factor):
        return Circle(self.radius * factor)


class Square:
    def __init__(self, side):
        if side <= 0:
            raise ValueError("side must be positive")
        self.side = side

    def area(self):
        return self.side ** 2

    def perimeter(self):
        return 4 * self.side

    def scaled(self, factor):
        return Square(self.side * factor)


class Rectangle:
    def __init__(self, width, height):
"""
SHAPES_REST = """        if width <= 0:
            raise ValueError("width must be positive")
        if height <= 0:
            raise ValueError("height must be positive")
        self.width = width
        self.height = height

    def area(self):
        return self.width * self.height
"""
STATISTICS = '''def mean(values):
    """The mean of the values."""
    if not values:
        raise ValueError("values must not be empty")
    return sum(values) / len(values)


def variance(values):
    """The variance of the values."""
    if not values:
        raise ValueError("values must not be empty")
    middle = mean(values)
    return sum((value - middle) ** 2 for value in values) / len(values)


def median(values):
    """The median of the values."""
    if not values:
        raise ValueError("values must not be empty")
    ordered = sorted(values)
    half = len(ordered) // 2
    if len(ordered) % 2 == 1:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2


def value_range(values):
    """The range of the values."""
'''
STATISTICS_REST = """    if not values:
        raise ValueError("values must not be empty")
    return max(values) - min(values)
"""
READER = '''import json


def read_lines(path):
    """All lines of a file, without their ends."""
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\\n") for line in file]


def write_lines(path, lines):
    """Write lines into a file."""
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(line + "\\n")


def read_records(path):
    """All records of a file, one on a line."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_records(path, records):
    """Write records into a file, one on a line."""
'''
READER_REST = """    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\\n")
"""


def _answer(text: str, question: str, reference: str) -> Item:
    prompt = f"{text}\n\nAnswer by quoting the sentence of the text that says it. {question}"
    return Item("answer", prompt, reference)


def _summary(text: str, reference: str) -> Item:
    prompt = f"{text}\n\nSummarise this text by quoting its three most important sentences."
    return Item("summary", prompt, reference)


ITEMS: tuple[Item, ...] = (
    _answer(
        LIGHTHOUSE,
        "Who built the lighthouse?",
        "The lighthouse at Cape Tern was built in 1874 by the engineer Maria Holst.",
    ),
    Item("code", INVENTORY, INVENTORY_REST),
    _summary(
        ORCHARD,
        "The orchard of Lindenau has two hundred apple trees of thirty sorts. It was planted by the"
        " village school in 1902, so that every child could look after a tree. The school still"
        " gives each child a tree in the first year, and the child's name is painted on a wooden"
        " sign.",
    ),
    _answer(
        LIGHTHOUSE,
        "What happened in the storm?",
        "In 1931 a storm broke the upper gallery, and the stones of the old harbour wall were used"
        " to mend it.",
    ),
    _summary(
        LIGHTHOUSE,
        "The lighthouse at Cape Tern was built in 1874 by the engineer Maria Holst. The lamp was"
        " lit with whale oil until 1912, when the keepers were given an electric lamp. Since 1988"
        " nobody lives in the tower.",
    ),
    _answer(
        ORCHARD,
        "What happens to the apples?",
        "Half of the apples are eaten fresh, and half of the apples are pressed into juice at the"
        " mill by the river.",
    ),
    Item("code", SHAPES, SHAPES_REST),
    _answer(
        ORCHARD,
        "What happened in the dry summer of 1976?",
        "In the dry summer of 1976 the village carried water from the river for nine weeks, and"
        " only four trees died.",
    ),
    _answer(
        FERRY,
        "What happens when the ferry does not sail?",
        "When the ferry does not sail, a small plane brings the post and the medicine to the"
        " island.",
    ),
    Item("code", STATISTICS, STATISTICS_REST),
    _answer(
        FERRY,
        "Why did the people vote against the bridge?",
        "In 2019 the council planned a bridge, but the people of Halm voted against it, because a"
        " bridge would have crossed the bird reserve.",
    ),
    _summary(
        FERRY,
        "The ferry between Norr and the island of Halm sails six times a day. In winter the ferry"
        " sails only four times a day, because ice forms in the shallow bay of Norr. About nine"
        " hundred people live on Halm all year, and most of them work on the mainland.",
    ),
    _answer(
        CLOCK,
        "Why does the song of Thursday lack a note?",
        "They came back in 1946, but the smallest bell was never found, and so the song of Thursday"
        " lacks one note.",
    ),
    Item("code", READER, READER_REST),
    _answer(
        CLOCK,
        "Who made the clock, and when?",
        "It was made by the brothers Anton and Piet Maas between 1781 and 1786.",
    ),
    _summary(
        CLOCK,
        "The town clock of Veldhaven shows the hour, the tide and the phase of the moon. It was"
        " made by the brothers Anton and Piet Maas between 1781 and 1786. Every evening at nine the"
        " clock plays one of seven songs, a different song for each day of the week.",
    ),
)
