"""What the commands print: text on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_LONGEST_VALUE = 80  # characters of a text among the parameters of a run
_MOST_DEPTHS = 8  # whose acceptance stands in a line

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def write(text: str) -> None:
    """Text of a model, as it is, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, ensure_ascii=False, allow_nan=False, indent=2, default=str)
    sys.stdout.write("\n")


def cost_line(method: str, seed: int, report: Mapping[str, Any]) -> str:
    """The short report of a run, one line."""
    cached = f" ({report['cached_tokens']} more cached)" if report["cached_tokens"] else ""
    return (
        f"{report['tokens_emitted']} tokens in {report['seconds']:.2f} s"
        f" ({report['tokens_per_second']:.1f}/s), {report['model_calls']} model calls,"
        f" {report['tokens_evaluated']} tokens evaluated{cached}, method {method}, seed {seed}"
    )


def speculation_line(report: Mapping[str, Any]) -> str | None:
    """What drafts came to in a run, one line; None where there were none."""
    tally = report["details"].get("speculation")
    if not tally or not tally["nodes"]:
        return None
    by_depth = [f"{share:.2f}" for share in tally["acceptance_by_depth"]]
    more = " ..." if len(by_depth) > _MOST_DEPTHS else ""
    return (
        f"speculation: {tally['tokens_per_step']:.2f} tokens a step,"
        f" {tally['accepted_per_step']:.2f} of {tally['nodes_per_step']:.2f} drafted accepted"
        f" ({' '.join(by_depth[:_MOST_DEPTHS])}{more} by depth)"
    )


def watched_line(report: Mapping[str, Any]) -> str | None:
    """What was measured beside the drafts, one line; None where nothing was."""
    optimum, departure = (report["details"].get(name) for name in ("optimum", "departure"))
    if optimum and optimum["nodes"]:
        return (
            f"optimum: the rule accepts {optimum['acceptance']:.3f} on average, any exact rule at"
            f" most {optimum['bound']:.3f}, at {optimum['nodes']} nodes"
        )
    if departure and departure["tokens"]:
        return f"departure: {departure['total_variation']:.3f} of total variation a token"
    return None


def parameters_line(parameters: Mapping[str, Mapping[str, Any]]) -> str:
    """Effective parameters that are in force, and where each came from when not the default."""
    shown: list[str] = []
    for name, item in parameters.items():
        if item["from"] == "default" and item["value"] in (None, [], False):
            continue
        origin = "" if item["from"] in ("default", "user") else f" ({item['from']})"
        shown.append(f"{name}={_short(item['value'])}{origin}")
    return ", ".join(shown)


def _short(value: Any) -> Any:
    """A value as it can stand in a line: a text of several lines as one, and not all of a long one.

    >>> _short("two\\n lines")
    'two lines'
    """
    if not isinstance(value, str):
        return value
    line = " ".join(value.split())
    return line if len(line) <= _LONGEST_VALUE else f"{line[: _LONGEST_VALUE - 3]}..."


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the house look."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
