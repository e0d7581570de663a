"""The script being written, where a letter is spelt by several tokens."""

from __future__ import annotations

import numpy as np

from decodery.core.sampler import Context
from decodery.methods.sampling.language_gate import Gate, LanguageGate
from decodery.methods.sampling.token_families import (
    CJ,
    LATIN,
    LOW_RESOURCE,
    SYMBOLS,
    families_of,
    family_of,
)

TEXT = "Ночь, 밤 12: ab中\n한글 — שלום! é ok कल"


def spelt(joined: bool) -> list[int | None]:
    """L after every byte of `TEXT`, for a vocabulary of the 256 bytes."""
    pieces = tuple(bytes([byte]) for byte in range(256))
    eye = np.eye(4, dtype=np.float32)
    gate = Gate(eye, eye, families_of(pieces), pieces if joined else ())
    sampler, found = LanguageGate(gate=gate), []
    state = sampler.start(Context((), 0))
    for byte in TEXT.encode():
        state = sampler.advance(state, byte, None, Context((), 0))
        found.append(sampler._language(state))
    return found


def test_letters_that_several_tokens_spell_count() -> None:
    """L is the script of the last letter in what is spelt so far; token by token (a negative
    control) only the letters of one byte are seen."""
    wanted: list[int | None] = []
    for end in range(1, len(TEXT.encode()) + 1):
        whole = TEXT.encode()[:end].decode(errors="ignore")
        scripts = [family_of(letter.encode()) for letter in whole]
        wanted.append(next((item for item in reversed(scripts) if item != SYMBOLS), None))
    assert spelt(joined=True) == wanted
    assert set(wanted) == {None, CJ, LATIN, LOW_RESOURCE}
    assert set(spelt(joined=False)) == {None, LATIN}


def test_a_character_that_breaks_off_is_forgotten() -> None:
    """Half a Hangul letter and then a digit: no letter was written, and none is later."""
    pieces = ("밤".encode()[:2], b"1", "밤".encode()[2:], "밤".encode()[1:], "밤".encode()[:1])
    eye = np.eye(4, dtype=np.float32)
    sampler = LanguageGate(gate=Gate(eye, eye, families_of(pieces), pieces))
    for path, wanted in [((0, 2), LOW_RESOURCE), ((4, 3), LOW_RESOURCE), ((0, 1, 2), None)]:
        state = sampler.start(Context((), 0))
        for token in path:
            state = sampler.advance(state, token, None, Context((), 0))
        assert sampler._language(state) == wanted
