"""The texts of the CorrSynth reproduction, written for it: four classes of headlines.

`SHOTS` are the examples that go into prompts, `TEST` the headlines on which the student is tested.
Names and places are capitalised as in a sentence, so that runs of capitals stand for entities.
"""

from __future__ import annotations

import numpy as np

CLASSES = ("world news", "sports", "business", "science and technology")

SHOTS: dict[str, tuple[str, ...]] = {
    "world news": (
        "Rebels and army agree on a truce in the north of Sudan",
        "Voters in Poland go to the polls after a bitter campaign",
        "Earthquake in western Nepal leaves thousands without homes",
        "France recalls its ambassador after the arrest of two reporters",
        "Leaders of Japan and South Korea meet for the first time in years",
        "Court in Kenya orders a new count of votes",
        "Refugees cross the border as fighting reaches the capital",
        "Parliament in Athens passes a law on land near the coast",
    ),
    "sports": (
        "Late goal sends Ajax into the final of the cup",
        "Sprinter from Jamaica breaks a record that stood for ten years",
        "Injury keeps the captain of the Bulls out for six weeks",
        "Brazil beat Sweden and meet Italy in the last four",
        "Coach of the Rangers resigns after a fifth defeat in a row",
        "Teenager from Spain wins her first title on clay",
        "Rain stops play on the second day of the test in Lahore",
        "Yankees trade two pitchers before the deadline",
    ),
    "business": (
        "Shares of Toyota fall as sales in China slow down",
        "Oil climbs to its highest price since March",
        "Bank of England leaves interest rates as they are",
        "Airline to cut a thousand jobs after a loss in winter",
        "Retailer buys its rival in a deal worth four billion dollars",
        "Inflation in the euro zone drops below two percent",
        "Brewer raises its forecast for profit for the second time",
        "Steel maker from India plans a plant in Texas",
    ),
    "science and technology": (
        "Telescope finds water in the air of a distant planet",
        "New battery charges in five minutes, engineers say",
        "Browser update from Mozilla closes a dangerous hole",
        "Probe sends first pictures from the far side of Mercury",
        "Program learns to read old letters that nobody could read",
        "Chip from Intel does twice the work with half the power",
        "Fossil from Argentina is the oldest of its kind",
        "Drug slows the growth of tumours in mice, study shows",
    ),
}

TEST: dict[str, tuple[str, ...]] = {
    "world news": (
        "President of Chile calls an early election",
        "Peace talks in Geneva end without an agreement",
        "Thousands protest in Moscow against the new law",
        "Flood in Bangladesh kills dozens and destroys villages",
        "Soldiers take control of the airport in the capital",
        "Minister resigns over payments from a foreign government",
        "United Nations sends food to the besieged city",
        "Bomb near the embassy in Kabul wounds twelve people",
        "Germany and Turkey sign a treaty on migration",
        "Opposition leader is freed from prison after nine years",
        "Iran rejects the demands of the European Union",
        "Militants attack a village near the border with Mali",
    ),
    "sports": (
        "Lakers win the seventh game in overtime",
        "Striker scores twice as Liverpool beat Everton",
        "Olympic champion misses the season with a knee injury",
        "Federer reaches the semifinals at Wimbledon",
        "Team from Denver signs a young quarterback",
        "Australia take five wickets on the first morning",
        "Cyclist loses his medal after a failed drug test",
        "Coach is happy with the defence after a draw",
        "Swimmer sets a world record over two hundred metres",
        "Red Sox lose to Detroit in the ninth inning",
        "Golfer leads the tournament by three strokes",
        "Fans celebrate the first championship of the club",
    ),
    "business": (
        "Stocks on Wall Street close higher after a strong report on jobs",
        "Car maker recalls a million vehicles and warns on profit",
        "Dollar falls against the yen as traders await the central bank",
        "Supermarket chain reports record sales for the quarter",
        "Company agrees to pay a fine of ninety million dollars",
        "Unemployment rises for the third month in a row",
        "Investors welcome the merger of two insurers",
        "Price of gold drops on hopes for trade talks",
        "Chief executive of the airline steps down",
        "Regulators look into the takeover of a phone company",
        "Factory orders grow faster than economists expected",
        "Bank sells its credit card unit to raise capital",
    ),
    "science and technology": (
        "Spacecraft lands on an asteroid after two years of flight",
        "Researchers grow nerve cells from skin in the laboratory",
        "Software giant releases a patch for its operating system",
        "Scientists measure the oldest light in the universe",
        "Robot learns to walk without help from humans",
        "New virus spreads through e-mail, experts warn",
        "Phone with a folding screen goes on sale",
        "Study links warm oceans to stronger storms",
        "Search engine lets users look for books",
        "Gene from a jellyfish makes plants glow",
        "Satellite will map the ice of Greenland",
        "Computer with quantum bits solves a hard problem",
    ),
}

# What a longer text is asked for, to follow the contrast along it.
REQUESTS = (
    "Write a short news report about {label}.",
    "Write a blog post about {label}.",
    "Explain to a child what is interesting about {label}.",
    "Write a letter to a friend about {label}.",
    "Give some advice to somebody who wants to work in {label}.",
    "Tell a short story about {label}.",
)
TOPICS = ("world politics", "football", "banking", "space research")


def prompts(demonstration: int, shots: int = 3) -> tuple[str, ...]:
    """A prompt for each class, with examples that `demonstration` chooses."""
    made: list[str] = []
    for number, name in enumerate(CLASSES):
        generator = np.random.default_rng([demonstration, number])
        chosen = generator.permutation(len(SHOTS[name]))[:shots]
        lines = "".join(f"- {SHOTS[name][place]}\n" for place in chosen)
        made.append(f"Headlines about {name}:\n{lines}-")
    return tuple(made)
