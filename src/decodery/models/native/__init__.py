"""Compiled kernels: C++ compiled for this machine on first use and kept in the cache.

`kernels.cpp` is the Llama family's forward pass; `matrix.h` the linear layers, `attention.h` the
attention over token trees, `tiles.cpp` the inner loops of both, `simd.h` the arithmetic. Where
there is no compiler, or DECODERY_NATIVE=0, `library()` is None and callers use torch's own kernels:
the results keep the same laws, at another speed. DECODERY_NATIVE=portable leaves this processor's
special instructions out, as on one that is not known here. The compiled file is keyed by its
sources, the compiler, its flags and the processor, so a cache shared by several machines stays
right.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from decodery.core.errors import DecoderyError, ParameterError
from decodery.models.cache import cache_folder
from decodery.models.native.structures import Cache, Forest, Matrix, Stack

FOLDER = Path(__file__).parent
UNITS = ("kernels.cpp", "tiles.cpp")  # compiled side by side
HEADERS = ("attention.h", "crew.h", "matrix.h", "simd.h")
# Sums have one order, and products are fused where the source says so: nothing is left to choice.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-pthread", "-fPIC")
COMPILE_SECONDS = 120.0
# DECODERY_NATIVE -> more flags; None: no kernels.
CHOICES: dict[str, tuple[str, ...] | None] = {
    "0": None,
    "1": (),
    "portable": ("-DDECODERY_GENERIC",),
}

_COMPILING = threading.Lock()

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_MATRIX = ctypes.POINTER(Matrix)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {  # name -> result and arguments
    "instructions": (ctypes.c_char_p, ()),
    "packed_bytes": (_LONG, (_MATRIX,)),
    "pack_floats": (None, (_MATRIX, _POINTER, _POINTER)),
    "pack_codes": (None, (_MATRIX, _POINTER, _POINTER, _POINTER, _POINTER)),
    "linear": (_INT, (_MATRIX, _POINTER, _POINTER, _LONG, _INT)),
    "hidden": (
        _INT,
        (ctypes.POINTER(Stack), ctypes.POINTER(Forest), ctypes.POINTER(Cache), _POINTER, _INT),
    ),
}


def start() -> None:
    """Begin compiling in the background, where it is not done, for `library()` to find it ready."""

    def begin() -> None:
        with suppress(DecoderyError):  # `library()` says it again to whoever asks
            library()

    threading.Thread(target=begin, daemon=True).start()


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; `why_not()` says why.

    Raises `ParameterError` for an unknown value of DECODERY_NATIVE.
    """
    return _outcome()[0]


def why_not() -> str | None:
    """Why `library()` is None, in words; None when there is a library."""
    return _outcome()[1]


def instructions() -> str | None:
    """What the kernels use of this processor, such as AVX2 or portable; None without a library."""
    found = library()
    return None if found is None else found.decodery_instructions().decode()


@cache
def _outcome() -> tuple[ctypes.CDLL | None, str | None]:
    more = _chosen_flags()
    if more is None:
        return None, "DECODERY_NATIVE=0"
    compiler = _compiler()
    if compiler is None:
        return None, "no C++ compiler was found (g++, clang++ or $CXX)"
    try:
        return _load(_compiled(compiler, (*FLAGS, *more))), None
    except (OSError, subprocess.SubprocessError, DecoderyError) as error:
        return None, " ".join(str(error).split())[:300]


def _chosen_flags() -> tuple[str, ...] | None:
    """What DECODERY_NATIVE adds to the flags; None where it asks for no kernels."""
    value = os.environ.get("DECODERY_NATIVE", "1")
    if value not in CHOICES:
        raise ParameterError(
            f"the environment variable DECODERY_NATIVE is {value!r}; allowed are 0 (no compiled"
            " kernels), 1 (for this processor) and portable (without its special instructions)"
        )
    return CHOICES[value]


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else ["g++", "clang++"])), None)


def _compiled(compiler: str, flags: tuple[str, ...]) -> Path:
    """The library for these sources, compiler, flags and processor; compiled if it is not there."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=COMPILE_SECONDS
    ).stdout
    sources = ((FOLDER / name).read_bytes() for name in (*UNITS, *HEADERS))
    identity = b"\0".join((*sources, version, _processor(), repr(flags).encode()))
    key = hashlib.sha256(identity).hexdigest()[:24]
    place = cache_folder() / "native" / f"kernels-{key}.so"
    with _COMPILING:
        if not place.is_file():
            _compile(compiler, flags, place)
    return place


def _compile(compiler: str, flags: tuple[str, ...], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        objects = [str(Path(folder) / f"{unit}.o") for unit in UNITS]
        commands = [
            (compiler, *flags, "-c", "-o", made, str(FOLDER / unit))
            for unit, made in zip(UNITS, objects, strict=True)
        ]
        with ThreadPoolExecutor() as pool:
            list(pool.map(_run, commands))
        draft = Path(folder) / place.name
        _run((compiler, *flags, "-shared", "-o", str(draft), *objects))
        draft.replace(place)  # atomic: another process sees a whole file or none


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, capture_output=True, check=True, timeout=COMPILE_SECONDS)


def _processor() -> bytes:
    """What decides the instructions that -march=native may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})).encode()


def _load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(found, f"decodery_{name}")
        function.restype, function.argtypes = result, arguments
    return found
