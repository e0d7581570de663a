"""What a model is asked when a drafter learns from its answers, where a user gives no prompts.

Templates filled by chance: questions, texts to write, roles, code, sums in words, translations. A
second round is made of the first one's answers: summaries, questions on a passage, follow-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Message = Mapping[str, str]
Pick = Callable[[Sequence[str]], str]

TOPICS = (
    "bees", "glaciers", "the printing press", "volcanoes", "sleep", "bread", "the moon", "bridges",
    "chess", "vaccines", "the Silk Road", "whales", "jazz", "electric cars", "earthquakes", "tea",
    "photosynthesis", "the Roman Empire", "inflation", "solar power", "the human heart",
    "libraries",
    "coral reefs", "the Olympic Games", "black holes", "memory", "cheese", "railways", "rainbows",
    "democracy", "antibiotics", "migration of birds", "the French Revolution", "gravity", "coffee",
    "public transport", "forests", "the internet", "machine learning", "dinosaurs",
    "the Renaissance",
    "desert animals", "tides", "poetry", "football", "mountain climbing", "ancient Egypt", "DNA",
    "recycling", "the stock market", "remote work", "school uniforms", "nuclear energy", "dreams",
    "the periodic table", "hurricanes", "gardening", "photography", "the Great Wall of China",
    "salt",
    "the water cycle", "honey", "elephants", "the theatre", "trade", "the immune system", "robots",
    "space travel", "the Industrial Revolution", "music theory", "wolves", "maps", "clocks", "rice",
    "human rights", "the Amazon river", "plastic", "insurance", "exercise", "friendship", "taxes",
    "cloud computing", "databases", "climate change", "the violin", "swimming", "the Arctic",
    "cats",
    "the brain", "batteries", "steel", "writing systems", "population growth", "cooking", "soil",
)  # fmt: skip
PLACES = (
    "Japan", "Kenya", "Iceland", "Peru", "Canada", "Italy", "India", "Norway", "Egypt", "Brazil",
    "Mexico", "Greece", "New Zealand", "Portugal", "Vietnam", "Scotland", "Morocco", "Chile",
    "Poland", "Turkey", "Australia", "Spain", "Thailand", "Hungary", "South Africa", "France",
)  # fmt: skip
NAMES = (
    "Anna", "Ben", "Carla", "David", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kim",
    "Laura", "Marco", "Nina", "Omar", "Paula", "Quentin", "Rosa", "Sam", "Tara", "Victor", "Wendy",
)  # fmt: skip
THINGS = (
    "apples", "pencils", "marbles", "books", "tickets", "eggs", "flowers", "stickers", "cups",
    "oranges", "cookies", "stamps", "coins", "shells", "balloons", "bottles", "candles", "cards",
)  # fmt: skip
ROLES = (
    "a ship's captain", "a patient teacher", "a detective", "a travel guide", "a chef", "a doctor",
    "a historian", "an astronaut", "a job interviewer", "a grandmother", "a sports coach",
    "a financial adviser", "a wizard", "a science journalist", "a librarian", "a software engineer",
)  # fmt: skip
TASKS = (
    "reverses a string", "checks whether a number is prime", "counts the words in a text",
    "finds the largest number in a list", "sorts a list of numbers", "computes the factorial",
    "removes duplicates from a list", "checks whether a word is a palindrome",
    "merges two sorted lists", "converts Celsius to Fahrenheit", "finds the common elements of two"
    " lists", "counts how often each letter appears", "computes the Fibonacci numbers",
    "reads a file line by line", "transposes a matrix", "searches a sorted list by bisection",
    "computes the average of a list", "checks whether brackets are balanced", "adds up the digits"
    " of a number", "finds the second smallest element", "flattens a nested list",
)  # fmt: skip

QUESTIONS = (
    "What is {topic}?", "How does {topic} work?", "Why is {topic} important?",
    "What are the main facts about {topic}?", "When did people first learn about {topic}?",
    "What are the advantages and disadvantages of {topic}?", "Explain {topic} to a child.",
    "Explain {topic} in simple terms.", "What would the world be like without {topic}?",
    "Give me five interesting facts about {topic}.", "What is the history of {topic}?",
    "What are common misconceptions about {topic}?", "How has {topic} changed over time?",
    "What is the difference between {topic} and {other}?", "Compare {topic} and {other}.",
    "What is the capital of {place}?", "What is {place} known for?",
    "What do people eat in {place}?",
    "How long does it take to travel through {place}?", "Who discovered {topic}?",
    "Who was the most important person in the history of {topic}?",
    "Describe how {topic} affects everyday life in {place}.", "Where can {topic} be found?",
    "What languages are spoken in {place}?", "How many people live in {place}?",
    "What are three ways in which {topic} and {other} are connected?",
)  # fmt: skip
WRITING = (
    "Write a short story about {name} and {topic}.", "Write a poem about {topic}.",
    "Write an email to {name} about a meeting on {topic}.", "Write a blog post about {topic}.",
    "Write a persuasive essay on {topic}.", "Write a product description for a book on {topic}.",
    "Compose a travel blog post about a recent trip to {place}.",
    "Write a letter to a friend about a week in {place}.",
    "Write a speech on {topic} for a school.",
    "Write a dialogue between {name} and {friend} about {topic}.",
    "Draft a short announcement of an event on {topic} in {place}.",
    "Write a review of a film about {topic}.", "Write an outline of a talk on {topic}.",
    "Describe a day in the life of {name}, who works with {topic} in {place}.",
    "Write four titles for an article on {topic}.", "Write a recipe from {place}.",
    "Write a social media post that makes people curious about {topic}.",
    "Plan a three-day trip to {place}.", "Make a list of ten things to know before visiting"
    " {place}.",
    "Give {name} advice on how to learn more about {topic}.",
)  # fmt: skip
ARTICLES = (
    "Write a news article about {topic} in {place}.", "Write a long passage about {topic}.",
    "Write an encyclopedia article about {topic}.",
    "Write a news report in which {name} from {place}"
    " wins a prize.", "Write a detailed article on how {topic} changed {place}.",
    "Write a newspaper story about an accident in {place} and what witnesses such as {name} said.",
)  # fmt: skip
ROLEPLAY = (
    "You are {role}. Explain {topic}.", "Act as {role} and answer: what do you think of {topic}?",
    "Pretend to be {role} who has just arrived in {place}. Describe what you see.",
    "Imagine you are {role}. Give {name} advice on {topic}.",
    "Speak like {role} and tell me a story about {topic}.",
)  # fmt: skip
CODE = (
    "Write a Python function that {task}.", "Write a program in C++ that {task}.",
    "Write a JavaScript function that {task}.", "How would you write code that {task}? Explain it.",
    "Implement a function in Python that {task}, with a docstring and an example.",
    "What is the fastest way to write a program that {task}?",
)  # fmt: skip
REASONING = (
    "{name} is older than {friend}, and {friend} is older than {third}. Who is the youngest?",
    "{name} has {a} brothers, and each brother has one sister. How many sisters are there?",
    "If all {things} in a box are red and I take {a} of them, what colour are they? Explain.",
    "{name} runs faster than {friend} but slower than {third}. Who wins the race? Explain.",
    "Sort these from small to large: {a}, {b}, {c}, {d}.",
    "Which word does not belong with the others: {topic}, {other}, {things}? Explain your answer.",
    "Extract all names and numbers from this text as a list: {name} gave {friend} {a} {things} in"
    " {place}, and {third} bought {b} more.",
    "Is this sentence positive, negative or neutral: {name} was not happy with the {things} from"
    " {place}.",
)  # fmt: skip
SUMS = (
    "{name} has {a} {things}. {friend} gives {name} {b} more. How many {things} does {name} have"
    " now?",
    "A shop sells {things} for ${a} each. {name} buys {b} of them and pays with a ${c}00 bill. How"
    " much change does {name} get?",
    "{name} reads {a} pages a day. How many pages does {name} read in {b} weeks?",
    "{name} earns ${a} an hour and works {b} hours a day for {c} days. How much does {name} earn in"
    " total?",
    "There are {a} boxes with {b} {things} each. {name} takes {c} {things} away. How many are"
    " left?",
    "{name} and {friend} share {d} {things}. {name} gets {a} more than {friend}. How many does each"
    " get?",
    "A train travels {a}0 miles in {b} hours. How far does it travel in {c} hours at the same"
    " speed?",
    "{name} buys {a} {things} at ${b} each and {c} cups at $3 each. What is the total cost?",
    "A class has {d} students. {a} of them play chess and {b} play football; the rest read. How"
    " many"
    " students read?",
    "{name} saves ${a} a week. After how many weeks does {name} have ${d}?",
    "{name} is {a} years old. {friend} is {b} years older. In {c} years, how old will they be"
    " together?",
    "What is {a} times {b} plus {c}?", "Solve for x: {a}x + {b} = {d}.",
    "A recipe for {a} people needs {b} eggs. How many eggs are needed for {d} people?",
    "{name} had {d} {things}, gave half of them to {friend} and lost {a}. How many remain?",
)  # fmt: skip
TRANSLATIONS = (
    "Translate German to English: {german}", "Translate into English: {german}",
    "What does this mean in English? {german}", "Translate French to English: {french}",
)  # fmt: skip

_SUBJECTS = (
    "Der Minister", "Die Lehrerin", "Das Unternehmen", "Die Stadt", "Ein Sprecher der Polizei",
    "Die Regierung", "Mein Bruder", "Der Verein", "Die Studie", "Eine Gruppe von Forschern",
)  # fmt: skip
_ACTS = (
    "hat gestern einen neuen Plan vorgestellt", "will in diesem Jahr mehr Geld ausgeben",
    "hat die Arbeiten an der Brücke beendet", "sucht nach einer besseren Lösung",
    "warnt vor den Folgen des Klimawandels", "hat den ersten Preis gewonnen",
    "öffnet das Museum im nächsten Sommer wieder", "kann die Frage noch nicht beantworten",
    "erwartet in den kommenden Tagen viele Gäste", "hat mehr als tausend Menschen befragt",
)  # fmt: skip
_ENDS = (
    "und wird morgen darüber berichten", "weil die Preise gestiegen sind", "sagte er am Montag",
    "obwohl es viel Kritik gab", "damit die Kinder sicher zur Schule kommen",
    "wie die Zeitung schreibt",
    "und bleibt bis zum Ende der Woche in Berlin", "aber niemand wurde verletzt",
)  # fmt: skip
FRENCH = (
    "Le train pour Lyon part à huit heures.", "La ville a ouvert une nouvelle bibliothèque.",
    "Les enfants jouent dans le jardin pendant que leur mère prépare le dîner.",
    "Le président a annoncé une nouvelle loi sur l'énergie.", "Il pleut depuis trois jours.",
    "Nous cherchons un appartement près de la gare.", "Elle travaille comme médecin à l'hôpital.",
)  # fmt: skip

ON_TEXTS = (
    "Summarize: {text}", "{text}\n\nSummarize the text above in three sentences.",
    "Summarize the following article.\n\n{text}", "{text}\nTL;DR:",
    "Read the passage and answer the question.\n\nPassage: {text}\n\nQuestion: What is the passage"
    " mainly about?",
    "Answer the question using the text below.\n\n{text}\n\nQuestion: what is said about {topic}?"
    "\nAnswer:",
    "Rewrite the following text in simpler words: {text}",
    "List the key points of this text:\n{text}", "Correct the mistakes in this text: {text}",
    "Give the following text a title and explain your choice: {text}",
    "Extract all names, places and numbers from the following text:\n\n{text}",
)  # fmt: skip
ON_TWO_TEXTS = (
    "Title: {topic}\n{text}\n\nTitle: {other}\n{more}\n\nUsing the passages above, answer: what is"
    " {topic}?",
    "Document 1: {text}\n\nDocument 2: {more}\n\nWhat do the documents say about {topic}? Answer"
    " briefly.",
)  # fmt: skip
FOLLOW_UPS = (
    "Rewrite your answer in fewer words.", "Can you give an example?", "Now explain it to a child.",
    "Thank you. What else should I know?", "Rewrite it as a list.", "Are you sure? Check it again.",
    "Write it again, and begin every sentence with the letter A.",
    "Translate your answer into French.",
    "What are the weak points of your answer?", "Make it more formal.", "Continue.",
    "Now write the opposite.", "Summarize your answer in one sentence.",
)  # fmt: skip

# How often each kind comes in the first round.
FIRST_ROUND: tuple[tuple[Sequence[str], float], ...] = (
    (QUESTIONS, 0.22), (WRITING, 0.16), (ARTICLES, 0.16), (ROLEPLAY, 0.08), (CODE, 0.10),
    (REASONING, 0.08), (SUMS, 0.12), (TRANSLATIONS, 0.08),
)  # fmt: skip


def first_round(count: int, seed: int) -> list[list[Message]]:
    """Conversations of one message, all drawn from the templates."""
    shares = np.array([share for _, share in FIRST_ROUND])
    found: list[list[Message]] = []
    for number in range(count):
        generator = np.random.default_rng([seed, 0, number])
        kind = int(generator.choice(shares.size, p=shares / shares.sum()))
        found.append(_user(_filled(_picker(generator)(FIRST_ROUND[kind][0]), generator)))
    return found


def second_round(
    conversations: Sequence[Sequence[Message]], answers: Sequence[str], seed: int
) -> list[list[Message]]:
    """A conversation for each of the first: on its answer, on that and any other, or going on."""
    found: list[list[Message]] = []
    for number, (conversation, answer) in enumerate(zip(conversations, answers, strict=False)):
        generator = np.random.default_rng([seed, 1, number])
        pick, kind = _picker(generator), generator.random()
        if kind < 0.3 or not answer.strip():
            said = answer.strip() or "I do not know."
            found.append([*conversation, _said(said), *_user(pick(FOLLOW_UPS))])
            continue
        text, more = answer.strip(), answers[int(generator.integers(len(answers)))].strip()
        template = pick(ON_TEXTS if kind < 0.85 else ON_TWO_TEXTS)
        found.append(_user(_filled(template, generator, text=text, more=more)))
    return found


def _filled(template: str, generator: np.random.Generator, **known: str) -> str:
    pick = _picker(generator)
    name, friend, third = generator.choice(NAMES, size=3, replace=False)
    topic, other = generator.choice(TOPICS, size=2, replace=False)
    a, b, c = (int(number) for number in generator.integers(2, 25, size=3))
    values = {
        "topic": topic, "other": other, "place": pick(PLACES), "role": pick(ROLES),
        "name": name, "friend": friend, "third": third, "things": pick(THINGS),
        "task": pick(TASKS), "a": a, "b": b, "c": c, "d": a + b + 2 * c,
        "german": f"{pick(_SUBJECTS)} {pick(_ACTS)}, {pick(_ENDS)}.", "french": pick(FRENCH),
        **known,
    }  # fmt: skip
    return template.format(**values)


def _picker(generator: np.random.Generator) -> Pick:
    return lambda items: items[int(generator.integers(len(items)))]


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}
