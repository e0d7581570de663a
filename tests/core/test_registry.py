"""The registry: what is found, what plug-ins may bring, and what is an error."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from decodery.core import registry
from decodery.core.card import Method
from decodery.core.errors import DecoderyError, UnknownNameError
from decodery.core.params import Parameters
from decodery.core.sampler import chain


@pytest.fixture(autouse=True)
def fresh_registry():
    registry.methods.cache_clear()
    yield
    registry.methods.cache_clear()


class NoParams(Parameters):
    pass


def plug_in(monkeypatch, **modules):
    """Pretend that installed packages name `value` in the entry-point group."""
    points = []
    for name, value in modules.items():
        module = types.ModuleType(f"plugin_{name}")
        module.METHOD = value
        monkeypatch.setitem(sys.modules, module.__name__, module)
        points.append(EntryPoint(name, f"{module.__name__}:METHOD", registry.ENTRY_POINTS))
    found = EntryPoints(points)
    monkeypatch.setattr(registry, "entry_points", lambda **select: found.select(**select))


def a_method(name):
    card = replace(registry.get("temperature").card, name=name)
    return Method(card, NoParams, lambda _: chain())


def test_own_methods_are_found_sorted_and_once():
    names = list(registry.methods())
    assert names == sorted(names)
    assert {"sample", "greedy", "beam", "best_of_n", "likelihood", "length"} <= set(names)


def test_of_kind_and_get_agree():
    for kind in ("sampler", "decoder", "scorer"):
        for method in registry.of_kind(kind):
            assert registry.get(method.name, kind) is method


def test_unknown_names_offer_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"there is no method 'gredy'; did you mean 'greedy'\?"
    ):
        registry.get("gredy")
    with pytest.raises(UnknownNameError, match="there is no scorer 'greedy'"):
        registry.get("greedy", "scorer")


def test_a_plug_in_is_a_method_like_any_other(monkeypatch):
    made = a_method("from_outside")
    plug_in(monkeypatch, from_outside=made)
    registry.methods.cache_clear()
    assert registry.get("from_outside", "sampler") is made


def test_a_plug_in_may_not_take_a_name(monkeypatch):
    made = a_method("greedy")
    plug_in(monkeypatch, sneaky=made)
    registry.methods.cache_clear()
    with pytest.raises(
        DecoderyError, match="two methods are called 'greedy'; one is in plugin_sneaky"
    ):
        registry.methods()


def test_a_plug_in_that_is_no_method_is_an_error(monkeypatch):
    plug_in(monkeypatch, wrong="a text")
    with pytest.raises(DecoderyError, match="gives str, not Method"):
        registry.methods()


def test_a_plug_in_that_fails_to_import_is_an_error(monkeypatch):
    points = EntryPoints([EntryPoint("gone", "no_such_module_here:METHOD", registry.ENTRY_POINTS)])
    monkeypatch.setattr(registry, "entry_points", lambda **_: points)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_here"):
        registry.methods()


@pytest.mark.parametrize("text", ["import no_such_module_here", "1 / 0"], ids=["import", "raise"])
def test_a_module_of_a_package_that_fails_is_an_error(monkeypatch, tmp_path, text):
    folder = tmp_path / "broken_methods_package"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "inner" / "__init__.py").write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_PACKAGES", (folder.name,))
    with pytest.raises((ImportError, ZeroDivisionError)):
        registry.methods()
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        monkeypatch.delitem(sys.modules, name)


def test_a_method_is_found_where_it_is_defined_only(monkeypatch, tmp_path):
    """A module that imports another's METHOD does not register it twice."""
    folder = tmp_path / "borrowing_methods_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "borrows.py").write_text(
        "from decodery.methods.autoregressive.greedy import METHOD\n__all__ = ['METHOD']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_PACKAGES", (folder.name,))
    assert registry.methods() == {}
