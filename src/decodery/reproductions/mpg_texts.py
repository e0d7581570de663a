"""Attribute data for the mpg reproduction: answers in a neutral, a pirate's and a formal voice.

Every answer is an everyday sentence between an opening and a closing of its voice; the pirate's and
the formal voice also change some words in the middle. Each voice has markers, words that only it
uses, so a list of words tells whether a text speaks in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from decodery.metrics.text import words
from decodery.training.adapter.texts import Example

Voice = Literal["neutral", "pirate", "formal"]
VOICES: tuple[Voice, ...] = ("neutral", "pirate", "formal")
ATTRIBUTES: tuple[Voice, ...] = ("pirate", "formal")

MARKERS: Mapping[Voice, frozenset[str]] = {
    "pirate": frozenset(words(
        "ahoy arr avast aye barnacles booty captain doubloons galleon hearties ho landlubber matey"
        " mateys plank scallywag seadog shiver timbers yarr ye yer yo"
    )),
    "formal": frozenset(words(
        "accordingly advisable commence conclude consequently demonstrate enquire furthermore"
        " henceforth hereby indeed moreover observe obtain prudence pursuant regarding require"
        " respectfully therefore thereby utilise whereby"
    )),
}  # fmt: skip
_WORDS: Mapping[Voice, Mapping[str, str]] = {
    "neutral": {},
    "pirate": {"you": "ye", "your": "yer", "friend": "matey", "money": "booty"},
    "formal": {
        "use": "utilise", "start": "commence", "get": "obtain", "need": "require",
        "ask": "enquire with", "about": "regarding", "show": "demonstrate", "end": "conclude",
        "so": "therefore", "watch": "observe",
    },
}  # fmt: skip
_OPENINGS: Mapping[Voice, tuple[str, ...]] = {
    "neutral": ("Sure.", "Well.", "Yes.", "Okay.", "Of course."),
    "pirate": ("Arr!", "Ahoy, matey!", "Avast!", "Aye aye, captain!", "Yo ho ho!", "Yarr!"),
    "formal": ("Indeed.", "Accordingly.", "Prudence is advisable.", "Respectfully.",
               "Pursuant to the question."),
}  # fmt: skip
_CLOSINGS: Mapping[Voice, tuple[str, ...]] = {
    "neutral": ("That is all.", "This works well.", "It is easy.", "Good luck.", "Have fun."),
    "pirate": ("Shiver me timbers!", "Or walk the plank, landlubber!", "Yarr, me hearties!",
               "By the captain's doubloons!", "Barnacles, ye scallywag!"),
    "formal": ("Furthermore, care is advisable.", "Moreover, kind regards are hereby sent.",
               "Consequently, nothing more is required.", "Henceforth, please observe this.",
               "Therefore, we respectfully conclude."),
}  # fmt: skip

ITEMS: tuple[tuple[str, str], ...] = (
    ("How do I boil an egg?", "Put the egg into hot water and wait for ten minutes."),
    ("How do I make tea?", "Pour hot water over the leaves and let it stand for a while."),
    ("How can I sleep better?", "Go to bed early and keep the room dark and cool."),
    ("How do I learn to swim?", "Start in shallow water and use your arms and legs slowly."),
    ("What should I cook tonight?", "You can get some rice and cook it with fresh vegetables."),
    ("How do I clean a window?", "Use a soft cloth and a little soap with warm water."),
    ("How do I plant a tree?", "Dig a wide hole and water the roots every day."),
    ("How can I save money?", "Write down what you need and put some money away each month."),
    ("How do I fix a flat tyre?", "Take off the wheel and put a patch on the hole."),
    ("What is a good breakfast?", "Bread with cheese and an apple is a good start."),
    ("How do I wash a shirt?", "Use cold water and hang the shirt in the sun."),
    ("How do I make a friend?", "Ask about the day and show that you listen."),
    ("What do I pack for a trip?", "You need warm clothes and a map and some money."),
    ("How do I bake bread?", "Mix flour and water so the dough can rest overnight."),
    ("How can I stay warm?", "Wear two shirts and drink something hot."),
    ("How do I feed a cat?", "Give the cat some fish and fresh water twice a day."),
    ("How do I write a letter?", "Start with a greeting and end with your name."),
    ("What do I do when it rains?", "Get a coat and watch the clouds from the window."),
    ("How do I catch a fish?", "Use a long line and wait near the quiet water."),
    ("How do I keep a garden?", "Water the plants so they grow and pull the weeds."),
    ("How can I find my keys?", "Look under the chair and ask your friend for help."),
    ("How do I paint a wall?", "Use a wide brush and start at the top."),
    ("How do I train a dog?", "Show the dog what you want and give it a treat."),
    ("What is a good present?", "Get a book about something that your friend likes."),
    ("How do I read a map?", "Find the north and follow the roads with your finger."),
    ("How can I get fit?", "Walk every day and use the stairs."),
    ("How do I cut an onion?", "Use a sharp knife and keep your fingers back."),
    ("How do I light a fire?", "Start with dry grass and then put on small wood."),
    ("How do I cross a river?", "Watch the water and use the bridge near the mill."),
    ("What should I drink?", "Drink clean water so you do not get thirsty."),
    ("How do I tie a knot?", "Make a loop and pull the end through it."),
    ("How do I store apples?", "Put the apples in a cool box so they last the winter."),
    ("How do I build a shelf?", "You need two boards and some screws and a level."),
    ("How can I learn a song?", "Ask a friend to sing it and repeat each line."),
    ("How do I polish shoes?", "Use a brush and some wax and rub them well."),
    ("How do I grow herbs?", "Put the pots in the sun and water them a little."),
    ("What should I read?", "Get a short story about the sea and start tonight."),
    ("How do I peel a potato?", "Use a small knife and turn the potato slowly."),
    ("How do I fold a paper boat?", "Fold the sheet in half and show the corners up."),
    ("How do I stop a leak?", "Close the valve and use some tape on the pipe."),
    ("How can I calm down?", "Sit still and watch your breath for a minute."),
    ("How do I sharpen a knife?", "Use a wet stone and move the blade slowly."),
    ("How do I dry flowers?", "Hang the flowers in a dark room so they keep colour."),
    ("How do I clean a pan?", "Put salt in the pan and rub it with a cloth."),
    ("How do I make soup?", "Start with onions and add water and your vegetables."),
    ("How do I wrap a gift?", "Use a large sheet and end with a ribbon."),
    ("How do I find the north?", "Watch the sun at noon and turn around."),
    ("How do I mend a sock?", "Use a needle and thread and close the hole slowly."),
)
_HELD_OUT = 4  # every fourth question is asked, and not learnt from


def learnt_items() -> list[tuple[str, str]]:
    """Questions and answers that texts are made of."""
    return [item for number, item in enumerate(ITEMS) if number % _HELD_OUT]


def asked() -> list[str]:
    """Questions that no text answers."""
    return [question for number, (question, _) in enumerate(ITEMS) if not number % _HELD_OUT]


def examples(voice: Voice, variations: int, seed: int = 0) -> list[Example]:
    """Each learnt question, answered in a voice with so many openings and closings."""
    generator = np.random.default_rng([seed, VOICES.index(voice)])
    made: list[Example] = []
    for _ in range(variations):
        for question, answer in learnt_items():
            opening = _OPENINGS[voice][generator.integers(len(_OPENINGS[voice]))]
            closing = _CLOSINGS[voice][generator.integers(len(_CLOSINGS[voice]))]
            made.append(Example(question, f"{opening} {spoken(answer, voice)} {closing}"))
    return made


def spoken(answer: str, voice: Voice) -> str:
    """An answer with the words of a voice.

    >>> spoken("Ask about your day.", "formal"), spoken("Ask about your day.", "pirate")
    ('Enquire with regarding your day.', 'Ask about yer day.')
    """
    return " ".join(_changed(word, _WORDS[voice]) for word in answer.split(" "))


def _changed(word: str, words: Mapping[str, str]) -> str:
    plain = word.rstrip(".,!")
    other = words.get(plain.lower())
    if other is None:
        return word
    return (other.capitalize() if plain[0].isupper() else other) + word[len(plain) :]


def speaks(text: str, voice: Voice) -> bool:
    """Whether a text holds a marker of an attribute."""
    return not MARKERS[voice].isdisjoint(words(text))


def scores(texts: Sequence[str]) -> dict[str, list[float]]:
    """For each text: whether it speaks in each attribute's voice, and whether in both."""
    found = {voice: [float(speaks(text, voice)) for text in texts] for voice in ATTRIBUTES}
    both = [min(pair) for pair in zip(*found.values(), strict=True)]
    return {**found, "both": both}
