"""Prompts of real English, as many and as long as wanted, no two beginning alike.

The text is one short story told over and over. A prompt starts with a chapter number of its own, so
no cache of prefixes helps from one measurement to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import count

STORY = """\
The ferry to the island left at six, before the sun was over the hills, and Anna was the only \
passenger. She had a suitcase, a box of tools and a letter from a man she had never met. The \
letter said that the clock in the old lighthouse had stopped on the night of the great storm, \
eleven years ago, and that nobody had been able to make it go again. The fishermen no longer \
trusted the hour. Some of them lived by the church bell, which was always late, and some by the \
tide, which was always right but hard to read at night.

The captain brought her a cup of coffee and asked whether she was afraid of heights. She said \
that she was afraid of many things, of dogs and of deep water and of speaking before a crowd, \
but not of heights. He laughed and pointed at the white tower that rose from the fog. "Two \
hundred and twelve steps," he said. "The last clockmaker counted them aloud every morning. We \
could hear him from the harbour."

At the top of the stairs she found the mechanism under a sheet of grey canvas. It was larger \
than she had expected: three wheels of brass as tall as a child, a pendulum wrapped in wool, and \
a drum of rope that carried a stone as heavy as a horse. Nothing was broken. Nothing was even \
rusted. She sat down on the floor, opened her box, and listened for a long time to the wind in \
the window.

In the evening the man who had written the letter came up with bread and soup. He was older than \
his handwriting. "Well," he asked, "can it be repaired?" Anna wiped her hands. "There is nothing \
to repair," she said. "Somebody stopped it. He took out one pin, no longer than a needle, and \
hung it on a nail behind the door. Look." The old man looked, and then he looked at the sea, and \
it was clear to her that he had known it all along. "My brother was out that night," he said at \
last. "He was to be back at nine. I could not bear to hear it strike."
"""


class Prompts:
    """Token ids of prompts, made with the tokenizer file of the embedded model."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        from decodery.models.embedded import embedded_folder

        path = embedded_folder("float32") / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(path))
        self.chapters: Iterator[int] = count(1)

    def next(self, tokens: int) -> list[int]:
        """A prompt of so many tokens; it has a few at most in common with any earlier one."""
        chapter = next(self.chapters)
        start = self._encode(f"Chapter {chapter}.\n\n")
        words = STORY.split(" ")
        turn = 17 * chapter % len(words)
        body = self._encode(" ".join([*words[turn:], *words[:turn]]) + "\n\n")
        repeats = -(-tokens // len(body))
        return (start + body * repeats)[:tokens]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    @cache  # noqa: B019  (one object a run)
    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids
