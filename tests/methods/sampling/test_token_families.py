"""Script families of tokens: the rules one by one, and cut-off characters against all that they
may become."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from decodery.methods.sampling.token_families import (
    CJ,
    LATIN,
    LOW_RESOURCE,
    NAMES,
    SYMBOLS,
    complete_characters,
    families_of,
    family_of,
)


@pytest.mark.parametrize(
    ("piece", "family"),
    [
        ("中", CJ),
        ("カ", CJ),
        ("ｶ", CJ),  # half-width
        ("ひ", CJ),
        ("한", LOW_RESOURCE),
        ("ab", LATIN),
        (" the", LATIN),
        ("é", LATIN),
        ("ﬁ", LATIN),
        ("a中", CJ),
        ("中я", CJ),
        ("aя", LATIN),
        (" 12,", SYMBOLS),
        ("", SYMBOLS),
        ("\n\n", SYMBOLS),
        ("😀", SYMBOLS),
        ("。", SYMBOLS),
        ("שלום", LOW_RESOURCE),
        ("я", LOW_RESOURCE),
        ("μ", LOW_RESOURCE),
        (b"\xe4\xb8", CJ),  # U+4E00..4E3F
        (b"a\xe4\xb8", CJ),
        (b"\xb8\xad\xe4\xb8", CJ),
        (b"\xe4", SYMBOLS),  # a lead byte alone
        (b"\xd7", SYMBOLS),  # of Hebrew
        (b"\xb8\xad", SYMBOLS),  # the end of a character
        (b"a\xe4", LATIN),
        ("я".encode() + b"\xd1", LOW_RESOURCE),
        (b"\xe3\x81", SYMBOLS),  # Hiragana, no ideographs
        (b"\xe3\x90", CJ),  # U+3400, extension A
        (b"\xf0\xa0", CJ),  # U+20000..20FFF
        (b"\xf0\xa0\x80", CJ),
        (b"\xf0\x9f", SYMBOLS),  # emoji
        (b"\xf0\x9f\x98", SYMBOLS),
        (b"\xed\xa0", SYMBOLS),  # surrogates
        (b"\xe0\x80", SYMBOLS),  # overlong
        (b"\xff\xfe", SYMBOLS),
        (None, SYMBOLS),
    ],
    ids=repr,
)
def test_the_rules(piece: str | bytes | None, family: int) -> None:
    raw = piece.encode() if isinstance(piece, str) else piece
    assert NAMES[family_of(raw)] == NAMES[family]


def _becomes(rest: bytes, size: int) -> bool:
    """Whether some end makes these bytes an assigned ideograph."""
    ends = [b""]
    for _ in range(size - len(rest)):
        ends = [end + bytes([byte]) for end in ends for byte in range(0x80, 0xC0)]
    for end in ends:
        try:
            name = unicodedata.name((rest + end).decode(), "")
        except UnicodeDecodeError:
            continue
        if name.startswith(("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH")):
            return True
    return False


def test_cut_off_characters_are_cj_where_an_end_makes_them_an_ideograph() -> None:
    """Every three-byte prefix, and of the longer ones those in planes 1 to 3 (four-byte ones with
    two known bytes: 48 of them, 4096 ends each)."""
    for lead in range(0xE0, 0xF0):
        for second in range(0x80, 0xC0):
            rest = bytes([lead, second])
            assert (family_of(rest) == CJ) == _becomes(rest, 3), rest
    for second in range(0x90, 0xB1):  # up to U+30FFF: extension H is younger than some Pythons
        rest = bytes([0xF0, second])
        assert (family_of(rest) == CJ) == _becomes(rest, 4), rest
        assert family_of(rest[:1]) == SYMBOLS


def test_complete_characters_and_the_cut_one_are_the_text() -> None:
    text = "aя中😀é".encode()
    for start in range(len(text) + 1):
        for end in range(start, len(text) + 1):
            whole, rest = complete_characters(text[start:end])
            joined = whole.encode() + rest
            assert text[start:end].endswith(joined)
            dropped = text[start : end - len(joined)]
            assert all(0x80 <= byte < 0xC0 for byte in dropped)
            assert len(dropped) < 4


def test_every_token_has_one_family() -> None:
    pieces = (None, b"a", "я".encode(), b" 1", "中".encode(), b"\xe4")
    families = families_of(pieces)
    members = np.stack([families == family for family in range(len(NAMES))])
    assert (members.sum(0) == 1).all()
    assert families.tolist() == [SYMBOLS, LATIN, LOW_RESOURCE, SYMBOLS, CJ, SYMBOLS]
    assert not families.flags.writeable


def test_choices_are_symbols_only_when_asked_for() -> None:
    pieces = tuple(text.encode() for text in ("A", " G", "assistant", "H", "a", " AB", "中"))
    assert families_of(pieces).tolist() == [LATIN] * 6 + [CJ]
    assert families_of(pieces, True).tolist() == [SYMBOLS] * 3 + [LATIN] * 3 + [CJ]


def test_the_embedded_models_vocabulary(default_lm) -> None:
    """Golden counts of its 49,152 tokens, and single ones."""
    language = default_lm.language
    families = families_of(tuple(language.pieces()))
    assert np.bincount(families).tolist() == [194, 47227, 1532, 199]
    for text, family in (("的", CJ), (" the", LATIN), ("!", SYMBOLS), ("и", LOW_RESOURCE)):
        (token,) = language.encode(text)
        assert families[token] == family
    specials = [token for token, piece in enumerate(language.pieces()) if piece is None]
    assert len(specials) >= 3
    assert (families[specials] == SYMBOLS).all()
