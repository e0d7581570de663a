"""`decodery new-method NAME`: the two files of a new method, working and under contract."""

from __future__ import annotations

import keyword
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import typer

from decodery.cli.output import out
from decodery.core import registry
from decodery.core.errors import DecoderyError, ParameterError

_TEMPLATES = Path(__file__).parent / "templates"
_FAMILIES = {"sampler": "sampling", "decoder": "search", "scorer": "scorers"}


def new_method(
    name: Annotated[str, typer.Argument(help="The method's name, lower case with underscores.")],
    kind: Annotated[
        Literal["sampler", "decoder", "scorer"], typer.Option(help="What the method is.")
    ] = "sampler",
    family: Annotated[
        str | None, typer.Option(help="The folder below methods/; default: by kind.")
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="The root of a decodery checkout.", show_default=False)
    ] = Path(),
) -> None:
    """Write a method file and its test, ready to be filled in."""
    _check_name(name, "name")
    family = family or _FAMILIES[kind]
    _check_name(family, "family")
    if kind == "scorer":
        home = folder / "src/decodery/models/scorers"
        module = f"decodery.models.scorers.{name}"
    else:
        home = folder / "src/decodery/methods" / family
        module = f"decodery.methods.{family}.{name}"
    if not (folder / "src/decodery/methods").is_dir():
        raise ParameterError(
            f"{folder.resolve()} is no decodery checkout; run this in one, or give --folder"
        )
    if name in registry.methods():
        raise ParameterError(f"there is a method {name!r} already")
    method_file, test_file = home / f"{name}.py", folder / "tests/methods" / f"test_{name}.py"
    for path in (method_file, test_file):
        if path.exists():
            raise ParameterError(f"{path} exists; nothing was written")
    words = {
        "name": name,
        "Name": "".join(part.capitalize() for part in name.split("_")),
        "family": family,
        "module": module,
    }
    _write(home / "__init__.py", "", keep=True)
    _write(method_file, _filled(f"{kind}.py.txt", words))
    _write(test_file, _filled(f"test_{kind}.py.txt", words))
    out.print(f"{method_file}\n{test_file}", markup=False)
    out.print(f"Now: pytest {test_file} tests/contract", markup=False)


def _check_name(name: str, what: str) -> None:
    if not name.isidentifier() or not name.islower() or keyword.iskeyword(name):
        raise ParameterError(
            f"{what} is {name!r}; allowed are lower-case letters, digits and underscores"
        )


def _filled(template: str, words: dict[str, str]) -> str:
    return Template((_TEMPLATES / template).read_text()).substitute(words)


def _write(path: Path, text: str, *, keep: bool = False) -> None:
    if keep and path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise DecoderyError(f"{path} cannot be written: {error.strerror}") from None
