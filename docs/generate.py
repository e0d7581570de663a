"""Writes the generated part of the docs from the registry: one page a method, and their table.

A method's page is its card, its parameters, and, where `docs/notes/<name>.md` exists, that
hand-written paragraph. Run by `make docs`; `--check` fails when a committed page is stale.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from decodery.core import registry
from decodery.core.card import GUARANTEES, Method
from decodery.core.params import ParameterInfo, describe

DOCS = Path(__file__).parent
PAGES = DOCS / "methods"
NOTES = DOCS / "notes"
OPENING = "<!-- methods: written by `make docs` -->"
CLOSING = "<!-- /methods -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a stale page")
    check = parser.parse_args().check
    stale = [path for path, text in pages().items() if not up_to_date(path, text, check)]
    for path in stale:
        print(f"stale: {path.relative_to(DOCS.parent)}; run make docs", file=sys.stderr)
    return 1 if stale else 0


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    methods = list(registry.methods().values())
    made = {PAGES / f"{method.name}.md": page(method) for method in methods}
    made[PAGES / "index.md"] = index(methods)
    made[DOCS / "reproductions.md"] = reproductions()
    root = DOCS.parent
    made[DOCS / "contributing.md"] = (root / "CONTRIBUTING.md").read_text()
    made[root / "README.md"] = with_table((root / "README.md").read_text(), methods)
    return made


def reproductions() -> str:
    """What `decodery reproduce NAME --full --out docs/reproductions/NAME` last wrote."""
    lines = [
        "# Reproductions",
        "",
        "Claims of papers, measured at small scale, with a verdict each.",
    ]
    lines += ["Every section is written from the results of one run of", "", "```"]
    lines += ["decodery reproduce NAME --full --out docs/reproductions/NAME", "```", ""]
    for path in sorted((DOCS / "reproductions").glob("*/results.json")):
        lines += reproduction(json.loads(path.read_text()), path.parent)
    return "\n".join(lines) + "\n"


def reproduction(result: dict[str, Any], folder: Path) -> list[str]:
    lines = [f"## {result['method']}", "", f"{result['title']}."]
    seeds = len(result["seeds"])
    drawn = "1 seed" if seeds == 1 else f"{seeds} seeds"
    lines.append(f"Mode {result['mode']}, {result['model']}, {drawn}; 95 % intervals.")
    lines += ["", f"![{result['title']}](reproductions/{folder.name}/figure.png)", ""]
    lines += ["| | claim | expected | measured | verdict |", "|---|---|---|---|---|"]
    for claim in result["claims"]:
        cells = [claim[name] for name in ("id", "claim", "expected", "measured", "verdict")]
        lines.append("| " + " | ".join(cell(text) for text in cells) + " |")
    note = NOTES / f"reproduction_{result['method']}.md"
    return [*lines, "", note.read_text().strip(), ""] if note.exists() else [*lines, ""]


def with_table(text: str, methods: list[Method]) -> str:
    """The README with its table of methods renewed between the two markers."""
    head, rest = text.split(OPENING, 1)
    _, tail = rest.split(CLOSING, 1)
    rows = ["| method | family | guarantee | in one line |", "|---|---|---|---|"]
    for method in sorted(methods, key=lambda item: (item.card.kind, item.card.family, item.name)):
        card = method.card
        link = f"[`{card.name}`](docs/methods/{card.name}.md)"
        rows.append(f"| {link} | {card.family} | {card.guarantee} | {card.summary} |")
    return head + OPENING + "\n" + "\n".join(rows) + "\n" + CLOSING + tail


def up_to_date(path: Path, text: str, check: bool) -> bool:
    if path.exists() and path.read_text() == text:
        return True
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return not check


def index(methods: list[Method]) -> str:
    lines = ["# Methods", "", "Generated from the methods' cards.", ""]
    lines += ["| method | kind | family | guarantee | summary |", "|---|---|---|---|---|"]
    for method in sorted(methods, key=lambda item: (item.card.kind, item.card.family, item.name)):
        card = method.card
        lines.append(
            f"| [`{card.name}`]({card.name}.md) | {card.kind} | {card.family} |"
            f" {card.guarantee} | {card.summary} |"
        )
    lines += ["", "| guarantee | meaning |", "|---|---|"]
    lines += [f"| {name} | {meaning} |" for name, meaning in GUARANTEES.items()]
    return "\n".join(lines) + "\n"


def page(method: Method) -> str:
    card = method.card
    reference = f"arXiv:{card.arxiv}" if card.arxiv else card.source or ""
    lines = [f"# {card.name}", "", card.summary, ""]
    note = NOTES / f"{card.name}.md"
    if note.exists():
        lines += [note.read_text().strip(), ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| kind | {card.kind}, family {card.family} |"]
    lines += [f"| paper | {card.paper} {reference} |"]
    lines += [f"| guarantee | **{card.guarantee}**: {cell(card.law)} |"]
    lines += [f"| cost | {card.calls_per_token} model calls a token |"]
    if card.kind == "sampler":
        lines += [f"| place in the default chain | {card.place} |"]
    if card.needs:
        lines += [f"| needs | {', '.join(card.needs)} |"]
    for reduction in card.reductions:
        lines += [f"| reduces | `{arguments(reduction.parameters)}` is {reduction.equals} |"]
    lines += [f"| deviates | {cell(deviation)} |" for deviation in card.deviations]
    lines += ["", "## Parameters", "", *parameters(describe(method.params))]
    lines += ["", "## Call it", "", "```", *calls(method), "```"]
    if card.notes:
        lines += ["", "## Notes", "", card.notes]
    return "\n".join(lines) + "\n"


def parameters(described: list[ParameterInfo]) -> list[str]:
    if not described:
        return ["None of its own."]
    lines = ["| parameter | default | allowed | meaning |", "|---|---|---|---|"]
    for info in described:
        default = "required" if info.required else f"`{info.default}`"
        meaning = f"{info.help} ({info.unit})" if info.unit else info.help
        lines.append(f"| `{info.name}` | {default} | {cell(info.allowed)} | {cell(meaning)} |")
    return lines


def calls(method: Method) -> list[str]:
    if method.card.kind == "scorer":
        return [f'decodery run "Name a bird." --method best_of_n --scorer {method.name}']
    first = next(iter(describe(method.params)), None)
    given = named = ""
    for name, value in (method.card.examples[0] if method.card.examples else {}).items():
        given += f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
        named += f", {name}={value!r}"
    if not given and first is not None and not isinstance(first.default, bool) and first.default:
        given = f" --{first.name.replace('_', '-')} {first.default}"
    flag = f'decodery run "Name a bird." --method {method.name}{given}'
    return [flag, f'lm.generate("Name a bird.", method="{method.name}"{named})']


def arguments(values: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def cell(text: str) -> str:
    """Text that can stand in a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
