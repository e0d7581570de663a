"""`decodery methods`: what there is, what it promises, and each method's card."""

from __future__ import annotations

from typing import Annotated

import typer

from decodery.cli.output import out, print_json, table
from decodery.core import registry
from decodery.core.card import GUARANTEES, Method
from decodery.core.params import describe

app = typer.Typer(help="List the methods, or show one.", invoke_without_command=True)


@app.callback()
def list_methods(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every method with its family, guarantee and summary."""
    if context.invoked_subcommand is not None:
        return
    methods = list(registry.methods().values())
    if as_json:
        print_json([_summary(method) for method in methods])
        return
    shown = table("method", "family", "guarantee", "summary")
    for method in sorted(methods, key=lambda item: (item.card.family, item.name)):
        card = method.card
        shown.add_row(f"[bold]{card.name}[/]", card.family, card.guarantee, card.summary)
    out.print(shown)
    out.print()
    for guarantee, meaning in GUARANTEES.items():
        out.print(f"[bold]{guarantee}[/]: {meaning}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A method's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show one method: its card, its parameters, and how it is called."""
    method = registry.get(name)
    if as_json:
        print_json({**_summary(method), "parameters": method.params.model_json_schema()})
        return
    card = method.card
    out.print(f"[bold]{card.name}[/]  {card.kind}, {card.family}")
    out.print(card.summary)
    out.print()
    facts = table("", "")
    facts.show_header = False
    facts.add_row("paper", card.paper)
    facts.add_row("arXiv" if card.arxiv else "source", card.arxiv or card.source or "")
    facts.add_row("guarantee", f"{card.guarantee}: {card.law}")
    facts.add_row("cost", f"{card.calls_per_token} model calls a token")
    if card.needs:
        facts.add_row("needs", ", ".join(card.needs))
    for reduction in card.reductions:
        given = ", ".join(f"{key}={value}" for key, value in reduction.parameters.items())
        facts.add_row("reduces", f"{given} is {reduction.equals}")
    for deviation in card.deviations:
        facts.add_row("deviates", deviation)
    out.print(facts)
    _print_parameters(method)


def _print_parameters(method: Method) -> None:
    described = describe(method.params)
    if not described:
        return
    out.print()
    shown = table("parameter", "default", "allowed", "meaning")
    for info in described:
        default = "required" if info.required else str(info.default)
        meaning = f"{info.help} [{info.unit}]" if info.unit else info.help
        shown.add_row(info.name, default, info.allowed, meaning.replace("[", "\\["))
    out.print(shown)


def _summary(method: Method) -> dict[str, object]:
    card = method.card
    return {
        "name": card.name,
        "kind": card.kind,
        "family": card.family,
        "guarantee": card.guarantee,
        "law": card.law,
        "paper": card.paper,
        "arxiv": card.arxiv,
        "source": card.source,
        "summary": card.summary,
        "needs": list(card.needs),
    }
