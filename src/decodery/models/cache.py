"""The folder of converted models: where it is, what is in it, and how an entry gets there whole.

An entry is built in a folder beside its place and renamed into it, so a reader sees all of it or
none. Two processes may build the same entry together; the first to rename wins and the other takes
the winner's. A manifest, written last, names every file with its size: a folder without it, or
whose files differ from it, is not taken for an entry and is built again.

The folder is `$DECODERY_CACHE`, else `$XDG_CACHE_HOME/decodery`, else `~/.cache/decodery`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decodery.core.errors import CacheFolderError, ParameterError, nearest

MANIFEST = "decodery.json"
_BUILDING = ".building-"
_ABANDONED_AFTER_S = 3600.0


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One converted model; `created` is seconds since 1970, `source` the file it was made from."""

    name: str
    path: Path
    nbytes: int
    source: str
    created: float


def cache_folder() -> Path:
    """Where converted models are kept. It need not exist yet."""
    named = os.environ.get("DECODERY_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says to ignore a relative path.
    base = shared if shared.is_absolute() else Path("~/.cache").expanduser()
    return base / "decodery"


def cache_entries() -> list[CacheEntry]:
    """The whole entries, by name."""
    found = (_entry(path) for path in _folders() if not path.name.startswith(_BUILDING))
    return sorted((entry for entry in found if entry), key=lambda entry: entry.name)


def clear_cache(name: str | None = None) -> int:
    """Remove one entry, or with None every entry and unfinished build; returns the bytes freed.

    Raises `ParameterError` for a name that is not an entry and `CacheFolderError` where removing
    fails.
    """
    paths = list(_folders())
    if name is not None:
        names = [path.name for path in paths]
        if name not in names:
            raise ParameterError(f"no cache entry {name!r}; {nearest(name, names)}")
        paths = [path for path in paths if path.name == name]
    try:
        return sum(_remove(path) for path in paths)
    except OSError as error:
        raise _unusable(error) from error


def cached(name: str, source: str, build: Callable[[Path], None]) -> Path:
    """The folder of entry `name`, built by `build(empty folder)` if it is not there.

    Raises `CacheFolderError` where the cache cannot be written. An interrupted or failed build
    leaves nothing behind; one that was killed leaves a folder that is never read and is removed by
    a later build.
    """
    try:
        place = _converted() / name
        if _manifest(place) is not None:
            return place
        return _build(place, source, build)
    except OSError as error:
        raise _unusable(error) from error


def require_room(folder: Path, nbytes: int) -> None:
    """Raise `CacheFolderError` where the disk of `folder` has fewer than `nbytes` free."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise CacheFolderError(
            f"{folder.parent} has {free >> 20} MiB free and the converted model needs "
            f"{nbytes >> 20}; set DECODERY_CACHE to a folder with room"
        )


def _build(place: Path, source: str, build: Callable[[Path], None]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned()
    draft = place.parent / f"{_BUILDING}{os.getpid()}-{secrets.token_hex(4)}"
    draft.mkdir()
    try:
        build(draft)
        _write_manifest(draft, source)
        _move_in(draft, place)
    finally:  # after Ctrl-C too; nothing is left here once the draft has moved
        shutil.rmtree(draft, ignore_errors=True)
    return place


def _move_in(draft: Path, place: Path) -> None:
    """Rename `draft` to `place`, unless another process has put a whole entry there first."""
    while True:
        try:
            draft.rename(place)
            return
        except OSError:
            if _manifest(place) is not None:
                return
            if not place.exists():
                raise
        # What is there is not whole: move it away first, since a rename needs the place empty.
        aside = place.parent / f"{_BUILDING}{os.getpid()}-{secrets.token_hex(4)}"
        place.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _converted() -> Path:
    # A folder of our own inside, so that clearing can never touch what else lies in a folder the
    # user named.
    return cache_folder() / "converted"


def _folders() -> Iterator[Path]:
    """Entries and unfinished builds: folders that hold a manifest or carry our prefix."""
    try:
        paths = sorted(_converted().iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _unusable(error) from error
    for path in paths:
        if path.name.startswith(_BUILDING) or (path / MANIFEST).is_file():
            yield path


def _write_manifest(folder: Path, source: str) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    content = {"source": source, "created": time.time(), "files": sizes}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, if every file it names is there in its full size."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = content["files"].items()
        whole = all((folder / name).stat().st_size == size for name, size in sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return content if whole else None


def _entry(path: Path) -> CacheEntry | None:
    content = _manifest(path)
    if content is None:
        return None
    source, created = str(content.get("source", "")), float(content.get("created", 0.0))
    return CacheEntry(path.name, path, _size(path), source, created)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _remove(folder: Path) -> int:
    freed = _size(folder)
    # Renamed first: a reader that comes meanwhile finds no entry rather than half of one.
    aside = folder.parent / f"{_BUILDING}{os.getpid()}-{secrets.token_hex(4)}"
    folder.rename(aside)
    shutil.rmtree(aside)
    return freed


def _remove_abandoned() -> None:
    """Remove drafts of processes that were killed, told by their age."""
    for path in _folders():
        try:
            old = time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S
        except FileNotFoundError:  # its owner has just finished
            continue
        if old and path.name.startswith(_BUILDING):
            shutil.rmtree(path, ignore_errors=True)


def _unusable(error: OSError) -> CacheFolderError:
    return CacheFolderError(
        f"the cache folder {cache_folder()} cannot be used: {error.strerror or error}; "
        "set DECODERY_CACHE to a folder you can write"
    )
