"""The registry: every method of the package and of plug-ins, found once, by name.

A module below `decodery.methods` or `decodery.models.scorers` that defines `METHOD` is a method;
nothing else needs to be edited. Third parties name a `Method` object in the entry-point group
`decodery.methods`. A module that fails to import is an error, not a missing method.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points

from decodery.core.card import Kind, Method
from decodery.core.errors import DecoderyError, UnknownNameError, nearest

_PACKAGES = ("decodery.methods", "decodery.models.scorers")
ENTRY_POINTS = "decodery.methods"


@cache
def methods() -> dict[str, Method]:
    """All methods by name, sorted."""
    found: dict[str, Method] = {}
    for origin, method in [*_own(), *_plugged_in()]:
        if method.name in found:
            raise DecoderyError(f"two methods are called {method.name!r}; one is in {origin}")
        found[method.name] = method
    return dict(sorted(found.items()))


def get(name: str, kind: Kind | None = None) -> Method:
    """The method called `name`; with `kind`, only among those of that kind."""
    known = {key: value for key, value in methods().items() if kind in (None, value.card.kind)}
    if name not in known:
        raise UnknownNameError(f"there is no {kind or 'method'} {name!r}; {nearest(name, known)}")
    return known[name]


def of_kind(kind: Kind) -> list[Method]:
    """All methods of a kind, by name."""
    return [method for method in methods().values() if method.card.kind == kind]


def _own() -> Iterator[tuple[str, Method]]:
    for package_name in _PACKAGES:
        package = importlib.import_module(package_name)
        for info in pkgutil.walk_packages(package.__path__, f"{package_name}."):
            module = importlib.import_module(info.name)
            method = getattr(module, "METHOD", None)
            if isinstance(method, Method) and method.build.__module__ == info.name:
                yield info.name, method


def _plugged_in() -> Iterator[tuple[str, Method]]:
    for point in entry_points(group=ENTRY_POINTS):
        method = point.load()
        if not isinstance(method, Method):
            raise DecoderyError(
                f"entry point {point.value} gives {type(method).__name__}, not Method"
            )
        yield point.value, method
