"""What tokens look like: where words begin and go on, what is a sign, what is a function word.

A word is a run of letters, digits and combining marks. Scripts that are written without spaces have
no such runs: there every token may begin a word. A piece of a split character counts as a letter.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from decodery.core.language import Language
from decodery.core.row import Mask

BROKEN = "\ufffd"  # stands for bytes that are no whole character

_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)

# The closed classes of English: articles and determiners, pronouns, prepositions, conjunctions,
# auxiliaries, particles, and what contractions leave.
_CLOSED_CLASSES = """
    a an the this that these those each every either neither both all some any no none such what
    which whose whatever whichever another other others much many more most few fewer less least
    several enough half own same
    i me my mine myself you your yours yourself yourselves he him his himself she her hers herself
    it its itself we us our ours ourselves they them their theirs themselves one ones oneself who
    whom whoever whomever someone somebody something anyone anybody anything everyone everybody
    everything nobody nothing
    about above across after against along alongside amid among amongst around as at before behind
    below beneath beside besides between beyond by despite down during except for from in inside
    into like near of off on onto opposite out outside over past per regarding round since than
    through throughout till to toward towards under underneath unlike until up upon via with within
    without
    and but or nor so yet if because although though while whereas unless whether once lest when
    whenever where wherever why how however therefore thus hence
    be am is are was were been being have has had having do does did doing done will would shall
    should can could may might must ought need dare used let
    not n't too also just only even very quite rather there here then now again still already ever
    never away back
    's 't 'd 'm 'll 're 've ’s ’t ’d ’m ’ll ’re ’ve don doesn didn isn aren wasn
    weren wouldn couldn shouldn hasn haven hadn ain
"""
FUNCTION_WORDS = frozenset(_CLOSED_CLASSES.split())


@dataclass(frozen=True, eq=False)
class Words:
    """Masks over a vocabulary [vocab_size].

    `begins` and `ends`: the first or last character belongs to a word. `sign`: no letter or digit,
    that is punctuation, space, line breaks, markdown, end tokens. `function`: a function word,
    where a word begins.
    """

    begins: Mask
    ends: Mask
    sign: Mask
    function: Mask


@lru_cache(maxsize=8)
def words_of(language: Language) -> Words:
    """The masks of a language."""
    texts = [
        "" if piece is None else piece.decode("utf-8", errors="replace")
        for piece in language.pieces()
    ]
    return Words(
        begins=np.array([bool(text) and belongs(text[0]) for text in texts]),
        ends=np.array([bool(text) and belongs(text[-1]) for text in texts]),
        sign=np.array([not any(map(_tells, text)) for text in texts]),
        function=np.array([text.strip().lower() in FUNCTION_WORDS for text in texts]),
    )


def belongs(character: str) -> bool:
    """Whether a character is part of a word that the next one may go on with.

    >>> [belongs(character) for character in "a7é., 中"]
    [True, True, True, False, False, False, False]
    """
    if character == BROKEN:
        return True
    kind = unicodedata.category(character)[0]
    if kind not in "LNM":
        return False
    place = ord(character)
    return kind == "M" or not any(low <= place <= high for low, high in _SPACELESS)


def _tells(character: str) -> bool:
    return character == BROKEN or unicodedata.category(character)[0] in "LN"
