"""The prompts of the EDT reproduction, each with a reference answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QUESTIONS = (
    (
        "Why do we see lightning before we hear thunder?",
        "Light travels much faster than sound, so the flash reaches us first.",
    ),
    (
        "Why does ice float on water?",
        "Ice is less dense than liquid water, so it floats on the surface.",
    ),
    (
        "What do bees make honey from?",
        "Bees make honey from the nectar that they collect from flowers.",
    ),
    (
        "Why do leaves turn yellow in autumn?",
        "The green chlorophyll breaks down and the yellow pigments become visible.",
    ),
    (
        "What causes the tides of the sea?",
        "The gravity of the moon and the sun pulls on the water of the oceans.",
    ),
    (
        "Why do people wear sunglasses?",
        "Sunglasses protect the eyes from bright light and from ultraviolet rays.",
    ),
    (
        "What does a thermometer do?",
        "A thermometer measures the temperature of the air, a body or a liquid.",
    ),
    (
        "Why does bread rise in the oven?",
        "Yeast produces carbon dioxide gas, which makes bubbles in the dough.",
    ),
    (
        "Why do birds fly south in winter?",
        "Birds fly south to find food and warmer weather during the winter.",
    ),
    (
        "What is a library for?",
        "A library is a place where people can read and borrow books.",
    ),
    (
        "Why does metal feel colder than wood?",
        "Metal conducts heat away from the hand faster than wood does.",
    ),
    (
        "How does a seed become a plant?",
        "A seed takes up water, sprouts, and grows roots, a stem and leaves.",
    ),
)
PASSAGES = (
    (
        "The old bridge over the river was closed on Monday after engineers found cracks in two of"
        " its pillars. Drivers must use the northern bridge until repairs are finished in spring.",
        "The old bridge is closed until spring because engineers found cracks in its pillars.",
    ),
    (
        "A bakery in the harbour gives unsold bread to a shelter every evening. The owner started"
        " two years ago, and other shops in the street have now joined him.",
        "A bakery gives its unsold bread to a shelter, and other shops have joined.",
    ),
    (
        "Students of the village school planted three hundred trees on the hill behind the church."
        " The trees should keep the soil in place when heavy rain falls.",
        "Students planted three hundred trees on a hill to hold the soil in heavy rain.",
    ),
    (
        "The museum has bought a painting that was thought to be lost for eighty years. It was"
        " found in the attic of a farmhouse and will be shown from June.",
        "The museum will show a painting that was lost for eighty years and found in an attic.",
    ),
    (
        "Heavy snow stopped all trains in the mountains on Friday night. About two hundred"
        " passengers slept in a sports hall and went on by bus in the morning.",
        "Heavy snow stopped the trains and two hundred passengers slept in a sports hall.",
    ),
    (
        "The town council voted to make the market square free of cars. Shop owners fear that they"
        " will lose customers, while many residents look forward to quiet evenings.",
        "The council voted to ban cars from the market square, which divides the town.",
    ),
    (
        "A boy of nine found a fossil shell on the beach and sent a photograph to the university."
        " Scientists say that the shell is more than a hundred million years old.",
        "A boy found a fossil shell on the beach that is over a hundred million years old.",
    ),
    (
        "The new ferry is driven by electric motors and makes almost no noise. It crosses the bay"
        " in twenty minutes and charges its batteries while passengers come on board.",
        "The new electric ferry crosses the bay in twenty minutes and is almost silent.",
    ),
    (
        "After a dry summer the farmers of the valley harvested only half as many apples as last"
        " year. Prices of juice are expected to rise before Christmas.",
        "A dry summer halved the apple harvest, and juice is expected to become dearer.",
    ),
    (
        "The city library now lends tools such as drills and saws as well as books. Members may"
        " keep a tool for one week, and lessons are offered on Saturdays.",
        "The city library now lends tools for a week and offers lessons.",
    ),
    (
        "A nurse ran across the whole island in five days to collect money for a new clinic. She"
        " raised twice as much as she had hoped for.",
        "A nurse ran across the island and raised twice the money she had hoped for a clinic.",
    ),
    (
        "The zoo welcomed two tiger cubs in March, the first in twelve years. Visitors can see them"
        " on a screen until they are old enough to leave their den.",
        "Two tiger cubs were born at the zoo, the first in twelve years.",
    ),
)


@dataclass(frozen=True)
class Item:
    """A user message and its reference answer."""

    task: Literal["question", "summary"]
    prompt: str
    reference: str


def items(count: int) -> list[Item]:
    """The first `count` items of each task."""
    questions = [
        Item("question", f"Answer in one short sentence. {question}", answer)
        for question, answer in QUESTIONS[:count]
    ]
    summaries = [
        Item("summary", f"Summarize the text in one short sentence.\n\n{passage}", summary)
        for passage, summary in PASSAGES[:count]
    ]
    return [*questions, *summaries]
