"""What an adapter learns from: files of texts and conversations, as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decodery.core.errors import ModelFileError, ParameterError
from decodery.models.bounds import file_bytes, shown
from decodery.models.language import TokenizerLanguage

MAX_TEXT_BYTES = 256 << 20
_HELD_OUT = 10  # one text in so many is not learnt from


@dataclass(frozen=True)
class Example:
    """A prompt, empty for a plain text, and what should be written after it."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Tokens:
    """A text as tokens; those from `first` on are learnt."""

    tokens: tuple[int, ...]
    first: int


def read_texts(files: Sequence[str]) -> list[Example]:
    """The examples of the files, in their order. Raises `ParameterError` where there are none."""
    examples = [example for name in files for example in _file(Path(name).expanduser())]
    if not examples:
        raise ParameterError("texts: the files hold no text; give .jsonl records or lines")
    return examples


def digest(examples: Sequence[Example]) -> str:
    """A fingerprint of all examples."""
    parts = [part for item in examples for part in (item.prompt, item.response)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def split(items: Sequence[Tokens]) -> tuple[list[Tokens], list[Tokens]]:
    """What is learnt from, and one text in ten to measure on; of fewer than ten, all are both."""
    held = [item for number, item in enumerate(items) if number % _HELD_OUT == _HELD_OUT - 1]
    learnt = [item for number, item in enumerate(items) if number % _HELD_OUT != _HELD_OUT - 1]
    return learnt, held or learnt


def tokenised(
    examples: Sequence[Example], language: TokenizerLanguage, most: int
) -> tuple[list[Tokens], int]:
    """The examples as tokens, each closed by the end token, and how many were cut at `most`.

    A prompt goes through the chat template, where the model has one. Raises `ParameterError` for a
    prompt that leaves no room for an answer.
    """
    tokenizer, found, cut = language.tokenizer, [], 0
    end = tokenizer.eos_token
    closing = [] if end is None else [tokenizer.token_id(end)]
    for number, example in enumerate(examples, 1):
        prompt = _prompt(example.prompt, language)
        if prompt:
            response = tokenizer.encode(example.response, add_special=False)
        else:
            response = list(language.encode(example.response))
        tokens = [*prompt, *response, *(token for token in closing if token is not None)]
        first = max(1, len(prompt))
        if first >= min(len(tokens), most):
            raise ParameterError(
                f"texts: text {number} ({shown(example.prompt or example.response)}) has"
                f" {first} tokens before what is learnt; text_tokens is {most}"
            )
        cut += len(tokens) > most
        found.append(Tokens(tuple(tokens[:most]), first))
    return found, cut


def _prompt(text: str, language: TokenizerLanguage) -> list[int]:
    if not text:
        return []
    if language.has_chat:
        return list(language.chat([{"role": "user", "content": text}]))
    return list(language.encode(text))


def _file(path: Path) -> Iterator[Example]:
    try:
        content = file_bytes(path, MAX_TEXT_BYTES).decode()
    except UnicodeDecodeError:
        raise ModelFileError(f"{path}: is not UTF-8 text") from None
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield _record(path, number, line) if path.suffix == ".jsonl" else Example("", line)


def _record(path: Path, number: int, line: str) -> Example:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: line {number} is not JSON: {str(error)[:100]}") from None
    keys = {"prompt", "response"} if isinstance(record, dict) and "prompt" in record else {"text"}
    if not isinstance(record, dict) or not keys <= record.keys():
        raise ModelFileError(
            f"{path}: line {number} has neither prompt and response nor text; give an object"
        )
    values = [record[key] for key in sorted(keys)]
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise ModelFileError(f"{path}: line {number}: {' and '.join(sorted(keys))} must be texts")
    return Example(values[0] if len(values) == 2 else "", values[-1])
