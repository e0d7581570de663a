"""The questions of the reproduction of integrative decoding, and what a right answer names."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question, and the names of which a right answer has one."""

    text: str
    right: tuple[str, ...]


QUESTIONS = tuple(
    Question(text, tuple(right.split("|")))
    for text, right in (
        ("Who wrote the play Hamlet?", "shakespeare"),
        ("What is the capital of Australia?", "canberra"),
        ("Which planet is the largest of the solar system?", "jupiter"),
        ("Who painted the ceiling of the Sistine Chapel?", "michelangelo"),
        ("What is the chemical symbol of gold?", "au"),
        ("Which ocean is the largest?", "pacific"),
        ("Who was the first person to walk on the Moon?", "armstrong"),
        ("What is the capital of Canada?", "ottawa"),
        ("Which gas do plants take from the air to grow?", "carbon dioxide|co2"),
        ("Who wrote the novel Pride and Prejudice?", "austen"),
        ("What is the hardest natural material?", "diamond|diamonds"),
        ("Which country has the most inhabitants after China and India?", "united states|usa"),
        ("In which year did the Second World War end?", "1945"),
        ("What is the capital of Brazil?", "brasilia|brasília"),
        ("How many legs does a spider have?", "eight|8"),
        ("Who discovered penicillin?", "fleming"),
        ("Which metal is liquid at room temperature?", "mercury"),
        ("What is the longest river of South America?", "amazon"),
        ("Who composed the Ninth Symphony with the Ode to Joy?", "beethoven"),
        ("What is the smallest prime number?", "two|2"),
        ("Which planet is known as the red planet?", "mars"),
        ("What is the currency of Japan?", "yen"),
        ("Who developed the theory of general relativity?", "einstein"),
        ("What is the capital of Turkey?", "ankara"),
        ("Which organ pumps blood through the body?", "heart"),
        ("What is the boiling point of water at sea level in degrees Celsius?", "100|hundred"),
        ("Which language is spoken in Brazil?", "portuguese"),
        ("Who wrote the novel War and Peace?", "tolstoy"),
        ("What is the tallest mountain above sea level?", "everest"),
        ("Which animal is the largest that has ever lived?", "blue whale"),
        ("What is the capital of Switzerland?", "bern|berne"),
        ("How many players of one team are on the field in football (soccer)?", "eleven|11"),
        ("Who was the first president of the United States?", "washington"),
        ("Which vitamin does the skin make in sunlight?", "vitamin d"),
        ("What is the capital of New Zealand?", "wellington"),
        ("Which element has the atomic number one?", "hydrogen"),
        ("Who painted the Starry Night?", "gogh"),
        ("In which country are the pyramids of Giza?", "egypt"),
        ("What is the square root of 81?", "nine|9"),
        ("Who wrote Don Quixote?", "cervantes"),
        ("Which is the nearest star to the Earth?", "sun"),
        ("What is the capital of South Korea?", "seoul"),
        ("Which sea lies between Europe and Africa?", "mediterranean"),
        ("Who invented the telephone?", "bell"),
        ("How many continents are there?", "seven|7"),
        ("Which bird is the largest?", "ostrich"),
        ("What do caterpillars become?", "butterfly|butterflies|moth|moths"),
        ("Which planet has the most prominent rings?", "saturn"),
        ("What is the capital of Egypt?", "cairo"),
        ("Who wrote The Origin of Species?", "darwin"),
        ("Which planet is the nearest to the Sun?", "mercury"),
        ("What is the capital of Norway?", "oslo"),
        ("Who painted the Mona Lisa?", "leonardo|vinci"),
        ("Which metal has the chemical symbol Fe?", "iron"),
        ("What is the largest desert with hot sand in Africa?", "sahara"),
        ("Who composed The Four Seasons?", "vivaldi"),
        ("How many days does a leap year have?", "366"),
        ("What is the capital of Argentina?", "buenos aires"),
        ("Which instrument measures the pressure of the air?", "barometer"),
        ("Who was the British prime minister during most of the Second World War?", "churchill"),
        ("What is the currency of the United Kingdom?", "pound|pounds|sterling"),
        ("Which animal is known as the king of the jungle?", "lion"),
        ("What is the capital of Kenya?", "nairobi"),
        ("Who wrote the epic poems Iliad and Odyssey?", "homer"),
        ("What is frozen water called?", "ice"),
        ("Which country gave the Statue of Liberty to the United States?", "france"),
        ("What is the capital of Portugal?", "lisbon"),
        ("How many sides does a hexagon have?", "six|6"),
        ("Which scientist stated the three laws of motion?", "newton"),
        ("What is the largest organ of the human body?", "skin"),
        ("In which city is the Eiffel Tower?", "paris"),
        ("Which gas makes up most of the air?", "nitrogen"),
        ("Who wrote Romeo and Juliet?", "shakespeare"),
        ("What is the capital of Poland?", "warsaw"),
        ("Which river flows through London?", "thames"),
        ("What do bees make from nectar?", "honey"),
        ("Who sailed across the Atlantic Ocean in 1492?", "columbus"),
        ("How many strings does a violin have?", "four|4"),
        ("What is the capital of Greece?", "athens"),
        ("Which country has the shape of a boot?", "italy"),
        ("Who wrote the novel Oliver Twist?", "dickens"),
        ("What is the main language of Mexico?", "spanish"),
        ("Which element has the chemical symbol O?", "oxygen"),
        ("What is the capital of India?", "new delhi|delhi"),
        ("How many planets does the solar system have?", "eight|8"),
        ("Which blood cells carry oxygen?", "red"),
        ("Who discovered radium together with her husband?", "curie"),
        ("What is the tallest living animal?", "giraffe"),
        ("In which country is the city of Marrakesh?", "morocco"),
        ("What is the capital of Thailand?", "bangkok"),
        ("Which metal is used in most electric wires?", "copper"),
        ("Who wrote the novel 1984?", "orwell"),
        ("What is the square root of 144?", "twelve|12"),
        ("Which continent is the coldest?", "antarctica"),
        ("What is the capital of Ireland?", "dublin"),
        ("Which star sign of the zodiac is a crab?", "cancer"),
    )
)


def is_right(question: Question, answer: str) -> bool:
    """Whether the answer names what is right, as whole words and in any case.

    >>> question = Question("?", ("two", "2"))
    >>> [is_right(question, text) for text in ("It is Two.", "2", "twofold", "12")]
    [True, True, False, False]
    """
    text = answer.casefold()
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in question.right)
