"""What a terminal and a page both say of a run: short texts from its trace."""

from __future__ import annotations

from decodery.viewer.steps import Step, TracedNode, TracedRun


def headline(run: TracedRun) -> str:
    """Method, model and seed, as far as they are known."""
    about = run.about
    parts = [str(about[name]) for name in ("method", "model") if name in about]
    if "seed" in about:
        parts.append(f"seed {about['seed']}")
    return ", ".join(parts) or "a run"


def parameters(run: TracedRun) -> str:
    """What the run was given, where it is not what any run is given."""
    given = run.about.get("parameters")
    shown = [
        f"{name}={item['value']}"
        for name, item in (given.items() if isinstance(given, dict) else ())
        if isinstance(item, dict) and item.get("from") not in (None, "default", "random")
    ]
    return ", ".join(shown)


def summary(run: TracedRun) -> list[tuple[str, str]]:
    """Name and value of what the run came to."""
    report, tally = run.report, run.speculation
    emitted = sum(len(items) for items in run.sequences.values())
    facts = [("tokens", f"{emitted} in {len(run.steps)} {'steps' if run.streams else 'rounds'}")]
    if tally:
        facts += [
            ("tokens a step", f"{tally['tokens_per_step']:.2f}"),
            (
                "accepted a step",
                f"{tally['accepted_per_step']:.2f} of {tally['nodes_per_step']:.2f} proposed",
            ),
            ("block efficiency", number(tally["block_efficiency"])),
            ("memory-bound speed-up", number(tally["mbsu"])),
        ]
    ends = dict.fromkeys(item.finish_reason for item in run.completions)
    facts.append(("ended by", ", ".join(ends) or "an error"))
    if "seconds" in report:
        facts.append(("seconds", f"{report['seconds']:.2f}"))
    return facts


def models(run: TracedRun) -> list[tuple[str, int, int, float]]:
    """Name, calls, tokens evaluated and seconds of each model."""
    return [
        (name, cost["calls"], cost["tokens_evaluated"], cost["seconds"])
        for name, cost in run.report.get("models", {}).items()
    ]


def depths(run: TracedRun) -> list[tuple[float, int]]:
    """By depth below the end of the text: the share of steps that accepted there, and of how many
    that had a candidate there."""
    tally = run.speculation
    if tally is None:
        return []
    return list(zip(tally["acceptance_by_depth"], tally["offered"], strict=True))


def gained(step: Step) -> str:
    """The tokens that a step added."""
    tokens = sum(len(items) for items in step.emitted.values())
    if not tokens:
        return ""
    accepted = step.count("accepted")
    own = f"{accepted} accepted, {tokens - accepted} drawn" if accepted else ""
    return f"+{several(tokens, 'token')}{f' ({own})' if own else ''}"


def calls(step: Step) -> list[str]:
    """The forwards of a step, model by model."""
    found: dict[str, list[int | float]] = {}
    for call in step.calls:
        share = found.setdefault(call.model, [0, 0, 0.0])
        share[0] += 1
        share[1] += call.nodes
        share[2] += call.seconds
    return [
        f"{name}: {several(count, 'forward')}, {several(nodes, 'node')}, {1000 * seconds:.1f} ms"
        for name, (count, nodes, seconds) in found.items()
    ]


def chance(value: float | None) -> str:
    """A probability in few characters.

    >>> chance(0.5), chance(0.000123), chance(1.0), chance(None)
    ('0.50', '1e-4', '1.00', '?')
    """
    if value is None:
        return "?"
    if value >= 0.001 or value == 0.0:
        return f"{value:.2f}" if value >= 0.01 else f"{value:.3f}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def several(count: float, what: str) -> str:
    return f"{count:g} {what}{'' if count == 1 else 's'}"


def number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def others(step: Step, node: TracedNode, sequence: int) -> list[tuple[int, float]]:
    """The most probable tokens that the step has no node for, where it decided for another one."""
    below = step.below(node, sequence)
    made = {child.token for child in below}
    decided = any(child.taken for child in below)
    return [(token, p) for token, p in node.top if token not in made] if decided else []
