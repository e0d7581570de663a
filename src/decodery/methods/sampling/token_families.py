"""Script families of a vocabulary: CJ, Latin, symbols, and all other scripts, one for each token.

A token is read as its bytes. Of its complete characters only letters (Unicode category L) count:

1. a letter named CJK, HIRAGANA or KATAKANA makes it CJ (Hangul is another script);
2. a character that begins at its end and is cut off makes it CJ where it may become an ideograph:
   two known bytes leave an interval of 64 or 4096 code points, which meets an ideograph block;
3. a letter named LATIN makes it Latin;
4. without any letter it is a symbol: digits, punctuation, spaces, emoji, and bytes that tell
   nothing (one byte of a character, or the end of one);
5. else it is of another script, called low-resource in the paper.

Special tokens are symbols. Zhang, Huang, Yuan, Lin: Language Confusion Gate (2025),
arXiv:2510.17555.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
import numpy.typing as npt

CJ, LATIN, SYMBOLS, LOW_RESOURCE = range(4)
NAMES = ("CJ", "Latin", "symbols", "low-resource")

Families = npt.NDArray[np.int8]

# The blocks of CJK unified and compatibility ideographs, first and last code point.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2EE5F),  # extensions B to F and I
    (0x2F800, 0x2FA1F),
    (0x30000, 0x323AF),  # extensions G and H
)
_CHOICES = frozenset({"assistant", *"ABCDEFG", *(f" {letter}" for letter in "ABCDEFG")})


@lru_cache(maxsize=8)
def families_of(pieces: tuple[bytes | None, ...], choices: bool = False) -> Families:
    """The family of every token [vocab_size], from the bytes it adds to a text.

    With `choices` the word "assistant" and the bare letters A to G are symbols, so that no gate
    stands before the answer to a multiple-choice question.
    """
    found = np.array([family_of(piece) for piece in pieces], dtype=np.int8)
    if choices:
        named = [piece is not None and _text(piece) in _CHOICES for piece in pieces]
        found[np.array(named, dtype=np.bool_)] = SYMBOLS
    found.flags.writeable = False
    return found


def family_of(piece: bytes | None) -> int:
    """The family of one token.

    >>> [NAMES[family_of(text.encode())] for text in ("中", "ab", " 12,", "한")]
    ['CJ', 'Latin', 'symbols', 'low-resource']
    """
    if piece is None:
        return SYMBOLS
    text, rest = complete_characters(piece)
    letters = [_name(character) for character in text if unicodedata.category(character)[0] == "L"]
    if any("CJK" in name or "HIRAGANA" in name or "KATAKANA" in name for name in letters):
        return CJ
    if _may_be_ideograph(rest):
        return CJ
    if any("LATIN" in name for name in letters):
        return LATIN
    return LOW_RESOURCE if letters else SYMBOLS


def complete_characters(piece: bytes) -> tuple[str, bytes]:
    """The whole characters in a piece of UTF-8, and the bytes of one that its end cuts off.

    Bytes that belong to neither are left out.

    >>> complete_characters("é中".encode()[1:-1])
    ('', b'\\xe4\\xb8')
    """
    characters: list[str] = []
    place = 0
    while place < len(piece):
        size = _size(piece[place])
        unit = piece[place : place + size]
        follows = all(0x80 <= byte < 0xC0 for byte in unit[1:])
        if size and len(unit) < size and follows:
            return "".join(characters), unit
        try:
            characters.append(unit.decode())
        except UnicodeDecodeError:
            size = 1
        place += max(size, 1)
    return "".join(characters), b""


def _text(piece: bytes) -> str:
    return piece.decode(errors="replace")


@lru_cache(maxsize=1 << 16)
def _name(character: str) -> str:
    return unicodedata.name(character, "")


def _size(lead: int) -> int:
    """How many bytes a character has that begins with this one; 0 where none does."""
    if lead < 0x80:
        return 1
    if 0xC2 <= lead < 0xE0:
        return 2
    if 0xE0 <= lead < 0xF0:
        return 3
    return 4 if 0xF0 <= lead < 0xF5 else 0


def _may_be_ideograph(rest: bytes) -> bool:
    """Whether a cut-off character of at least two known bytes can become an ideograph."""
    if len(rest) < 2:
        return False
    size = _size(rest[0])
    code = rest[0] & (0x0F if size == 3 else 0x07)
    for byte in rest[1:]:
        code = code << 6 | byte & 0x3F
    unknown = 6 * (size - len(rest))
    first = max(code << unknown, 0x800 if size == 3 else 0x10000)  # below it: overlong
    last = (code << unknown) + (1 << unknown) - 1
    return any(first <= end and start <= last for start, end in _IDEOGRAPHS)
