"""The prompts of the min-p reproduction and what counts as a right answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_FACT_EXAMPLES = "Q: What is the capital of Italy?\nA: Rome\nQ: What color is grass?\nA: Green\n"
_COPY_EXAMPLES = (
    "Original: The sun is hot.\nCopy: The sun is hot.\n"
    "Original: I like green tea.\nCopy: I like green tea.\n"
)
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
    facts = [
        Item("facts", f"{_FACT_EXAMPLES}Q: {question}\nA:", answer) for question, answer in FACTS
    ]
    copies = [Item("copy", f"{_COPY_EXAMPLES}Original: {text}\nCopy:", text) for text in SENTENCES]
    return [*facts, *copies]


def grade(answer: str, text: str, ended: bool) -> bool | None:
    """Whether `text` answers right; None while it may still become right.

    >>> [grade("Paris", text, False) for text in (" Par", " Pat", " paris.\\n", " Parisian")]
    [None, False, True, False]
    """
    line, newline, _ = text.partition("\n")
    wanted = _plain(answer)
    if newline or ended:
        return _plain(line) == wanted
    return None if f"{wanted}.".startswith(line.strip().casefold()) else False


def _plain(text: str) -> str:
    return text.strip().casefold().removesuffix(".")
