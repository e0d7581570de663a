"""A run in the terminal: its text, each step as a tree of proposals, and what it came to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from decodery.viewer.facts import (
    calls,
    chance,
    depths,
    gained,
    headline,
    models,
    others,
    parameters,
    summary,
)
from decodery.viewer.steps import FATES, Emitted, Fate, Step, TracedNode, TracedRun

STYLES: dict[Fate, str] = {
    "accepted": "bold green",
    "chosen": "bold green",
    "drawn": "bold cyan",
    "refused": "red",
    "unreached": "dim",
    "prompt": "dim",
}
MARKS: dict[Fate, str] = {
    "accepted": "✓",
    "chosen": "✓",
    "drawn": "+",
    "refused": "✗",
    "unreached": "·",
    "prompt": "",
}
_BAR = 20  # characters of a whole share
_CONTEXT = 40  # characters of the text before a step
_TOKEN = 24  # characters of a token, at most


def whole(run: TracedRun, steps: Sequence[Step]) -> Iterator[RenderableType]:
    """Everything about a run, part by part, with these of its steps."""
    yield Text(headline(run), style="bold")
    given = parameters(run)
    if given:
        yield Text(given, style="dim")
    yield prompt(run)
    yield from texts(run)
    yield legend(steps)
    for step in steps:
        yield Text()
        yield drawing(run, step)
    yield Text()
    yield totals(run)


def prompt(run: TracedRun) -> Text:
    """The end of the prompt, on one line."""
    text = str(run.about.get("prompt") or "".join(map(run.text, run.prompt)))
    shown = " ".join(text.split())
    cut = f"... {shown[-200:]}" if len(shown) > 200 else shown
    return Text(f"prompt of {len(run.prompt)} tokens: {cut}", style="dim")


def texts(run: TracedRun) -> Iterator[Text]:
    """The answers, each token in the colour of where it came from."""
    sequences = run.sequences
    for number, items in sequences.items():
        text = Text(f"{number}: " if len(sequences) > 1 else "", style="dim")
        text.append_text(_coloured(run, items))
        yield Text()
        yield text


def _coloured(run: TracedRun, items: Iterable[Emitted]) -> Text:
    text = Text()
    for item in items:
        text.append(_clean(run.text(item.token), keep="\n"), style=STYLES[item.fate])
    return text


def legend(steps: Sequence[Step]) -> Text:
    """What the marks and colours mean, of those that occur."""
    fates = {node.fate for step in steps for node in step.nodes}
    text = Text()
    for fate in FATES:
        if fate in fates:
            text.append(f"\n{MARKS[fate]} {FATES[fate]}", style=STYLES[fate])
    if any(node.q is not None for step in steps for node in step.nodes):
        text.append("\np: probability under the policy; q: under the draft", style="dim")
    return text


def drawing(run: TracedRun, step: Step) -> RenderableType:
    """A step: what it came to, and a tree below each end of text that it worked on."""
    head = Text(f"{'step' if run.streams else 'round'} {step.number}", style="bold")
    head.append(f"  {gained(step)}".rstrip(), style="not bold")
    for part in calls(step):
        head.append(f"\n  {part}", style="not bold dim")
    for scores in step.scores:
        shown = " ".join(f"{value:.3g}" for value in scores.values if value is not None)
        head.append(f"\n  {scores.scorer}: {shown}", style="not bold dim")
    several = len({sequence for _, sequence in step.tops}) > 1
    trees = [_tree(run, step, top, sequence, several) for top, sequence in step.tops]
    return Group(head, *(Padding(tree, (0, 0, 0, 2), expand=False) for tree in trees))


def _tree(run: TracedRun, step: Step, top: TracedNode, sequence: int, numbered: bool) -> Tree:
    before = f"{sequence}: " if numbered else ""
    end = _clean(run.context(top, _CONTEXT))
    tree = Tree(_line(f"{before}…{end}", "dim"), guide_style="dim")
    waiting = [(tree, top)]
    while waiting:
        branch, node = waiting.pop()
        waiting += [(branch.add(_label(run, child)), child) for child in step.below(node, sequence)]
        for token, p in others(step, node, sequence):
            branch.add(_line(f"  {_quoted(run.text(token))}  p {chance(p)}", "dim"))
    return tree


def _label(run: TracedRun, node: TracedNode) -> Text:
    text = _line(f"{MARKS[node.fate]} {_quoted(run.text(node.token))}", STYLES[node.fate])
    if node.p is not None:
        text.append(f"  p {chance(node.p)}", style="not bold default")
    if node.q is not None:
        text.append(f"  q {chance(node.q)}", style="not bold dim default")
    return text


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def totals(run: TracedRun) -> RenderableType:
    """What the run came to, in numbers."""
    facts = _table("", "")
    for name, value in summary(run):
        facts.add_row(name, value)
    parts: list[RenderableType] = [facts]
    found = depths(run)
    if found:
        shares = _table("accepted at depth", "", "of steps")
        for depth, (share, offered) in enumerate(found, 1):
            bar = Text("█" * round(share * _BAR), style="green")
            bar.append("░" * (_BAR - round(share * _BAR)), style="dim")
            shares.add_row(f"{depth}", Text.assemble(bar, f" {share:.2f}"), f"{offered}")
        parts += [Text(), shares]
    costs = _table("model", "calls", "tokens evaluated", "seconds")
    for name, count, tokens, seconds in models(run):
        costs.add_row(name, f"{count}", f"{tokens}", f"{seconds:.2f}")
    return Group(*parts, Text(), costs)


def _table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def _quoted(text: str) -> str:
    shown = _clean(text)
    return f"“{shown if len(shown) <= _TOKEN else shown[: _TOKEN - 1] + '…'}”"


def _clean(text: str, keep: str = "") -> str:
    """A text in which nothing can move the cursor; line ends and tabs are shown.

    >>> _clean("a\\n") + _clean(chr(27))
    'a⏎\\\\x1b'
    """
    return "".join(item if item in keep or item.isprintable() else _shown(item) for item in text)


def _shown(item: str) -> str:
    known = {"\n": "⏎", "\t": "⇥", "\xa0": "⍽"}
    return known.get(item) or item.encode("unicode_escape").decode()
