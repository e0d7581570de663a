"""The tokenizer that a GGUF file's metadata describes, as a `tokenizers.Tokenizer`.

A byte-level BPE (`tokenizer.ggml.model` = gpt2) is built here: vocabulary, merges, the split of
text into words that `tokenizer.ggml.pre` names, and the special tokens. The splits are those of
llama.cpp's `llm_tokenizer_bpe` (`llama-vocab.cpp`), which are those of the published
`tokenizer.json` files. transformers' own GGUF conversion is coarser in one place: for `smollm` it
leaves out that digits stand alone, so a run of spaces before a digit comes out differently there.

A SentencePiece vocabulary (`llama`) needs its merges rebuilt from scores, with per-architecture
repairs; transformers has that code, and is imported only for such a file.

A tokenizer in memory is many times what its file holds, so what it will take is estimated first.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from decodery.core.errors import ModelFileError
from decodery.models.bounds import is_panic, one_line, shown
from decodery.models.gguf_file import GgufFile, TextArray

CONTROL, USER_DEFINED = 3, 4

# Memory at the peak of building a tokenizer, measured: a token with a merge takes 670 bytes and
# what their texts take, a byte of a marked token (a state of the automaton that finds it) 91.
_ENTRY_BYTES, _TEXT_FACTOR, _MARKED_FACTOR = 384, 8, 96
# Longer than any token of a published SentencePiece vocabulary. Rebuilding merges takes time that
# grows with the square of it.
_MAX_PIECE_CHARS = 256

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"

_GPT2, _DIGITS = "gpt2", "digits"
PRE_TOKENIZERS: Mapping[str, str] = MappingProxyType(
    {
        "default": _GPT2,
        "gpt-2": _GPT2,
        "smollm": _DIGITS,
        "starcoder": _DIGITS,
        "refact": _DIGITS,
        "command-r": _DIGITS,
        "codeshell": _DIGITS,
        "exaone": _DIGITS,
        "minerva-7b": _DIGITS,
        "llama3": _LLAMA3,
        "llama-v3": _LLAMA3,
        "llama-bpe": _LLAMA3,
        "falcon3": _LLAMA3,
        "qwen2": _QWEN2,
        "deepseek-r1-qwen": _QWEN2,
        "megrez": _QWEN2,
    }
)
# llama.cpp takes a word that is a token as it is, whatever the merges say, for these.
_WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3"})


def tokenizer(file: GgufFile) -> Tokenizer:
    """Build the file's tokenizer. Raises `ModelFileError` for a kind that is not supported."""
    kind = file.text("tokenizer.ggml.model")
    _require_memory(file)
    if kind == "gpt2":
        made = _byte_level(file)
    elif kind == "llama":
        made = _sentencepiece(file)
    else:
        raise ModelFileError(
            f"{file.path}: tokenizer.ggml.model is {shown(kind)}; supported are gpt2 "
            "(byte-level BPE) and llama (SentencePiece)"
        )
    _set_template(made, file)
    return made


def tokens(file: GgufFile) -> list[str]:
    """The vocabulary in id order."""
    return _texts(file, "tokenizer.ggml.tokens")


def count_tokens(file: GgufFile) -> int:
    """The size of the vocabulary, nothing decoded."""
    return len(_array(file, "tokenizer.ggml.tokens"))


def special_id(file: GgufFile, name: str) -> int | None:
    """The id under `tokenizer.ggml.<name>_token_id`, or None where the file has none."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = file.metadata.get(key)
    if value is None:
        return None
    count = count_tokens(file)
    if type(value) is not int or not 0 <= value < count:
        raise ModelFileError(f"{file.path}: {key} is {shown(value)}; the vocabulary has {count}")
    return value


def adds(file: GgufFile, name: str) -> bool:
    """Whether the tokenizer adds its `bos` or `eos` token by itself."""
    # Files from before the flag: llama.cpp adds BOS to SentencePiece vocabularies.
    older = name == "bos" and file.text("tokenizer.ggml.model") == "llama"
    return file.flag(f"tokenizer.ggml.add_{name}_token", older)


def _byte_level(file: GgufFile) -> Tokenizer:
    pre = file.text("tokenizer.ggml.pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise ModelFileError(
            f"{file.path}: tokenizer.ggml.pre is {shown(pre)}; supported: "
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    pieces = tokens(file)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise ModelFileError(f"{file.path}: tokenizer.ggml.tokens holds a token twice")
    merges = _pairs(file, _texts(file, "tokenizer.ggml.merges"))
    try:
        model = BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _WHOLE_WORDS)
    except Exception as error:  # tokenizers raises bare `Exception`s
        raise ModelFileError(
            f"{file.path}: the merges do not fit the tokens: {one_line(error)}"
        ) from None
    made = Tokenizer(model)
    made.pre_tokenizer = _splitter(PRE_TOKENIZERS[str(pre)])
    made.decoder = decoders.ByteLevel()
    _add_marked(made, file, pieces)
    return made


def _splitter(split: str) -> pre_tokenizers.PreTokenizer:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == _GPT2:
        return plain
    if split == _DIGITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _pairs(file: GgufFile, merges: list[str]) -> list[tuple[str, str]]:
    pairs = [tuple(merge.split(" ", 2)) for merge in merges]
    for merge, pair in zip(merges, pairs, strict=True):
        if len(pair) != 2 or "" in pair:
            raise ModelFileError(f"{file.path}: the merge {shown(merge)} is not two tokens")
    return pairs  # pyright: ignore[reportReturnType]


def _add_marked(made: Tokenizer, file: GgufFile, pieces: list[str]) -> None:
    """Keep whole in text what the file marks: control tokens as special, user-defined as plain."""
    kinds = _kinds(file)
    made.add_special_tokens(
        [
            AddedToken(pieces[index], normalized=False, special=True)
            for index in np.flatnonzero(kinds == CONTROL)
        ]
    )
    made.add_tokens(
        [
            AddedToken(pieces[index], normalized=False, special=False)
            for index in np.flatnonzero(kinds == USER_DEFINED)
        ]
    )


def _kinds(file: GgufFile) -> np.ndarray[Any, Any]:
    """What each token is, `(tokens,)`; empty where the file does not say."""
    return _numbers(file, "tokenizer.ggml.token_type", np.empty(0, np.int32))


def _require_memory(file: GgufFile) -> None:
    """Refuse a vocabulary that would take more memory than the file may, before it is decoded."""
    pieces = _array(file, "tokenizer.ggml.tokens")
    merges = file.metadata.get("tokenizer.ggml.merges")
    arrays = [pieces, merges] if isinstance(merges, TextArray) else [pieces]
    what = f"the tokenizer of {len(pieces)} tokens"
    nbytes = sum(_ENTRY_BYTES * len(texts) + _TEXT_FACTOR * texts.nbytes for texts in arrays)
    file.require_memory(nbytes, what)
    kinds = _kinds(file)
    marked = np.flatnonzero((kinds == CONTROL) | (kinds == USER_DEFINED))
    marked_bytes = sum(map(pieces.nbytes_of, marked.tolist()))
    file.require_memory(nbytes + _MARKED_FACTOR * marked_bytes, what)


def _sentencepiece(file: GgufFile) -> Tokenizer:
    # Seconds to import, and only this kind of file needs it.
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer
    except ImportError as error:
        raise ModelFileError(
            f"{file.path}: converting a SentencePiece vocabulary needs transformers 5.23 or "
            f"newer: {error}; or give the model's safetensors folder"
        ) from error
    described: dict[str, Any] = {
        "tokenizer_type": "llama",
        "tokens": tokens(file),
        "scores": _numbers(file, "tokenizer.ggml.scores").tolist(),
        "token_type": _kinds(file).tolist(),
    }
    if "tokenizer.ggml.merges" in file.metadata:
        described["merges"] = _texts(file, "tokenizer.ggml.merges")
    else:
        _require_memory_for_merges(file, described["tokens"])
    try:
        made, _ = convert_gguf_tokenizer(str(file.metadata["general.architecture"]), described)
    except BaseException as error:  # a converter of another package, on data of unknown origin
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelFileError(
            f"{file.path}: the vocabulary cannot be converted: {one_line(error)}"
        ) from error
    return made


def _require_memory_for_merges(file: GgufFile, pieces: list[str]) -> None:
    """Refuse a vocabulary whose tokens are made of each other in too many ways."""
    longest = max(pieces, key=len, default="")
    if len(longest) > _MAX_PIECE_CHARS:
        raise ModelFileError(
            f"{file.path}: the token {shown(longest)} has {len(longest)} characters; at most "
            f"{_MAX_PIECE_CHARS} are allowed without merges"
        )
    known = frozenset(pieces)
    count = sum(
        piece[:cut] in known and piece[cut:] in known
        for piece in pieces
        for cut in range(1, len(piece))
    )
    file.require_memory(
        _ENTRY_BYTES * (len(pieces) + count), f"the tokenizer of {count} implied merges"
    )


def _set_template(made: Tokenizer, file: GgufFile) -> None:
    """Add BOS and EOS around a text where the file says so."""
    pieces = _array(file, "tokenizer.ggml.tokens")
    before, after = special_id(file, "bos"), special_id(file, "eos")
    added: list[dict[str, Any]] = []
    template = ["$A"]
    # Under names of our own: a token's text can mean something else in a template (`a:1`, `$B`).
    if before is not None and adds(file, "bos"):
        added.append({"id": "bos", "ids": [before], "tokens": [pieces[before]]})
        template = ["bos", *template]
    if after is not None and adds(file, "eos"):
        added.append({"id": "eos", "ids": [after], "tokens": [pieces[after]]})
        template = [*template, "eos"]
    made.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=template, special_tokens=added
    )


def _array(file: GgufFile, key: str) -> TextArray:
    value = file.metadata.get(key)
    if not isinstance(value, TextArray):
        raise ModelFileError(f"{file.path}: {key} is missing or not an array of strings")
    return value


def _texts(file: GgufFile, key: str) -> list[str]:
    return _array(file, key).tolist()


def _numbers(
    file: GgufFile, key: str, default: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    """An array with one number for each token; `default` where the file has none."""
    value = file.metadata.get(key)
    if value is None and default is not None:
        return default
    count = count_tokens(file)
    if not isinstance(value, np.ndarray) or len(value) != count:
        raise ModelFileError(
            f"{file.path}: {key} does not give one number for each of the {count} tokens"
        )
    return value
