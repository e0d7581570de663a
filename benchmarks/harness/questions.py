"""Questions of the kinds that Spec-Bench asks: ours where no file of it is given."""

from __future__ import annotations

import ast
import json
from pathlib import Path

CHATS = "mt_bench"  # its eight small categories count as one
CATEGORIES = (CHATS, "translation", "summarization", "qa", "math_reasoning", "rag")

_HARBOUR = (
    "The harbour of the town was built in 1862, when the railway reached the coast. For forty years"
    " it was the busiest on that shore: coal left it and timber came in, and in the summer of 1889"
    " more than three hundred ships were counted in one week. When the new canal opened, large"
    " ships no longer called, and the quays fell quiet. Fishing boats took their place until the"
    " herring left in the nineteen-fifties. Today the harbour has a museum in the old customs"
    " house, a school for sailing, and forty berths for visitors. The breakwater was repaired in"
    " 2011 after a storm had carried off a third of it, with stone from the same quarry that the"
    " first builders used. Every August the town celebrates the day of the first ship with a"
    " regatta, to which boats come from six countries."
)
_BEES = (
    "Honeybees keep their hive at about 35 degrees while they raise brood. When it grows too warm"
    " they fan with their wings at the entrance and bring water, which cools the combs as it dries."
    " In winter they form a ball around the queen and tremble with the muscles of their wings,"
    " without moving the wings themselves. The bees at the outside are the coldest; from time to"
    " time they change places with those inside. A colony needs fifteen to twenty kilograms of"
    " honey for a winter in a mild climate. Bumblebees do otherwise: only the young queens live"
    " through the winter, each alone, in the earth."
)
OWN: dict[str, tuple[str, ...]] = {
    CHATS: (
        "Write a short letter to a friend who is about to move to the town where you grew up.",
        "Explain how a bicycle stays upright, for a curious child of ten.",
    ),
    "translation": (
        "Translate German to English: Der Zug fuhr pünktlich ab, aber wir saßen im falschen Wagen.",
        "Translate German to English: Wer den Schlüssel findet, soll ihn bitte im Büro abgeben.",
    ),
    "summarization": (f"Summarize: {_HARBOUR}", f"Summarize: {_BEES}"),
    "qa": (
        "Which planet of the solar system has the most moons, and why are new ones still found?",
        "Who wrote the first computer program, and for which machine?",
    ),
    "math_reasoning": (
        "A baker makes 24 rolls an hour and sells 15 of them. How many are left after 6 hours?",
        "Tom reads 12 pages a day and Ann reads twice as many. In how many days has Ann read a book"
        " of 192 pages, and how far is Tom by then?",
    ),
    "rag": (
        f"{_HARBOUR}\n\nWhat became of the harbour after the canal opened?",
        f"{_BEES}\n\nHow do honeybees keep warm in winter?",
    ),
}


def questions(path: Path | None, each: int) -> dict[str, list[str]]:
    """First turns by category: `each` of them spread over Spec-Bench's file, or all of ours."""
    if path is None:
        return {name: list(texts) for name, texts in OWN.items()}
    found: dict[str, list[str]] = {name: [] for name in CATEGORIES}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        turns = row["turns"]
        turns = ast.literal_eval(turns) if isinstance(turns, str) else turns
        name = row["category"] if row["category"] in found else CHATS
        found[name].append(turns[0])
    return {
        name: [texts[place * len(texts) // each] for place in range(each)]
        for name, texts in found.items()
    }
