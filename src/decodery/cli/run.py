"""`decodery run`: one prompt, one method, text as it is decoded."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from decodery.cli.output import (
    cost_line,
    err,
    out,
    parameters_line,
    print_json,
    speculation_line,
    watched_line,
    write,
)
from decodery.core.errors import ParameterError, PromptError
from decodery.core.trace import Trace

INTERRUPTED = 130


def run(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads standard input.")],
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--method", "-m", help="A decoder or a sampler; `decodery methods` lists them."
        ),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A hub id, a folder, or a .gguf file; default: the embedded model."),
    ] = None,
    adapter: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Folder of a low-rank adapter to merge into the model."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="auto (as the file has them), int4, int8, bf16 or float32."),
    ] = "auto",
    exact: Annotated[
        bool, typer.Option("--exact", help="Rows bitwise independent of the batch.")
    ] = False,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="cpu or cuda; default: cuda where there is one."),
    ] = None,
    cache_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Tokens the key-value cache holds."),
    ] = None,
    system: Annotated[Optional[str], typer.Option(help="System message.")] = None,  # noqa: UP045
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    trace: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the run's trace (JSON) to this file."),
    ] = None,
    trace_rows: Annotated[int, typer.Option(help="Entries of each row to put into the trace.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No report.")] = False,
    *,
    values: dict[str, Any],
) -> None:
    """Answer a prompt with any method; text streams as it is decoded."""
    from decodery.api.load import load
    from decodery.api.plan import AUTO, make_plan

    values.setdefault("speculation", AUTO)
    make_plan(method, values)  # names and ranges are refused before a model is loaded
    if trace_rows < 0:
        raise ParameterError(f"--trace-rows is {trace_rows}; allowed is 0 or more")
    if trace_rows and trace is None:
        raise ParameterError("--trace-rows needs --trace FILE")
    if trace is not None and not trace.parent.is_dir():
        raise ParameterError(f"--trace {trace}: the folder {trace.parent} does not exist")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise PromptError("the prompt is empty; give some text")
    with err.status("loading the model"):  # shows nothing when not a terminal
        lm = load(
            model,
            weights=weights,  # type: ignore[arg-type]
            exact=exact,
            device=device,
            cache_tokens=cache_tokens,
            adapter=adapter,
        )
    record = None if trace is None else Trace(rows=trace_rows)
    events = lm.stream(text, method=method, system=system, raw=raw, trace=record or False, **values)
    several = events.sequences > 1
    streams = not as_json and not several
    interrupted = False
    try:
        with nullcontext() if streams else err.status("decoding"):
            for event in events:
                if streams:
                    write(event.text)
    except KeyboardInterrupt:
        interrupted = True
        events.close()
    generation = events.generation
    if record is not None and trace is not None:
        record.save(trace)
    if as_json:
        print_json(generation.to_dict(several=several))
    elif several:
        for number, sample in enumerate(generation.samples):
            out.rule(f"{number}: {sample.finish_reason}", align="left")
            write(sample.text + "\n")
    else:
        write("\n")
    if not quiet and not as_json:
        err.print(parameters_line(generation.parameters), style="dim", markup=False)
        report = generation.report.to_dict()
        lines = (
            cost_line(generation.method, generation.seed, report),
            speculation_line(report),
            watched_line(report),
        )
        for line in lines:
            if line is not None:
                err.print(line, style="dim", markup=False)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
