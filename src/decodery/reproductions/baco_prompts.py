"""Requests that many good answers would meet, for the reproduction of base-aligned collaboration.

They follow the kinds of NoveltyBench (arXiv:2504.05228): random choice, facts with many right
answers, subjects of taste, and short creative texts. All ask for a short answer: long ones of a
small model are all of different kinds, whoever writes them.
"""

from __future__ import annotations

RANDOM = (
    "Pick a random number between 1 and 20. Answer with the number only.",
    "Name a random animal. Answer with one word.",
    "Think of a random city and name it. Answer with its name only.",
    "Give me a random word that begins with the letter B. Answer with the word only.",
    "Choose a day of the week for a picnic. Answer with the day only.",
    "Name a random colour. Answer with one word.",
)
FACTS = (
    "Name a country in Africa. Answer with its name only.",
    "Name a musical instrument with strings. Answer with one word.",
    "Name an animal that lives in the sea. Answer with one word.",
    "Name an invention of the nineteenth century. Answer with a few words.",
    "Name a food that is made from milk. Answer with one word.",
    "Name a job that is done at night. Answer with a few words.",
)
TASTE = (
    "Recommend a hobby for a rainy Sunday. Answer with a few words.",
    "What should I cook for four friends tonight? Answer with the name of a dish.",
    "Suggest a place for a first date. Answer with a few words.",
    "Which famous book should I read next? Answer with its title only.",
    "What is the best pet for a small flat? Answer with one word.",
    "Suggest a present for my grandmother. Answer with a few words.",
)
CREATIVE = (
    "Invent a name for a bakery. Answer with the name only.",
    "Make up a title for a mystery novel. Answer with the title only.",
    "Invent a name for a dragon. Answer with the name only.",
    "Make up a title for a film about two brothers. Answer with the title only.",
    "Invent a name for a planet. Answer with the name only.",
    "Write a slogan for a bicycle shop. Answer with a few words.",
)


def prompts(count: int) -> tuple[str, ...]:
    """The first `count` of all, kinds taken by turns."""
    kinds = (RANDOM, FACTS, TASTE, CREATIVE)
    return tuple(kinds[place % 4][place // 4] for place in range(count))
