"""Compiled kernels: one C++ file, compiled for this machine on first use and kept in the cache.

Where there is no compiler, or DECODERY_NATIVE=0, `library()` is None and callers use torch's own
kernels: the results keep the same laws, at another speed. The compiled file is keyed by its source,
the compiler and the processor, so a cache shared by several machines stays right.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from decodery.core.errors import DecoderyError
from decodery.models.cache import cache_folder

SOURCE = Path(__file__).with_name("kernels.cpp")
# No -ffast-math: it would let the compiler reorder sums, which is the one thing that must not be.
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
COMPILE_SECONDS = 120.0

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_PACK = (_POINTER, _POINTER, _SIZE, _SIZE)
_LINEAR = (_POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, ctypes.c_int)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; `why_not()` says why."""
    return _outcome()[0]


def why_not() -> str | None:
    """Why `library()` is None, in words; None when there is a library."""
    return _outcome()[1]


@cache
def _outcome() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("DECODERY_NATIVE", "1") == "0":
        return None, "DECODERY_NATIVE=0"
    compiler = _compiler()
    if compiler is None:
        return None, "no C++ compiler was found (g++, clang++ or $CXX)"
    try:
        return _load(_compiled(compiler)), None
    except (OSError, subprocess.SubprocessError, DecoderyError) as error:
        return None, " ".join(str(error).split())[:300]


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else ["g++", "clang++"])), None)


def _compiled(compiler: str) -> Path:
    """The shared library for this source, compiler and processor, compiled if it is not there."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=COMPILE_SECONDS
    ).stdout
    identity = b"\0".join((SOURCE.read_bytes(), version, _processor(), repr(FLAGS).encode()))
    key = hashlib.sha256(identity).hexdigest()[:24]
    place = cache_folder() / "native" / f"kernels-{key}.so"
    if place.is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        draft = Path(folder) / place.name
        subprocess.run(
            [compiler, *FLAGS, "-o", str(draft), str(SOURCE)],
            capture_output=True,
            check=True,
            timeout=COMPILE_SECONDS,
        )
        draft.replace(place)  # atomic: another process sees a whole file or none
    return place


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
    for kind in ("float32", "bfloat16"):
        for name, arguments in ((f"pack_{kind}", _PACK), (f"linear_{kind}", _LINEAR)):
            function = getattr(found, f"decodery_{name}")
            function.argtypes = arguments
            function.restype = None
    return found
