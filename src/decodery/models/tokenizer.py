"""Text to tokens and back, with the `tokenizers` library alone.

transformers takes seconds to import and adds nothing to a folder that has a `tokenizer.json`; it
is imported only for one that has none. `Tokenizer.stream()` turns tokens into text as they arrive,
and what it gives, joined, is exactly what decoding all of them at once gives.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from decodery.core.errors import ModelFileError, PromptError
from decodery.models.bounds import file_bytes, file_size, is_panic, one_line
from decodery.models.weights import read_json

# Above any published tokenizer: the largest have 35 MB.
MAX_TOKENIZER_BYTES = 256 << 20
MAX_TEMPLATE_BYTES = 4 << 20
_CHATML_END = "<|im_end|>"
_MOST_IDS = 2**32  # what tokenizers counts with
_Result = TypeVar("_Result")


class TextStream(Protocol):
    """Text as tokens arrive: the pushes and the flush, joined, are `Tokenizer.decode` of all."""

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is still incomplete."""
        ...

    def flush(self) -> str:
        """The rest, after which the stream is at its beginning again."""
        ...


class Tokenizer:
    """A model's tokenizer and what its folder says about special tokens and the chat template."""

    def __init__(
        self,
        backend: Backend,
        settings: Mapping[str, Any] | None = None,
        eos_ids: Iterable[int] = (),
    ) -> None:
        """`settings` is the content of `tokenizer_config.json`; `eos_ids` end a text besides it."""
        # A folder may ask for a cut or padded length; here a prompt is never changed silently.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._settings = dict(settings or {})
        self._given_eos_ids = frozenset(eos_ids)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a Hugging Face folder; `ModelFileError` where there is none."""
        place = Path(folder)
        settings = _json(place / "tokenizer_config.json")
        template = place / "chat_template.jinja"
        if template.is_file():  # where newer folders keep it; it takes precedence
            settings["chat_template"] = _template(template)
        named = (_json(place / name) for name in ("generation_config.json", "config.json"))
        eos_ids = {index for content in named for index in _ids(content.get("eos_token_id"))}
        return cls(_backend(place), settings, eos_ids)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """The ids of `text`; `add_special` adds what the model wants around it (often BOS).

        Special tokens written in the text become their ids. Raises `PromptError` for text that is
        not valid Unicode, `ModelFileError` where the tokenizer's own rules fail on it.
        """
        try:
            text.encode()
        except (AttributeError, UnicodeEncodeError):
            raise PromptError("the text is not a string of valid Unicode") from None
        return _guarded(
            "the tokenizer cannot encode the text",
            lambda: self._backend.encode(text, add_special_tokens=add_special).ids,
        )

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`, without the special tokens by default.

        An id above the vocabulary (a model's padded rows) has no text. Incomplete UTF-8 becomes
        U+FFFD.
        """
        checked = self._checked(ids)
        return _guarded(
            "the tokenizer cannot decode the tokens",
            lambda: self._backend.decode(checked, skip_special_tokens=skip_special),
        )

    def token(self, index: int) -> str:
        """The vocabulary entry of an id, as it is spelled there; empty for a padded row."""
        return self._backend.id_to_token(*self._checked([index])) or ""

    def piece(self, index: int) -> bytes | None:
        """What a token adds to a text, as bytes; None for a special token and an unused id."""
        spelled = self.token(index)
        if index in self.special_ids or not spelled:
            return None
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            return _bytes(spelled)
        if _is_byte(spelled):
            return bytes([int(spelled[3:5], 16)])
        return spelled.replace("\u2581", " ").encode()

    def pieces(self) -> list[bytes | None]:
        """`piece` of every id below `vocab_size`, quickly where the vocabulary is of bytes."""
        indices = range(self.vocab_size)
        if not isinstance(self._backend.decoder, decoders.ByteLevel):
            return [self.piece(index) for index in indices]
        found: list[bytes | None] = [None] * len(indices)
        known, again = set[int](), set[int]()
        for spelled, index in self._backend.get_vocab(with_added_tokens=True).items():
            if index in known:
                again.add(index)  # two spellings of one id: which one counts, `piece` knows
            elif index in indices:
                known.add(index)
                found[index] = _bytes(spelled) if spelled else None
        for index in again.union(self.special_ids).intersection(indices):
            found[index] = self.piece(index)
        return found

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary entry, or None."""
        try:
            return self._backend.token_to_id(token)
        except (TypeError, UnicodeEncodeError):  # a lone surrogate: in no vocabulary
            return None

    def stream(self, skip_special: bool = True) -> TextStream:
        """A new stream of text for one sequence of tokens."""
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            return _ByteStream(self, skip_special)
        return _PieceStream(self, skip_special)

    @cached_property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included. A model may have more rows than this."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that `decode` leaves out by default."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end a text: those of the folder's files, and ChatML's end of a turn."""
        ends = set(self._given_eos_ids)
        named = [self.eos_token]
        if _CHATML_END in (self.chat_template or ""):
            named.append(_CHATML_END)
        ends |= {index for text in named if text and (index := self.token_id(text)) is not None}
        return frozenset(ends)

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins a text, or None."""
        return self.token_id(self.bos_token) if self.bos_token else None

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text, or None."""
        return _text(self._settings.get("bos_token"))

    @property
    def eos_token(self) -> str | None:
        """The token that `tokenizer_config.json` says ends a text, or None."""
        return _text(self._settings.get("eos_token"))

    @property
    def chat_template(self) -> str | None:
        """The chat template, the default one where there are several, or None."""
        template = self._settings.get("chat_template")
        if isinstance(template, list):
            entries = [entry for entry in template if isinstance(entry, dict)]
            named = [entry for entry in entries if entry.get("name") == "default"]
            template = named[-1].get("template") if named else None
        return template if isinstance(template, str) else None

    def _checked(self, ids: Iterable[int]) -> list[int]:
        checked = list(ids)
        for index in checked:
            if not 0 <= index < _MOST_IDS:
                raise PromptError(
                    f"token id {index} is outside the vocabulary of {self.vocab_size}"
                )
        return checked


class _ByteStream:
    """Byte-level vocabularies: a token is bytes, and UTF-8 decodes incrementally."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        return self._utf8.decode(_bytes(self._tokenizer.token(token)))

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class _PieceStream:
    """Other vocabularies: each token is decoded after the last complete one, since a decoder may
    treat the beginning of a text in its own way (SentencePiece drops a space there).

    Byte tokens (`<0xE4>`) are held until their run ends: a run that is not UTF-8 as a whole
    becomes one U+FFFD for each of its bytes.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset[int]()
        self._before: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        text = self._tokenizer.token(token)
        if token in self._skipped or not text:
            return ""
        self._held.append(token)
        return "" if _is_byte(text) else self._release()

    def flush(self) -> str:
        rest = self._release()
        self._before = []
        return rest

    def _release(self) -> str:
        if not self._held:
            return ""
        known = self._decode(self._before)
        text = self._decode(self._before + self._held)[len(known) :]
        self._before = self._held[-1:]
        self._held = []
        return text

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=False)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


_OUTSIDE = 0xFFFF  # of no byte
_BYTE_OF = dict.fromkeys(range(256), _OUTSIDE) | {
    ord(character): byte for character, byte in _byte_alphabet().items()
}


def _bytes(token: str) -> bytes:
    """A byte-level token's bytes; an added token outside the alphabet is plain UTF-8."""
    try:
        return token.translate(_BYTE_OF).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _backend(folder: Path) -> Backend:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return _slow_backend(folder)
    size = file_size(path)
    if size > MAX_TOKENIZER_BYTES:
        raise ModelFileError(f"{path}: {size} bytes, at most {MAX_TOKENIZER_BYTES} are read")
    return _guarded(f"{path}: is not a tokenizer", lambda: Backend.from_file(str(path)))


def _slow_backend(folder: Path) -> Backend:
    """A folder without `tokenizer.json`: let transformers convert what it has."""
    if not folder.is_dir():
        raise ModelFileError(f"{folder}: is not a folder with a tokenizer")
    from transformers import AutoTokenizer

    def convert() -> Backend:
        made = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        )
        return made.backend_tokenizer

    return _guarded(f"{folder}: has no tokenizer.json, and transformers cannot make one", convert)


def _guarded(problem: str, call: Callable[[], _Result]) -> _Result:
    """What `call` returns; `ModelFileError` where a tokenizer's rules, which a file gave, fail."""
    try:
        return call()
    except BaseException as error:  # tokenizers raises bare `Exception`s, and panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelFileError(f"{problem}: {one_line(error)}") from None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    return read_json(path) if path.exists() else {}


def _template(path: Path) -> str:
    try:
        return file_bytes(path, MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: is not UTF-8: {error.reason}") from None


def _ids(value: object) -> list[int]:
    """One id, a list of ids, or none. What no vocabulary can have (-1, say) is none."""
    values = value if isinstance(value, list) else [value]
    return [index for index in values if type(index) is int and 0 <= index < _MOST_IDS]


def _text(token: object) -> str | None:
    """A special token, written as a string or as an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
